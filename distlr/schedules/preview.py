"""The rate over a run, before the run: the formula on each number of replicas, with warnings about likely mistakes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from distlr.batch.global_batch import GlobalBatch
from distlr.errors import ConfigurationError, received
from distlr.scaling.rules import Rule, rule_name
from distlr.schedules import Constant, GlobalBatchSchedule
from distlr.schedules.schedule import at_each

__all__ = ["Curve", "Mark", "plan", "wrong_steps"]

_POINTS = 2001
_TINY = 1e-12
_JUMP = 0.1  # share of the peak, between neighbouring points
_SUPPORTED = {
    # SGD on 8,192 = 32 x 256 samples; LAMB on 65,536 = 128 x 512.
    "linear": (32, "Goyal et al. 2017, arXiv 1706.02677"),
    "sqrt": (128, "You et al. 2020, arXiv 1904.00962"),
}


@dataclasses.dataclass(frozen=True)
class Mark:
    """Something that happens to the rate.

    Attributes:
        epoch: the time, in epochs.
        what: "the warmup ends", or a text about a rate that falls or rises in one step.
    """

    epoch: float
    what: str


@dataclasses.dataclass(frozen=True)
class Curve:
    """The rate over a run on one number of replicas.

    Attributes:
        batch: the global batch.
        schedule: the formula.
        epochs: times, in epochs, from 0 to the end of the run.
        rates: the rate at each of them, in float64.
        marks: the events, in order.
        warnings: likely mistakes, a sentence each.
    """

    batch: GlobalBatch
    schedule: GlobalBatchSchedule
    epochs: np.ndarray
    rates: np.ndarray
    marks: list[Mark]
    warnings: list[str]

    def rate_at(self, epoch: float) -> float:
        """The rate at a time in epochs."""
        return float(_rates(self.schedule, self.batch, np.array([epoch]))[0])


def plan(
    schedule: Any,
    batches: Sequence[GlobalBatch],
    *,
    rule: Rule = "linear",
    warmup: str | None = None,
    epochs: float | None = None,
) -> list[Curve]:
    """Evaluates the formula over a run, without training.

    `lr(t) = schedule(t) * factor(k) * warmup(t)` with `t` in base steps; see `schedules.GlobalBatchSchedule`.

    Args:
        schedule: the schedule for the base batch: a Keras schedule, or a number.
        batches: one batch for each number of replicas, with `samples_per_epoch`.
        rule: see `distlr.scaling`.
        warmup: a duration, or None.
        epochs: the length of the run; by default the batch's `duration`.

    Raises:
        ConfigurationError: the length of the run or of an epoch is not known; or what `GlobalBatchSchedule` refuses.

    >>> from distlr.schedules import Cosine
    >>> batches = [GlobalBatch(64, replicas=n, base_batch=64, samples_per_epoch=6_400) for n in (1, 8)]
    >>> one, eight = plan(Cosine(0.1, 9_000), batches, warmup="5ep", epochs=90)
    >>> one.rate_at(0), eight.rate_at(0), eight.rate_at(45)
    (0.1, 0.1, 0.4)
    >>> [mark.what for mark in eight.marks]
    ['the warmup ends']
    """
    return [_curve(schedule, batch, rule, warmup, epochs) for batch in batches]


def _curve(schedule: Any, batch: GlobalBatch, rule: Rule, warmup: str | None, epochs: float | None) -> Curve:
    if batch.samples_per_epoch is None:
        raise ConfigurationError(received("samples_per_epoch", None, "given: a run is planned in epochs"))
    if epochs is None:
        if batch.duration is None:
            raise ConfigurationError(received("epochs", None, "given, or the batch's duration"))
        epochs = float(batch.to_epochs(batch.duration))
    if not epochs > 0:
        raise ConfigurationError(received("epochs", epochs, "above 0"))
    schedule = Constant(schedule) if isinstance(schedule, (int, float)) else schedule
    batch_schedule = GlobalBatchSchedule(schedule, batch, rule, warmup)
    times = np.linspace(0.0, epochs, _POINTS)
    rates = _rates(batch_schedule, batch, times)
    marks = _jumps(batch_schedule, batch, times, rates)
    if batch_schedule.warmup is not None and batch_schedule.explain()["warmup"] is not None:
        marks.append(Mark(float(batch.to_epochs(batch_schedule.warmup)), "the warmup ends"))
    marks.sort(key=lambda mark: mark.epoch)
    return Curve(batch, batch_schedule, times, rates, marks, _warnings(batch_schedule, batch, times, rates))


def _rates(batch_schedule: GlobalBatchSchedule, batch: GlobalBatch, epochs: np.ndarray) -> np.ndarray:
    samples = epochs * float(batch.samples_per_epoch or 0)
    rates: np.ndarray = at_each(batch_schedule.at, np.asarray(samples / batch.base_batch, np.float64))
    return rates


def _jumps(batch_schedule: GlobalBatchSchedule, batch: GlobalBatch, times: np.ndarray, rates: np.ndarray) -> list[Mark]:
    """Where the rate changes in one step, to the step: boundaries, and restarts of a cycle."""
    marks = []
    changes = np.diff(rates)
    for i in np.flatnonzero(np.abs(changes) > _JUMP * rates.max()):
        low, high = times[i], times[i + 1]
        while high - low > 1.0 / batch.updates_per_epoch / 64:
            middle = (low + high) / 2
            half = _rates(batch_schedule, batch, np.array([middle]))[0]
            low, high = (middle, high) if abs(half - rates[i]) < abs(half - rates[i + 1]) else (low, middle)
        step = abs(np.diff(_rates(batch_schedule, batch, np.array([low, high])))[0])
        if step > 0.5 * abs(changes[i]):  # in one step, and not only steep
            marks.append(Mark(float(high), f"the rate {'falls' if changes[i] < 0 else 'rises'} in one step"))
    return marks


def _warnings(
    batch_schedule: GlobalBatchSchedule, batch: GlobalBatch, times: np.ndarray, rates: np.ndarray
) -> list[str]:
    warnings, end = [], float(times[-1])
    peak = rates.max()
    stretches = _stretches(rates < _TINY)
    if stretches:
        start, stop = stretches[0]
        until = "on" if stop == len(times) - 1 else f"to {times[stop]:.4g}"
        more = f", and in {len(stretches) - 1} stretches more" if len(stretches) > 1 else ""
        where = f"from epoch {times[start]:.4g} {until}{more}"
        warnings.append(f"The rate is under {_TINY:g} {where}: nothing is learned there.")
    if batch_schedule.warmup is not None and float(batch.to_epochs(batch_schedule.warmup)) > end / 2:
        warnings.append(f"The warmup of {batch_schedule.warmup} is more than half of the run of {end:g} epochs.")
    above_end = np.flatnonzero(rates > rates[-1] * (1 + 1e-9) + 1e-15)
    last = float(times[above_end[-1]]) if above_end.size else 0.0
    if peak > rates[-1] and last < 0.9 * end:
        warnings.append(f"The rate has reached its end, {rates[-1]:g}, at epoch {last:.4g} of {end:g}.")
    later = _rates(batch_schedule, batch, np.array([1.5 * end]))[0]
    if later < 0.5 * rates[-1] and rates[-1] > 0.05 * peak:
        warnings.append(
            f"The rate still falls after the run: {rates[-1]:.4g} at its end, {later:.4g} half a run later."
        )
    wrong = wrong_steps(batch_schedule, end)
    warnings += [] if wrong is None else [wrong]
    limit, source = _SUPPORTED.get(rule_name(batch_schedule.rule), (None, ""))
    if limit is not None and batch.ratio > limit:
        name = rule_name(batch_schedule.rule)
        warnings.append(
            f"k = {batch.ratio:g} is beyond what is known to work with the {name} rule, {limit} ({source})."
        )
    return warnings


def _stretches(where: np.ndarray) -> list[tuple[int, int]]:
    """The first and the last point of each stretch where a condition holds; a single point does not count."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], where, [False]])))
    return [(first, end - 1) for first, end in edges.reshape(-1, 2).tolist() if end - first > 1]


def wrong_steps(batch_schedule: GlobalBatchSchedule, epochs: float) -> str | None:
    """A warning about a schedule that seems to be written in steps of the global batch, although time is in base steps.

    Args:
        batch_schedule: the formula.
        epochs: the length of the run.

    >>> import keras
    >>> batch = GlobalBatch(64, replicas=8, base_batch=64, samples_per_epoch=6_400)
    >>> cosine = keras.optimizers.schedules.CosineDecay
    >>> wrong_steps(GlobalBatchSchedule(cosine(0.1, 1_125), batch), epochs=90).partition(";")[0]
    'decay_steps=1125 is the run in steps of the batch of 512'
    >>> wrong_steps(GlobalBatchSchedule(cosine(0.1, 9_000), batch), epochs=90)  # as it should be
    """
    batch, schedule = batch_schedule.batch, batch_schedule.schedule
    name = next((name for name in ("decay_steps", "steps") if hasattr(schedule, name)), "")
    steps = getattr(schedule, name, None)
    ratio = float(batch.ratio)
    if batch.samples_per_epoch is None or batch_schedule.clock != "samples" or abs(ratio - 1) < 0.01:
        return None
    if not isinstance(steps, (int, float)):
        return None
    if getattr(schedule, "warmup_target", None) is not None:  # Keras' CosineDecay decays after its warmup
        steps += schedule.warmup_steps
        name = f"warmup_steps + {name}"
    base = epochs * float(batch.samples_per_epoch) / batch.base_batch
    if abs(steps * ratio / base - 1) > 0.02:
        return None
    return (
        f"{name}={steps:g} is the run in steps of the batch of {batch.size}; the schedule counts steps of the "
        f"base batch of {batch.base_batch}, of which the run has {base:.6g}: the decay ends at epoch "
        f"{epochs / ratio:.4g}."
    )
