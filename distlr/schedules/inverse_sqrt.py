"""Decay with the inverse square root of time."""

from __future__ import annotations

import keras
import tensorflow as tf

from distlr._utils.checks import not_negative_real, positive_real
from distlr.schedules.schedule import Schedule

__all__ = ["InverseSqrt"]


@keras.saving.register_keras_serializable("distlr")
class InverseSqrt(Schedule):
    """`lr(t) = initial_learning_rate / sqrt(1 + max(0, t - start) / timescale)`.

    With `start` and `timescale` both at the length of a warmup it is the schedule of the Transformer (Vaswani et al.
    2017, arXiv 1706.03762, section 5.3), `initial_learning_rate * sqrt(warmup / t)`.

    Args:
        initial_learning_rate: the rate up to `start`, at least 0.
        timescale: after so many more base steps the rate is `1 / sqrt(2)` of it; above 0.
        start: where the decay begins, in base steps.

    >>> decay = InverseSqrt(1.0, timescale=100)
    >>> [float(decay(t)) for t in (0, 300, 1500)]
    [1.0, 0.5, 0.25]
    """

    name = "inverse-sqrt"
    time_arguments = ("timescale", "start")

    def __init__(self, initial_learning_rate: float, timescale: float, start: float = 0.0) -> None:
        self.initial_learning_rate = not_negative_real("initial_learning_rate", initial_learning_rate)
        self.timescale = positive_real("timescale", timescale)
        self.start = not_negative_real("start", start)

    def at(self, t: tf.Tensor) -> tf.Tensor:
        """The rate at base step `t`: it falls without an end, and never to 0."""
        return self.initial_learning_rate / tf.sqrt(1.0 + tf.maximum(t - self.start, 0.0) / self.timescale)
