"""What tracing an update in a `tf.function` of the user's own takes with it."""

from __future__ import annotations

import keras
import pytest
import tensorflow as tf
from tensorflow.python.autograph.core import ag_ctx

import distlr


class Noting(keras.optimizers.schedules.LearningRateSchedule):
    """A constant rate that notes whether AutoGraph converts what asks for it."""

    def __init__(self) -> None:
        self.statuses: list[str] = []

    def __call__(self, step):
        self.statuses.append(ag_ctx.control_status_ctx().status.name)
        return tf.constant(0.1)

    def get_config(self):
        return {}


def test_autograph_does_not_convert_the_optimizer() -> None:
    job = distlr.init(environ={})
    variable, schedule = keras.Variable([1.0, 2.0]), Noting()
    optimizer = job.optimizer(keras.optimizers.SGD(schedule))

    @tf.function
    def step():
        outside.append(ag_ctx.control_status_ctx().status.name)
        optimizer.apply([tf.ones(2)], [variable])

    outside: list[str] = []
    schedule.statuses.clear()
    step()
    assert outside == ["ENABLED"]
    assert set(schedule.statuses) == {"DISABLED"}
    assert variable.numpy().tolist() == pytest.approx([0.9, 1.9])
