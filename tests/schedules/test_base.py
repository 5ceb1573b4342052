"""Anybody's schedule in float64: Keras' own shapes, and what users write."""

from __future__ import annotations

import inspect
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from distlr.errors import ConfigurationError, ConfigurationTypeError
from distlr.schedules import Constant, PerEpoch, Warmup
from distlr.schedules.schedule import as_float64, check_is_schedule, has_warmup

SHAPES = keras.optimizers.schedules


def f64(t):
    return tf.constant(t, tf.float64)


def restarts(t, first, t_mul, m_mul, alpha):
    """Loshchilov and Hutter's cosine with restarts, period by period."""
    length, start, peak = first, 0.0, 1.0
    while t >= start + length:
        start, length, peak = start + length, length * t_mul, peak * m_mul
    p = (t - start) / length
    return (1 - alpha) * 0.5 * peak * (1 + math.cos(math.pi * p)) + alpha


# A shape, and the same by hand in Python's float64.
CASES = {
    "cosine": (SHAPES.CosineDecay(0.1, 21_094), lambda t: 0.1 * 0.5 * (1 + math.cos(math.pi * min(t / 21_094, 1)))),
    "cosine with a floor": (
        SHAPES.CosineDecay(0.1, 1000, alpha=0.01),
        lambda t: 0.1 * (0.99 * 0.5 * (1 + math.cos(math.pi * min(t / 1000, 1))) + 0.01),
    ),
    "cosine with a warmup": (
        SHAPES.CosineDecay(0.0, 1000, warmup_target=0.3, warmup_steps=70),
        lambda t: 0.3 * t / 70 if t < 70 else 0.3 * 0.5 * (1 + math.cos(math.pi * min((t - 70) / 1000, 1))),
    ),
    "cosine from an int": (SHAPES.CosineDecay(1, 1000), lambda t: 0.5 * (1 + math.cos(math.pi * min(t / 1000, 1)))),
    "cosine from a float32": (
        SHAPES.CosineDecay(np.float32(0.1), 1000),
        lambda t: float(np.float32(0.1)) * 0.5 * (1 + math.cos(math.pi * min(t / 1000, 1))),
    ),
    "restarts": (
        SHAPES.CosineDecayRestarts(0.1, 300, t_mul=2.0, m_mul=0.8, alpha=0.05),
        lambda t: 0.1 * restarts(t, 300, 2.0, 0.8, 0.05),
    ),
    "restarts of one length": (
        SHAPES.CosineDecayRestarts(0.1, 300, t_mul=1.0, m_mul=0.9),
        lambda t: 0.1 * restarts(t, 300, 1.0, 0.9, 0.0),
    ),
    "exponential": (SHAPES.ExponentialDecay(0.01, 10_000, 0.96), lambda t: 0.01 * 0.96 ** (t / 10_000)),
    "exponential staircase": (
        SHAPES.ExponentialDecay(0.01, 1000, 0.96, staircase=True),
        lambda t: 0.01 * 0.96 ** (t // 1000),
    ),
    "inverse time": (SHAPES.InverseTimeDecay(0.1, 70, 0.5), lambda t: 0.1 / (1 + 0.5 * t / 70)),
    "piecewise": (
        # Keras' convention: the value after a boundary b counts from b + 1 on.
        SHAPES.PiecewiseConstantDecay([100, 2000], [0.1, 0.01, 0.001]),
        lambda t: 0.1 if t <= 100 else (0.01 if t <= 2000 else 0.001),
    ),
    "piecewise from an int": (
        SHAPES.PiecewiseConstantDecay([100], [1, 0.1]),
        lambda t: 1.0 if t <= 100 else 0.1,
    ),
    "polynomial": (
        SHAPES.PolynomialDecay(0.1, 1000, end_learning_rate=0.003, power=1.7),
        lambda t: (0.1 - 0.003) * (1 - min(t / 1000, 1)) ** 1.7 + 0.003,
    ),
    "polynomial cycles": (
        SHAPES.PolynomialDecay(0.1, 1000, end_learning_rate=0.003, power=2.0, cycle=True),
        lambda t: (0.1 - 0.003) * (1 - t / (1000 * max(1, math.ceil(t / 1000)))) ** 2 + 0.003,
    ),
}


def test_the_table_has_every_shape_of_keras():
    shapes = {value for value in vars(SHAPES).values() if inspect.isclass(value)} - {SHAPES.LearningRateSchedule}
    assert len(shapes) >= 6
    assert {type(shape) for shape, _ in CASES.values()} == shapes


@pytest.mark.parametrize("name", CASES)
def test_keras_shapes_are_right_to_1e_12(name):
    schedule, by_hand = CASES[name]
    times = [0, 1, 69, 70, 71, 99.5, 100, 101, 300, 899, 900, 901, 1000, 1999, 2000.5, 2001, 9999, 21_094, 30_000]
    precise = as_float64(schedule)
    rates = [float(precise(f64(t))) for t in times]
    np.testing.assert_allclose(rates, [by_hand(t) for t in times], rtol=1e-12, atol=1e-17)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_long_cosine_is_right_at_every_step(compiled):
    schedule, _ = CASES["cosine"]
    steps = np.arange(21_094)
    exact = 0.1 * 0.5 * (1 + np.cos(np.pi * (steps / 21_094)))
    rates = tf.function(as_float64(schedule), jit_compile=compiled)(f64(steps)).numpy()
    # Near its end 1 + cos cancels, in numpy as well: what is left there is compared with the initial rate.
    np.testing.assert_allclose(rates, exact, rtol=1e-12, atol=0.1 * 1e-12)
    plain = schedule(tf.constant(steps)).numpy()
    assert (np.abs(plain / exact - 1) > 1e-6).mean() > 0.01, "Keras is as precise: the copy is not needed any more"


def test_steps_that_float32_confuses_are_distinguished():
    decay = SHAPES.InverseTimeDecay(1.0, 1, 1.0)
    precise = as_float64(decay)
    for t in (2**24, 2**31):
        assert float(decay(tf.constant(t))) == float(decay(tf.constant(t + 1)))
        first, second = float(precise(f64(t))), float(precise(f64(t + 1)))
        assert first / second == pytest.approx((t + 2) / (t + 1), rel=1e-15)
        assert first != second


def test_the_users_schedule_is_left_as_it_is():
    schedule = SHAPES.PiecewiseConstantDecay([100], [0.1, 0.01])
    before = {name: (type(value), repr(value)) for name, value in vars(schedule).items()}
    as_float64(schedule)(f64(3))
    assert {name: (type(value), repr(value)) for name, value in vars(schedule).items()} == before


class Table(SHAPES.LearningRateSchedule):
    """Indexes a table with the integer step, as Keras passes it."""

    rates = (0.4, 0.3, 0.2)

    def __call__(self, step):
        return tf.constant(self.rates)[tf.minimum(step, 2)]


class InFloat32(SHAPES.LearningRateSchedule):
    """Works with a float32 step alone."""

    def __call__(self, step):
        return tf.constant(0.5, tf.float32) / (step + tf.constant(1.0, tf.float32))


class Exact(SHAPES.LearningRateSchedule):
    """Works with whatever number comes."""

    def __call__(self, step):
        return 0.5 / (step + 1)


class Raising(SHAPES.LearningRateSchedule):
    def __call__(self, step):
        raise KeyError("no such rate")


def test_a_schedule_that_indexes_with_the_step_gets_an_integer():
    rates = as_float64(Table())
    assert [float(rates(f64(t))) for t in (0, 0.99, 1, 1.5, 2, 99)] == pytest.approx([0.4, 0.4, 0.3, 0.3, 0.2, 0.2])


def test_a_schedule_in_float32_gets_float32():
    rate = as_float64(InFloat32())(f64(1.5))
    assert rate.dtype == tf.float64
    assert float(rate) == pytest.approx(0.2, rel=1e-7)


def test_a_schedule_that_takes_any_number_gets_float64():
    t = 2**24 + 1
    assert float(as_float64(Exact())(f64(t))) == 0.5 / (t + 1)


def test_a_schedule_that_raises_is_refused_with_its_reason():
    with pytest.raises(ConfigurationError, match=r"Raising object.*KeyError: 'no such rate'.*Fix: ") as info:
        as_float64(Raising())
    assert isinstance(info.value.__cause__, KeyError)


def test_a_schedule_is_tried_outside_the_graph_that_is_being_traced():
    @tf.function
    def rate(t):
        return as_float64(Table())(t)

    assert float(rate(f64(1))) == pytest.approx(0.3)


class Climbing(SHAPES.LearningRateSchedule):
    def __init__(self, warmup_steps):
        self.warmup_steps = warmup_steps

    def __call__(self, step):
        return 0.1


@pytest.mark.parametrize(
    ("schedule", "climbs"),
    [
        (SHAPES.CosineDecay(0.1, 100), False),
        (SHAPES.CosineDecay(0.1, 100, warmup_steps=0), False),
        (SHAPES.CosineDecay(0.1, 100, warmup_target=0.3, warmup_steps=0), False),
        (SHAPES.CosineDecay(0.1, 100, warmup_target=0.3, warmup_steps=10), True),
        (SHAPES.ExponentialDecay(0.1, 100, 0.9), False),
        (Climbing(0), False),
        (Climbing(5), True),
        (Climbing("later"), False),
        (Warmup(Constant(0.1), 5), True),
        (Constant(0.1), False),
    ],
)
def test_a_warmup_of_its_own_is_recognized(schedule, climbs):
    assert has_warmup(schedule) is climbs


def test_what_is_no_schedule_is_refused():
    with pytest.raises(ConfigurationTypeError, match=r"is a callback.*model\.fit\(callbacks"):
        check_is_schedule(keras.callbacks.ReduceLROnPlateau())
    with pytest.raises(ConfigurationTypeError, match=r"make one: CosineDecay\(\.\.\.\)"):
        check_is_schedule(SHAPES.CosineDecay)
    for value in ("0.1", None, [0.1], keras.optimizers.SGD()):
        with pytest.raises(ConfigurationTypeError, match=r"`schedule` must be .*Received: schedule="):
            check_is_schedule(value)
    check_is_schedule(PerEpoch([0.1]))
