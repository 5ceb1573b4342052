"""The global batch, and the sample clock that it drives.

Everything here is exact arithmetic on Python integers and fractions. This module imports neither
TensorFlow, Keras nor numpy; the clock's formulas work on TensorFlow's int64 tensors all the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol, SupportsIndex, SupportsInt, TypeVar

from distlr._utils.checks import positive_integer
from distlr.batch import _checks as checked
from distlr.batch.duration import Duration
from distlr.errors import ConfigurationError, ConfigurationTypeError, received

__all__ = ["HOW_TO_MAKE", "GlobalBatch", "check_batch"]

HOW_TO_MAKE = "make it with job.batch(per_replica=..., base_batch=...)"


class _Arithmetic(Protocol):
    """The arithmetic that the clock needs. A Python int and a TensorFlow int64 tensor both have it."""

    def __add__(self: _T, other: _T | int, /) -> _T: ...
    def __sub__(self: _T, other: _T | int, /) -> _T: ...
    def __mul__(self: _T, other: _T | int, /) -> _T: ...
    def __floordiv__(self: _T, other: _T | int, /) -> _T: ...
    def __mod__(self: _T, other: _T | int, /) -> _T: ...


_T = TypeVar("_T")
_N = TypeVar("_N", bound=_Arithmetic)


@dataclass(frozen=True, init=False, repr=False)
class GlobalBatch:
    """The number of samples of one optimizer update over all replicas, and the clock that follows from it.

    `size = per_replica * replicas * accumulation` samples an update; `k = size / base_batch` is the ratio
    that scaling rules take. Immutable. Two batches are equal when all their numbers are, whether they were
    written with `per_replica` or `total`.

    Args:
        per_replica: Samples that one replica processes in one forward and backward pass. Exactly one of this and
            `total`.
        total: Samples of one optimizer update, `size`; it stays the same under `replace(replicas=...)`.
        replicas: Replicas that train together, over all processes.
        base_batch: The batch that your rate was tuned at, in samples. Required.
        accumulation: Forward and backward passes of one optimizer update.
        samples_per_epoch: Samples of the training set, over all replicas.
        duration: The length of the whole run, such as "90ep"; "dur" is counted in it.
        local_replicas: Replicas that one process feeds; all of them when left out. Under Horovod 1.

    Raises:
        ConfigurationError: `base_batch` is missing; not exactly one of `per_replica` and `total` is given; a
            number is below 1; `total` or `replicas` does not divide; an epoch holds no full update, or
            overflows int64; or `duration` is 0, in "dur", or in epochs without `samples_per_epoch`.
        ConfigurationTypeError: A number is not an integer.

    Example:
        >>> batch = GlobalBatch(64, replicas=8, base_batch=256, samples_per_epoch=60_000, duration="90ep")
        >>> batch.size, batch.ratio, batch.updates_per_epoch
        (512, 2, 117)
        >>> batch.samples_at(117), batch.to_base_steps("5ep"), batch.to_updates("0.1dur")
        (60000, 1171.875, 1053)
        >>> batch.replace(replicas=64).ratio
        16
    """

    per_replica: int
    replicas: int
    base_batch: int
    accumulation: int
    samples_per_epoch: int | None
    duration: Duration | None
    local_replicas: int
    # How the batch was written; `replace` and `to_dict` keep it.
    _by_total: bool = field(compare=False, init=False)
    _local_given: bool = field(compare=False, init=False)

    def __init__(
        self,
        per_replica: SupportsIndex | None = None,
        *,
        total: SupportsIndex | None = None,
        replicas: SupportsIndex = 1,
        base_batch: SupportsIndex | None = None,
        accumulation: SupportsIndex = 1,
        samples_per_epoch: SupportsIndex | None = None,
        duration: Duration | str | None = None,
        local_replicas: SupportsIndex | None = None,
    ) -> None:
        base = checked.check_base_batch(base_batch)
        count = positive_integer("replicas", replicas)
        passes = positive_integer("accumulation", accumulation)
        replica_samples = checked.check_per_replica(per_replica, total, count, passes)
        local = checked.check_local_replicas(local_replicas, count)
        epoch = checked.check_samples_per_epoch(samples_per_epoch, replica_samples, count, passes)
        run = checked.check_duration(duration, epoch)
        put = object.__setattr__
        put(self, "per_replica", replica_samples)
        put(self, "replicas", count)
        put(self, "base_batch", base)
        put(self, "accumulation", passes)
        put(self, "samples_per_epoch", epoch)
        put(self, "duration", run)
        put(self, "local_replicas", local)
        put(self, "_by_total", total is not None)
        put(self, "_local_given", local_replicas is not None)

    def __repr__(self) -> str:
        """A call that returns an equal batch."""
        return f"GlobalBatch({', '.join(f'{key}={value!r}' for key, value in self.to_dict().items())})"

    # -- sizes ---------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Samples of one optimizer update: `per_replica * replicas * accumulation`.

        >>> GlobalBatch(64, replicas=8, base_batch=256, accumulation=2).size
        1024
        """
        return self.per_replica * self.replicas * self.accumulation

    @property
    def ratio(self) -> int | float:
        """`k = size / base_batch`, without a unit; an int when exact, otherwise a float.

        >>> GlobalBatch(64, replicas=8, base_batch=256).ratio, GlobalBatch(64, base_batch=256).ratio
        (2, 0.25)
        """
        return _number(Fraction(self.size, self.base_batch))

    @property
    def local_batch(self) -> int:
        """Samples of a step of one process, `per_replica * local_replicas`: for `.batch()`, `batch_size=`.

        >>> GlobalBatch(64, replicas=8, base_batch=256, local_replicas=4).local_batch
        256
        """
        return self.per_replica * self.local_replicas

    @property
    def feed(self) -> int:
        """The old name of `local_batch`."""
        text = "GlobalBatch.feed is called GlobalBatch.local_batch now, and the old name goes with the next release."
        warnings.warn(text, DeprecationWarning, stacklevel=2)
        return self.local_batch

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer updates of one epoch, `U = samples_per_epoch // size`: the last, partial one is dropped.

        Raises:
            ConfigurationError: `samples_per_epoch` was not given.

        >>> GlobalBatch(512, base_batch=256, samples_per_epoch=60_000).updates_per_epoch
        117
        """
        return self._epoch("updates_per_epoch") // self.size

    @property
    def steps_per_epoch(self) -> int:
        """Keras' steps of one epoch, `U * accumulation`: one for each forward and backward pass.

        Raises:
            ConfigurationError: `samples_per_epoch` was not given.

        >>> GlobalBatch(256, base_batch=256, accumulation=2, samples_per_epoch=60_000).steps_per_epoch
        234
        """
        return self._epoch("steps_per_epoch") // self.size * self.accumulation

    # -- the clock -----------------------------------------------------------------------------------------
    # Only + - * // %, so that Python's ints and TensorFlow's int64 tensors give the same numbers.

    def samples_at(self, updates: _N) -> _N:
        """Samples seen after so many updates from the start of the run.

        `(n // U) * S + ((n % U) * S) // U` with `n = updates`, `S = samples_per_epoch` and
        `U = updates_per_epoch`, so an epoch is exactly `S` though its last, partial batch is dropped;
        `n * size` without `samples_per_epoch`.

        Args:
            updates: Optimizer updates, 0 or more: an int, or an int64 tensor.

        Returns:
            Samples, of the type that came.

        Example:
            >>> batch = GlobalBatch(3, base_batch=1, samples_per_epoch=10)
            >>> [batch.samples_at(n) for n in range(7)]
            [0, 3, 6, 10, 13, 16, 20]
        """
        if self.samples_per_epoch is None:
            return updates * self.size
        s, u = self.samples_per_epoch, self.updates_per_epoch
        return (updates // u) * s + ((updates % u) * s) // u

    def advance(self, samples: _N) -> _N:
        """Samples seen after one more update: the clock's tick.

        `samples - p + ((j + 1) * S) // U` with `p = samples % S` and `j = (p * U + S - 1) // S`;
        `samples + size` without `samples_per_epoch`.

        No remainder has to be stored. After `j` updates an epoch stands at `floor(j * S / U)`, and as
        `S >= U` these positions are all different: `j` is read back from one as `ceil(p * U / S)`, exactly.

        It stays right when the world size, and with it `U`, changes in mid-epoch: there `j` is the first
        position of the new grid that is not behind `p`, and `U - j = floor((S - p) * U / S)` updates still
        fit in the epoch; once they are done it ends on exactly `S`. Where none fits, the next update is the
        first of the next epoch.

        Args:
            samples: Samples seen, 0 or more: an int, or an int64 tensor.

        Returns:
            Samples, of the type that came; always more than `samples`.

        Example:
            >>> batch = GlobalBatch(3, base_batch=1, samples_per_epoch=10)
            >>> batch.advance(0), batch.advance(6), batch.advance(10)
            (3, 10, 13)
            >>> batch.replace(replicas=2).advance(3)
            20
        """
        if self.samples_per_epoch is None:
            return samples + self.size
        s, u = self.samples_per_epoch, self.updates_per_epoch
        p = samples % s
        j = (p * u + (s - 1)) // s
        return samples - p + ((j + 1) * s) // u

    def updates_at(self, samples: _N) -> _N:
        """Updates of this batch that have been done after so many samples: the inverse of `samples_at`.

        `(samples // S) * U + (p * U + S - 1) // S` with `p = samples % S`; `ceil(samples / size)` without
        `samples_per_epoch`. Between two updates it is the later one.

        Args:
            samples: Samples seen, 0 or more: an int, or an int64 tensor.

        Returns:
            Optimizer updates, of the type that came.

        Example:
            >>> batch = GlobalBatch(3, base_batch=1, samples_per_epoch=10)
            >>> [batch.updates_at(n) for n in (0, 3, 6, 7, 10, 13)]
            [0, 1, 2, 3, 3, 4]
        """
        if self.samples_per_epoch is None:
            return (samples + (self.size - 1)) // self.size
        s, u = self.samples_per_epoch, self.updates_per_epoch
        return (samples // s) * u + ((samples % s) * u + (s - 1)) // s

    def epoch_at(self, samples: SupportsInt) -> int:
        """The epoch, from 0, that the next update belongs to: `samples // samples_per_epoch`.

        Raises:
            ConfigurationError: `samples_per_epoch` was not given.

        >>> GlobalBatch(512, base_batch=256, samples_per_epoch=60_000).epoch_at(60_000)
        1
        """
        return int(samples) // self._epoch("epoch_at")

    # -- durations -----------------------------------------------------------------------------------------

    def to_samples(self, duration: Duration | str, *, argument: str = "duration") -> int | float:
        """A duration in samples.

        `sp`: the value. `ep`: times `S`. `ba`: times `S / U`, or times `size` without `samples_per_epoch`.
        `dur`: times the samples of the batch's own `duration`.

        Args:
            duration: A `Duration` or its text.
            argument: The name of the argument, for messages.

        Returns:
            An int when exact, otherwise a float.

        Raises:
            ConfigurationError: It is no duration; or it is in epochs and `samples_per_epoch`, or in "dur" and
                `duration`, was not given to the batch.
            ConfigurationTypeError: It is neither a `Duration` nor text.

        Example:
            >>> GlobalBatch(512, base_batch=256, samples_per_epoch=60_000).to_samples("0.5ep")
            30000
        """
        return _number(self._samples(duration, argument))

    def to_updates(self, duration: Duration | str, *, argument: str = "duration") -> int | float:
        """A duration in updates of this batch: `to_samples * U / S`, or `/ size` without `samples_per_epoch`.

        Arguments, result and errors are those of `to_samples`.

        >>> GlobalBatch(512, base_batch=256, samples_per_epoch=60_000).to_updates("5ep")
        585
        """
        return _number(self._samples(duration, argument) / self._per_update)

    def to_base_steps(self, duration: Duration | str, *, argument: str = "duration") -> int | float:
        """A duration in steps of the base batch, the schedule's unit of time: `to_samples / base_batch`.

        Arguments, result and errors are those of `to_samples`.

        >>> GlobalBatch(512, base_batch=256, samples_per_epoch=60_000).to_base_steps("60000sp")
        234.375
        """
        return _number(self._samples(duration, argument) / self.base_batch)

    def to_epochs(self, duration: Duration | str, *, argument: str = "duration") -> int | float:
        """A duration in epochs: `to_samples / samples_per_epoch`, which must be given.

        Arguments, result and errors are those of `to_samples`.

        >>> GlobalBatch(512, base_batch=256, samples_per_epoch=60_000).to_epochs("117ba")
        1
        """
        samples = self._samples(duration, argument)
        return _number(samples / self._epoch("to_epochs"))

    # -- copies --------------------------------------------------------------------------------------------

    def replace(self, **changes: object) -> GlobalBatch:
        """A copy with some of the constructor's arguments changed.

        `per_replica` replaces a `total` and the other way round. A batch that was written with `total` keeps it
        when `replicas` or `accumulation` changes.

        Raises:
            ConfigurationError: An argument is unknown, or the result cannot be right.
            ConfigurationTypeError: A number is not an integer.

        Example:
            >>> GlobalBatch(total=512, base_batch=256).replace(replicas=8)
            GlobalBatch(total=512, replicas=8, base_batch=256, accumulation=1)
        """
        checked.refuse_unknown(changes)
        arguments: dict[str, object] = {**self.to_dict()}
        for new, old in (("per_replica", "total"), ("total", "per_replica")):
            if changes.get(new) is not None:
                arguments.pop(old, None)
        return GlobalBatch.from_dict({**arguments, **changes})

    def to_dict(self) -> dict[str, int | str]:
        """The constructor's arguments that are set, as JSON holds them: integers, and text for `duration`.

        >>> GlobalBatch(64, base_batch=256, duration="90ep", samples_per_epoch=60_000).to_dict()["duration"]
        '90ep'
        """
        arguments = {
            "per_replica": None if self._by_total else self.per_replica,
            "total": self.size if self._by_total else None,
            "replicas": self.replicas,
            "base_batch": self.base_batch,
            "accumulation": self.accumulation,
            "samples_per_epoch": self.samples_per_epoch,
            "duration": None if self.duration is None else str(self.duration),
            "local_replicas": self.local_replicas if self._local_given else None,
        }
        return {name: value for name, value in arguments.items() if value is not None}

    @classmethod
    def from_dict(cls, arguments: Mapping[str, object]) -> GlobalBatch:
        """The batch that `to_dict` wrote.

        Raises:
            ConfigurationError: A key is unknown, or the batch cannot be right.
            ConfigurationTypeError: `arguments` is not a mapping, or a number is not an integer.

        Example:
            >>> GlobalBatch.from_dict({"per_replica": 64, "replicas": 8, "base_batch": 256}).size
            512
        """
        if not isinstance(arguments, Mapping):
            raise ConfigurationTypeError(
                received("arguments", arguments, "a mapping", "pass what `GlobalBatch.to_dict` returned")
            )
        checked.refuse_unknown(arguments)
        return cls(**arguments)  # type: ignore[arg-type]  # the constructor checks each value

    # -- inner ---------------------------------------------------------------------------------------------

    @property
    def _per_update(self) -> Fraction:
        """Samples that the clock advances by at one update, on average."""
        if self.samples_per_epoch is None:
            return Fraction(self.size)
        return Fraction(self.samples_per_epoch, self.updates_per_epoch)

    def _epoch(self, user: str) -> int:
        """Returns `samples_per_epoch`; refuses, naming `user`, where it was not given."""
        if self.samples_per_epoch is None:
            raise ConfigurationError(
                received(
                    "samples_per_epoch",
                    None,
                    f"given for `{user}`",
                    "pass the size of the training set, such as samples_per_epoch=60_000",
                )
            )
        return self.samples_per_epoch

    def _samples(self, duration: Duration | str, argument: str) -> Fraction:
        """A duration in samples, exact."""
        parsed = Duration.parse(duration, argument)
        if parsed.unit == "sp":
            return parsed.value
        if parsed.unit == "ba":
            return parsed.value * self._per_update
        if parsed.unit == "ep":
            if self.samples_per_epoch is None:
                raise ConfigurationError(checked.epoch_length_message(argument, parsed))
            return parsed.value * self.samples_per_epoch
        if self.duration is None:
            raise ConfigurationError(checked.run_length_message(argument, parsed))
        return parsed.value * self._samples(self.duration, "duration")


def _number(value: Fraction) -> int | float:
    """An int when exact, otherwise the nearest float."""
    return value.numerator if value.denominator == 1 else float(value)


def check_batch(batch: object, hint: str = HOW_TO_MAKE) -> None:
    """Refuses anything but a `GlobalBatch`."""
    if not isinstance(batch, GlobalBatch):
        raise ConfigurationTypeError(received("batch", batch, "a GlobalBatch", hint))
