"""A rate that changes at given times."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from distlr._utils.checks import not_negative_real, positive_real
from distlr.schedules.schedule import Schedule, increasing, passed

__all__ = ["MultiStep"]


@keras.saving.register_keras_serializable("distlr")
class MultiStep(Schedule):
    """`lr(t) = initial_learning_rate * gamma^n` with n the number of boundaries that `t` has reached.

    A value changes at `t >= boundary`. (Keras' `PiecewiseConstantDecay` changes at `t > boundary`: its first value
    holds for one step more.)

    Args:
        initial_learning_rate: the rate before the first boundary, at least 0.
        boundaries: increasing times in base steps.
        gamma: the factor on the rate at each of them, above 0.

    >>> steps = MultiStep(1.0, [10, 20], gamma=0.5)
    >>> [float(steps(t)) for t in (0, 9, 10, 19, 20, 1000)]
    [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    """

    name = "multi-step"
    time_arguments = ("boundaries",)

    def __init__(self, initial_learning_rate: float, boundaries: Sequence[float], gamma: float = 0.1) -> None:
        self.initial_learning_rate = not_negative_real("initial_learning_rate", initial_learning_rate)
        self.boundaries = increasing("boundaries", boundaries)
        self.gamma = positive_real("gamma", gamma)

    def at(self, t: tf.Tensor) -> tf.Tensor:
        """The rate at base step `t`: the new one at a boundary itself."""
        rates = [self.initial_learning_rate * self.gamma**n for n in range(len(self.boundaries) + 1)]
        return tf.gather(tf.constant(rates, tf.float64), passed(t, self.boundaries))
