"""Features of a strategy that spans the ranks: its adaptation to Keras, and TensorFlow's own ways to use it."""

from __future__ import annotations

import os

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr
from distlr.errors import ConfigurationError
from distlr.strategies.workers import MultiWorker


def test_keras_still_needs_the_adapted_strategy(job, simple, local_data) -> None:
    """The day this fails, `MultiWorker.reduce` can go."""
    model = simple(0.1)
    job.strategy.__class__ = tf.distribute.MultiWorkerMirroredStrategy
    try:
        with pytest.raises((TypeError, ValueError)):
            model.fit(local_data((np.ones((4, 2), "float32"), np.ones((4, 1), "float32")), 2), verbose=0, shuffle=False)
    finally:
        job.strategy.__class__ = MultiWorker


def test_a_strategy_of_ones_own_is_adapted_and_connected(job, same_on_all) -> None:
    job.strategy.__class__ = tf.distribute.MultiWorkerMirroredStrategy
    again = distlr.init(strategy=job.strategy)
    assert type(job.strategy) is MultiWorker
    assert (again.backend, again.rank, again.size, again.replicas) == ("multi-worker", job.rank, job.size, job.size)
    assert again.communicator.gather_json(job.rank, tag="ranks") == list(range(job.size))


def test_data_that_is_not_sharded_yet_is_by_tensorflow(job, simple, same_on_all) -> None:
    model = simple(0.1)
    x = np.arange(16, dtype="float32").reshape(8, 2) / 16
    model.fit(x, x[:, :1], batch_size=4, epochs=2, verbose=0, shuffle=False, callbacks=job.callbacks())
    same_on_all([weight.numpy().tolist() for weight in model.weights])
    assert int(model.optimizer.iterations.numpy()) == 4


def test_whole_arrays_are_fed_by_the_whole_batch_as_the_message_says(job, same_on_all) -> None:
    """The strategy divides the data of `fit`, so that `batch_size=batch.local_batch` would be a part of each batch."""
    x = np.arange(48, dtype="float32").reshape(24, 2) / 48
    batch = job.batch(per_replica=2, base_batch=2, samples_per_epoch=24)
    with job.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="zeros")])
        model.compile(job.optimizer(keras.optimizers.SGD(0.01), batch), "mse")

    def fit(batch_size):
        return model.fit(
            x, x[:, :1], batch_size=batch_size, epochs=2, verbose=0, shuffle=False, callbacks=job.callbacks()
        )

    with pytest.raises(ConfigurationError, match=rf"fit\(x, y, batch_size={2 * job.size}\) of the whole data"):
        fit(batch.local_batch)
    assert int(model.optimizer.iterations.numpy()) == 0
    fit(2 * job.size)
    assert model.optimizer.samples_seen == 48
    weights = same_on_all([weight.numpy().tolist() for weight in model.weights])
    single = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    single.compile(keras.optimizers.SGD(0.01 * job.size), "mse")
    single.fit(x, x[:, :1], batch_size=2 * job.size, epochs=2, verbose=0, shuffle=False)
    for weight, expected in zip(weights, single.get_weights(), strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-5)


def test_a_stop_of_one_worker_with_a_plain_optimizer_stops_all_at_the_epochs_end(job, local_data, same_on_all) -> None:
    class StopAtOnce(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = True

    with job.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    callbacks = job.callbacks([StopAtOnce()] if job.is_root else [])
    ones = np.ones((4, 2), "float32")
    history = model.fit(local_data((ones, ones[:, :1]), 2), epochs=3, verbose=0, shuffle=False, callbacks=callbacks)
    # Nothing tells the others before the end of the first epoch, of two steps.
    assert same_on_all([int(model.optimizer.iterations.numpy()), len(history.epoch)]) == [2, 1]


def test_predictions_are_those_of_all_workers_batch_by_batch(job, simple, local_data) -> None:
    model = simple(0.1)
    local_samples = np.full((4, 2), job.rank + 1.0, "float32")
    predictions = model.predict(local_data(local_samples, 2), verbose=0)
    kernel = model.get_weights()[0].sum()
    expected = np.tile(np.repeat(np.arange(job.size) + 1.0, 2), 2) * kernel
    np.testing.assert_allclose(predictions[:, 0], expected, rtol=1e-5)


def test_the_strategys_own_reduction_is_over_all_workers(job) -> None:
    value = job.strategy.run(lambda: tf.constant(float(job.rank + 1)))
    total = job.strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None)
    assert float(total) == sum(range(1, job.size + 1))


def test_an_overflow_on_one_worker_skips_the_step_on_all(job, same_on_all) -> None:
    with job.scope():
        optimizer = job.optimizer(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=4.0))
        variable = keras.Variable([1.0])
        optimizer.build([variable])

    @tf.function
    def step(bad):
        job.run(lambda: optimizer.apply([tf.reshape(tf.where(bad, np.inf, 1.0), [1])], [variable]))

    step(tf.constant(False))
    step(tf.constant(job.rank == job.size - 1))
    step(tf.constant(False))
    # The second step is skipped, and the third taken at half the loss scale.
    expected = 1.0 - 0.1 * job.size * (1 / 4 + 1 / 2)
    assert same_on_all(variable.numpy().tolist()) == pytest.approx([expected], rel=1e-6)


def test_a_step_leaves_no_threads_behind(job) -> None:
    """TensorFlow keeps two for each collective that it bounds itself, until its time has passed."""
    with job.scope():
        optimizer = job.optimizer(keras.optimizers.SGD(0.1))
        variable = keras.Variable([1.0])
        optimizer.build([variable])
    optimizer.distlr.gradients.has_rank_zero_state = True
    step = tf.function(lambda gradient: job.run(lambda: optimizer.apply([gradient], [variable])))
    step(tf.ones(1))
    before = len(os.listdir("/proc/self/task"))
    for _ in range(100):
        step(tf.ones(1))
    assert len(os.listdir("/proc/self/task")) < before + 20


@pytest.mark.parametrize("accumulation", [1, 2])
def test_workers_train_as_one_device_with_the_whole_batch(job, local_data, accumulation) -> None:
    updates, share = 20, 6
    steps = None if accumulation == 1 else accumulation
    x = np.random.default_rng(1).normal(size=(updates * accumulation, job.size * share, 5)).astype("float32")
    y = x.sum(axis=2, keepdims=True)

    def build():
        keras.utils.set_random_seed(3)
        return keras.Sequential([keras.Input((5,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)])

    def sgd():
        return keras.optimizers.SGD(0.05, momentum=0.9, global_clipnorm=0.7, gradient_accumulation_steps=steps)

    whole = build()
    whole.compile(sgd(), "mse")
    whole.fit(x.reshape(-1, 5), y.reshape(-1, 1), batch_size=job.size * share, shuffle=False, verbose=0)
    with job.scope():
        shared = build()
        shared.compile(job.optimizer(sgd()), "mse")
    columns = slice(job.rank * share, (job.rank + 1) * share)
    data = local_data((x[:, columns].reshape(-1, 5), y[:, columns].reshape(-1, 1)), share)
    shared.fit(data, shuffle=False, verbose=0, callbacks=job.callbacks())
    for a, b in zip(whole.weights, shared.weights, strict=True):
        assert np.linalg.norm(a.numpy() - b.numpy()) / np.linalg.norm(a.numpy()) < 1e-5
