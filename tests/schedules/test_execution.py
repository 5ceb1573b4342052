"""The common properties of all schedules of distlr: eager, graph and XLA agree, it is traced once, it can be saved."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from shapes import SHAPES, K

from distlr import GlobalBatch, scale, schedules

CASES = {name: case for shape in SHAPES for name, case in shape.cases.items()}
STEPS = [0, 1, 2, 3, 49, 50, 51, 99, 100, 101, 199, 200, 399, 400, 1001, 2**24 + 1, 2**31]


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
    config = json.loads(json.dumps(K.serialize(schedule)))
    again = K.deserialize(config)
    assert type(again) is type(schedule), "decorate the class: keras.saving.register_keras_serializable('distlr')"
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


# 49 * (1 / 49) is below 1, which is how graphs and XLA would divide; and so is 50_000 * (1 / 96) below 50_000 / 96.
AT_ITS_STEP = {
    "restarts": (schedules.CosineRestarts(1.0, 49), [48, 49, 97, 98]),
    "repeat": (schedules.Repeat(schedules.Interpolated([0, 49], [0.0, 1.0]), 49), [48, 49, 97, 98]),
    "cyclic": (schedules.Cyclic(0.0, 1.0, 20, 29, mode="triangular2"), [48, 49, 50, 98, 99]),
    "base batch": (scale(schedules.MultiStep(1.0, [1, 2]), GlobalBatch(49, base_batch=49)), [0, 1, 2]),
    "epochs": (
        scale(
            schedules.MultiStep(1.0, [epoch * 50_000 / 96 for epoch in range(1, 91)], gamma=0.9),
            GlobalBatch(1000, base_batch=96, samples_per_epoch=50_000),
        ),
        [50 * epoch - early for epoch in range(1, 91) for early in (1, 0)],
    ),
}


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("name", AT_ITS_STEP)
def test_a_value_changes_at_its_own_step_in_a_graph_too(name, jit_compile):
    schedule, steps = AT_ITS_STEP[name]
    rate = tf.function(schedule.__call__, jit_compile=jit_compile)
    rates = np.array([rate(tf.constant(step, tf.int64)).numpy() for step in steps])
    np.testing.assert_array_max_ulp(rates, np.array([schedule(step).numpy() for step in steps]), maxulp=1)
