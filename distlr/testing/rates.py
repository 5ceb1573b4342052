"""The rate at any point of a run, without training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distlr._utils.checks import not_negative_real, positive_real
from distlr.batch.duration import Duration
from distlr.batch.global_batch import GlobalBatch, check_batch
from distlr.errors import ConfigurationError, ConfigurationTypeError, received

if TYPE_CHECKING:
    import tensorflow as tf

__all__ = ["assert_rates"]


def assert_rates(target: Any, batch: GlobalBatch, expected: Mapping[str, float], rtol: float = 1e-6) -> None:
    """Asserts the rate at points of a run. Nothing is trained, and the target does not change.

    >>> from distlr import GlobalBatch, scale
    >>> batch = GlobalBatch(64, replicas=4, base_batch=64, samples_per_epoch=6400)
    >>> schedule = scale(0.1, batch, warmup="5ep")
    >>> assert_rates(schedule, batch, {"0ep": 0.1, "5ep": 0.4, "100ba": 0.34})
    >>> assert_rates(schedule, batch, {"0ep": 0.1, "2.5ep": 0.2})
    Traceback (most recent call last):
        ...
    AssertionError: The rate is another one at 1 of 2 durations (rtol=1e-06):
      duration  expected  found  ratio
      0ep       0.1       0.1    1
      2.5ep     0.2       0.25   1.25  <--

    Args:
        target: an optimizer of `job.optimizer` (its formula, with the multiplier as it stands), what
            `distlr.scale` gave, or a plain Keras schedule. A plain schedule is called with *base steps*,
            `samples / base_batch`, which is what it is written in; Keras itself would pass it real steps.
        batch: converts the durations; that of the target, where it has one.
        expected: the rate by duration from the start of the run: "5ep", "100ba", "60000sp" or "0.05dur". A
            whole number of updates stands where the optimizer's clock, an integer of samples, will stand then;
            anything between two updates at its exact time.
        rtol: how far a rate may be off, relative to the expected one; an expected 0 must be 0.

    Raises:
        AssertionError: a rate is another one; the message is a table of all of them.
        ConfigurationError, ConfigurationTypeError: an argument cannot be right.
    """
    check_batch(batch, "pass the batch that the optimizer or the schedule was made with")
    tolerance = positive_real("rtol", rtol, "write 1e-6")
    wanted = _checked(expected)
    rate = _rate_of(target, batch)
    rows, failures = [("duration", "expected", "found", "ratio", "")], 0
    for text, value in wanted.items():
        actual = rate(Duration.parse(text, f"expected[{text!r}]"), f"expected[{text!r}]")
        right = abs(actual - value) <= tolerance * value
        failures += not right
        ratio = "-" if value == 0 else f"{actual / value:.8g}"
        rows.append((text, f"{value:.9g}", f"{actual:.9g}", ratio, "" if right else "<--"))
    if failures:
        title = f"The rate is another one at {failures} of {len(wanted)} durations (rtol={tolerance:g}):"
        raise AssertionError("\n".join([title, *_table(rows)]))


def _checked(expected: Mapping[str, float]) -> dict[str, float]:
    example = 'write {"0ep": 0.1, "5ep": 0.4}'
    if not isinstance(expected, Mapping):
        raise ConfigurationTypeError(received("expected", expected, "a mapping of durations to rates", example))
    if not expected:
        raise ConfigurationError(received("expected", expected, "at least one duration with its rate", example))
    wanted = {}
    for text, value in expected.items():
        wanted[text] = not_negative_real(f"expected[{text!r}]", value, "a finite rate of at least 0", example)
    return wanted


def _rate_of(target: Any, batch: GlobalBatch) -> Callable[[Duration, str], float]:
    """The rate of a target by a duration from the start, in float64."""
    from distlr.optimizer import is_adopted, unwrap_loss_scale  # first: it says where TensorFlow is missing

    import keras  # isort: skip
    import tensorflow as tf  # isort: skip

    from distlr.schedules import GlobalBatchSchedule
    from distlr.schedules.schedule import as_float64, check_is_schedule

    multiplier = 1.0
    if is_adopted(target):
        optimizer = unwrap_loss_scale(target)
        formula = optimizer.distlr.formula
        rate_at, batch_schedule, multiplier = formula.rate_at, formula.batch_schedule, formula.multiplier
    elif isinstance(target, keras.optimizers.Optimizer):
        raise ConfigurationTypeError(
            received(
                "target",
                target,
                "an optimizer of distlr, or a schedule",
                "pass its schedule, or adopt it: job.optimizer(optimizer, batch)",
            )
        )
    else:
        check_is_schedule(target, "target")
        batch_schedule = target if isinstance(target, GlobalBatchSchedule) else None
        rate_at = as_float64(target)
    if batch_schedule is not None and batch_schedule.batch != batch:
        raise ConfigurationError(
            received(
                "batch", batch, f"that of the target, {batch_schedule.batch!r}", "pass the one that it was made with"
            )
        )

    def rate(duration: Duration, argument: str) -> float:
        """The rate at a duration, on the target's own clock and with its multiplier; `argument` is for messages."""
        updates = batch.to_updates(duration, argument=argument)
        samples = batch.samples_at(updates) if isinstance(updates, int) else batch.to_samples(duration)
        steps, samples = _float64(tf, updates * batch.accumulation), _float64(tf, samples)
        if batch_schedule is not None:
            time = batch_schedule.time(steps, samples)
        else:
            time = steps if is_adopted(target) else samples / batch.base_batch
        return float(rate_at(time)) * multiplier

    return rate


def _float64(tensorflow: Any, value: float) -> tf.Tensor:
    return tensorflow.constant(value, tensorflow.float64)


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return [f"  {line.rstrip()}" for line in lines]
