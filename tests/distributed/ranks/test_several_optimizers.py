"""A model with an optimizer for each part on several ranks: what is averaged, and what is broadcast."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from distlr.errors import ConfigurationError, DistributionError


class Pair(keras.Model):
    """A GAN's way: `compile` gives Keras no optimizer, and each part has its own."""

    def __init__(self, job, optimizers, mean=False):
        super().__init__()
        self.parts = [keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(job.rank)) for _ in "ab"]
        for part in self.parts:
            part.build((None, 2))
        self.built = True
        self.optimizers, self.mean = list(optimizers), mean

    def train_step(self, data):
        for part, optimizer in zip(self.parts, self.optimizers, strict=True):
            with tf.GradientTape() as tape:
                values = part(data)
                loss = tf.reduce_mean(values**2) if self.mean else keras.losses.MeanSquaredError()(data[:, :1], values)
            gradients = tape.gradient(loss, part.trainable_variables)
            optimizer.apply_gradients(zip(gradients, part.trainable_variables, strict=True))
        return {"loss": loss}


def build(job, adopted=2, mean=False):
    batch = job.batch(per_replica=2, base_batch=2 * job.replicas, samples_per_epoch=8 * job.size)
    with job.scope():
        optimizers = [keras.optimizers.SGD(0.1, momentum=0.9) for _ in "ab"]
        optimizers = [job.optimizer(each, batch) if i < adopted else each for i, each in enumerate(optimizers)]
        model = Pair(job, optimizers, mean)
        model.compile()
    x = np.arange(16 * job.size, dtype="float32").reshape(-1, 2) / 16
    return model, job.shard(tf.data.Dataset.from_tensor_slices(x), batch, seed=0, shuffle=False), x


def test_two_optimizers_train_one_model_on_all_ranks(job, same_on_all) -> None:
    """The result is that of one device with the batch of all ranks, from rank 0's weights."""
    model, data, x = build(job)
    model.fit(data, epochs=2, shuffle=False, callbacks=job.callbacks(), verbose=0)
    same_on_all([weight.numpy().tolist() for weight in model.weights])
    assert [optimizer.samples_seen for optimizer in model.optimizers] == [16 * job.size] * 2
    kernel, bias, slots = np.zeros((2, 1)), np.zeros(1), [np.zeros((2, 1)), np.zeros(1)]
    for _ in range(2):
        for step in range(4):
            # Each rank has every size-th sample, so a step has the next ones in order.
            part = x[step * 2 * job.size : (step + 1) * 2 * job.size].astype("float64")
            error = part @ kernel + bias - part[:, :1]
            for slot, gradient in zip(slots, (2 * part.T @ error / len(part), 2 * error.mean(axis=0)), strict=True):
                slot[...] = 0.9 * slot - 0.1 * gradient
            kernel, bias = kernel + slots[0], bias + slots[1]
    for part in model.parts:
        np.testing.assert_allclose(part.get_weights()[0], kernel, rtol=1e-4)


def test_a_plain_one_among_them_is_refused_as_it_is_applied(job, spans) -> None:
    model, data, _ = build(job, adopted=1)
    if spans:
        model.fit(data, shuffle=False, callbacks=job.callbacks(), verbose=0)  # the strategy averages
        return
    with pytest.raises(DistributionError, match=r"Nothing averages the gradients of 'sgd"):
        model.fit(data, shuffle=False, callbacks=job.callbacks(), verbose=0)


def test_a_mean_of_one_s_own_is_right_over_horovod_and_refused_on_one_strategy(job, spans) -> None:
    model, data, _ = build(job, mean=True)
    if spans:
        with pytest.raises(ConfigurationError, match=rf"each update is {job.size} times as large"):
            model.fit(data, shuffle=False, callbacks=job.callbacks(), verbose=0)
    else:
        model.fit(data, shuffle=False, callbacks=job.callbacks(), verbose=0)
