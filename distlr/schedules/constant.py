"""The constant rate."""

from __future__ import annotations

import keras
import tensorflow as tf

from distlr._utils.checks import not_negative_real
from distlr.schedules.schedule import Schedule

__all__ = ["Constant"]


@keras.saving.register_keras_serializable("distlr")
class Constant(Schedule):
    """`lr(t) = learning_rate`.

    Args:
        learning_rate: the rate, a finite number of at least 0.

    >>> float(Constant(0.5)(1000))
    0.5
    """

    name = "constant"
    over_time = False

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = not_negative_real("learning_rate", learning_rate)

    def at(self, t: tf.Tensor) -> tf.Tensor:
        """The rate, whatever `t`."""
        return tf.fill(tf.shape(t), tf.constant(self.learning_rate, tf.float64))
