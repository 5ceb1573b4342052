"""Decay along a hyperbolic tangent."""

from __future__ import annotations

import keras
import tensorflow as tf

from distlr._utils.checks import finite_real, not_negative_real, positive_real
from distlr.errors import ConfigurationError, received
from distlr.schedules.schedule import Schedule, progress

__all__ = ["Tanh"]


@keras.saving.register_keras_serializable("distlr")
class Tanh(Schedule):
    """`lr(t) = floor + (initial_learning_rate - floor) (1 - tanh(low (1 - p) + high p)) / 2`, p = min(t / steps, 1).

    Source: Hsueh et al. 2019, stochastic gradient descent with hyperbolic-tangent decay, arXiv 1806.01593, equation 2.

    Args:
        initial_learning_rate: the rate that is approached at t = 0, at least 0.
        steps: the length in base steps, above 0.
        floor: the rate that is approached at the end, at least 0.
        low: the tangent's argument at the beginning.
        high: the tangent's argument at the end, above `low`.

    >>> decay = Tanh(1.0, steps=100)
    >>> [round(float(decay(t)), 4) for t in (0, 60, 100)]
    [1.0, 0.8808, 0.0025]
    """

    name = "tanh"
    time_arguments = ("steps",)

    def __init__(
        self, initial_learning_rate: float, steps: float, floor: float = 0.0, low: float = -7.0, high: float = 3.0
    ) -> None:
        self.initial_learning_rate = not_negative_real("initial_learning_rate", initial_learning_rate)
        self.steps = positive_real("steps", steps)
        self.floor = not_negative_real("floor", floor)
        self.low, self.high = finite_real("low", low), finite_real("high", high)
        if not self.low < self.high:
            raise ConfigurationError(received("high", high, f"above low={low}"))

    def at(self, t: tf.Tensor) -> tf.Tensor:
        """The rate at base step `t`: from `steps` on the final rate, close above `floor`."""
        p = progress(t, self.steps)
        height = self.initial_learning_rate - self.floor
        return self.floor + height * (1.0 - tf.tanh(self.low * (1.0 - p) + self.high * p)) / 2.0
