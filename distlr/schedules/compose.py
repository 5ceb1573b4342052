"""Schedules made of schedules.

Each is a schedule again, in base steps. Intervals are half-open: a part that begins at `b` holds at `t >= b`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from distlr._utils.checks import finite_real, not_negative_real, positive_real
from distlr.errors import ConfigurationError, ConfigurationTypeError, received
from distlr.schedules.schedule import Schedule, as_float64, check_is_schedule, divided, increasing, passed

__all__ = ["Floor", "Join", "Multiply", "Repeat", "Shift"]


def _checked(argument: str, schedule: Any) -> Any:
    check_is_schedule(schedule, argument)
    if getattr(schedule, "takes_real_steps", False):
        raise ConfigurationError(
            received(argument, schedule, "a schedule in base steps", "scale last: distlr.scale(the whole, batch)")
        )
    return schedule


@keras.saving.register_keras_serializable("distlr")
class Join(Schedule):
    """One schedule after another: `schedules[i]` from `boundaries[i - 1]` on, counting its own time from there.

    Args:
        schedules: at least one.
        boundaries: increasing times in base steps; one less than schedules.

    >>> from distlr.schedules import Constant, Interpolated
    >>> both = Join([Interpolated([0, 10], [0.0, 1.0]), Constant(0.25)], boundaries=[10])
    >>> [float(both(t)) for t in (0, 5, 9, 10, 99)]
    [0.0, 0.5, 0.9, 0.25, 0.25]
    """

    name = "join"
    time_arguments = ("boundaries",)

    def __init__(self, schedules: Sequence[Any], boundaries: Sequence[float]) -> None:
        if not isinstance(schedules, (list, tuple)) or not schedules:
            raise ConfigurationTypeError(received("schedules", schedules, "a list of at least one schedule"))
        self.schedules = [_checked(f"schedules[{i}]", schedule) for i, schedule in enumerate(schedules)]
        self.boundaries = increasing("boundaries", boundaries)
        if len(self.boundaries) != len(self.schedules) - 1:
            expected = f"{len(self.schedules) - 1} times, between {len(self.schedules)} schedules"
            raise ConfigurationError(received("boundaries", boundaries, expected))
        self._inner = [as_float64(schedule) for schedule in self.schedules]

    def at(self, t: tf.Tensor) -> tf.Tensor:
        """The rate at base step `t`: at a boundary itself that of the part which begins there."""
        part = passed(t, self.boundaries)
        rate = self._inner[0](t)
        for i, boundary in enumerate(self.boundaries):
            # Before its boundary a part is held at its beginning, so that it never gets a time that it does not have.
            rate = tf.where(part > i, self._inner[i + 1](tf.maximum(t - boundary, 0.0)), rate)
        return rate


class _Around(Schedule):
    """A schedule around one other."""

    def __init__(self, schedule: Any) -> None:
        self.schedule = _checked("schedule", schedule)
        self._inner = as_float64(schedule)


@keras.saving.register_keras_serializable("distlr")
class Floor(_Around):
    """`lr(t) = max(schedule(t), floor)`.

    Args:
        schedule: any.
        floor: the smallest rate, at least 0.

    >>> from distlr.schedules import Cosine
    >>> float(Floor(Cosine(1.0, steps=10), 0.1)(10))
    0.1
    """

    name = "floor"

    def __init__(self, schedule: Any, floor: float) -> None:
        super().__init__(schedule)
        self.floor = not_negative_real("floor", floor)

    def at(self, t: tf.Tensor) -> tf.Tensor:
        """The rate at base step `t`, at least `floor`."""
        return tf.maximum(self._inner(t), self.floor)


@keras.saving.register_keras_serializable("distlr", "Scale")  # the name in saved files
class Multiply(_Around):
    """`lr(t) = factor * schedule(t)`. (For the global batch it is `distlr.scale` that knows the factor.)

    Args:
        schedule: any.
        factor: at least 0.

    >>> from distlr.schedules import Constant
    >>> float(Multiply(Constant(0.5), 3)(0))
    1.5
    """

    name = "scale"

    def __init__(self, schedule: Any, factor: float) -> None:
        super().__init__(schedule)
        self.factor = not_negative_real("factor", factor)

    def at(self, t: tf.Tensor) -> tf.Tensor:
        """The rate at base step `t`, times `factor`."""
        return self.factor * self._inner(t)


@keras.saving.register_keras_serializable("distlr")
class Shift(_Around):
    """`lr(t) = schedule(max(0, t - steps))`: the schedule begins later, and waits at its beginning; earlier below 0.

    Args:
        schedule: any.
        steps: base steps; below 0 it begins in its middle.

    >>> from distlr.schedules import Interpolated
    >>> path = Interpolated([0, 10], [0.0, 1.0])
    >>> float(Shift(path, 5)(10)), float(Shift(path, -5)(0))
    (0.5, 0.5)
    """

    name = "shift"
    time_arguments = ("steps",)

    def __init__(self, schedule: Any, steps: float) -> None:
        super().__init__(schedule)
        self.steps = finite_real("steps", steps, "a finite number of base steps")

    def at(self, t: tf.Tensor) -> tf.Tensor:
        """The rate that the schedule has at base step `max(0, t - steps)`."""
        return self._inner(tf.maximum(t - self.steps, 0.0))


@keras.saving.register_keras_serializable("distlr")
class Repeat(_Around):
    """`lr(t) = schedule(t mod every)`.

    Args:
        schedule: any.
        every: the length of a round in base steps, above 0.

    >>> from distlr.schedules import Interpolated
    >>> [float(Repeat(Interpolated([0, 10], [0.0, 1.0]), 10)(t)) for t in (5, 10, 25)]
    [0.5, 0.0, 0.5]
    """

    name = "repeat"
    time_arguments = ("every",)

    def __init__(self, schedule: Any, every: float) -> None:
        super().__init__(schedule)
        self.every = positive_real("every", every)

    def at(self, t: tf.Tensor) -> tf.Tensor:
        """The rate that the schedule has at base step `t mod every`: its beginning at each multiple of `every`."""
        return self._inner(t - self.every * tf.floor(divided(t, self.every)))
