"""Triangles between two rates."""

from __future__ import annotations

import keras
import tensorflow as tf

from distlr._utils.checks import not_negative_real, one_of, positive_real
from distlr.errors import ConfigurationError, received
from distlr.schedules.schedule import Schedule, divided

__all__ = ["Cyclic"]

MODES = ("triangular", "triangular2", "exp_range")


@keras.saving.register_keras_serializable("distlr")
class Cyclic(Schedule):
    """`lr(t) = base + (peak - base) * x * scale`: x goes up over `up` base steps and down over `down`, again and again.

    `scale` is 1 ("triangular"), `2^-cycle` ("triangular2", cycles from 0) or `gamma^t` ("exp_range").

    Source: Smith 2017, cyclical learning rates, arXiv 1506.01186, section 3.

    Args:
        base_learning_rate: the lower rate, at least 0.
        peak_learning_rate: the upper one, at least the lower.
        up: base steps from the lower to the upper, above 0.
        down: base steps back to the lower one; by default as many.
        mode: "triangular", "triangular2" or "exp_range".
        gamma: the base of "exp_range", in (0, 1].

    >>> triangles = Cyclic(0.0, 1.0, up=10, mode="triangular2")
    >>> [float(triangles(t)) for t in (0, 5, 10, 20, 30, 35)]
    [0.0, 0.5, 1.0, 0.0, 0.5, 0.25]
    """

    name = "cyclic"
    time_arguments = ("up", "down")

    def __init__(
        self,
        base_learning_rate: float,
        peak_learning_rate: float,
        up: float,
        down: float | None = None,
        mode: str = "triangular",
        gamma: float = 1.0,
    ) -> None:
        self.base_learning_rate = not_negative_real("base_learning_rate", base_learning_rate)
        self.peak_learning_rate = not_negative_real("peak_learning_rate", peak_learning_rate)
        self.up = positive_real("up", up)
        self.down = self.up if down is None else positive_real("down", down)
        self.mode = one_of("mode", mode, MODES)
        self.gamma = positive_real("gamma", gamma)
        if self.peak_learning_rate < self.base_learning_rate:
            expected = f"at least base_learning_rate={base_learning_rate}"
            raise ConfigurationError(received("peak_learning_rate", peak_learning_rate, expected))
        if self.gamma > 1:
            raise ConfigurationError(received("gamma", gamma, "at most 1: the rate would grow without end"))

    def at(self, t: tf.Tensor) -> tf.Tensor:
        """The rate at base step `t`, without an end: the lower one at a cycle's beginning, the upper one `up` later."""
        length = self.up + self.down
        cycle = tf.floor(divided(t, length))
        s = t - cycle * length
        x = tf.where(s < self.up, s / self.up, (length - s) / self.down)
        height = self.peak_learning_rate - self.base_learning_rate
        scale: float | tf.Tensor = 1.0
        if self.mode == "triangular2":
            scale = tf.pow(tf.constant(0.5, tf.float64), cycle)
        elif self.mode == "exp_range":
            scale = tf.pow(tf.constant(self.gamma, tf.float64), t)
        return self.base_learning_rate + height * x * scale
