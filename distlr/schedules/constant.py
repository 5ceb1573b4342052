"""The constant rate."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from distlr.errors import ConfigurationError, received
from distlr.schedules.base import Schedule

__all__ = ["Constant"]


@keras.saving.register_keras_serializable("distlr")
class Constant(Schedule):
    """`lr(t) = learning_rate`.

    Args:
        learning_rate: the rate, a finite number of at least 0.

    >>> float(Constant(0.5)(1000))
    0.5
    """

    def __init__(self, learning_rate: float) -> None:
        value = float(learning_rate)
        if isinstance(learning_rate, bool) or not math.isfinite(value) or value < 0:
            raise ConfigurationError(received("learning_rate", learning_rate, "a finite number of at least 0"))
        self.learning_rate = value

    def at(self, t: tf.Tensor) -> tf.Tensor:
        return tf.fill(tf.shape(t), tf.constant(self.learning_rate, tf.float64))

    def get_config(self) -> dict[str, Any]:
        return {"learning_rate": self.learning_rate}
