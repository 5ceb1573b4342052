"""Warmup over any schedule."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from distlr.errors import ConfigurationError, received
from distlr.schedules.base import Schedule, as_float64, check_is_schedule, has_warmup

__all__ = ["WARMUP_SHAPES", "Warmup"]

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
        schedule: any Keras `LearningRateSchedule` without a warmup of its own.
        steps: the length in base steps; may be a fraction, must be above 0.
        start: the share of the rate at t = 0, in [0, 1]; above 0 for "exponential".
        shape: one of "linear", "exponential", "cosine", "polynomial".
        power: the exponent of "polynomial", above 0.

    >>> from distlr.schedules import Constant
    >>> warm = Warmup(Constant(1.0), steps=4, start=0.5)
    >>> [float(warm(t)) for t in (0, 2, 4, 9)]
    [0.5, 0.75, 1.0, 1.0]
    """

    def __init__(
        self, schedule: Any, steps: float, start: float = 0.0, shape: str = "linear", power: float = 2.0
    ) -> None:
        check_is_schedule(schedule)
        if has_warmup(schedule):
            raise ConfigurationError(
                f"The schedule {type(schedule).__name__} has a warmup of its own already. To mend it: drop either "
                "its warmup arguments or distlr's `warmup`."
            )
        if isinstance(steps, bool) or not math.isfinite(steps) or steps <= 0:
            raise ConfigurationError(received("steps", steps, "a finite number above 0"))
        if shape not in WARMUP_SHAPES:
            raise ConfigurationError(received("shape", shape, f"one of {', '.join(WARMUP_SHAPES)}"))
        lowest_ok = start > 0 if shape == "exponential" else start >= 0
        if isinstance(start, bool) or not (lowest_ok and start <= 1):
            bounds = "above 0 (an exponential climbs from no zero)" if shape == "exponential" else "of at least 0"
            raise ConfigurationError(received("start", start, f"a share {bounds} and at most 1"))
        if isinstance(power, bool) or not math.isfinite(power) or power <= 0:
            raise ConfigurationError(received("power", power, "a finite number above 0"))
        self.schedule = schedule
        self.warmup_steps = steps
        self.start = float(start)
        self.shape = shape
        self.power = float(power)
        self._inner = as_float64(schedule)

    def factor(self, t: tf.Tensor) -> tf.Tensor:
        """`w(t)`, float64."""
        p = tf.clip_by_value(tf.cast(t, tf.float64) / self.warmup_steps, 0.0, 1.0)
        s = tf.constant(self.start, tf.float64)
        if self.shape == "exponential":
            return tf.pow(s, 1 - p)
        if self.shape == "cosine":
            p = (1 - tf.cos(math.pi * p)) / 2
        elif self.shape == "polynomial":
            p = tf.pow(p, self.power)
        return s + (1 - s) * p

    def at(self, t: tf.Tensor) -> tf.Tensor:
        return self._inner(t) * self.factor(t)

    def get_config(self) -> dict[str, Any]:
        return {
            "schedule": keras.saving.serialize_keras_object(self.schedule),
            "steps": self.warmup_steps,
            "start": self.start,
            "shape": self.shape,
            "power": self.power,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Warmup:
        config = dict(config)
        schedule = keras.saving.deserialize_keras_object(config.pop("schedule"))
        return cls(schedule, **config)
