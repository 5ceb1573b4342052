"""Warmup over any schedule."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from distlr._utils.checks import one_of, positive_real, real
from distlr.errors import ConfigurationError, received
from distlr.schedules.schedule import Schedule, as_float64, check_has_no_warmup, check_is_schedule

__all__ = ["WARMUP_SHAPES", "Warmup", "check_shape", "check_start"]

WARMUP_SHAPES = ("linear", "exponential", "cosine", "polynomial")


@keras.saving.register_keras_serializable("distlr")
class Warmup(Schedule):
    """`lr(t) = schedule(t) * w(t)`, with `w` climbing from `start` to 1 over the first `steps`.

    With p = t / steps, held at 1 from t = steps on, and s = `start`:

    - linear: `w = s + (1 - s) p`
    - exponential: `w = s^(1 - p)`
    - cosine: `w = s + (1 - s) (1 - cos(pi p)) / 2`
    - polynomial: `w = s + (1 - s) p^power`

    The warmup overlaps the schedule's own time, as in Goyal et al. 2017 (arXiv 1706.02677, section 2.2).

    Args:
        schedule: any Keras `LearningRateSchedule` without a warmup of its own, not scaled yet.
        steps: the length in base steps; may be a fraction, must be above 0.
        start: the share of the rate at t = 0, in [0, 1]; above 0 for "exponential".
        shape: one of "linear", "exponential", "cosine", "polynomial".
        power: the exponent of "polynomial", above 0.

    >>> from distlr.schedules import Constant
    >>> warm = Warmup(Constant(1.0), steps=4, start=0.5)
    >>> [float(warm(t)) for t in (0, 2, 4, 9)]
    [0.5, 0.75, 1.0, 1.0]
    """

    name = "warmup"
    time_arguments = ("steps",)

    def __init__(
        self, schedule: Any, steps: float, start: float = 0.0, shape: str = "linear", power: float = 2.0
    ) -> None:
        check_is_schedule(schedule)
        if getattr(schedule, "takes_real_steps", False):
            raise ConfigurationError(
                f"A warmup counts base steps, and the schedule is scaled already. Received: schedule={schedule!r}. "
                "Fix: scale last, distlr.scale(schedule, batch, warmup=...)."
            )
        check_has_no_warmup(schedule, "steps", steps)
        self.schedule = schedule
        self.steps = positive_real("steps", steps)
        self.shape = check_shape("shape", shape)
        self.start = check_start("start", start, shape)
        self.power = positive_real("power", power)
        self._inner = as_float64(schedule)

    def factor(self, t: tf.Tensor) -> tf.Tensor:
        """`w(t)`, float64.

        >>> from distlr.schedules import Constant
        >>> float(Warmup(Constant(0.1), steps=4, shape="cosine").factor(tf.constant(2.0)))
        0.5
        """
        p = tf.clip_by_value(tf.cast(t, tf.float64) / self.steps, 0.0, 1.0)
        s = tf.constant(self.start, tf.float64)
        if self.shape == "exponential":
            return tf.pow(s, 1 - p)
        if self.shape == "cosine":
            p = (1 - tf.cos(math.pi * p)) / 2
        elif self.shape == "polynomial":
            p = tf.pow(p, self.power)
        return s + (1 - s) * p

    def at(self, t: tf.Tensor) -> tf.Tensor:
        """The rate at base step `t`: that of the schedule, whose time goes on meanwhile, times `w(t)`."""
        return self._inner(t) * self.factor(t)

    @property
    def warmup_steps(self) -> float:
        """`steps`, under the name that Keras' own schedules with a warmup use."""
        return self.steps


def check_shape(argument: str, shape: str) -> str:
    """The shape of a warmup, checked."""
    return one_of(argument, shape, WARMUP_SHAPES)


def check_start(argument: str, start: Any, shape: str) -> float:
    """The share of the rate that a warmup starts from, checked."""
    expected, hint = "a share of the full rate from 0 to 1", "write 0.25 to begin at a quarter of the rate"
    if shape == "exponential":
        expected, hint = "a share of the full rate above 0, up to 1", "begin at 0.01: an exponential climbs from no 0"
    share = real(argument, start, expected, hint)
    if not 0 <= share <= 1 or (share == 0 and shape == "exponential"):
        raise ConfigurationError(received(argument, start, expected, hint))
    return share
