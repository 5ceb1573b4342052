"""The base of distlr's schedules, and the float64 view of anybody's schedule."""

from __future__ import annotations

import abc
import copy
import inspect
import itertools
import numbers
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from distlr._utils.checks import not_negative_real
from distlr.errors import ConfigurationError, ConfigurationTypeError, received

__all__ = [
    "Schedule",
    "as_float64",
    "at_each",
    "check_has_no_warmup",
    "check_is_schedule",
    "divided",
    "has_warmup",
    "increasing",
    "passed",
    "progress",
    "resolve",
]


class Schedule(keras.optimizers.schedules.LearningRateSchedule, abc.ABC):
    """A pure function of time, computed in float64 and cast once at the end.

    Time `t` is in *base steps*: optimizer updates at the batch that the rate was tuned at. A value
    changes at `t >= boundary` (half-open intervals), everywhere in distlr.

    Writing a schedule: keep each checked argument in an attribute of its name (or write `get_config`), and no state.
    Decorate the class with `keras.saving.register_keras_serializable("distlr")`; set its `name` and `time_arguments`.
    `at` gets float64 of any shape and is elementwise. In a graph the first argument of an operation sets its type, and
    a Python number's is float32: write `tf.maximum(x, 0.1)`, the number second. A schedule that jumps at
    multiples of a length divides by `divided`.

    The constructors of distlr's own raise `ConfigurationError` for an argument out of the range that their docstrings
    name, and `ConfigurationTypeError` for one of another type.

    Attributes:
        name: the name of the class for `get` and `to_dict`; None if they do not know it.
        time_arguments: the constructor's arguments that are lengths or times, one or a list of them: `get` takes
            durations ("90ep") for these, and turns them into base steps.
        over_time: whether the rate may change with `t`.
        takes_real_steps: whether `__call__` takes the steps of the global batch and counts the base steps itself.

    >>> from distlr.schedules.schedule import divided
    >>> class Halving(Schedule):
    ...     def __init__(self, learning_rate, every):
    ...         self.learning_rate, self.every = learning_rate, every
    ...
    ...     def at(self, t):
    ...         return self.learning_rate * 0.5 ** tf.floor(divided(t, self.every))
    >>> halving = Halving(0.8, every=10)
    >>> [round(float(halving(t)), 6) for t in (0, 9, 10, 25)]
    [0.8, 0.8, 0.4, 0.2]
    >>> Halving.from_config(halving.get_config()).every
    10
    """

    name: ClassVar[str | None] = None
    time_arguments: ClassVar[tuple[str, ...]] = ()
    takes_real_steps: ClassVar[bool] = False
    over_time: ClassVar[bool] = True

    @abc.abstractmethod
    def at(self, t: tf.Tensor) -> tf.Tensor:
        """The rate at time `t`, without rounding to Keras' float type as a call does.

        Args:
            t: base steps, at least 0, fractions among them; a float64 tensor of any shape.

        Returns:
            The rates, a float64 tensor of the same shape.

        >>> from distlr.schedules import Cosine
        >>> Cosine(0.1, steps=100).at(tf.constant([0.0, 50.0, 100.0], tf.float64)).numpy().round(6).tolist()
        [0.1, 0.05, 0.0]
        """

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, each from the attribute of its name; schedules in them as Keras saves them."""
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        return {name: _saved(getattr(self, name)) for name in names}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Schedule:
        """The schedule whose `get_config` this is, also after a conversion to JSON and back."""
        return cls(**{name: _loaded(value) for name, value in config.items()})

    def __call__(self, step: Any) -> tf.Tensor:
        """The rate at `step`, in Keras' float type (float32 unless configured otherwise)."""
        return tf.cast(self.at(tf.cast(step, tf.float64)), keras.config.floatx())


def _saved(value: Any) -> Any:
    if isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
        return keras.saving.serialize_keras_object(value)
    return [_saved(item) for item in value] if isinstance(value, (list, tuple)) else value


def _loaded(value: Any) -> Any:
    if isinstance(value, dict) and "class_name" in value:
        return keras.saving.deserialize_keras_object(value)
    return [_loaded(item) for item in value] if isinstance(value, list) else value


def divided(t: tf.Tensor, length: float) -> tf.Tensor:
    """`t / length`, rounded once, so that it is a whole number wherever it should be one, also in a graph.

    TensorFlow's graph optimizer and XLA turn a division by a constant into a multiplication by its reciprocal, and
    49 * (1 / 49) is below 1. A divisor that depends on `t` is left alone.
    """
    return t / tf.where(tf.math.is_nan(t), t, tf.constant(length, tf.float64))


def progress(t: tf.Tensor, steps: float | tf.Tensor) -> tf.Tensor:
    """The share of `steps` that has passed at `t`, held at 0 and at 1."""
    return tf.clip_by_value(t / steps, 0.0, 1.0)


def passed(t: tf.Tensor, boundaries: Sequence[float]) -> tf.Tensor:
    """How many of the boundaries have been reached: a value changes at `t >= boundary`."""
    if not boundaries:
        return tf.zeros_like(t, tf.int64)
    return tf.reduce_sum(tf.cast(t[..., None] >= tf.constant(boundaries, tf.float64), tf.int64), axis=-1)


def increasing(argument: str, values: Any) -> list[float]:
    """A list of times, each a finite number above the one before, the first at least 0."""
    expected, hint = "a list of increasing times of at least 0", "write [30, 60, 80], for example"
    if not isinstance(values, (list, tuple)):
        raise ConfigurationTypeError(received(argument, values, expected, hint))
    times = [not_negative_real(f"{argument}[{i}]", value) for i, value in enumerate(values)]
    if any(later <= earlier for earlier, later in itertools.pairwise(times)):
        raise ConfigurationError(received(argument, values, expected, hint))
    return times


def as_float64(schedule: Any) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns the function `t -> rate` of a schedule, float64 in and out.

    Keras' own shapes compute in the type of their first argument, a Python float and thus float32,
    where t = 2^24 equals 2^24 + 1 and a long cosine is off by more than 1e-6. A copy whose numbers are
    `np.float64` computes in float64 instead (and takes an int for a rate, which Keras computes in integers).
    At the stairs of Keras' own (`staircase=True`) graph and XLA may be a step late, as Keras is: there
    49 / 49 can be below 1 (`divided`). distlr's own shapes change at the same step everywhere.
    A user's schedule is called with the widest type of step that it accepts: float64, float32, then the int64
    that Keras itself would pass.

    Raises:
        ConfigurationError: the schedule accepts none of these.
    """
    if isinstance(schedule, Schedule):
        return schedule.at
    if type(schedule).__module__.split(".")[0] == "keras":
        precise = _with_float64(schedule)
        return lambda t: tf.cast(precise(t), tf.float64)
    dtype = _accepted_step(schedule)
    return lambda t: tf.cast(schedule(_cast_step(t, dtype)), tf.float64)


def resolve(schedule: Any) -> Schedule:
    """Checks anybody's schedule once, and gives it as one of distlr's: whatever is put around that checks no more.

    Raises:
        ConfigurationError, ConfigurationTypeError: it is no schedule, or cannot be called (`as_float64`).
    """
    check_is_schedule(schedule)
    return schedule if isinstance(schedule, Schedule) else _Resolved(schedule)


class _Resolved(Schedule):
    """A schedule of somebody else's, in float64."""

    def __init__(self, schedule: Any) -> None:
        self.schedule = schedule
        self._rate_at = as_float64(schedule)

    def at(self, t: tf.Tensor) -> tf.Tensor:
        return self._rate_at(t)


def at_each(rate_at: Callable[[tf.Tensor], tf.Tensor], times: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The rates at many times, computed eagerly, also by a function `t -> rate` that accepts one time only.

    Keras' `CosineDecay` with a warmup is such a function, and so is any schedule with a condition in it.
    """
    time_array = np.asarray(times)
    try:
        rates = np.asarray(rate_at(tf.constant(time_array)), np.float64)
    except (ValueError, TypeError, tf.errors.InvalidArgumentError):
        return np.array([float(rate_at(tf.constant(time))) for time in time_array], np.float64)
    return np.broadcast_to(rates, time_array.shape)


def _cast_step(t: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return tf.cast(tf.floor(t) if dtype.is_integer else t, dtype)


def _accepted_step(schedule: Any) -> tf.DType:
    failure: Exception | None = None
    with tf.init_scope():
        for dtype in (tf.float64, tf.float32, tf.int64):
            try:
                tf.cast(schedule(tf.zeros((), dtype)), tf.float64)
            except Exception as error:  # anything that user code may raise
                failure = error
            else:
                return dtype
    raise ConfigurationError(
        f"The schedule can be called neither with a float step nor with an int64 step. Received: "
        f"schedule={schedule!r}, which failed at step 0 with {type(failure).__name__}: {failure} Fix: let its "
        "__call__(self, step) return a number for a scalar tensor `step`."
    ) from failure


def _with_float64(value: Any) -> Any:
    if isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
        precise = copy.copy(value)
        precise.__dict__.update({name: _with_float64(item) for name, item in vars(value).items()})
        return precise
    if isinstance(value, (list, tuple)):
        return type(value)(_with_float64(item) for item in value)
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return np.float64(value) if is_number else value


def has_warmup(schedule: Any) -> bool:
    """Whether a schedule climbs by itself: a `warmup_steps` above 0, or Keras' `warmup_target` without any."""
    steps = getattr(schedule, "warmup_steps", None)
    if isinstance(steps, numbers.Real):
        return float(steps) > 0
    return getattr(schedule, "warmup_target", None) is not None


def check_has_no_warmup(schedule: Any, argument: str, value: Any) -> None:
    """Refuses `argument`, a warmup, over a schedule that has its own."""
    if has_warmup(schedule):
        raise ConfigurationError(
            f"The schedule {type(schedule).__name__} has a warmup of its own already. Received: {argument}={value!r} "
            f"with schedule.warmup_steps={getattr(schedule, 'warmup_steps', None)!r}. Fix: drop one of the "
            "two warmups."
        )


def check_is_schedule(schedule: Any, argument: str = "schedule") -> None:
    """Refuses an object that is no schedule, a callback above all, and says what to write instead."""
    if isinstance(schedule, keras.callbacks.Callback):
        name = type(schedule).__name__
        raise ConfigurationTypeError(
            f"`{argument}` is the rate, and {name} is a callback, which watches the training and changes the "
            f"rate. Received: {argument}={schedule!r}. Fix: write a float or a schedule here, for "
            f"example keras.optimizers.SGD(learning_rate=0.1), and give the callback to "
            f"model.fit(callbacks=job.callbacks([{name}(...)]))."
        )
    if not isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        hint = "write keras.optimizers.schedules.CosineDecay(0.1, decay_steps), for example"
        if isinstance(schedule, type):
            hint = f"make one: {schedule.__name__}(...)"
        raise ConfigurationTypeError(
            received(argument, schedule, "a float, a Keras LearningRateSchedule or a function of the epoch", hint)
        )
