"""Schedules on weight decay and momentum, and factors on the rate by path: against the updates worked out by hand."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr
from distlr import GlobalBatch
from distlr.errors import ConfigurationError, ConfigurationTypeError
from distlr.optimizer import adopt
from distlr.schedules import Constant, Interpolated

BATCH = GlobalBatch(8, base_batch=8)
LINE = Interpolated([0, 4], [0.8, 0.4])
GRADIENTS = np.random.default_rng(0).normal(size=(6, 2))


def weights_after(optimizer, replicas: int = 1) -> np.ndarray:
    """A variable of ones after the six gradients, in graph."""
    variable = keras.Variable(np.ones(2, "float32"))
    optimizer.build([variable])

    @tf.function
    def step(gradient):
        optimizer.apply([gradient], [variable])

    for gradient in GRADIENTS:
        step(tf.constant(gradient, tf.float32))
    return variable.numpy()


def line(t: float) -> float:
    return 0.8 - 0.1 * min(t, 4)


def test_weight_decay_follows_its_schedule() -> None:
    optimizer = adopt(keras.optimizers.SGD(0.1, weight_decay=0.5), BATCH, weight_decay_schedule=LINE)
    expected = np.ones(2)
    for t, gradient in enumerate(GRADIENTS):
        expected = expected - expected * line(t) * 0.1 - 0.1 * gradient
    np.testing.assert_allclose(weights_after(optimizer), expected, rtol=1e-5)
    assert optimizer.weight_decay == 0.5  # outside an update it is what it was


def test_a_scaled_weight_decay_follows_its_schedule_scaled() -> None:
    batch = GlobalBatch(32, base_batch=8)  # k = 4
    options = {"scaling": {"rule": "sqrt"}, "scale": ["weight_decay"], "weight_decay_schedule": Constant(0.2)}
    optimizer = adopt(keras.optimizers.SGD(0.1, weight_decay=0.5), batch, **options)
    expected = np.ones(2)
    for gradient in GRADIENTS:  # the rate is 0.2, the decay 0.2 * 4 / 2
        expected = expected - expected * 0.4 * 0.2 - 0.2 * gradient
    np.testing.assert_allclose(weights_after(optimizer), expected, rtol=1e-5)


def test_momentum_follows_its_schedule() -> None:
    optimizer = adopt(keras.optimizers.SGD(0.1, momentum=0.9), BATCH, momentum_schedule=LINE)
    weight, velocity = np.ones(2), np.zeros(2)
    for t, gradient in enumerate(GRADIENTS):
        velocity = line(t) * velocity - 0.1 * gradient
        weight = weight + velocity
    np.testing.assert_allclose(weights_after(optimizer), weight, rtol=1e-5)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_multipliers_by_path_on_the_rate_and_on_the_decay(name) -> None:
    """Each variable trains as alone, with an optimizer at its own rate."""
    make = getattr(keras.optimizers, name)
    factors = {"first": 0.1, "second": 1.0, "third": 0.0}

    def variables():
        made = []
        for key in factors:
            with keras.name_scope(key):
                made.append(keras.Variable(np.ones(2, "float32"), name="kernel"))
        return made

    together = variables()
    optimizer = adopt(make(0.1, weight_decay=0.3), BATCH, multipliers={"^first/": 0.1, "third": 0.0, "ird/kernel": 5.0})
    optimizer.build(together)
    alone = [
        (variable, make(max(0.1 * factors[variable.path.split("/")[0]], 1e-30), weight_decay=0.3))
        for variable in variables()
    ]
    for variable, own in alone:
        own.build([variable])
    for gradient in GRADIENTS:
        optimizer.apply([tf.constant(gradient, tf.float32)] * 3, together)
        for variable, own in alone:
            own.apply([tf.constant(gradient, tf.float32)], [variable])
    for variable, (other, _) in zip(together, alone, strict=True):
        np.testing.assert_allclose(variable.numpy(), other.numpy(), rtol=1e-5, err_msg=variable.path)
    assert together[2].numpy().tolist() == [1.0, 1.0]


@pytest.mark.replicas
def test_on_four_replicas_and_after_a_reload(four_cpus, tmp_path) -> None:
    job = distlr.init(simulate=4, environ={})
    batch = job.batch(2, base_batch=2, samples_per_epoch=16)
    with job.scope():
        model = keras.Sequential(
            [keras.Input((2,)), keras.layers.Dense(2, name="low"), keras.layers.Dense(1, name="top")]
        )
        plain = keras.optimizers.SGD(0.01, momentum=0.9, weight_decay=0.1)
        optimizer = job.optimizer(
            plain, batch, weight_decay_schedule=LINE, momentum_schedule=LINE, multipliers={"low/": 0.0}
        )
        model.compile(optimizer, "mse")
    low, top = (layer.kernel.numpy() for layer in model.layers)
    x = np.random.default_rng(0).normal(size=(16, 2)).astype("float32")
    model.fit(job.shard((x, x[:, :1]), batch), verbose=0, shuffle=False, callbacks=job.callbacks())
    np.testing.assert_array_equal(model.layers[0].kernel.numpy(), low)
    assert (model.layers[1].kernel.numpy() != top).any()
    assert len(set(job.weights_digests(model))) == 1
    model.save(tmp_path / "m.keras")
    with job.scope():
        again = keras.models.load_model(tmp_path / "m.keras").optimizer
    assert again.get_config() == model.optimizer.get_config()


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"weight_decay_schedule": LINE}, ConfigurationError, "SGD, which has no weight decay"),
        ({"weight_decay_schedule": 0.1}, ConfigurationTypeError, "`weight_decay_schedule`"),
        ({"momentum_schedule": LINE}, ConfigurationError, "SGD with momentum and without nesterov"),
        ({"multipliers": {"(": 0.1}}, ConfigurationError, "regular expressions"),
        ({"multipliers": {"a": -1}}, ConfigurationError, r"multipliers\['a'\]"),
        ({"multipliers": ["a"]}, ConfigurationTypeError, "patterns and factors"),
    ],
)
def test_what_cannot_follow_is_refused(options, error, text) -> None:
    with pytest.raises(error, match=text):
        adopt(keras.optimizers.SGD(0.1), BATCH, **options)


def test_a_pattern_that_matches_nothing_is_refused_before_the_first_step() -> None:
    optimizer = adopt(keras.optimizers.SGD(0.1), BATCH, multipliers={"encoder": 0.1})
    with pytest.raises(ConfigurationError, match="match a variable: "):
        optimizer.build([keras.Variable([1.0])])
