"""The formula without its multiplier: a schedule for the base batch, scaled for the global batch."""

from __future__ import annotations

import logging
import numbers
import types
from typing import Any, ClassVar

import keras
import tensorflow as tf

from distlr._utils.checks import one_of
from distlr.batch.duration import Duration
from distlr.batch.global_batch import GlobalBatch, check_batch
from distlr.errors import ConfigurationError, received
from distlr.scaling import rules
from distlr.scaling.rules import Rule, rule_name
from distlr.schedules.constant import Constant
from distlr.schedules.per_epoch import PerEpoch
from distlr.schedules.schedule import Schedule, check_has_no_warmup, divided, resolve
from distlr.schedules.warmup import Warmup, check_shape, check_start

__all__ = ["CLOCKS", "GlobalBatchSchedule", "as_schedule", "scale"]

CLOCKS = ("samples", "steps")

_log = logging.getLogger("distlr")


@keras.saving.register_keras_serializable("distlr", "Scaled")  # the name in saved files
class GlobalBatchSchedule(Schedule):
    """`lr(t) = schedule(t) * factor(k) * warmup(t)`, with k = global batch / base batch.

    The optimizer of `job.optimizer` calls `at` with the result of `time`. A plain Keras optimizer calls it with its own
    step count (`__call__`), which it converts into the time itself.

    >>> from distlr.schedules import Cosine
    >>> batch = GlobalBatch(64, replicas=4, base_batch=64, samples_per_epoch=6_400)
    >>> rate = GlobalBatchSchedule(Cosine(0.1, 1_000), batch, warmup="1ep")
    >>> rate.factor, [float(rate.at(tf.constant(t, tf.float64))) for t in (0, 500)]
    (4.0, [0.1, 0.2])

    Args:
        schedule: the rate written for the base batch, as in the one-GPU script.
        batch: the `GlobalBatch` of the job.
        rule: "linear" (the default), "sqrt", "none" or a function `k -> factor`; see `distlr.scaling`.
        warmup: the length of the climb as a duration ("5ep", "100ba", "60000sp", "0.05dur"), or None.
        warmup_from: the share of the full rate at the start, in [0, 1]. By default `min(1, 1 / factor)`: the
            climb begins at the base rate (Goyal et al. 2017, arXiv 1706.02677, section 2.2).
        warmup_shape: "linear", "exponential", "cosine" or "polynomial"; see `schedules.Warmup`.
        clock: "samples" counts time in samples, so 90 epochs stay 90 epochs on any number of replicas;
            "steps" scales the rate alone and leaves time as Keras counts it.
    """

    takes_real_steps: ClassVar[bool] = True
    restored = False
    """Whether it came from a config."""

    def __init__(
        self,
        schedule: Any,
        batch: GlobalBatch,
        rule: Rule = "linear",
        warmup: str | Duration | None = None,
        warmup_from: float | None = None,
        warmup_shape: str = "linear",
        clock: str = "samples",
    ) -> None:
        check_batch(batch)
        if isinstance(schedule, GlobalBatchSchedule):
            raise ConfigurationError(
                "The schedule is scaled for the global batch already; scaling twice would multiply the rate by "
                f"{schedule.factor:g} once more. Fix: hand over the schedule of the one-GPU script, and scale "
                "in one place, distlr.scale or job.optimizer."
            )
        base = resolve(schedule)
        self.schedule = schedule
        self.batch = batch
        self.rule = rule
        self.clock = one_of("clock", clock, CLOCKS)
        self.factor: float = rules.factor(rule, batch.ratio)
        self.warmup = None if warmup is None else Duration.parse(warmup, argument="warmup")
        self.warmup_from = warmup_from
        self.warmup_shape = check_shape("warmup_shape", warmup_shape)
        if isinstance(base, PerEpoch) and base.steps_per_epoch is None:
            _check_epoch_is_known(batch)
            base = base.with_steps_per_epoch(self._time_of(Duration.parse("1ep")))
        self._base = base
        self._warmup = self._make_warmup()

    def at(self, t: tf.Tensor) -> tf.Tensor:
        """The formula without the multiplier, at time `t` of the chosen clock."""
        if self._warmup is not None:
            return self._warmup.at(t) * self.factor
        return self._base.at(t) * self.factor

    def base_at(self, t: tf.Tensor) -> tf.Tensor:
        """The schedule without factor and warmup, the rate for the base batch, at time `t` of the chosen clock."""
        return self._base.at(t)

    def time(self, step: tf.Tensor, samples: tf.Tensor) -> tf.Tensor:
        """The time of the chosen clock: `samples / base_batch`, in base steps, or Keras' own `step`.

        Args:
            step: Keras' `iterations`, an int64 tensor.
            samples: the clock, an int64 tensor of the same shape.

        Returns:
            A float64 tensor of that shape.

        >>> rate = scale(0.1, GlobalBatch(64, replicas=4, base_batch=64))
        >>> float(rate.time(tf.constant(10), rate.batch.samples_at(tf.constant(10, tf.int64))))
        40.0
        """
        if self.clock == "steps":
            return tf.cast(step, tf.float64)
        return divided(tf.cast(samples, tf.float64), self.batch.base_batch)

    def __call__(self, step: Any) -> tf.Tensor:
        """The rate at a *real* step of Keras, of which an update takes `batch.accumulation`."""
        return tf.cast(self.at_step(step), keras.config.floatx())

    def at_step(self, step: Any) -> tf.Tensor:
        """The same in float64, for an optimizer that adopts a schedule that is scaled already."""
        step = tf.cast(step, tf.int64)
        samples = self.batch.samples_at(step // self.batch.accumulation)
        return self.at(self.time(step, samples))

    def in_warmup(self, t: float) -> bool:
        """Whether the rate still climbs at time `t`.

        Args:
            t: the time of the chosen clock, in base steps or in Keras' own.

        >>> rate = scale(0.1, GlobalBatch(64, replicas=4, base_batch=64), warmup="6400sp")
        >>> rate.in_warmup(99), rate.in_warmup(100)
        (True, False)
        """
        return bool(self.climbs(tf.constant(t, tf.float64)))

    @property
    def has_warmup(self) -> bool:
        """Whether there is a warmup that has an effect."""
        return self._warmup is not None

    def climbs(self, t: tf.Tensor) -> tf.Tensor:
        """The same in a graph."""
        return t < (0.0 if self._warmup is None else self._warmup.warmup_steps)

    def explain(self) -> dict[str, Any]:
        """The parts of the formula as plain numbers; `job.explain()` and the start line show them.

        >>> parts = scale(0.1, GlobalBatch(64, replicas=4, base_batch=64), "sqrt", warmup="100ba").explain()
        >>> parts["factor"], parts["peak_rate"], parts["warmup"]["updates"], parts["warmup"]["from"]
        (2.0, 0.2, 100, 0.5)
        """
        base_rate = float(self._base.at(tf.zeros((), tf.float64)))
        climb = None
        if self._warmup is not None and self.warmup is not None:
            climb = {
                "duration": str(self.warmup),
                "updates": self.batch.to_updates(self.warmup),
                "epochs": self.batch.to_epochs(self.warmup) if self.batch.samples_per_epoch else None,
                "from": self._warmup.start,
                "shape": self.warmup_shape,
            }
        return {
            "base_rate": base_rate,
            "peak_rate": base_rate * self.factor,
            "base_batch": self.batch.base_batch,
            "global_batch": self.batch.size,
            "ratio": self.batch.ratio,
            "rule": rule_name(self.rule),
            "factor": self.factor,
            "clock": self.clock,
            "warmup": climb,
        }

    def get_config(self) -> dict[str, Any]:
        """The schedule as Keras saves it, and the `options`."""
        return {"schedule": keras.saving.serialize_keras_object(self.schedule), **self.options()}

    def options(self) -> dict[str, Any]:
        """All arguments but the schedule, as JSON.

        A rule of the user's own is kept as its factor, with its name where Keras knows the function
        (`keras.saving.register_keras_serializable`).
        """
        return {
            "batch": self.batch.to_dict(),
            "rule": self._saved_rule(),
            "warmup": None if self.warmup is None else str(self.warmup),
            "warmup_from": self.warmup_from,
            "warmup_shape": self.warmup_shape,
            "clock": self.clock,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> GlobalBatchSchedule:
        """The schedule whose `get_config` this is."""
        config = dict(config)
        schedule = keras.saving.deserialize_keras_object(config.pop("schedule"))
        batch_schedule = cls(schedule, **options_from_config(config))
        batch_schedule.restored = True
        return batch_schedule

    def for_batch(self, batch: GlobalBatch) -> GlobalBatchSchedule:
        """The same for another batch.

        Raises:
            ConfigurationError: it cannot be scaled for this batch.

        >>> rate = scale(0.1, GlobalBatch(64, replicas=4, base_batch=64))
        >>> rate.factor, rate.for_batch(rate.batch.replace(replicas=1)).factor
        (4.0, 1.0)
        """
        again = (self.rule, self.warmup, self.warmup_from, self.warmup_shape, self.clock)
        return GlobalBatchSchedule(self.schedule, batch, *again)

    def _saved_rule(self) -> str | dict[str, Any]:
        name = rule_name(self.rule)
        if isinstance(self.rule, str) or rules.RULES.get(name) is self.rule:
            return name
        config = {"name": name, "factor": self.factor, "k": self.batch.ratio}
        if isinstance(self.rule, types.FunctionType):
            registered = keras.saving.get_registered_name(self.rule)
            if keras.saving.get_registered_object(registered) is self.rule:
                config["registered"] = registered
        return config

    def _time_of(self, duration: Duration, argument: str = "duration") -> float:
        if self.clock == "samples":
            return float(self.batch.to_base_steps(duration, argument=argument))
        return float(self.batch.to_updates(duration, argument=argument) * self.batch.accumulation)

    def _make_warmup(self) -> Warmup | None:
        if self.warmup is None:
            if self.warmup_from is not None:
                raise ConfigurationError(
                    received("warmup_from", self.warmup_from, "left out when there is no warmup", "add `warmup=`")
                )
            return None
        start = min(1.0, 1.0 / self.factor) if self.warmup_from is None else self.warmup_from
        # All is checked even if the warmup has no effect, so that a script that runs on one replica runs on eight.
        start = check_start("warmup_from", start, self.warmup_shape)
        steps = self._time_of(self.warmup, "warmup")
        if steps:
            check_has_no_warmup(self.schedule, "warmup", str(self.warmup))
        run = self.batch.duration
        if run is not None and steps >= self._time_of(run):
            raise ConfigurationError(
                received(
                    "warmup",
                    str(self.warmup),
                    f"shorter than the run of {run}",
                    "shorten it, or lengthen the run",
                )
            )
        if steps == 0 or start == 1:
            why = "its length is 0" if steps == 0 else f"it starts at the full rate (the factor is {self.factor:g})"
            _log.info("warmup=%s does nothing: %s.", self.warmup, why)
            return None
        return Warmup(self._base, steps, start, self.warmup_shape)


def options_from_config(config: dict[str, Any]) -> dict[str, Any]:
    """Turns `GlobalBatchSchedule.options()` back into arguments."""
    config = dict(config)
    batch = GlobalBatch.from_dict(config.pop("batch"))
    rule = config.pop("rule")
    if isinstance(rule, dict):
        known = keras.saving.get_registered_object(rule["registered"]) if "registered" in rule else None
        rule = known or _KeptFactor(rule["factor"], rule["k"], rule["name"])
    return {"batch": batch, "rule": rule, **config}


class _KeptFactor:
    """A rule that was a function when it was saved: its factor is known for one k alone."""

    def __init__(self, factor: float, k: float, name: str) -> None:
        self.factor, self.k, self.__name__ = factor, k, name

    def __call__(self, k: float) -> float:
        if k != self.k:
            raise ConfigurationError(
                f"The saved scaling rule '{self.__name__}' is a function that is known at k={self.k:g} alone (factor "
                f"{self.factor:g}). Received: k={k:g}. Fix: pass `rule=` again, or register the function with "
                "keras.saving.register_keras_serializable before it is saved."
            )
        return self.factor


def _check_epoch_is_known(batch: GlobalBatch) -> None:
    if batch.samples_per_epoch is None:
        hint = "pass the size of the training set to the batch, such as samples_per_epoch=60_000"
        raise ConfigurationError(received("samples_per_epoch", None, "given with a rate by epochs", hint))


def as_schedule(rate: Any, batch: GlobalBatch, initial_learning_rate: float | None = None) -> Any:
    """Turns a user's rate into a schedule: a float, a per-epoch function, or a schedule."""
    if isinstance(rate, numbers.Real) and not isinstance(rate, bool):
        rate = Constant(float(rate))
    no_function = (keras.optimizers.schedules.LearningRateSchedule, keras.callbacks.Callback, type)
    if callable(rate) and not isinstance(rate, no_function):
        if batch.duration is None:
            raise ConfigurationError(
                received("duration", None, "given with a per-epoch function", 'add duration="90ep" to the batch')
            )
        _check_epoch_is_known(batch)
        epochs = -(-batch.to_samples(batch.duration) // batch.to_samples("1ep"))
        return PerEpoch(rate, initial_learning_rate, epochs=int(epochs))
    if initial_learning_rate is not None:
        hint = "leave it out: the schedule holds its own"
        raise ConfigurationError(
            received("initial_learning_rate", initial_learning_rate, "given with a per-epoch function only", hint)
        )
    return rate


def scale(
    schedule: Any,
    batch: GlobalBatch,
    rule: Rule = "linear",
    warmup: str | Duration | None = None,
    *,
    warmup_from: float | None = None,
    warmup_shape: str = "linear",
    clock: str = "samples",
    initial_learning_rate: float | None = None,
) -> GlobalBatchSchedule:
    """Scales a rate for the global batch: a Keras schedule that takes real steps, for any Keras optimizer.

    `lr(step) = schedule(t) * factor(k) * warmup(t)` with `t = samples_seen(step) / base_batch`; see
    `GlobalBatchSchedule`.
    It has no state: changes within a run (plateau cuts, changes by hand) need
    `job.optimizer` instead.

    Args:
        schedule: a Keras `LearningRateSchedule`, a float, or a per-epoch function `f(epoch)` or `f(epoch, lr)`
            (then the batch needs `duration`, and `f(epoch, lr)` needs `initial_learning_rate`).
        batch: the global batch.
        rule: "linear", "sqrt", "none" or a function `k -> factor`.
        warmup: the length of the climb: "5ep", "100ba", "60000sp" or "0.05dur"; None for none.
        warmup_from: the share of the full rate at the start, in [0, 1]; by default the base rate.
        warmup_shape: "linear", "exponential", "cosine" or "polynomial".
        clock: "samples", or "steps", which leaves time as Keras counts it.
        initial_learning_rate: the rate that a per-epoch function `f(epoch, lr)` starts from.

    Raises:
        ConfigurationError, ConfigurationTypeError: an argument cannot be right, or two of them do not go together.

    >>> from distlr import GlobalBatch, scale
    >>> batch = GlobalBatch(64, replicas=8, base_batch=128)
    >>> float(scale(0.25, batch, warmup="100ba")(50))  # half of the way from x1 to x4
    0.625
    """
    check_batch(batch, "write distlr.GlobalBatch(64, replicas=8, base_batch=128)")
    return GlobalBatchSchedule(
        as_schedule(schedule, batch, initial_learning_rate),
        batch,
        rule,
        warmup,
        warmup_from,
        warmup_shape,
        clock,
    )
