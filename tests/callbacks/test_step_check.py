"""The comparison of a training step with the step that its rate is made for."""

from __future__ import annotations

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr
from distlr.errors import ConfigurationError
from distlr.strategies.mirrored import mirrored

X = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
Y = X[:, :1]
_LOG = "distlr"


def _compiled(model, rate=1e-3, job=None, compile_with=None, accumulation=None, warmup=None, clock=None, **batch):
    job = job or distlr.init(environ={})
    batch = job.batch(**{"per_replica": 16, "base_batch": 16, "accumulation": accumulation or 1, **batch})
    with job.scope():
        optimizer = keras.optimizers.SGD(rate, gradient_accumulation_steps=accumulation)
        model = model()
        model.compile(job.optimizer(optimizer, batch, warmup=warmup, clock=clock), "mse", **(compile_with or {}))
    return job, batch, model


def _net():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])


class Applying(keras.Model):
    """Applies so many times a step: each time, or where `condition` holds."""

    def __init__(self, times=1, condition=None, parts=1):
        super().__init__()
        self.dense, self.times, self.condition, self.parts = keras.layers.Dense(1), times, condition, parts
        self.dense.build((None, 4))
        self.built = True
        self.seen = tf.Variable(0, trainable=False, dtype=tf.int64)

    def call(self, x):
        return self.dense(x)

    def train_step(self, data):
        loss = tf.zeros(())
        for part in zip(*(tf.split(tensor, self.parts) for tensor in data), strict=True):
            for _ in range(self.times):
                with tf.GradientTape() as tape:
                    loss = self.compute_loss(part[0], part[1], self(part[0], training=True))
                gradients = tape.gradient(loss, self.trainable_variables)
                if self.condition is None:
                    self.optimizer.apply(gradients, self.trainable_variables)
                else:
                    self.seen.assign_add(1)
                    due = self.condition(self.seen)
                    tf.cond(due, lambda g=gradients: self.optimizer.apply(g, self.trainable_variables), lambda: None)
        return {"loss": loss}


def _cosine():
    return keras.optimizers.schedules.CosineDecay(0.01, 16)


# -- the batch -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("eager", [False, True])
def test_a_batch_of_another_size_is_refused_with_both_numbers(eager) -> None:
    """fit(x, y) has a batch of 32 by default: under per_replica=64 the rate would be twice what it is for."""
    job, _, model = _compiled(_net, per_replica=64, compile_with={"run_eagerly": eager})
    before = model.get_weights()
    with pytest.raises(
        ConfigurationError, match=r"takes 32 samples.*per_replica=64.*2 times.*batch_size=batch\.local_batch"
    ):
        model.fit(X, Y, callbacks=job.callbacks(), verbose=0)
    if eager:
        np.testing.assert_array_equal(before[0], model.get_weights()[0])


def test_a_batch_whose_size_is_known_to_tensorflow_is_refused_before_the_first_update() -> None:
    job, _, model = _compiled(_net)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8, drop_remainder=True)
    before = model.get_weights()
    with pytest.raises(ConfigurationError, match="takes 8 samples"):
        model.fit(data, shuffle=False, callbacks=job.callbacks(), verbose=0)
    np.testing.assert_array_equal(before[0], model.get_weights()[0])
    assert model.optimizer.samples_seen == 0


def test_a_batch_of_unknown_size_is_refused_before_the_second_step() -> None:
    job, _, model = _compiled(_net)
    rows = tf.data.Dataset.from_generator(
        lambda: ((X[i : i + 8], Y[i : i + 8]) for i in range(0, 64, 8)),
        output_signature=(tf.TensorSpec((None, 4)), tf.TensorSpec((None, 1))),
    )
    with pytest.raises(ConfigurationError, match="takes 8 samples"):
        model.fit(rows, shuffle=False, callbacks=job.callbacks(), verbose=0)
    assert model.optimizer.samples_seen == 16  # of the one step


def _nested(x, y):
    return {"a": x, "b": (x[:, :2], tf.zeros(()))}, y


def _ragged(x, y):
    return tf.RaggedTensor.from_tensor(x), y


def _weighted(x, y):
    return x, y, tf.ones(tf.shape(x)[:1])


class Reading(keras.Model):
    """Takes whatever the data is, and trains a weight of its own."""

    def __init__(self):
        super().__init__()
        self.weight = self.add_weight(shape=(), initializer="ones")
        self.built = True

    def call(self, x):
        return self.weight

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = keras.losses.MeanSquaredError()(tf.zeros((1,)), tf.reshape(self.weight.value, (1,)))
        self.optimizer.apply_gradients(
            zip(tape.gradient(loss, self.trainable_variables), self.trainable_variables, strict=True)
        )
        return {"loss": loss}


@pytest.mark.parametrize("structure", [_nested, _ragged, _weighted])
def test_all_tensors_of_a_batch_are_looked_at_whatever_their_structure(structure) -> None:
    for size, right in ((16, True), (8, False)):
        job, _, model = _compiled(Reading)
        data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(size).map(structure)
        if right:
            model.fit(data, shuffle=False, callbacks=job.callbacks(), verbose=0)
            assert model.optimizer.samples_seen == 64
        else:
            with pytest.raises(ConfigurationError, match="takes 8 samples"):
                model.fit(data, shuffle=False, callbacks=job.callbacks(), verbose=0)


def test_tensors_that_differ_in_their_first_dimension_are_no_batch_to_count() -> None:
    """The nodes and the edges of a graph, say."""
    for shapes in (((40, 4), (90, 2)), ((None, 4), (None, 2))):
        job, _, model = _compiled(Reading)
        data = tf.data.Dataset.from_generator(
            lambda: ((np.ones((40, 4), "float32"), np.ones((90, 2), "float32")) for _ in range(2)),
            output_signature=tuple(tf.TensorSpec(shape) for shape in shapes),
        ).apply(tf.data.experimental.assert_cardinality(2))
        model.fit(data, shuffle=False, callbacks=job.callbacks(), verbose=0)


def test_data_of_unknown_rank_is_looked_at() -> None:
    for rows, right in ((16, True), (8, False)):
        job, _, model = _compiled(Reading)
        data = tf.data.Dataset.from_generator(
            lambda rows=rows: iter([(X[:rows], np.float32(1))]),
            output_signature=(tf.TensorSpec(None), tf.TensorSpec(None)),
        ).apply(tf.data.experimental.assert_cardinality(1))
        if right:
            model.fit(data, shuffle=False, callbacks=job.callbacks(), verbose=0)
        else:
            with pytest.raises(ConfigurationError, match="takes 8 samples"):
                model.fit(data, shuffle=False, callbacks=job.callbacks(), verbose=0)


def test_the_last_batch_may_be_smaller_and_without_a_batch_nothing_is_compared() -> None:
    job, batch, model = _compiled(_net)
    model.fit(X[:40], Y[:40], batch_size=batch.local_batch, callbacks=job.callbacks(), verbose=0)
    with job.scope():
        model = _net()
        model.compile(job.optimizer(keras.optimizers.SGD(0.01)), "mse")
    model.fit(X, Y, batch_size=5, callbacks=job.callbacks(), verbose=0)


def test_a_schedule_that_is_scaled_by_itself_is_compared_too() -> None:
    job = distlr.init(environ={})
    rate = distlr.scale(0.01, job.batch(per_replica=64, base_batch=16))
    for optimizer in (keras.optimizers.SGD(rate), job.optimizer(keras.optimizers.SGD(rate))):
        model = _net()
        model.compile(optimizer, "mse")
        with pytest.raises(ConfigurationError, match=r"takes 32 samples.*per_replica=64"):
            model.fit(X, Y, callbacks=job.callbacks(), verbose=0)


def test_each_fit_is_compared_and_the_step_is_traced_once() -> None:
    traced = []

    class Counting(keras.Sequential):
        def train_step(self, data):
            traced.append(tf.executing_eagerly())
            return super().train_step(data)

    job, _, model = _compiled(lambda: Counting([keras.Input((4,)), keras.layers.Dense(1)]))
    original_step = model.train_step
    model.fit(X, Y, batch_size=16, callbacks=job.callbacks(), verbose=0)
    once = len(traced)
    model.fit(X, Y, batch_size=16, callbacks=job.callbacks(), verbose=0)
    assert len(traced) == once
    assert model.train_step == original_step
    assert "train_step" not in vars(model)
    with pytest.raises(ConfigurationError, match="takes 32 samples"):
        model.fit(X, Y, batch_size=32, callbacks=job.callbacks(), verbose=0)
    assert model.train_step == original_step


def test_a_fit_that_was_refused_leaves_later_ones_alone() -> None:
    job, _, model = _compiled(_net)
    with pytest.raises(ConfigurationError, match="takes 32 samples"):
        model.fit(X, Y, callbacks=job.callbacks(), verbose=0)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8, drop_remainder=True)
    with pytest.raises(ConfigurationError, match="takes 8 samples"):
        model.fit(data, shuffle=False, callbacks=job.callbacks(), verbose=0)
    model.fit(X, Y, verbose=0)  # without the job's callbacks nothing is compared
    model.fit(data, shuffle=False, verbose=0)


def test_a_user_s_own_instance_attribute_stays() -> None:
    job, _, model = _compiled(_net)
    calls = []

    def own_step(data):
        calls.append(data)
        return type(model).train_step(model, data)

    model.train_step = own_step
    with pytest.raises(ConfigurationError, match="takes 32 samples"):
        model.fit(X, Y, callbacks=job.callbacks(), verbose=0)
    assert vars(model)["train_step"] is own_step
    assert calls


@pytest.mark.parametrize("compile_with", [{"steps_per_execution": 2}, {"jit_compile": True}])
def test_steps_in_one_call_and_compiled_steps_are_compared_too(compile_with) -> None:
    for size, right in ((16, True), (32, False)):
        job, _, model = _compiled(_net, compile_with=compile_with)
        fit = lambda model=model, job=job, size=size: model.fit(  # noqa: E731
            X, Y, batch_size=size, callbacks=job.callbacks(), verbose=0
        )
        if right:
            fit()
            assert model.optimizer.samples_seen == 64
        else:
            with pytest.raises(ConfigurationError, match="takes 32 samples"):
                fit()


def test_each_replica_takes_its_share(four_cpus) -> None:
    strategy = mirrored(four_cpus)
    for size, right in ((64, True), (32, False)):
        job = distlr.init(strategy=strategy, environ={})
        job, _, model = _compiled(_net, job=job)
        if right:
            model.fit(X, Y, batch_size=size, callbacks=job.callbacks(), verbose=0)
            assert model.optimizer.samples_seen == 64
        else:
            with pytest.raises(ConfigurationError, match=r"takes 8 samples.*batch_size=batch\.local_batch\).*here 64"):
                model.fit(X, Y, batch_size=size, callbacks=job.callbacks(), verbose=0)


# -- how often the optimizer is applied ----------------------------------------------------------------


def test_an_optimizer_that_is_applied_twice_a_step_on_a_schedule_is_refused_before_the_first_update() -> None:
    for epoch in (64, None):
        job, batch, model = _compiled(lambda: Applying(times=2), _cosine(), samples_per_epoch=epoch)
        with pytest.raises(ConfigurationError, match=r"2 times a step.*Fix: apply it once a step"):
            model.fit(job.shard((X, Y), batch, seed=0), shuffle=False, callbacks=job.callbacks(), verbose=0)
        assert model.optimizer.samples_seen == 0


def test_one_that_is_applied_now_and_then_on_a_schedule_is_refused_at_the_epoch_s_end() -> None:
    job, batch, model = _compiled(lambda: Applying(condition=lambda n: n % 2 == 0), _cosine(), samples_per_epoch=64)
    with pytest.raises(ConfigurationError, match=r"2 times in the 4 steps of this epoch.*0\.5 times as fast"):
        model.fit(job.shard((X, Y), batch, seed=0), epochs=2, shuffle=False, callbacks=job.callbacks(), verbose=0)


@pytest.mark.parametrize("options", [{"times": 3}, {"condition": lambda n: n % 2 == 0}])
def test_where_the_rate_is_constant_the_run_says_so_once(caplog, options) -> None:
    """keras.io's WGAN-GP applies the critic's Adam, at a constant rate, several times a step."""
    job, batch, model = _compiled(lambda: Applying(**options), samples_per_epoch=64)
    with caplog.at_level(logging.WARNING, _LOG):
        model.fit(job.shard((X, Y), batch, seed=0), epochs=3, shuffle=False, callbacks=job.callbacks(), verbose=0)
    assert caplog.text.count("counts its updates and not the data") == 1
    assert model.optimizer.samples_seen == 3 * 64 * options.get("times", 0.5)


def test_a_condition_that_always_holds_and_branches_that_each_apply_are_once_a_step(caplog) -> None:
    class Either(Applying):
        def train_step(self, data):
            with tf.GradientTape() as tape:
                loss = self.compute_loss(data[0], data[1], self(data[0], training=True))
            gradients = tape.gradient(loss, self.trainable_variables)
            apply = lambda: self.optimizer.apply(gradients, self.trainable_variables)  # noqa: E731
            tf.cond(loss > 1, apply, apply)
            return {"loss": loss}

    for make in (Either, lambda: Applying(condition=lambda n: n > 0)):
        job, batch, model = _compiled(make, _cosine(), samples_per_epoch=64)
        model.fit(job.shard((X, Y), batch, seed=0), epochs=2, shuffle=False, callbacks=job.callbacks(), verbose=0)
        assert model.optimizer.samples_seen == 128
    assert "counts its updates" not in caplog.text


@pytest.mark.parametrize(("options", "length"), [({"times": 2}, 128), ({"condition": lambda n: n % 2 == 0}, 32)])
def test_an_epoch_may_be_declared_in_the_optimizer_s_own_updates(options, length) -> None:
    """With the fix from the error the schedule over 4 epochs ends with them."""
    rate = keras.optimizers.schedules.CosineDecay(0.01, 4 * length // 16)
    job, _, model = _compiled(lambda: Applying(**options), rate, samples_per_epoch=length)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)
    history = model.fit(data, epochs=4, shuffle=False, callbacks=job.callbacks(), verbose=0).history
    assert history["samples_seen"] == [length * epoch for epoch in (1, 2, 3, 4)]
    np.testing.assert_allclose(history["learning_rate"], 0.005 * (1 + np.cos(np.pi * np.arange(1, 5) / 4)), rtol=1e-6)


def test_a_declared_epoch_that_the_step_does_not_keep_is_refused() -> None:
    job, _, model = _compiled(Applying, _cosine(), samples_per_epoch=128)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16)
    with pytest.raises(ConfigurationError, match="fit runs 4 steps an epoch and the batch says 8"):
        model.fit(data, shuffle=False, callbacks=job.callbacks(), verbose=0)


def test_a_schedule_may_count_the_optimizer_s_own_updates() -> None:
    job, batch, model = _compiled(lambda: Applying(times=2), _cosine(), clock="steps", samples_per_epoch=64)
    history = model.fit(job.shard((X, Y), batch, seed=0), shuffle=False, callbacks=job.callbacks(), verbose=0).history
    np.testing.assert_allclose(history["learning_rate"], [0.005], rtol=1e-6)  # 8 of 16 updates


def test_a_step_may_hold_all_the_passes_of_an_update() -> None:
    """Two halves of a batch, each applied, accumulate to one update a step."""
    job, _, model = _compiled(
        lambda: Applying(parts=2), _cosine(), accumulation=2, samples_per_epoch=64, per_replica=8, base_batch=16
    )
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16, drop_remainder=True)
    model.fit(data, epochs=2, shuffle=False, callbacks=job.callbacks(), verbose=0)
    assert (model.optimizer.samples_seen, int(model.optimizer.iterations)) == (128, 8)
    job, _, model = _compiled(Applying, accumulation=2, per_replica=8, base_batch=16, samples_per_epoch=64)
    with pytest.raises(ConfigurationError, match="takes 16 samples"):
        model.fit(data, shuffle=False, callbacks=job.callbacks(), verbose=0)


def test_steps_that_were_left_out_or_an_early_stop_are_no_fault(caplog) -> None:
    bad = X.copy()
    bad[3] = np.nan

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch == 1

    job, _, model = _compiled(_net, _cosine(), samples_per_epoch=64)
    all_callbacks = job.callbacks([distlr.callbacks.NonFiniteGuard("skip")])
    model.fit(bad, Y, batch_size=16, epochs=2, shuffle=False, callbacks=all_callbacks, verbose=0)
    assert model.optimizer.samples_seen == 96
    job, _, model = _compiled(_net, _cosine(), samples_per_epoch=64)
    model.fit(X, Y, batch_size=16, epochs=2, callbacks=job.callbacks([Stop()]), verbose=0)
    assert model.optimizer.samples_seen == 32
    assert "counts its updates" not in caplog.text
