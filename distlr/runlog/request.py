"""A request by hand to a run, as the object in its file."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any, NoReturn

from distlr._utils.checks import one_of
from distlr.errors import ConfigurationError, received

__all__ = ["ACTIONS", "Request", "is_change"]

ACTIONS = ("set-lr", "pause-plateau", "resume-plateau", "stop")

_LARGEST_FACTOR = 100.0
_RATES = (1e-30, 1e6)  # beyond these no rate is meant, not even with `force`
_LAST_EPOCH = 10**9
_LONGEST_WAIT = 1e9  # seconds


@dataclasses.dataclass(frozen=True)
class Request:
    """One request to a run.

    Attributes:
        action: one of `ACTIONS`.
        multiply: "set-lr": the factor on the rate.
        to: "set-lr", instead: the rate itself, as it is applied.
        at_epoch: when, before the epoch that Keras prints as this number, from 1; None for as soon as it is read.
        force: "set-lr": whether a change by more than a factor of 100 is meant.
        valid_for: seconds from when it is written; a run that reads it later refuses it. None for no limit.

    Raises:
        ConfigurationError: a value is out of its range, or does not belong to the action.
    """

    action: str
    multiply: float | None = None
    to: float | None = None
    at_epoch: int | None = None
    force: bool = False
    valid_for: float | None = None

    def __post_init__(self) -> None:
        """Checks the values, also those of a file."""
        one_of("action", self.action, ACTIONS)
        for name in ("multiply", "to"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value <= float(10**12) and math.isfinite(value)):
                raise ConfigurationError(received(name, value, "a finite number above 0"))
        count = (self.multiply is not None) + (self.to is not None)
        if count != (self.action == "set-lr"):
            expected = "one of multiply and to" if self.action == "set-lr" else "neither multiply nor to"
            raise ConfigurationError(
                f"{self.action!r} takes {expected}. Received: multiply={self.multiply!r}, to={self.to!r}."
            )
        epoch = self.at_epoch
        if epoch is not None and (type(epoch) is not int or not 1 <= epoch <= _LAST_EPOCH):
            raise ConfigurationError(received("at_epoch", epoch, "a whole number from 1, as Keras prints epochs"))
        if type(self.force) is not bool:
            raise ConfigurationError(received("force", self.force, "true or false"))
        seconds = self.valid_for
        if seconds is not None and not (type(seconds) in (int, float) and 0 < seconds <= _LONGEST_WAIT):
            raise ConfigurationError(received("valid_for", seconds, "a number of seconds above 0, at most 1e9"))

    def __str__(self) -> str:
        """The request as on the command line of `distlr control`."""
        values = {"--multiply": self.multiply, "--to": self.to, "--at-epoch": self.at_epoch}
        words = [f"{option} {value}" for option, value in values.items() if value is not None]
        return " ".join([self.action, *words, *(["--force"] if self.force else [])])

    def factor(self, rate: float) -> float:
        """The factor on the rate of a run whose rate is `rate` now.

        Raises:
            ConfigurationError: the change is larger than a factor of 100 and not forced, or no rate results.
        """
        if not (math.isfinite(rate) and rate > 0):
            raise ConfigurationError(f"The rate is {rate:g} now, and a change by hand multiplies it.")
        # A float, also for a whole number: `is_change` accepts nothing else from the run's decisions.
        factor = float(self.multiply) if self.multiply is not None else (self.to or 1.0) / rate
        if abs(math.log(factor)) > math.log(_LARGEST_FACTOR) + 1e-6 and not self.force:
            raise ConfigurationError(
                f"`{self}` would change the rate from {rate:.6g} to {rate * factor:.6g}, by more than a factor of "
                f"{_LARGEST_FACTOR:g}. Fix: add --force if it is meant."
            )
        if not _RATES[0] <= rate * factor <= _RATES[1]:
            expected = f"from {_RATES[0]:g} to {_RATES[1]:g}"
            raise ConfigurationError(f"`{self}` would set the rate to {rate * factor:.6g}, and it must be {expected}.")
        return factor

    def to_json(self) -> dict[str, Any]:
        """The object in the file."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if value not in (None, False)}
        return {"distlr": 1, **values}

    @classmethod
    def parse(cls, data: bytes) -> Request:
        """Parses the bytes of a request's file.

        Raises:
            ConfigurationError: they are not exactly one request.
        """
        try:
            value = json.loads(data.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_no_doubles)
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"It is not JSON: {error}.") from error
        if not isinstance(value, dict):
            raise ConfigurationError("It is no JSON object.")
        if type(value.get("distlr")) is not int or value.pop("distlr") != 1:
            raise ConfigurationError('It does not say "distlr": 1.')
        names = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(value) - set(names))
        if unknown:
            raise ConfigurationError(f"It has {unknown[0][:40]!r}, which is none of {', '.join(names)}.")
        if not isinstance(value.get("action"), str):
            raise ConfigurationError("It names no action.")
        return cls(**value)


def is_change(entry: dict[str, Any]) -> bool:
    """Whether a line of a run's decisions is a change by hand that can be made again."""
    factor, action = entry.get("multiplier"), entry.get("action")
    if action not in ACTIONS or not isinstance(entry.get("by"), str):
        return False
    return factor is None if action != "set-lr" else type(factor) is float and _RATES[0] <= factor <= 1 / _RATES[0]


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("a name stands twice")
    return dict(pairs)
