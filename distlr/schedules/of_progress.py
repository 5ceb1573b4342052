"""Any function of the share of the run that has passed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from distlr._utils.checks import not_negative_real, positive_real
from distlr.errors import ConfigurationError, ConfigurationTypeError, received
from distlr.schedules.schedule import Schedule, progress

__all__ = ["OfProgress"]


@keras.saving.register_keras_serializable("distlr")
class OfProgress(Schedule):
    """`lr(t) = learning_rate * function(p)` with `p = min(t / steps, 1)`.

    Args:
        function: a function of a float64 tensor of any shape, elementwise, with TensorFlow's or Keras' operations or
            plain arithmetic. To save it, register it: `@keras.saving.register_keras_serializable()`.
        steps: the length of the run in base steps, above 0.
        learning_rate: the factor on the function's value, at least 0.

    Raises:
        ConfigurationError: the function cannot be called with a tensor (`math.cos`, an `if` on p), or does not
            return one number for each.

    >>> half = OfProgress(lambda p: 1 - p / 2, steps=10, learning_rate=0.5)
    >>> [float(half(t)) for t in (0, 5, 10, 20)]
    [0.5, 0.375, 0.25, 0.25]
    """

    def __init__(self, function: Callable[[Any], Any], steps: float, learning_rate: float = 1.0) -> None:
        if isinstance(function, dict):  # as it was saved
            function = keras.saving.deserialize_keras_object(function)
        if not callable(function):
            raise ConfigurationTypeError(received("function", function, "a function of the progress p in [0, 1]"))
        self.function = function
        self.steps = positive_real("steps", steps)
        self.learning_rate = not_negative_real("learning_rate", learning_rate)
        self._check()

    def at(self, t: tf.Tensor) -> tf.Tensor:
        """The rate at base step `t`: `learning_rate * function(1)` from `steps` on."""
        return self.learning_rate * tf.cast(self.function(progress(t, self.steps)), tf.float64)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, the function as Keras saves it: by its registered name."""
        function = keras.saving.serialize_keras_object(self.function)
        return {"function": function, "steps": self.steps, "learning_rate": self.learning_rate}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> OfProgress:
        """The schedule whose `get_config` this is; the constructor looks the function up."""
        return cls(**config)

    def _check(self) -> None:
        hint = "use elementwise operations, such as tf.cos and tf.where, that take a tensor of many p at once"
        with tf.init_scope():
            try:
                values = tf.cast(self.function(tf.constant([0.0, 0.5, 1.0], tf.float64)), tf.float64)
            except Exception as error:  # anything that user code may raise
                raise ConfigurationError(
                    f"`function` failed on a tensor of p. Received: function={self.function!r}, which raised "
                    f"{type(error).__name__}: {error} Fix: {hint}."
                ) from error
            if values.shape not in ((3,), ()):
                expected = "elementwise: of three p it gave values of shape " + str(tuple(values.shape))
                raise ConfigurationError(received("function", self.function, expected, hint))
