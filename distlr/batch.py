"""The global batch, the sample clock that it drives, and durations.

Everything here is exact arithmetic on Python integers and fractions. This module imports neither
TensorFlow, Keras nor numpy; the clock's formulas work on TensorFlow's int64 tensors all the same.
"""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol, SupportsIndex, SupportsInt, TypeVar

from distlr.errors import ConfigurationError, ConfigurationTypeError, received

__all__ = ["Duration", "GlobalBatch"]

# The clock lives in an int64 variable of the optimizer.
_INT64_END = 2**63

_UNITS = {"ep": "epochs", "ba": "updates", "sp": "samples", "dur": "runs"}

# Two digits of exponent: "1e999999999sp" must be an error, not an integer of a gigabyte.
_TEXT = re.compile(
    r"\s*(?P<sign>[+-]?)"
    r"(?P<number>[0-9][0-9_]*/[0-9][0-9_]*|(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:e[+-]?[0-9]{1,2})?)"
    r"\s*(?P<unit>[a-z]*)\s*",
    re.IGNORECASE | re.ASCII,
)


class _Arithmetic(Protocol):
    """What the clock needs of a number: a Python int and a TensorFlow int64 tensor both have it."""

    def __add__(self: _T, other: Any, /) -> _T: ...
    def __sub__(self: _T, other: Any, /) -> _T: ...
    def __mul__(self: _T, other: Any, /) -> _T: ...
    def __floordiv__(self: _T, other: Any, /) -> _T: ...
    def __mod__(self: _T, other: Any, /) -> _T: ...


_T = TypeVar("_T")
_N = TypeVar("_N", bound=_Arithmetic)


@dataclass(frozen=True, init=False, repr=False)
class Duration:
    """A length of training with its unit: "5ep", "100ba", "60000sp" or "0.05dur".

    Units (composer's): `ep` epochs; `ba` optimizer updates at the global batch ("batches"); `sp` samples;
    `dur` a fraction of the whole run, at most 1.

    Attributes:
        value: The number as an exact fraction, 0 or more. A float is read as the decimal that it prints.
        unit: "ep", "ba", "sp" or "dur".

    Raises:
        ConfigurationError: The value is negative, not finite, 2**63 or more, or above 1 with `dur`; or the
            unit is unknown.
        ConfigurationTypeError: The value is not a number, or the unit is not text.

    Example:
        >>> Duration.parse("2.5ep")
        Duration.parse('2.5ep')
        >>> Duration(0.05, "dur").value
        Fraction(1, 20)
        >>> Duration(5, "ep") == Duration.parse("5ep")
        True
    """

    value: Fraction
    unit: str

    def __init__(self, value: int | float | Fraction, unit: str) -> None:
        object.__setattr__(self, "value", _check_value(_fraction(value), unit, "value", value))
        object.__setattr__(self, "unit", unit)

    @classmethod
    def parse(cls, value: str | Duration, argument: str = "duration") -> Duration:
        """Reads a duration; a `Duration` is returned as it is.

        Args:
            value: A number and a unit, such as "5ep", "0.5ep", "1e4sp", "60_000sp" or "1/3dur".
            argument: The name of the argument that it came in by, for messages.

        Returns:
            The duration.

        Raises:
            ConfigurationError: The text is empty, no duration, without a unit or with an unknown one; or the
                value is out of range.
            ConfigurationTypeError: `value` is not text.

        Example:
            >>> Duration.parse("60_000sp").value
            Fraction(60000, 1)
            >>> Duration.parse("5", argument="warmup")
            Traceback (most recent call last):
                ...
            distlr.errors.ConfigurationError: `warmup` must be a duration with a unit. Received: warmup='5'. \
To mend it: write '5ep' for 5 epochs, '5ba' for 5 updates or '5sp' for 5 samples.
        """
        if isinstance(value, Duration):
            return value
        if not isinstance(value, str):
            raise ConfigurationTypeError(
                received(argument, value, "a duration with a unit, as text", _write(_example(value)))
            )
        match = _TEXT.fullmatch(value)
        if match is None:
            raise ConfigurationError(received(argument, value, "a duration: a number and a unit", _write("5")))
        number, unit = match["number"].replace("_", ""), match["unit"].lower()
        if not unit:
            raise ConfigurationError(received(argument, value, "a duration with a unit", _write(number)))
        if unit not in _UNITS:
            units = ", ".join(_UNITS)
            raise ConfigurationError(
                received(argument, value, f"a duration with one of the units {units}", _write(number))
            )
        try:
            exact = Fraction(match["sign"] + number)
        except (ValueError, ZeroDivisionError):
            raise ConfigurationError(
                received(argument, value, "a duration: a number and a unit", _write("5"))
            ) from None
        return cls(_check_value(exact, unit, argument, value), unit)

    def __str__(self) -> str:
        """The text that `parse` reads back to an equal duration.

        >>> str(Duration.parse("1e4sp")), str(Duration(2.50, "ep")), str(Duration(Fraction(1, 3), "dur"))
        ('10000sp', '2.5ep', '1/3dur')
        """
        return f"{_decimal(self.value)}{self.unit}"

    def __repr__(self) -> str:
        return f"Duration.parse({str(self)!r})"


@dataclass(frozen=True, init=False, repr=False)
class GlobalBatch:
    """How many samples one optimizer update takes over all replicas, and the clock that follows.

    `size = per_replica * replicas * accumulation` samples an update; `k = size / base_batch` is the ratio
    that scaling rules take. Immutable. Two batches are equal when all their numbers are, whether they were
    written with `per_replica` or `total`.

    Args:
        per_replica: Samples that one replica takes in one forward and backward pass. Exactly one of this and
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
    # How it was written, which `replace` and `to_dict` keep.
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
        if base_batch is None:
            # A default would scale the rate of a script that nobody tuned at it, in silence.
            raise ConfigurationError(
                received(
                    "base_batch",
                    None,
                    "given: the batch that your rate was tuned at",
                    "pass the batch size of the script that the rate comes from, such as base_batch=256",
                )
            )
        base = _positive("base_batch", base_batch)
        count = _positive("replicas", replicas)
        passes = _positive("accumulation", accumulation)
        each = _per_replica(per_replica, total, count, passes)
        local = count if local_replicas is None else _positive("local_replicas", local_replicas)
        if count % local:
            raise ConfigurationError(
                received(
                    "local_replicas",
                    local_replicas,
                    f"a divisor of replicas={count}",
                    "every process must feed the same number of replicas",
                )
            )
        epoch = None if samples_per_epoch is None else _positive("samples_per_epoch", samples_per_epoch)
        if epoch is not None:
            _check_epoch(epoch, each, count, passes)
        run = None if duration is None else Duration.parse(duration, "duration")
        if run is not None:
            _check_run(run, epoch)
        put = object.__setattr__
        put(self, "per_replica", each)
        put(self, "replicas", count)
        put(self, "base_batch", base)
        put(self, "accumulation", passes)
        put(self, "samples_per_epoch", epoch)
        put(self, "duration", run)
        put(self, "local_replicas", local)
        put(self, "_by_total", total is not None)
        put(self, "_local_given", local_replicas is not None)

    def __repr__(self) -> str:
        return f"GlobalBatch({', '.join(f'{key}={value!r}' for key, value in self.to_dict().items())})"

    # -- sizes ---------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Samples of one optimizer update: `per_replica * replicas * accumulation`."""
        return self.per_replica * self.replicas * self.accumulation

    @property
    def ratio(self) -> int | float:
        """`k = size / base_batch`, without a unit; an int when exact, otherwise a float."""
        return _number(Fraction(self.size, self.base_batch))

    @property
    def feed(self) -> int:
        """Samples of a step of one process, `per_replica * local_replicas`: for `.batch()`, `batch_size=`."""
        return self.per_replica * self.local_replicas

    @property
    def updates_per_epoch(self) -> int:
        """Optimizer updates of one epoch, `U = samples_per_epoch // size`: the last, partial one is dropped.

        Raises:
            ConfigurationError: `samples_per_epoch` was not given.
        """
        return self._epoch("updates_per_epoch") // self.size

    @property
    def steps_per_epoch(self) -> int:
        """Keras' steps of one epoch, `U * accumulation`: one for each forward and backward pass.

        Raises:
            ConfigurationError: `samples_per_epoch` was not given.
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
        """
        return int(samples) // self._epoch("epoch_at")

    # -- durations -----------------------------------------------------------------------------------------

    def to_samples(self, duration: Duration | str, *, argument: str = "duration") -> int | float:
        """A duration in samples.

        `sp`: the value. `ep`: times `S`. `ba`: times `S / U`, or times `size` without `samples_per_epoch`.
        `dur`: times the samples of the batch's own `duration`.

        Args:
            duration: A `Duration` or its text.
            argument: The name of the argument that it came in by, for messages.

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

    def replace(self, **changes: Any) -> GlobalBatch:
        """A copy with some of the constructor's arguments changed.

        `per_replica` takes the place of a `total` and the other way round; what was written as `total` keeps
        the total when `replicas` or `accumulation` changes.

        Raises:
            ConfigurationError: An argument is unknown, or the result cannot be right.
            ConfigurationTypeError: A number is not an integer.

        Example:
            >>> GlobalBatch(total=512, base_batch=256).replace(replicas=8)
            GlobalBatch(total=512, replicas=8, base_batch=256, accumulation=1)
        """
        _refuse_unknown(changes)
        arguments = self.to_dict()
        for new, old in (("per_replica", "total"), ("total", "per_replica")):
            if changes.get(new) is not None:
                arguments.pop(old, None)
        return GlobalBatch(**{**arguments, **changes})

    def to_dict(self) -> dict[str, Any]:
        """The constructor's arguments that are set, as JSON holds them: integers, and text for `duration`.

        >>> GlobalBatch(64, base_batch=256, duration="90ep", samples_per_epoch=60_000).to_dict()["duration"]
        '90ep'
        """
        arguments: dict[str, Any] = {}
        if self._by_total:
            arguments["total"] = self.size
        else:
            arguments["per_replica"] = self.per_replica
        arguments["replicas"] = self.replicas
        arguments["base_batch"] = self.base_batch
        arguments["accumulation"] = self.accumulation
        if self.samples_per_epoch is not None:
            arguments["samples_per_epoch"] = self.samples_per_epoch
        if self.duration is not None:
            arguments["duration"] = str(self.duration)
        if self._local_given:
            arguments["local_replicas"] = self.local_replicas
        return arguments

    @classmethod
    def from_dict(cls, arguments: Mapping[str, Any]) -> GlobalBatch:
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
        _refuse_unknown(arguments)
        return cls(**arguments)

    # -- inner ---------------------------------------------------------------------------------------------

    @property
    def _per_update(self) -> Fraction:
        """Samples that the clock advances by at one update, on average."""
        if self.samples_per_epoch is None:
            return Fraction(self.size)
        return Fraction(self.samples_per_epoch, self.updates_per_epoch)

    def _epoch(self, user: str) -> int:
        """`samples_per_epoch`, which `user` cannot do without."""
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
                raise ConfigurationError(_needs_epoch(argument, parsed))
            return parsed.value * self.samples_per_epoch
        if self.duration is None:
            raise ConfigurationError(
                received(
                    argument,
                    str(parsed),
                    "in epochs, updates or samples where the run's length is unknown",
                    "pass the length of the run to the batch, such as duration='90ep'",
                )
            )
        return parsed.value * self._samples(self.duration, "duration")


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


def _refuse_unknown(arguments: Mapping[str, Any]) -> None:
    """Refuses what the constructor does not take, before Python does so with less to say."""
    for key in arguments:
        if key not in _ARGUMENTS:
            close = difflib.get_close_matches(str(key), _ARGUMENTS, n=1)
            hint = f"did you mean {close[0]!r}" if close else "leave it out"
            expected = f"one of the arguments {', '.join(_ARGUMENTS)}"
            raise ConfigurationError(received(str(key), arguments[key], expected, hint))


def _positive(argument: str, value: object) -> int:
    """An integer of at least 1, of whatever integer type."""
    number = _index(value)
    if number is None:
        whole = isinstance(value, float) and value.is_integer()
        hint = f"write {int(value)}" if whole and isinstance(value, float) else "write a whole number such as 64"
        raise ConfigurationTypeError(received(argument, value, "an integer", hint))
    if number < 1:
        raise ConfigurationError(received(argument, value, "at least 1"))
    return number


def _index(value: object) -> int | None:
    """`value` as an int, None where it is not one; a truth value is not."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _per_replica(per_replica: object, total: object, replicas: int, accumulation: int) -> int:
    """Samples of one pass of one replica, from exactly one of `per_replica` and `total`."""
    if (per_replica is None) == (total is None):
        raise ConfigurationError(
            "Exactly one of `per_replica` and `total` must be given. "
            f"Received: per_replica={per_replica!r}, total={total!r}. To mend it: pass per_replica, the "
            "samples of one replica and pass, or total, the samples of one update over all replicas."
        )
    if total is None:
        return _positive("per_replica", per_replica)
    size = _positive("total", total)
    unit = replicas * accumulation
    each, rest = divmod(size, unit)
    if rest:
        near = " or ".join(f"total={n * unit}" for n in (each, each + 1) if n)
        raise ConfigurationError(
            received(
                "total",
                total,
                f"a multiple of {unit} (replicas={replicas} x accumulation={accumulation})",
                f"write {near}",
            )
        )
    return each


def _check_epoch(samples: int, per_replica: int, replicas: int, accumulation: int) -> None:
    """Refuses an epoch without a full update, and one whose arithmetic leaves int64."""
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
    if samples * (updates + 1) >= _INT64_END:
        raise ConfigurationError(
            received(
                "samples_per_epoch",
                samples,
                f"small enough for the clock's int64: samples_per_epoch x (updates_per_epoch + 1) = "
                f"{samples} x {updates + 1} must be below 2**63",
                "count a part of the training set as an epoch",
            )
        )


def _check_run(run: Duration, samples_per_epoch: int | None) -> None:
    """Refuses a length of the run that says nothing."""
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
        raise ConfigurationError(_needs_epoch("duration", run))


def _needs_epoch(argument: str, duration: Duration) -> str:
    """The message for epochs of unknown length."""
    return received(
        argument,
        str(duration),
        "in updates or samples where the length of an epoch is unknown",
        "pass the size of the training set to the batch, such as samples_per_epoch=60_000",
    )


def _fraction(value: object) -> Fraction:
    """A duration's value as an exact fraction."""
    if isinstance(value, Fraction):
        return value
    number = _index(value)
    if number is not None:
        return Fraction(number)
    if not isinstance(value, float):
        raise ConfigurationTypeError(received("value", value, "a number", "write 5, 0.5 or Fraction(1, 3)"))
    if not math.isfinite(value):
        raise ConfigurationError(received("value", value, "finite"))
    # The decimal that was written, not the binary number next to it: 0.05 is 1/20.
    return Fraction(repr(float(value)))


def _check_value(value: Fraction, unit: object, argument: str, given: object) -> Fraction:
    """Refuses an unknown unit, and a value outside what its unit can hold."""
    if not isinstance(unit, str):
        raise ConfigurationTypeError(received("unit", unit, f"one of {', '.join(_UNITS)}"))
    if unit not in _UNITS:
        raise ConfigurationError(received("unit", unit, f"one of {', '.join(_UNITS)}"))
    if value < 0:
        raise ConfigurationError(received(argument, given, "0 or more"))
    if value >= _INT64_END:
        raise ConfigurationError(received(argument, given, "below 2**63"))
    if unit == "dur" and value > 1:
        raise ConfigurationError(
            received(argument, given, "a fraction of the run, at most 1dur", "write 'ep' for epochs")
        )
    return value


def _example(value: object) -> str:
    """A number for a hint: the one that came, where it is one."""
    number = _index(value)
    if number is None and isinstance(value, float) and math.isfinite(value):
        return f"{abs(value):g}"
    return "5" if number is None else str(abs(number))


def _write(number: str) -> str:
    """The hint that shows a number in each unit."""
    epochs, updates, samples = (f"'{number}{unit}' for {number} {_UNITS[unit]}" for unit in ("ep", "ba", "sp"))
    return f"write {epochs}, {updates} or {samples}"


def _decimal(value: Fraction) -> str:
    """A fraction as a plain decimal where it has one, otherwise as "n/d"."""
    twos, fives, rest = 0, 0, value.denominator
    while rest % 2 == 0:
        twos, rest = twos + 1, rest // 2
    while rest % 5 == 0:
        fives, rest = fives + 1, rest // 5
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    places = max(twos, fives)
    digits = str(value.numerator * 10**places // value.denominator).zfill(places + 1)
    return f"{digits[:-places]}.{digits[-places:]}" if places else digits


def _number(value: Fraction) -> int | float:
    """An int when exact, otherwise the nearest float."""
    return value.numerator if value.denominator == 1 else float(value)
