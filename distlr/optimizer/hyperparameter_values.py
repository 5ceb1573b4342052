"""The present values of the hyperparameters that are scaled or follow a schedule."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf

from distlr.optimizer.hyperparameters import HyperparameterOptions, Multipliers
from distlr.optimizer.learning_rate import RateCache
from distlr.schedules import GlobalBatchSchedule
from distlr.schedules.schedule import as_float64

__all__ = ["HyperparameterValues"]


class HyperparameterValues:
    """Keeps an optimizer's hyperparameters at the base batch and scaled, and computes those that change with time.

    Args:
        options: what was asked for.
        base_values: the value of each scaled attribute at the base batch.
        scaled_values: its value for the global batch (`HyperparameterOptions.checked`).

    Attributes:
        previous_rate: the variable with the rate of the update before, where the momentum is corrected; else None.
        multipliers: the factors on the rates of the variables, or None.
        follows: the schedules of weight decay and momentum, by attribute.
    """

    def __init__(
        self,
        options: HyperparameterOptions,
        base_values: Mapping[str, float],
        scaled_values: Mapping[str, float],
    ) -> None:
        self.options = options
        self.base_values = dict(base_values)
        self.follows: dict[str, Any] = options.follows()
        self.multipliers = None if options.multipliers is None else Multipliers(options.multipliers)
        self._values_at = {name: as_float64(schedule) for name, schedule in self.follows.items()}
        self._caches = {"weight_decay": RateCache(), "momentum": RateCache()}
        self.previous_rate: Any = None
        self.use(scaled_values)

    def use(self, scaled_values: Mapping[str, float]) -> None:
        """Replaces the scaled values by those of another batch."""
        self.scaled_values = dict(scaled_values)
        self._present_values: dict[str, Any] = dict(scaled_values)

    def note(self, name: str, value: Any) -> None:
        """Notes that an attribute of the optimizer has another value now."""
        if name in self._present_values:
            self._present_values[name] = value

    def schedule_factor(self, name: str) -> float:
        """The factor on the schedule of an attribute, which is scaled for the global batch or not."""
        return self.scaled_values.get(name, 1.0) / self.base_values.get(name, 1.0)

    def explain(self) -> dict[str, Any]:
        """The scaled attributes, each with its value at the base batch and its present one."""
        values = {name: [base, self._present_values[name]] for name, base in self.base_values.items()}
        return {"scaled": values, "momentum_correction": self.options.momentum_correction}

    @contextlib.contextmanager
    def following(self, time: Callable[[], tf.Tensor]) -> Iterator[None]:
        """Holds the scheduled weight decay and momentum at `time()`, for the update in progress."""
        with contextlib.ExitStack() as stack:
            for name, value_at in self._values_at.items():
                stack.enter_context(self._caches[name].holding(value_at(time()) * self.schedule_factor(name)))
            yield

    @property
    def weight_decay(self) -> tf.Tensor | None:
        """The scheduled weight decay of the update in progress; None without a schedule, or outside an update."""
        return self._caches["weight_decay"].get()

    def velocity_factor(self, rate: tf.Tensor, momentum: float) -> tf.Tensor | None:
        """The factor on SGD's velocity before Keras multiplies it by `momentum`; None for 1.

        It is `rate / previous rate` where the momentum is corrected, times `scheduled momentum / momentum`.
        """
        factors = [] if self.previous_rate is None else [self._correction(rate)]
        scheduled_momentum = self._caches["momentum"].get()
        if scheduled_momentum is not None:
            factors.append(scheduled_momentum / momentum)
        return functools.reduce(tf.multiply, factors) if factors else None

    def remember(
        self,
        rate: tf.Tensor,
        time: Callable[[], tf.Tensor],
        batch_schedule: GlobalBatchSchedule | None,
        updates: tf.Tensor | None,
    ) -> None:
        """Keeps the rate of this update for the next one, while the warmup climbs; then 0."""
        if self.previous_rate is None or batch_schedule is None:
            return
        kept = tf.where(batch_schedule.climbs(time()), tf.cast(rate, tf.float64), 0.0)
        self.previous_rate.assign(kept if updates is None else tf.where(updates, kept, self.previous_rate))

    def _correction(self, rate: tf.Tensor) -> tf.Tensor:
        """`rate / previous rate`, and 1 before the first update."""
        previous = tf.cast(self.previous_rate, tf.float64)
        return tf.where(previous > 0, tf.cast(rate, tf.float64) / tf.where(previous > 0, previous, 1.0), 1.0)
