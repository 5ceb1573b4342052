"""The checks of GlobalBatch's arguments: what each must be, and what to write instead.

This module imports neither TensorFlow, Keras nor numpy.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from distlr._utils.checks import INT64_END, positive_integer
from distlr.batch.duration import Duration
from distlr.errors import ConfigurationError, received

__all__ = [
    "check_base_batch",
    "check_duration",
    "check_local_replicas",
    "check_per_replica",
    "check_samples_per_epoch",
    "epoch_length_message",
    "refuse_unknown",
    "run_length_message",
]

_ARGUMENTS = (
    "per_replica",
    "total",
    "replicas",
    "base_batch",
    "accumulation",
    "samples_per_epoch",
    "duration",
    "local_replicas",
)


def refuse_unknown(arguments: Mapping[str, object]) -> None:
    """Refuses an unknown argument, with a hint that Python's own error lacks."""
    for key in arguments:
        if key not in _ARGUMENTS:
            close = difflib.get_close_matches(str(key), _ARGUMENTS, n=1)
            hint = f"did you mean {close[0]!r}" if close else "leave it out"
            expected = f"one of the arguments {', '.join(_ARGUMENTS)}"
            raise ConfigurationError(received(str(key), arguments[key], expected, hint))


def check_base_batch(base_batch: object) -> int:
    """Validates `base_batch`, which has no default."""
    if base_batch is None:
        # With a default, the rate of a script that was tuned at another batch would be scaled without a word.
        raise ConfigurationError(
            received(
                "base_batch",
                None,
                "given: the batch that your rate was tuned at",
                "pass the batch size of the script that the rate comes from, such as base_batch=256",
            )
        )
    return positive_integer("base_batch", base_batch)


def check_local_replicas(local_replicas: object, replicas: int) -> int:
    """Validates `local_replicas`, the replicas that one process feeds; by default all of them."""
    local = replicas if local_replicas is None else positive_integer("local_replicas", local_replicas)
    if replicas % local:
        raise ConfigurationError(
            received(
                "local_replicas",
                local_replicas,
                f"a divisor of replicas={replicas}",
                "every process must feed the same number of replicas",
            )
        )
    return local


def check_per_replica(per_replica: object, total: object, replicas: int, accumulation: int) -> int:
    """Returns the samples of one pass of one replica, from exactly one of `per_replica` and `total`."""
    if (per_replica is None) == (total is None):
        raise ConfigurationError(
            "Exactly one of `per_replica` and `total` must be given. "
            f"Received: per_replica={per_replica!r}, total={total!r}. Fix: pass per_replica, the "
            "samples of one replica and pass, or total, the samples of one update over all replicas."
        )
    if total is None:
        return positive_integer("per_replica", per_replica)
    size = positive_integer("total", total)
    unit = replicas * accumulation
    quotient, remainder = divmod(size, unit)
    if remainder:
        near = " or ".join(f"total={n * unit}" for n in (quotient, quotient + 1) if n)
        raise ConfigurationError(
            received(
                "total",
                total,
                f"a multiple of {unit} (replicas={replicas} x accumulation={accumulation})",
                f"write {near}",
            )
        )
    return quotient


def check_samples_per_epoch(
    samples_per_epoch: object, per_replica: int, replicas: int, accumulation: int
) -> int | None:
    """Validates `samples_per_epoch`: at least a full update, and no more than the clock's int64 can hold."""
    if samples_per_epoch is None:
        return None
    samples = positive_integer("samples_per_epoch", samples_per_epoch)
    size = per_replica * replicas * accumulation
    if samples < size:
        raise ConfigurationError(
            received(
                "samples_per_epoch",
                samples,
                f"at least one global batch, {size} samples (per_replica={per_replica} x replicas={replicas} "
                f"x accumulation={accumulation}), as an epoch has full updates only",
                f"lower the global batch to at most {samples} samples, or let the training set repeat and "
                "count the repetitions in samples_per_epoch",
            )
        )
    # `advance` reaches (U + 1) * S where the world size changed close to the end of an epoch.
    updates = samples // size
    if samples * (updates + 1) >= INT64_END:
        raise ConfigurationError(
            received(
                "samples_per_epoch",
                samples,
                f"small enough for the clock's int64: samples_per_epoch x (updates_per_epoch + 1) = "
                f"{samples} x {updates + 1} must be below 2**63",
                "count a part of the training set as an epoch",
            )
        )
    return samples


def check_duration(duration: Duration | str | None, samples_per_epoch: int | None) -> Duration | None:
    """Validates `duration`, the length of the run: above 0, and no fraction of itself."""
    if duration is None:
        return None
    run = Duration.parse(duration, "duration")
    if run.unit == "dur":
        raise ConfigurationError(
            received(
                "duration",
                str(run),
                "in epochs, updates or samples, as it is the run that 'dur' is a fraction of",
                "write '90ep' for 90 epochs",
            )
        )
    if run.value == 0:
        raise ConfigurationError(received("duration", str(run), "above 0"))
    if run.unit == "ep" and samples_per_epoch is None:
        raise ConfigurationError(epoch_length_message("duration", run))
    return run


def epoch_length_message(argument: str, duration: Duration) -> str:
    """The message for epochs of unknown length."""
    return received(
        argument,
        str(duration),
        "in updates or samples where the length of an epoch is unknown",
        "pass the size of the training set to the batch, such as samples_per_epoch=60_000",
    )


def run_length_message(argument: str, duration: Duration) -> str:
    """The message for a fraction of a run of unknown length."""
    return received(
        argument,
        str(duration),
        "in epochs, updates or samples where the run's length is unknown",
        "pass the length of the run to the batch, such as duration='90ep'",
    )
