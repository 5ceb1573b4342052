"""The tests' facts on each shape, one entry a class; `test_catalog.py`, `test_execution.py` and `test_registry.py`
read it."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf
from hypothesis import strategies as st

from distlr import GlobalBatch, scale
from distlr.schedules import (
    Constant,
    Cosine,
    CosineRestarts,
    Cyclic,
    Floor,
    GlobalBatchSchedule,
    Interpolated,
    InverseSqrt,
    Join,
    Multiply,
    MultiStep,
    OfProgress,
    OneCycle,
    PerEpoch,
    Repeat,
    Shift,
    Tanh,
    Warmup,
    WarmupStableDecay,
)

K = keras.optimizers.schedules
FAR = 2**31


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One class of `distlr.schedules`, or one of Keras' that has a name there.

    Attributes:
        cls: the class.
        cases: some of it by a name for the report. Eager, graph and XLA agree on these, and files keep them. None for
            Keras' own.
        values: what the rate is at times, worked out by hand: at 0, around each boundary, at the end, past it, far on.
        refused: what cannot be made, and the argument that the message names. None for Keras' own.
        arguments: what `get` takes, as hypothesis draws it; a schedule inside is drawn by the tests. None only where
            the class has no name.
    """

    cls: type
    cases: dict[str, Any]
    values: Sequence[tuple[Any, list[tuple[float, float]]]]
    refused: Sequence[tuple[Callable[[], Any], str]]
    arguments: st.SearchStrategy[dict[str, Any]] | None

    @property
    def inside(self) -> str | None:
        """The argument that takes a schedule ("schedule"), or several ("schedules")."""
        parameters = inspect.signature(self.cls.__init__).parameters
        return next((argument for argument in ("schedule", "schedules") if argument in parameters), None)


rates = st.floats(1e-6, 10.0)
lengths = st.floats(1.0, 1e5)
# TensorFlow flushes subnormal numbers to 0, and numpy does not.
numbers = functools.partial(st.floats, allow_subnormal=False)
shares = numbers(0.0, 1.0)


def drawn(**arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(arguments)


def cos(share: float) -> float:
    return (1 + math.cos(math.pi * share)) / 2


@keras.saving.register_keras_serializable("distlr_tests")
class Table(K.LearningRateSchedule):
    """A user's schedule, which indexes a table with the integer step."""

    def __init__(self, rates):
        self.rates = list(rates)

    def __call__(self, step):
        return tf.constant(self.rates)[tf.minimum(step, len(self.rates) - 1)]

    def get_config(self):
        return {"rates": self.rates}


@keras.saving.register_keras_serializable("tests")
def falling(p):
    return 1 - p / 2


BATCH = GlobalBatch(8, replicas=4, base_batch=8, accumulation=2, samples_per_epoch=3203, duration="40ep")
LINE = Interpolated([0, 10], [0.0, 1.0])
SGDR = CosineRestarts(0.8, first_steps=10, t_mul=2.0, m_mul=0.5)
TAILS = {
    "linear": lambda r: 1 - r,
    "cosine": cos,
    "exponential": lambda r: 2 * 0.5**r - 1,
    "1-sqrt": lambda r: 1 - math.sqrt(r),
}

# fmt: off
SHAPES = [
    Shape(
        cls=Constant,
        cases={"constant": Constant(0.1)},
        values=[(Constant(0.3), [(0, 0.3), (1, 0.3), (FAR, 0.3)])],
        refused=[(lambda: Constant(-0.1), "learning_rate"), (lambda: Constant(math.nan), "learning_rate")],
        arguments=drawn(initial=rates),
    ),
    Shape(
        cls=MultiStep,
        cases={"multi-step": MultiStep(0.1, [50, 100])},
        values=[
            (
                MultiStep(0.8, [10, 20], gamma=0.5),
                [(0, 0.8), (9, 0.8), (10, 0.4), (11, 0.4), (19, 0.4), (20, 0.2), (21, 0.2), (FAR, 0.2)],
            ),
            (MultiStep(0.8, []), [(0, 0.8), (FAR, 0.8)]),
            (MultiStep(1.0, [FAR], gamma=0.25), [(FAR - 1, 1.0), (FAR, 0.25), (FAR + 1, 0.25)]),
        ],
        refused=[
            (lambda: MultiStep(0.1, [20, 10]), "boundaries"),
            (lambda: MultiStep(0.1, [10, 10]), "boundaries"),
            (lambda: MultiStep(0.1, 10), "boundaries"),
            (lambda: MultiStep(-0.1, [10]), "initial_learning_rate"),
            (lambda: MultiStep(0.1, [10], gamma=0), "gamma"),
        ],
        arguments=drawn(initial=rates, boundaries=st.just([3.0, 30.0]), gamma=shares.map(lambda g: g + 0.01)),
    ),
    Shape(
        cls=InverseSqrt,
        cases={"inverse sqrt": InverseSqrt(0.1, 100)},
        values=[
            (
                InverseSqrt(0.6, timescale=4),
                [(0, 0.6), (4, 0.6 / math.sqrt(2)), (12, 0.3), (FAR, 0.6 / math.sqrt(1 + FAR / 4))],
            ),
            (
                InverseSqrt(0.6, timescale=10, start=10),
                [(0, 0.6), (9, 0.6), (10, 0.6), (11, 0.6 * math.sqrt(10 / 11)), (40, 0.3)],
            ),
        ],
        refused=[(lambda: InverseSqrt(0.1, 0), "timescale")],
        arguments=drawn(initial=rates, timescale=lengths, start=lengths),
    ),
    Shape(
        cls=Cosine,
        cases={"cosine": Cosine(0.1, 1000, floor=0.01)},
        values=[
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
        ],
        refused=[
            (lambda: Cosine(0.1, 0), "steps"),
            (lambda: Cosine(0.1, 10, floor=-1), "floor"),
            (lambda: Cosine(0.1, 10, k=0), "k"),
        ],
        arguments=drawn(initial=rates, steps=lengths, k=st.floats(0.5, 3.0)),
    ),
    Shape(
        cls=CosineRestarts,
        cases={"cosine restarts": CosineRestarts(0.1, 90, 1.5, floor=0.01, warmup_steps=10, warmup_from=0.1)},
        values=[
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
                CosineRestarts(1.0, first_steps=10, floor=0.1, warmup_steps=2, warmup_from=0.5),
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
        ],
        refused=[
            (lambda: CosineRestarts(0.1, 10, t_mul=0.5), "t_mul"),
            (lambda: CosineRestarts(0.1, 10, t_mul=math.nextafter(1, 2)), "t_mul"),
            (lambda: CosineRestarts(0.1, 10, warmup_steps=10), "warmup_steps"),
            (lambda: CosineRestarts(0.1, 10, warmup_steps=1, warmup_from=2), "warmup_from"),
        ],
        arguments=drawn(
            initial=rates,
            first_steps=lengths,
            t_mul=st.just(1.0) | st.floats(1.001, 3.0),
            m_mul=st.floats(0.5, 1.0),
        ),
    ),
    Shape(
        cls=OneCycle,
        cases={"one cycle": OneCycle(0.1, 400, anneal="linear")},
        values=[
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
                OneCycle(1.0, steps=100, up=0.3, start_div=4, final_div=10, anneal="linear", three_phase=True),
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
        ],
        refused=[
            (lambda: OneCycle(0.1, 10, up=1.0), "up"),
            (lambda: OneCycle(0.1, 10, up=0.6, three_phase=True), "up"),
            (lambda: OneCycle(0.1, 10, anneal="sine"), "anneal"),
        ],
        arguments=drawn(
            peak=rates,
            steps=lengths,
            up=st.floats(0.1, 0.5),
            three_phase=st.booleans(),
            anneal=st.sampled_from(["cosine", "linear"]),
        ),
    ),
    Shape(
        cls=Cyclic,
        cases={"cyclic": Cyclic(0.01, 0.1, 50, mode="triangular2")},
        values=[
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
        ],
        refused=[
            (lambda: Cyclic(0.2, 0.1, 10), "peak_learning_rate"),
            (lambda: Cyclic(0.1, 0.2, 10, mode="saw"), "mode"),
            (lambda: Cyclic(0.1, 0.2, 10, gamma=1.1), "gamma"),
        ],
        arguments=drawn(
            initial=st.just(0.1),
            peak=st.floats(0.1, 5.0),
            up=lengths,
            down=lengths,
            mode=st.sampled_from(["triangular", "triangular2", "exp_range"]),
            gamma=st.floats(0.99, 1.0),
        ),
    ),
    Shape(
        cls=WarmupStableDecay,
        cases={"warmup, stable, decay": WarmupStableDecay(0.1, 50, 100, 200, floor=0.01, warmup_from=0.1)},
        values=[
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
            for tail, share in TAILS.items()
        ],
        refused=[
            (lambda: WarmupStableDecay(0.1, 10, 10, 0), "decay_steps"),
            (lambda: WarmupStableDecay(0.1, 10, 10, 10, tail="log"), "tail"),
        ],
        arguments=drawn(
            initial=rates,
            warmup_steps=lengths,
            stable_steps=lengths,
            decay_steps=lengths,
            warmup_from=shares,
            tail=st.sampled_from(list(TAILS)),
        ),
    ),
    Shape(
        cls=Tanh,
        cases={"tanh": Tanh(0.1, 400, floor=0.01)},
        values=[
            (
                Tanh(0.8, steps=100, floor=0.2, low=-3.0, high=3.0),
                [
                    (0, 0.2 + 0.3 * (1 + math.tanh(3))),
                    (50, 0.5),
                    (100, 0.2 + 0.3 * (1 - math.tanh(3))),
                    (FAR, 0.2 + 0.3 * (1 - math.tanh(3))),
                ],
            ),
        ],
        refused=[
            (lambda: Tanh(0.1, 10, low=3, high=3), "high"),
            (lambda: Tanh(0.1, 10, low=-math.inf), "low"),
            (lambda: Tanh(0.1, 10, high=math.inf), "high"),
        ],
        arguments=drawn(initial=rates, steps=lengths),
    ),
    Shape(
        cls=Interpolated,
        cases={"interpolated": Interpolated([0, 100, 400], [0.1, 0.3, 0.2])},
        values=[
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
        ],
        refused=[
            (lambda: Interpolated([0, 1], [0.1]), "values"),
            (lambda: Interpolated([], []), "values"),
            (lambda: Interpolated([0, 1], [0.1, math.nan]), "values[1]"),
        ],
        arguments=drawn(
            times=st.just([0.0, 5.0, 50.0]),
            values=st.lists(rates, min_size=3, max_size=3),
            way=st.sampled_from(["linear", "cosine"]),
        ),
    ),
    Shape(
        cls=PerEpoch,
        cases={"per epoch": PerEpoch([0.4, 0.2, 0.1], steps_per_epoch=70)},
        values=[
            (
                PerEpoch([0.8, 0.4, 0.1], steps_per_epoch=10),
                [(0, 0.8), (9, 0.8), (10, 0.4), (11, 0.4), (19, 0.4), (20, 0.1), (21, 0.1), (30, 0.1), (FAR, 0.1)],
            ),
        ],
        refused=[
            (lambda: PerEpoch([]), "function"),
            (lambda: PerEpoch([0.1, -0.1]), "function[1]"),
            (lambda: PerEpoch([0.1], steps_per_epoch=0), "steps_per_epoch"),
        ],
        arguments=drawn(function=st.lists(rates, min_size=1, max_size=5), steps_per_epoch=lengths),
    ),
    Shape(
        cls=OfProgress,
        cases={"of progress": OfProgress(falling, 400, 0.1)},
        values=[
            (
                OfProgress(lambda p: (1 - p) ** 2, steps=10, learning_rate=0.5),
                [(0, 0.5), (5, 0.125), (10, 0.0), (FAR, 0.0)],
            ),
            (OfProgress(lambda p: 0.5, steps=10), [(0, 0.5), (FAR, 0.5)]),
            # One number for all p is a constant, and allowed.
            (OfProgress(tf.reduce_mean, steps=10), [(5, 0.5)]),
        ],
        refused=[
            (lambda: OfProgress(math.cos, 10), "function"),
            (lambda: OfProgress(0.1, 10), "function"),
            (lambda: OfProgress(lambda p: tf.stack([p, p]), 10), "function"),
        ],
        arguments=None,
    ),
    Shape(
        cls=Join,
        cases={"join": Join([Constant(0.1), Cosine(0.2, 100, floor=0.01)], [100])},
        values=[
            (
                Join([LINE, Constant(0.3), K.ExponentialDecay(1.0, 10, 0.5)], [10, 20]),
                [(0, 0.0), (9, 0.9), (10, 0.3), (11, 0.3), (19, 0.3), (20, 1.0), (21, 0.5**0.1), (30, 0.5)],
            ),
        ],
        refused=[
            (lambda: Join([], []), "schedules"),
            (lambda: Join([Constant(0.1)], [10]), "boundaries"),
            (lambda: Join([Constant(0.1), 0.2], [10]), "schedules[1]"),
        ],
        arguments=drawn(boundaries=st.just([40.0])),  # between the two that are drawn
    ),
    Shape(
        cls=Floor,
        cases={"floor": Floor(K.ExponentialDecay(0.1, 50, 0.9), 0.01)},
        values=[
            (Floor(K.ExponentialDecay(1.0, 10, 0.5), 0.2), [(0, 1.0), (10, 0.5), (20, 0.25), (30, 0.2), (FAR, 0.2)]),
        ],
        refused=[(lambda: Floor(0.1, 0.2), "schedule")],
        arguments=drawn(floor=rates),
    ),
    Shape(
        cls=Multiply,
        cases={"scale": Multiply(Constant(0.1), 3)},
        values=[(Multiply(LINE, 3), [(0, 0.0), (5, 1.5), (10, 3.0)])],
        refused=[(lambda: Multiply(Constant(1), -1), "factor")],
        arguments=drawn(factor=numbers(0.0, 5.0)),
    ),
    Shape(
        cls=Shift,
        cases={"shift": Shift(Interpolated([0, 100], [0.1, 0.3]), 50)},
        values=[
            (Shift(LINE, 5), [(0, 0.0), (5, 0.0), (6, 0.1), (15, 1.0)]),
            (Shift(LINE, -5), [(0, 0.5), (4, 0.9), (5, 1.0)]),
        ],
        refused=[(lambda: Shift(Constant(1), math.inf), "steps")],
        arguments=drawn(steps=numbers(-100.0, 100.0)),
    ),
    Shape(
        cls=Repeat,
        cases={"repeat": Repeat(Interpolated([0, 100], [0.1, 0.3]), 90)},
        values=[(Repeat(LINE, 10), [(0, 0.0), (9, 0.9), (10, 0.0), (11, 0.1), (FAR // 10 * 10 + 3, 0.3)])],
        refused=[(lambda: Repeat(Constant(1), 0), "every")],
        arguments=drawn(every=lengths),
    ),
    Shape(
        cls=Warmup,
        cases={
            "warmup linear": Warmup(K.ExponentialDecay(0.1, 50, 0.9), 100, 0.1),
            "warmup exponential": Warmup(Constant(0.1), 100.5, 0.1, "exponential"),
            "warmup cosine": Warmup(K.CosineDecay(0.1, 1000), 100, 0.1, "cosine"),
            "warmup polynomial": Warmup(K.PolynomialDecay(0.1, 1000), 100, 0.1, "polynomial", power=3.0),
        },
        values=[(Warmup(SGDR, 4, start=0.5), [(0, 0.4), (2, 0.75 * 0.8 * cos(0.2)), (4, 0.8 * cos(0.4)), (10, 0.4)])],
        refused=[
            (lambda: Warmup(Constant(1), 0), "steps"),
            (lambda: Warmup(Constant(1), 5, start=1.5), "start"),
            (lambda: Warmup(Constant(1), 5, shape="steep"), "shape"),
        ],
        arguments=drawn(steps=lengths, start=shares),
    ),
    Shape(
        cls=GlobalBatchSchedule,
        cases={
            "scaled": scale(K.CosineDecay(0.1, 1000), BATCH, "sqrt", warmup="2ep"),
            "scaled steps": scale(K.InverseTimeDecay(0.1, 100, 0.5), BATCH, warmup="50ba", clock="steps"),
            "scaled piecewise": scale(K.PiecewiseConstantDecay([100, 200], [0.1, 0.01, 0.001]), BATCH),
            "scaled restarts": scale(K.CosineDecayRestarts(0.1, 90, 1.5), BATCH, warmup="0.1dur", warmup_from=0.0),
            "scaled per epoch": scale(PerEpoch([0.4, 0.2, 0.1]), BATCH, warmup="1ep", warmup_shape="exponential"),
            "scaled function": scale(lambda epoch: 0.1 * 0.9**epoch, BATCH),
            "scaled user's": scale(Table([0.1, 0.2, 0.3]), BATCH, warmup="20ba"),
        },
        values=[
            (
                scale(LINE, GlobalBatch(8, replicas=4, base_batch=8), warmup="8ba"),
                [(0, 0.0), (4, 0.55), (8, 1.4), (31, 4 * (1 - 0.75 / 32)), (32, 4.0), (33, 4.0), (FAR, 4.0)],
            ),
        ],
        refused=[(lambda: scale(LINE, BATCH, clock="sun"), "clock"), (lambda: scale(LINE, None), "batch")],
        arguments=None,
    ),
    Shape(
        cls=K.ExponentialDecay,
        cases={},
        values=[(K.ExponentialDecay(0.8, 10, 0.5, staircase=True), [(0, 0.8), (9, 0.8), (10, 0.4), (20, 0.2)])],
        refused=[],
        arguments=drawn(initial=rates, steps=lengths, rate=st.floats(0.1, 1.0), staircase=st.booleans()),
    ),
    Shape(
        cls=K.InverseTimeDecay,
        cases={},
        values=[(K.InverseTimeDecay(0.8, 10, 0.5), [(0, 0.8), (5, 0.64), (10, 0.8 / 1.5), (20, 0.4)])],
        refused=[],
        arguments=drawn(initial=rates, steps=lengths, rate=shares),
    ),
    Shape(
        cls=K.PolynomialDecay,
        cases={},
        values=[(K.PolynomialDecay(0.8, 10, 0.2, power=2.0), [(0, 0.8), (5, 0.35), (10, 0.2), (FAR, 0.2)])],
        refused=[],
        arguments=drawn(initial=st.floats(0.1, 1.0), steps=lengths, end=numbers(0, 0.1)),
    ),
]
# fmt: on
