"""A rate through given points."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from distlr._utils.checks import not_negative_real, one_of
from distlr.errors import ConfigurationError, received
from distlr.schedules.schedule import Schedule, increasing, passed, progress

__all__ = ["Interpolated"]

WAYS = ("linear", "cosine")


@keras.saving.register_keras_serializable("distlr")
class Interpolated(Schedule):
    """Through `(times[i], values[i])`, from point to point along a line or half a cosine; held before and after.

    Args:
        times: increasing, in base steps.
        values: the rates at these times, each at least 0.
        way: "linear" or "cosine".

    >>> path = Interpolated([0, 10, 30], [0.0, 1.0, 0.5])
    >>> [float(path(t)) for t in (0, 5, 10, 20, 30, 99)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.5]
    """

    name = "interpolated"
    time_arguments = ("times",)

    def __init__(self, times: Sequence[float], values: Sequence[float], way: str = "linear") -> None:
        self.times = increasing("times", times)
        self.values = [not_negative_real(f"values[{i}]", value) for i, value in enumerate(values)]
        self.way = one_of("way", way, WAYS)
        if len(self.times) != len(self.values) or not self.times:
            raise ConfigurationError(
                received(
                    "values", values, f"as many as times={list(times)}, and at least one", "give each time its rate"
                )
            )

    def at(self, t: tf.Tensor) -> tf.Tensor:
        """The rate at base step `t`: `values[0]` up to the first time, `values[-1]` from the last one on."""
        times, values = tf.constant(self.times, tf.float64), tf.constant(self.values, tf.float64)
        if len(self.times) == 1:
            return tf.fill(tf.shape(t), values[0])
        left = tf.clip_by_value(passed(t, self.times) - 1, 0, len(self.times) - 2)
        begin, end = tf.gather(times, left), tf.gather(times, left + 1)
        a, b = tf.gather(values, left), tf.gather(values, left + 1)
        share = progress(t - begin, end - begin)
        if self.way == "cosine":
            share = (1.0 - tf.cos(math.pi * share)) / 2.0
        return a + (b - a) * share
