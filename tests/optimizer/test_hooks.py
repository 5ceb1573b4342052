"""An optimizer of a Keras that no longer calls what distlr overrides is refused at its first update."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr
from distlr.errors import ConfigurationError
from distlr.strategies.mirrored import mirrored

X = np.ones((8, 2), "float32")


class Fake(keras.optimizers.SGD):
    """SGD as Keras 3.15 writes it, without the parts that are named."""

    left_out: tuple[str, ...] = ()

    def apply_gradients(self, grads_and_vars):
        grads, variables = zip(*grads_and_vars, strict=True)
        return (self._update if "apply" in self.left_out else self.apply)(grads, variables)

    def apply(self, grads, trainable_variables=None):
        self._update(grads, trainable_variables)

    def _update(self, grads, variables):
        if not self.built:
            with tf.init_scope():
                self.build(variables)
        if "_backend_apply_gradients" in self.left_out:
            Fake._backend_apply_gradients(self, grads, variables)
        else:
            self._backend_apply_gradients(grads, variables)
        self._iterations.assign_add(1)

    def _backend_apply_gradients(self, grads, variables):
        rate = 0.1 if "learning_rate" in self.left_out else self.learning_rate
        if "_clip_gradients" not in self.left_out:
            grads = self._clip_gradients(grads)
        if "_apply_weight_decay" not in self.left_out:
            self._apply_weight_decay(variables)
        pairs = list(zip(grads, [variable.value for variable in variables], strict=True))
        if "_all_reduce_sum_gradients" not in self.left_out:
            pairs = self._all_reduce_sum_gradients(pairs)
        step = keras.optimizers.SGD.update_step if "update_step" in self.left_out else type(self).update_step

        def update(strategy):
            for grad, variable in pairs:
                strategy.extended.update(
                    variable, lambda own, g, r: step(self, g, own, r), args=(grad, rate), group=False
                )

        tf.__internal__.distribute.interim.maybe_merge_call(
            lambda strategy: update(strategy), self._distribution_strategy
        )


def _model(left_out, strategy=None, eager=False):
    job = distlr.init(environ={}) if strategy is None else distlr.init(strategy=strategy, environ={})
    batch = job.batch(total=8, base_batch=8)
    with job.scope():
        optimizer = Fake(0.1)
        optimizer.left_out = left_out
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(job.optimizer(optimizer, batch), "mse", run_eagerly=eager)
    return job, model


def test_a_fake_that_calls_all_trains_as_keras_does() -> None:
    job, model = _model(())
    plain = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    plain.set_weights(model.get_weights())
    plain.compile(keras.optimizers.SGD(0.1), "mse")
    plain.fit(X, X[:, :1], epochs=2, verbose=0)
    model.fit(X, X[:, :1], batch_size=8, epochs=2, callbacks=job.callbacks(), verbose=0)
    np.testing.assert_allclose(model.get_weights()[0], plain.get_weights()[0], rtol=1e-6)


HOOKS = ("apply", "_backend_apply_gradients", "learning_rate", "_clip_gradients", "_apply_weight_decay", "update_step")


@pytest.mark.parametrize("hook", HOOKS)
def test_each_hook_that_is_left_out_is_named_before_a_weight_has_changed(hook) -> None:
    job, model = _model((hook,))
    before = model.get_weights()
    with pytest.raises(ConfigurationError, match=f"without calling `{hook}`.*Fix: "):
        model.fit(X, X[:, :1], batch_size=8, epochs=2, callbacks=job.callbacks(), verbose=0)
    np.testing.assert_array_equal(model.get_weights()[0], before[0])


def test_one_that_calls_none_is_refused_in_fit_eagerly_and_in_a_loop() -> None:
    for eager in (False, True):
        job, model = _model(HOOKS, eager=eager)
        with pytest.raises(ConfigurationError, match="without calling `"):
            model.fit(X, X[:, :1], batch_size=8, callbacks=job.callbacks(), verbose=0)
    job, model = _model(HOOKS[1:])
    with pytest.raises(ConfigurationError, match="without calling `"):
        model.optimizer.apply([tf.ones((2, 1)), tf.ones(1)], model.trainable_variables)
    job, model = _model(HOOKS)
    with pytest.raises(ConfigurationError, match="without calling `apply`"):
        model.optimizer.apply_gradients([(tf.ones((2, 1)), model.weights[0]), (tf.ones(1), model.weights[1])])


def test_a_step_of_keras_that_applies_by_another_name_is_refused() -> None:
    """Neither `apply_gradients` nor `apply`: nothing of distlr's would run."""

    class Renamed(Fake):
        def apply_gradients(self, grads_and_vars):
            raise AssertionError

    job, model = _model(())
    optimizer = model.optimizer
    trainer = keras.Model.train_step

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = self.compute_loss(data[0], data[1], self(data[0]))
        grads = tape.gradient(loss, self.trainable_variables)
        optimizer._update(grads, self.trainable_variables)
        return {"loss": loss}

    owner = next(kind for kind in keras.Model.__mro__ if "train_step" in vars(kind))
    owner.train_step = train_step
    try:
        with pytest.raises(ConfigurationError, match="without calling `apply`"):
            model.fit(X, X[:, :1], batch_size=8, callbacks=job.callbacks(), verbose=0)
    finally:
        owner.train_step = trainer


@pytest.mark.parametrize("hook", ["_all_reduce_sum_gradients", "_clip_gradients"])
def test_on_replicas_the_sum_of_gradients_is_part_of_it(four_cpus, hook) -> None:
    job, model = _model((hook,), mirrored(four_cpus[:2]))
    with pytest.raises(ConfigurationError, match=f"without calling `{hook}`"):
        model.fit(X, X[:, :1], batch_size=8, callbacks=job.callbacks(), verbose=0)


def test_accumulation_passes_in_a_graph_and_eagerly() -> None:
    for eager in (False, True):
        job = distlr.init(environ={})
        batch = job.batch(per_replica=4, accumulation=2, base_batch=8)
        with job.scope():
            model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            optimizer = keras.optimizers.AdamW(0.1, gradient_accumulation_steps=2)
            model.compile(job.optimizer(optimizer, batch), "mse", run_eagerly=eager)
        model.fit(X, X[:, :1], batch_size=4, callbacks=job.callbacks(), verbose=0)
        assert model.optimizer.samples_seen == 8
