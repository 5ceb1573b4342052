"""The value of `optimizer.learning_rate`, and the rate that is computed once for each update."""

from __future__ import annotations

import contextlib
import math
import numbers
import operator
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from distlr.errors import ConfigurationError, ConfigurationTypeError, received

__all__ = ["LearningRate", "RateCache", "check_rate"]


def _in_float_type(compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], bool]:
    """A comparison with a number in Keras' float type; with anything else as that wants to be compared."""

    def compared(rate: LearningRate, other: Any) -> bool:
        if not isinstance(other, numbers.Real):
            return NotImplemented  # type: ignore[no-any-return]
        number = rate.numpy()
        return bool(compare(number, type(number)(other)))

    return compared


class LearningRate(float):
    """A reading of the current rate: a float, with what loggers and scripts look for in Keras' variable.

    It compares in Keras' float type, as the variable does: a rate of 0.01 equals 0.01. It does not change when the rate
    does; read `optimizer.learning_rate` again.

    >>> import distlr
    >>> optimizer = distlr.init(environ={}).optimizer(keras.optimizers.SGD(0.1))
    >>> reading = optimizer.learning_rate
    >>> reading.assign(0.05)
    >>> float(reading), float(optimizer.learning_rate)
    (0.1, 0.05)
    >>> reading.shape, reading.dtype, reading.value.numpy().item() == float(reading), reading == 0.1
    ((), 'float32', True, True)
    """

    _optimizer: Any
    shape = ()
    ndim = 0

    def __new__(cls, value: float, optimizer: Any) -> LearningRate:
        """A reading of `value`, and the optimizer whose rate `assign` sets."""
        reading = super().__new__(cls, value)
        reading._optimizer = optimizer
        return reading

    def assign(self, value: Any) -> None:
        """Sets the optimizer's rate, as `optimizer.learning_rate = value` does."""
        self._optimizer.learning_rate = value

    @property
    def dtype(self) -> str:
        """Keras' float type."""
        name: str = keras.config.floatx()
        return name

    def numpy(self) -> Any:
        """The rate as a number of numpy's, of Keras' float type."""
        return tf.as_dtype(self.dtype).as_numpy_dtype(self)

    @property
    def value(self) -> tf.Tensor:
        """The rate as a tensor of Keras' float type."""
        return tf.constant(float(self), self.dtype)

    __eq__ = _in_float_type(operator.eq)
    __ne__ = _in_float_type(operator.ne)
    __lt__ = _in_float_type(operator.lt)
    __le__ = _in_float_type(operator.le)
    __gt__ = _in_float_type(operator.gt)
    __ge__ = _in_float_type(operator.ge)
    __hash__ = float.__hash__

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy and a pickle are plain floats: the optimizer stays where it is."""
        return float, (float(self),)


class RateCache:
    """The rate tensor of the update in progress, a slot a thread.

    `MirroredStrategy` runs each replica's step in a thread of its own and the update of the variables in
    the main thread, or in threads started from there; in those any replica's tensor will do, since all replicas compute
    the same rate.
    """

    def __init__(self) -> None:
        self._rates: dict[int, tf.Tensor] = {}

    def get(self) -> tf.Tensor | None:
        """The tensor to use here, or None when no update is in progress."""
        rate = self._rates.get(threading.get_ident())
        if rate is None and self._rates and (tf.distribute.in_cross_replica_context() or not tf.executing_eagerly()):
            return next(iter(self._rates.values()))
        return rate

    @contextlib.contextmanager
    def holding(self, rate: tf.Tensor) -> Iterator[None]:
        """Holds the rate of this thread's update."""
        thread = threading.get_ident()
        before = self._rates.get(thread)
        self._rates[thread] = rate
        try:
            yield
        finally:
            if before is None:
                del self._rates[thread]
            else:
                self._rates[thread] = before


def check_rate(value: Any) -> None:
    """Refuses what is no rate to set: not a number, negative, NaN or infinite."""
    if tf.is_tensor(value) and not tf.executing_eagerly():
        return
    if callable(value) or isinstance(value, (bool, str, keras.callbacks.Callback)):
        raise ConfigurationTypeError(
            received(
                "learning_rate",
                value,
                "a number when it is assigned to an optimizer of distlr",
                "give a schedule to the optimizer when it is made; a callback to fit(callbacks=job.callbacks([...]))",
            )
        )
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ConfigurationTypeError(received("learning_rate", value, "a number")) from None
    if not math.isfinite(number) or number < 0:
        raise ConfigurationError(received("learning_rate", number, "finite and at least 0"))
