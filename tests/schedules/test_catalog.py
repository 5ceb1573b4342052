"""Every shape of the catalogue: exact values at 0, around each boundary, at the end, past it, and at 2^31."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distlr.errors import ConfigurationError, ConfigurationTypeError, DistlrError
from distlr.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    Cyclic,
    Floor,
    Interpolated,
    InverseSqrt,
    Join,
    MultiStep,
    OfProgress,
    OneCycle,
    Repeat,
    Scale,
    Shift,
    Tanh,
    Warmup,
    WarmupStableDecay,
)
from distlr.schedules.base import as_float64

K = keras.optimizers.schedules
FAR = 2**31


def cos(share: float) -> float:
    return (1 + math.cos(math.pi * share)) / 2


LINE = Interpolated([0, 10], [0.0, 1.0])
SGDR = CosineRestarts(0.8, first_steps=10, t_mul=2.0, m_mul=0.5)
WARM_SGDR = CosineRestarts(1.0, first_steps=10, floor=0.1, warmup_steps=2, warmup_from=0.5)
THREE = OneCycle(1.0, steps=100, up=0.3, start_div=4, final_div=10, anneal="linear", three_phase=True)

# fmt: off
TABLE: list[tuple[Any, list[tuple[float, float]]]] = [
    (Constant(0.3), [(0, 0.3), (1, 0.3), (FAR, 0.3)]),
    (
        MultiStep(0.8, [10, 20], gamma=0.5),
        [(0, 0.8), (9, 0.8), (10, 0.4), (11, 0.4), (19, 0.4), (20, 0.2), (21, 0.2), (FAR, 0.2)],
    ),
    (MultiStep(0.8, []), [(0, 0.8), (FAR, 0.8)]),
    (
        MultiStep(1.0, [FAR], gamma=0.25),
        [(FAR - 1, 1.0), (FAR, 0.25), (FAR + 1, 0.25)],
    ),
    (
        InverseSqrt(0.6, timescale=4),
        [(0, 0.6), (4, 0.6 / math.sqrt(2)), (12, 0.3), (FAR, 0.6 / math.sqrt(1 + FAR / 4))],
    ),
    (
        InverseSqrt(0.6, timescale=10, start=10),
        [(0, 0.6), (9, 0.6), (10, 0.6), (11, 0.6 * math.sqrt(10 / 11)), (40, 0.3)],
    ),
    (
        Cosine(0.8, steps=100, floor=0.2),
        [
            (0, 0.8),
            (25, 0.2 + 0.6 * cos(0.25)),
            (50, 0.5),
            (99, 0.2 + 0.6 * cos(0.99)),
            (100, 0.2),
            (101, 0.2),
            (FAR, 0.2),
        ],
    ),
    (Cosine(1.0, steps=100, k=2.0), [(0, 1.0), (50, cos(0.25)), (100, 0.0)]),
    (Cosine(1.0, steps=2 * FAR), [(FAR - 1, cos((FAR - 1) / (2 * FAR))), (FAR, 0.5), (2 * FAR, 0.0)]),
    (
        SGDR,
        [
            (0, 0.8),
            (5, 0.4),
            (9, 0.8 * cos(0.9)),
            (10, 0.4),
            (11, 0.4 * cos(1 / 20)),
            (20, 0.2),
            (29, 0.4 * cos(19 / 20)),
            (30, 0.2),
            (31, 0.2 * cos(1 / 40)),
            (69, 0.2 * cos(39 / 40)),
            (70, 0.1),
        ],
    ),
    (
        WARM_SGDR,
        [
            (0, 0.5),
            (1, 0.75),
            (2, 1.0),
            (3, 0.1 + 0.9 * cos(1 / 8)),
            (9, 0.1 + 0.9 * cos(7 / 8)),
            (10, 0.5),
            (12, 1.0),
            (FAR - FAR % 10, 0.5),
            (FAR - FAR % 10 + 2, 1.0),
        ],
    ),
    (
        OneCycle(1.0, steps=100, up=0.3, start_div=4, final_div=10, anneal="linear"),
        [
            (0, 0.25),
            (15, 0.625),
            (29, 0.25 + 0.75 * 29 / 30),
            (30, 1.0),
            (31, 1 - 0.975 / 70),
            (65, 0.5125),
            (99, 1 - 0.975 * 69 / 70),
            (100, 0.025),
            (101, 0.025),
            (FAR, 0.025),
        ],
    ),
    (
        OneCycle(1.0, steps=100, up=0.3, start_div=4, final_div=10),
        [(0, 0.25), (15, 0.625), (30, 1.0), (65, 0.5125), (100, 0.025), (FAR, 0.025)],
    ),
    (
        THREE,
        [
            (0, 0.25),
            (29, 0.25 + 0.75 * 29 / 30),
            (30, 1.0),
            (31, 1 - 0.75 / 30),
            (45, 0.625),
            (59, 0.25 + 0.75 / 30),
            (60, 0.25),
            (61, 0.25 - 0.225 / 40),
            (80, 0.1375),
            (100, 0.025),
            (FAR, 0.025),
        ],
    ),
    (
        Cyclic(0.2, 1.0, up=10, down=20),
        [
            (0, 0.2),
            (5, 0.6),
            (9, 0.92),
            (10, 1.0),
            (11, 0.96),
            (20, 0.6),
            (29, 0.24),
            (30, 0.2),
            (31, 0.28),
            (FAR // 30 * 30, 0.2),
        ],
    ),
    (
        Cyclic(0.2, 1.0, up=10, mode="triangular2"),
        [(0, 0.2), (10, 1.0), (19, 0.28), (20, 0.2), (30, 0.6), (40, 0.2), (50, 0.4)],
    ),
    (
        Cyclic(0.0, 1.0, up=10, mode="exp_range", gamma=0.9),
        [(0, 0.0), (5, 0.5 * 0.9**5), (10, 0.9**10), (20, 0.0), (30, 0.9**30)],
    ),
    *(
        (
            WarmupStableDecay(0.8, 10, 30, 20, tail=tail, floor=0.2, warmup_from=0.5),
            [
                (0, 0.4),
                (5, 0.6),
                (9, 0.76),
                (10, 0.8),
                (11, 0.8),
                (39, 0.8),
                (40, 0.8),
                (41, 0.2 + 0.6 * share(0.05)),
                (50, 0.2 + 0.6 * share(0.5)),
                (59, 0.2 + 0.6 * share(0.95)),
                (60, 0.2),
                (61, 0.2),
                (FAR, 0.2),
            ],
        )
        for tail, share in {
            "linear": lambda r: 1 - r,
            "cosine": cos,
            "exponential": lambda r: 2 * 0.5**r - 1,
            "1-sqrt": lambda r: 1 - math.sqrt(r),
        }.items()
    ),
    (
        Tanh(0.8, steps=100, floor=0.2, low=-3.0, high=3.0),
        [
            (0, 0.2 + 0.3 * (1 + math.tanh(3))),
            (50, 0.5),
            (100, 0.2 + 0.3 * (1 - math.tanh(3))),
            (FAR, 0.2 + 0.3 * (1 - math.tanh(3))),
        ],
    ),
    (
        Interpolated([5, 10, 30], [0.2, 1.0, 0.5]),
        [
            (0, 0.2),
            (5, 0.2),
            (6, 0.36),
            (9, 0.84),
            (10, 1.0),
            (11, 0.975),
            (29, 0.525),
            (30, 0.5),
            (31, 0.5),
            (FAR, 0.5),
        ],
    ),
    (Interpolated([0, 10], [0.0, 1.0], way="cosine"), [(0, 0.0), (1, 1 - cos(0.1)), (5, 0.5), (10, 1.0)]),
    (Interpolated([7], [0.3]), [(0, 0.3), (7, 0.3), (FAR, 0.3)]),
    (OfProgress(lambda p: (1 - p) ** 2, steps=10, learning_rate=0.5), [(0, 0.5), (5, 0.125), (10, 0.0), (FAR, 0.0)]),
    (OfProgress(lambda p: 0.5, steps=10), [(0, 0.5), (FAR, 0.5)]),
    (
        Join([LINE, Constant(0.3), K.ExponentialDecay(1.0, 10, 0.5)], [10, 20]),
        [(0, 0.0), (9, 0.9), (10, 0.3), (11, 0.3), (19, 0.3), (20, 1.0), (21, 0.5**0.1), (30, 0.5)],
    ),
    (Floor(K.ExponentialDecay(1.0, 10, 0.5), 0.2), [(0, 1.0), (10, 0.5), (20, 0.25), (30, 0.2), (FAR, 0.2)]),
    (Scale(LINE, 3), [(0, 0.0), (5, 1.5), (10, 3.0)]),
    (Shift(LINE, 5), [(0, 0.0), (5, 0.0), (6, 0.1), (15, 1.0)]),
    (Shift(LINE, -5), [(0, 0.5), (4, 0.9), (5, 1.0)]),
    (Repeat(LINE, 10), [(0, 0.0), (9, 0.9), (10, 0.0), (11, 0.1), (FAR // 10 * 10 + 3, 0.3)]),
    (Warmup(SGDR, 4, start=0.5), [(0, 0.4), (2, 0.75 * 0.8 * cos(0.2)), (4, 0.8 * cos(0.4)), (10, 0.4)]),
    (K.ExponentialDecay(0.8, 10, 0.5, staircase=True), [(0, 0.8), (9, 0.8), (10, 0.4), (20, 0.2)]),
    (K.PolynomialDecay(0.8, 10, 0.2, power=2.0), [(0, 0.8), (5, 0.35), (10, 0.2), (FAR, 0.2)]),
]
# fmt: on


@pytest.mark.parametrize(
    ("schedule", "values"), TABLE, ids=lambda part: type(part).__name__ if not isinstance(part, list) else ""
)
def test_exact_values(schedule, values) -> None:
    times = [float(t) for t, _ in values]
    found = as_float64(schedule)(tf.constant(times, tf.float64)).numpy()
    np.testing.assert_allclose(found, [rate for _, rate in values], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("t_mul", [1.1, 1.5, 2.0, 3.0, 10.0])
def test_every_cycle_begins_at_its_own_step(t_mul) -> None:
    """Also where the logarithm that finds the cycle is rounded."""
    schedule = CosineRestarts(1.0, first_steps=7, t_mul=t_mul)
    begin, length = 0.0, 7.0
    for _ in range(60):
        if begin > 2**50:
            break
        # A sum of powers is rounded where t_mul is no whole number.
        after, before = (
            (begin, np.nextafter(begin, 0)) if t_mul % 1 == 0 else (begin * (1 + 1e-12), begin * (1 - 1e-12))
        )
        assert float(schedule.at(tf.constant(after, tf.float64))) == pytest.approx(1.0, abs=1e-9)
        if begin:
            assert float(schedule.at(tf.constant(before, tf.float64))) == pytest.approx(0.0, abs=1e-9)
        begin, length = begin + length, length * t_mul


def test_kerass_piecewise_constant_changes_one_step_later() -> None:
    """Keras holds a value up to and with its boundary; here it changes at the boundary."""
    keras_own = K.PiecewiseConstantDecay([10], [1.0, 0.1])
    assert [float(keras_own(t)) for t in (9, 10, 11)] == [1.0, 1.0, pytest.approx(0.1)]
    ours = MultiStep(1.0, [10])
    assert [float(ours(t)) for t in (9, 10, 11)] == [1.0, pytest.approx(0.1), pytest.approx(0.1)]


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: MultiStep(0.1, [20, 10]), "boundaries"),
        (lambda: MultiStep(0.1, [10, 10]), "boundaries"),
        (lambda: MultiStep(0.1, 10), "boundaries"),
        (lambda: MultiStep(-0.1, [10]), "initial_learning_rate"),
        (lambda: MultiStep(0.1, [10], gamma=0), "gamma"),
        (lambda: InverseSqrt(0.1, 0), "timescale"),
        (lambda: Cosine(0.1, 0), "steps"),
        (lambda: Cosine(0.1, 10, floor=-1), "floor"),
        (lambda: Cosine(0.1, 10, k=0), "k"),
        (lambda: CosineRestarts(0.1, 10, t_mul=0.5), "t_mul"),
        (lambda: CosineRestarts(0.1, 10, warmup_steps=10), "warmup_steps"),
        (lambda: CosineRestarts(0.1, 10, warmup_steps=1, warmup_from=2), "warmup_from"),
        (lambda: OneCycle(0.1, 10, up=1.0), "up"),
        (lambda: OneCycle(0.1, 10, up=0.6, three_phase=True), "up"),
        (lambda: OneCycle(0.1, 10, anneal="sine"), "anneal"),
        (lambda: Cyclic(0.2, 0.1, 10), "peak_learning_rate"),
        (lambda: Cyclic(0.1, 0.2, 10, mode="saw"), "mode"),
        (lambda: Cyclic(0.1, 0.2, 10, gamma=1.1), "gamma"),
        (lambda: WarmupStableDecay(0.1, 10, 10, 0), "decay_steps"),
        (lambda: WarmupStableDecay(0.1, 10, 10, 10, tail="log"), "tail"),
        (lambda: Tanh(0.1, 10, low=3, high=3), "high"),
        (lambda: Tanh(0.1, 10, low=-math.inf), "low"),
        (lambda: Tanh(0.1, 10, high=math.inf), "high"),
        (lambda: Interpolated([0, 1], [0.1]), "values"),
        (lambda: Interpolated([], []), "values"),
        (lambda: Interpolated([0, 1], [0.1, math.nan]), "values[1]"),
        (lambda: OfProgress(math.cos, 10), "function"),
        (lambda: OfProgress(0.1, 10), "function"),
        (lambda: OfProgress(tf.reduce_mean, 10), None),
        (lambda: OfProgress(lambda p: tf.stack([p, p]), 10), "function"),
        (lambda: Join([], []), "schedules"),
        (lambda: Join([Constant(0.1)], [10]), "boundaries"),
        (lambda: Join([Constant(0.1), 0.2], [10]), "schedules[1]"),
        (lambda: Floor(0.1, 0.2), "schedule"),
        (lambda: Scale(Constant(1), -1), "factor"),
        (lambda: Shift(Constant(1), math.inf), "steps"),
        (lambda: Repeat(Constant(1), 0), "every"),
    ],
)
def test_bad_arguments_are_named(make, argument) -> None:
    if argument is None:  # a scalar for all p is a constant, and allowed
        make()
        return
    with pytest.raises(DistlrError) as info:
        make()
    assert f"`{argument}`" in str(info.value)
    assert isinstance(info.value, (ConfigurationError, ConfigurationTypeError))


def test_a_function_of_progress_is_saved_by_its_registered_name() -> None:
    schedule = OfProgress(_half_way, steps=10, learning_rate=0.4)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert float(again(5)) == pytest.approx(0.3)


@keras.saving.register_keras_serializable("tests")
def _half_way(p):
    return 1 - p / 2
