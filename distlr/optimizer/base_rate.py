"""The rate that an optimizer was given, in whatever form Keras allows, as a schedule for the base batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from distlr.schedules.schedule import Schedule, check_is_schedule

__all__ = ["base_rate"]


def base_rate(optimizer: Any) -> Any:
    """What gives the rate at the base batch, as a schedule."""
    rate = optimizer._learning_rate
    if isinstance(rate, keras.Variable):
        return _VariableRate(rate)
    if isinstance(rate, keras.callbacks.Callback):
        check_is_schedule(rate, "learning_rate")
    if callable(rate) and not isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return _CallableRate(rate)
    return rate


class _VariableRate(Schedule):
    """The base rate of an optimizer that was given a float: Keras' own variable, so that it is saved as ever."""

    over_time = False

    def __init__(self, variable: Any) -> None:
        self._variable = variable

    def at(self, t: tf.Tensor) -> tf.Tensor:
        return tf.cast(self._variable, tf.float64)

    def get_config(self) -> dict[str, Any]:
        raise TypeError("The base rate is saved with its optimizer.")


class _CallableRate(Schedule):
    """The base rate of an optimizer that was given a function without arguments, as Keras allows."""

    over_time = False

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function

    def at(self, t: tf.Tensor) -> tf.Tensor:
        return tf.cast(self._function(), tf.float64)

    def get_config(self) -> dict[str, Any]:
        raise TypeError("The base rate is saved with its optimizer.")
