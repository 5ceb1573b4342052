"""What every schedule of distlr has in common: eager, graph and XLA agree, it is traced once, it can be saved."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from distlr import GlobalBatch, scale, schedules
from distlr.schedules import Constant, PerEpoch, Schedule, Warmup

SHAPES = keras.optimizers.schedules
BATCH = GlobalBatch(8, replicas=4, base_batch=8, accumulation=2, samples_per_epoch=3203, duration="40ep")


@keras.saving.register_keras_serializable("distlr_tests")
class Table(SHAPES.LearningRateSchedule):
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


CASES = {
    "constant": Constant(0.1),
    "per epoch": PerEpoch([0.4, 0.2, 0.1], steps_per_epoch=70),
    "warmup linear": Warmup(SHAPES.ExponentialDecay(0.1, 50, 0.9), 100, 0.1),
    "warmup exponential": Warmup(Constant(0.1), 100.5, 0.1, "exponential"),
    "warmup cosine": Warmup(SHAPES.CosineDecay(0.1, 1000), 100, 0.1, "cosine"),
    "warmup polynomial": Warmup(SHAPES.PolynomialDecay(0.1, 1000), 100, 0.1, "polynomial", power=3.0),
    "scaled": scale(SHAPES.CosineDecay(0.1, 1000), BATCH, "sqrt", warmup="2ep"),
    "scaled steps": scale(SHAPES.InverseTimeDecay(0.1, 100, 0.5), BATCH, warmup="50ba", clock="steps"),
    "scaled piecewise": scale(SHAPES.PiecewiseConstantDecay([100, 200], [0.1, 0.01, 0.001]), BATCH),
    "scaled restarts": scale(SHAPES.CosineDecayRestarts(0.1, 90, 1.5), BATCH, warmup="0.1dur", warmup_from=0.0),
    "scaled per epoch": scale(PerEpoch([0.4, 0.2, 0.1]), BATCH, warmup="1ep", warmup_shape="exponential"),
    "scaled function": scale(lambda epoch: 0.1 * 0.9**epoch, BATCH),
    "scaled user's": scale(Table([0.1, 0.2, 0.3]), BATCH, warmup="20ba"),
    "multi-step": schedules.MultiStep(0.1, [50, 100]),
    "inverse sqrt": schedules.InverseSqrt(0.1, 100),
    "cosine": schedules.Cosine(0.1, 1000, floor=0.01),
    "cosine restarts": schedules.CosineRestarts(0.1, 90, 1.5, floor=0.01, warmup_steps=10, warmup_from=0.1),
    "one cycle": schedules.OneCycle(0.1, 400, anneal="linear"),
    "cyclic": schedules.Cyclic(0.01, 0.1, 50, mode="triangular2"),
    "warmup, stable, decay": schedules.WarmupStableDecay(0.1, 50, 100, 200, floor=0.01, warmup_from=0.1),
    "tanh": schedules.Tanh(0.1, 400, floor=0.01),
    "interpolated": schedules.Interpolated([0, 100, 400], [0.1, 0.3, 0.2]),
    "of progress": schedules.OfProgress(falling, 400, 0.1),
    "join": schedules.Join([Constant(0.1), schedules.Cosine(0.2, 100, floor=0.01)], [100]),
    "floor": schedules.Floor(SHAPES.ExponentialDecay(0.1, 50, 0.9), 0.01),
    "scale": schedules.Scale(Constant(0.1), 3),
    "shift": schedules.Shift(schedules.Interpolated([0, 100], [0.1, 0.3]), 50),
    "repeat": schedules.Repeat(schedules.Interpolated([0, 100], [0.1, 0.3]), 90),
}
STEPS = [0, 1, 2, 3, 49, 50, 51, 99, 100, 101, 199, 200, 399, 400, 1001, 2**24 + 1, 2**31]


def test_every_class_is_in_the_table():
    classes = {getattr(schedules, name) for name in schedules.__all__ if isinstance(getattr(schedules, name), type)}
    assert {type(case) for case in CASES.values()} == classes - {Schedule}


@pytest.mark.parametrize("name", CASES)
def test_eager_graph_and_xla_agree(name):
    """Eager and graph bit for bit; XLA has its own cos and pow, an ulp of float64 apart, so one of float32 at most."""
    schedule, traces = CASES[name], []

    def rate(step):
        traces.append(step)
        return schedule(step)

    graph, compiled = tf.function(rate), tf.function(schedule.__call__, jit_compile=True)
    steps = [tf.constant(step, tf.int64) for step in STEPS]
    eager = np.array([schedule(step).numpy() for step in steps])
    assert eager.dtype == np.float32
    assert np.isfinite(eager).all()
    np.testing.assert_array_equal([graph(step).numpy() for step in steps], eager)
    assert len(traces) == 1, "traced again for another step"
    np.testing.assert_array_max_ulp(np.array([compiled(step).numpy() for step in steps]), eager, maxulp=1)


@pytest.mark.parametrize("name", CASES)
def test_a_schedule_survives_a_file(name):
    schedule = CASES[name]
    config = json.loads(json.dumps(SHAPES.serialize(schedule)))
    again = SHAPES.deserialize(config)
    assert type(again) is type(schedule)
    assert again.get_config() == schedule.get_config()
    np.testing.assert_array_equal([again(step) for step in STEPS], [schedule(step) for step in STEPS])


@pytest.mark.parametrize("name", CASES)
def test_a_schedule_keeps_no_state(name):
    schedule = CASES[name]
    before = schedule.get_config()
    forwards = [float(schedule(step)) for step in STEPS]
    assert [float(schedule(step)) for step in reversed(STEPS)] == forwards[::-1]
    assert schedule.get_config() == before


class Recording(keras.optimizers.SGD):
    """Writes the rate that it applies into a variable, step by step."""

    def update_step(self, gradient, variable, learning_rate):
        self.applied.assign_add(learning_rate * tf.one_hot(tf.cast(self.iterations, tf.int32), 12))
        super().update_step(gradient, variable, learning_rate)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("name", ["scaled", "scaled piecewise", "scaled per epoch", "scaled user's"])
def test_a_plain_keras_optimizer_applies_it(name, jit_compile):
    optimizer = Recording(CASES[name])
    optimizer.applied = tf.Variable(tf.zeros(12))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(optimizer, loss="mse", jit_compile=jit_compile)
    model.fit(np.ones((24, 2), np.float32), np.ones((24, 1), np.float32), batch_size=2, epochs=1, verbose=0)
    expected = np.array([CASES[name](step) for step in range(12)])
    np.testing.assert_array_max_ulp(optimizer.applied.numpy(), expected, maxulp=1)


def test_a_model_with_a_scaled_rate_is_saved_and_loaded(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(CASES["scaled"]), loss="mse")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert float(loaded.optimizer.learning_rate) == float(model.optimizer.learning_rate)
    assert loaded.optimizer.get_config()["learning_rate"] == model.optimizer.get_config()["learning_rate"]
