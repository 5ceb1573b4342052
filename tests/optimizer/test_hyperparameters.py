"""What is scaled beside the rate: exact, once, from the base, and never from what was scaled."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr
from distlr import GlobalBatch
from distlr.errors import ConfigurationError, ConfigurationTypeError
from distlr.optimizer import adopt
from distlr.scaling import rules

O = keras.optimizers  # noqa: E741
BATCH = GlobalBatch(64, base_batch=16, samples_per_epoch=640)  # k = 4
SQRT = {"rule": "sqrt"}


def adam(**options):
    return O.AdamW(0.001, weight_decay=0.01, beta_1=0.9, beta_2=0.99, epsilon=1e-6, **options)


EXPECTED = {
    "betas": {"beta_1": 0.6, "beta_2": 0.96, "epsilon": 5e-7},
    "weight_decay": {"weight_decay": 0.02},  # k / factor = 4 / 2
    "ema": {"ema_momentum": 0.9**4},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_exact_values(name) -> None:
    optimizer = adopt(adam(use_ema=True, ema_momentum=0.9), BATCH, scaling=SQRT, scale=[name])
    for attribute, value in EXPECTED[name].items():
        assert getattr(optimizer, attribute) == pytest.approx(value, rel=1e-12)
    others = {key for other, values in EXPECTED.items() if other != name for key in values}
    assert {key: getattr(optimizer, key) for key in others} == {
        key: getattr(adam(use_ema=True, ema_momentum=0.9), key) for key in others
    }
    assert set(optimizer.explain()["scaled"]) == set(EXPECTED[name])


def test_linear_scaling_leaves_the_decay_by_the_epoch_as_it_is() -> None:
    assert adopt(adam(), BATCH, scale=["weight_decay"]).weight_decay == 0.01


@pytest.mark.parametrize(("rule", "factor"), [("linear", 4.0), ("sqrt", 2.0), ("none", 1.0)])
def test_a_weight_decays_as_much_by_the_epoch_as_at_the_base_batch(rule, factor) -> None:
    """(1 - rate * decay) over the epoch's updates, to first order."""
    decay = rules.weight_decay(0.01, 4, factor)
    base_updates, updates, rate = 40, 10, 0.001
    assert updates * (rate * factor) * decay == pytest.approx(base_updates * rate * 0.01)


def test_the_momentum_of_averages_forgets_by_the_sample() -> None:
    """k steps at the base batch, of one value, are one step at k times the batch."""
    average = 1.0
    for _ in range(8):
        average = 0.9 * average + 0.1 * 5.0
    scaled = rules.moving_average(0.9, 8)
    assert scaled * 1.0 + (1 - scaled) * 5.0 == pytest.approx(average)


@pytest.mark.parametrize(("beta", "k", "largest"), [(0.9, 11, "10"), (0.999, 1024, "1000"), (0.5, 2.5, "2")])
def test_a_beta_that_cannot_be_scaled_says_how_far_it_can(beta, k, largest) -> None:
    with pytest.raises(ConfigurationError, match=rf"a k of at most {largest}[,.]"):
        rules.adam_beta(beta, k)
    assert 0 <= rules.adam_beta(beta, float(largest)) < 1e-9


def test_a_reload_scales_from_the_base(tmp_path) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    optimizer = adopt(adam(use_ema=True), BATCH, scaling=SQRT, scale=["betas", "weight_decay", "ema"])
    model.compile(optimizer, "mse")
    model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
    values = {key: getattr(optimizer, key) for expected in EXPECTED.values() for key in expected}
    config = json.loads(json.dumps(optimizer.get_config()))
    assert config["optimizer"]["config"]["beta_1"] == 0.9
    for i in range(2):
        path = tmp_path / f"{i}.keras"
        model.save(path)
        model = keras.models.load_model(path)
        assert {key: getattr(model.optimizer, key) for key in values} == values
    distlr.strip(model)
    assert (model.optimizer.beta_1, model.optimizer.weight_decay, model.optimizer.ema_momentum) == (0.9, 0.01, 0.99)


@pytest.mark.parametrize(
    ("make", "scale", "error", "text"),
    [
        (adam, ["betas"], ConfigurationError, "'sqrt' with scale="),
        (lambda: O.SGD(0.1), ["betas"], ConfigurationError, "SGD, which has no beta_1"),
        (lambda: O.SGD(0.1), ["weight_decay"], ConfigurationError, "SGD, which has no weight decay"),
        (lambda: O.SGD(0.1), ["ema"], ConfigurationError, "use_ema=False"),
        (adam, ["beta"], ConfigurationError, "'betas', 'weight_decay', 'ema'"),
        (adam, "betas", ConfigurationTypeError, "a list of names"),
    ],
)
def test_what_an_optimizer_lacks_is_refused(make, scale, error, text) -> None:
    with pytest.raises(error, match=text):
        adopt(make(), BATCH, scale=scale)


def test_scaling_without_a_batch_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="needs to know the batch"):
        adopt(adam(), scale=["weight_decay"])


# -- momentum correction -------------------------------------------------------------------------------------


def corrected(rates, gradients, momentum: float, climbing: int, nesterov: bool = False) -> np.ndarray:
    """Goyal et al. 2017, equation 10, by hand, while the rate climbs: v = m (new / old) v - rate g."""
    weight, velocity, previous = np.zeros(2), np.zeros(2), 0.0
    for i, (rate, gradient) in enumerate(zip(rates, gradients, strict=True)):
        if previous:
            velocity = velocity * rate / previous
        velocity = momentum * velocity - rate * gradient
        weight = weight + (momentum * velocity - rate * gradient if nesterov else velocity)
        previous = rate if i < climbing else 0.0
    return weight


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("nesterov", [False, True])
def test_the_velocity_follows_the_rate_while_it_climbs(nesterov, accumulation) -> None:
    batch = GlobalBatch(
        8, base_batch=8 * accumulation // 4, accumulation=accumulation, samples_per_epoch=48 * accumulation
    )
    steps = {"gradient_accumulation_steps": accumulation} if accumulation > 1 else {}
    optimizer = adopt(
        O.SGD(0.1, momentum=0.5, nesterov=nesterov, **steps), batch, scaling={"warmup": "3ba"}, momentum_correction=True
    )
    variable = keras.Variable(np.zeros(2, "float32"))
    optimizer.build([variable])
    gradients = np.random.default_rng(0).normal(size=(6, 2))
    rates = []

    @tf.function
    def step(gradient):
        optimizer.apply([gradient], [variable])

    for gradient in gradients:
        rates.append(float(optimizer.learning_rate))
        for _ in range(accumulation):
            step(tf.constant(gradient, tf.float32))
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4], rel=1e-6)
    expected = corrected(rates, gradients, 0.5, climbing=3, nesterov=nesterov)
    np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-5)
    plain = corrected([0.4] * 6, gradients, 0.5, climbing=0, nesterov=nesterov)
    assert not np.allclose(expected, plain)


@pytest.mark.parametrize(
    ("make", "options", "text"),
    [
        (adam, {"warmup": "1ep"}, r"AdamW with momentum None.*moments hold gradients alone"),
        (lambda: O.SGD(0.1), {"warmup": "1ep"}, r"SGD with momentum 0"),
        (lambda: O.SGD(0.1, momentum=0.9), {}, "no warmup"),
    ],
)
def test_momentum_correction_is_refused_with_the_reason(make, options, text) -> None:
    with pytest.raises(ConfigurationError, match=text):
        adopt(make(), BATCH, scaling=options, momentum_correction=True)


def test_momentum_correction_survives_a_reload(tmp_path) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(adopt(O.SGD(0.1, momentum=0.9), BATCH, scaling={"warmup": "5ep"}, momentum_correction=True), "mse")
    model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    before, after = (float(m.optimizer.distlr.variables.find("previous_rate").numpy()) for m in (model, again))
    assert before == after > 0
    assert again.optimizer.explain()["momentum_correction"] is True


def test_the_start_line_says_what_else_is_scaled(caplog) -> None:
    job = distlr.init(environ={})
    batch = job.batch(64, base_batch=16, samples_per_epoch=640)
    with caplog.at_level("INFO", logger="distlr"):
        job.optimizer(adam(), batch, rule="sqrt", scale=["betas", "weight_decay"])
    assert (
        "also scaled: beta_1 0.9 -> 0.6, beta_2 0.99 -> 0.96, epsilon 1e-06 -> 5e-07, weight_decay 0.01 -> 0.02"
        in caplog.text
    )
