"""Requests to a run that is under way: files that `distlr control` writes and rank 0 reads, trusting none of them.

A request is a small JSON object in `RUN_DIR/control/`, which belongs to the user whose run it is. Nothing of it is
executed; what is not exactly a request is refused, with the reason, and changes nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pwd
import re
import stat
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from distlr._arguments import one_of
from distlr.errors import ConfigurationError, received
from distlr.files import write_bytes

__all__ = ["ACTIONS", "ControlDirectory", "Found", "Request", "is_change", "trouble_with"]

ACTIONS = ("set-lr", "pause-plateau", "resume-plateau", "stop")

DIRECTORY = "control"
_LARGEST_FACTOR = 100.0
_RATES = (1e-30, 1e6)  # beyond these no rate is meant, not even with `force`
_LONGEST = 4096  # bytes of a request
_MANY = 1000  # requests that are looked at in one go
_LAST_EPOCH = 10**9
_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}\.json")
_SETTLED = (".applied", ".refused")


@dataclasses.dataclass(frozen=True)
class Request:
    """One thing that is asked of a run.

    Attributes:
        action: one of `ACTIONS`.
        multiply: "set-lr": the factor on the rate.
        to: "set-lr", instead: the rate itself, as it is applied.
        at_epoch: when, before the epoch that Keras prints as this number, from 1; None for as soon as it is read.
        force: "set-lr": whether a change by more than a factor of 100 is meant.

    Raises:
        ConfigurationError: a value is out of its range, or does not belong to the action.
    """

    action: str
    multiply: float | None = None
    to: float | None = None
    at_epoch: int | None = None
    force: bool = False

    def __post_init__(self) -> None:
        """Checks the values, also those of a file."""
        one_of("action", self.action, ACTIONS)
        for name in ("multiply", "to"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value <= float(10**12) and math.isfinite(value)):
                raise ConfigurationError(received(name, value, "a finite number above 0"))
        given = (self.multiply is not None) + (self.to is not None)
        if given != (self.action == "set-lr"):
            expected = "one of multiply and to" if self.action == "set-lr" else "neither multiply nor to"
            raise ConfigurationError(
                f"{self.action!r} takes {expected}. Received: multiply={self.multiply!r}, to={self.to!r}."
            )
        epoch = self.at_epoch
        if epoch is not None and (type(epoch) is not int or not 1 <= epoch <= _LAST_EPOCH):
            raise ConfigurationError(received("at_epoch", epoch, "a whole number from 1, as Keras prints epochs"))
        if type(self.force) is not bool:
            raise ConfigurationError(received("force", self.force, "true or false"))

    def __str__(self) -> str:
        """As on the command line of `distlr control`."""
        values = {"--multiply": self.multiply, "--to": self.to, "--at-epoch": self.at_epoch}
        words = [f"{option} {value}" for option, value in values.items() if value is not None]
        return " ".join([self.action, *words, *(["--force"] if self.force else [])])

    def factor(self, rate: float) -> float:
        """What the rate is multiplied by, of a run whose rate is `rate` now.

        Raises:
            ConfigurationError: the change is larger than a factor of 100 and not forced, or no rate results.
        """
        if not (math.isfinite(rate) and rate > 0):
            raise ConfigurationError(f"The rate is {rate:g} now, and a change by hand multiplies it.")
        # A float, also of a whole number: `is_change` takes nothing else from the run's decisions.
        factor = float(self.multiply) if self.multiply is not None else (self.to or 1.0) / rate
        if abs(math.log(factor)) > math.log(_LARGEST_FACTOR) + 1e-6 and not self.force:
            raise ConfigurationError(
                f"`{self}` would change the rate from {rate:.6g} to {rate * factor:.6g}, by more than a factor of "
                f"{_LARGEST_FACTOR:g}. To mend it: add --force if it is meant."
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
        """The request in the bytes of a file.

        Raises:
            ConfigurationError: it is not exactly one.
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


@dataclasses.dataclass(frozen=True)
class Found:
    """A file in the control directory.

    Attributes:
        name: of the file, which names the request in the run's decisions.
        by: the name of the file's owner.
        request: what is asked for; None where it is refused.
        refused: why not.
    """

    name: str
    by: str
    request: Request | None = None
    refused: str = ""


class ControlDirectory:
    """The requests to one run.

    Args:
        run_dir: the run's directory.
    """

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        self.path = Path(run_dir) / DIRECTORY
        self._seen: set[tuple[int, int, int]] = set()  # what could not be renamed, or waits for its epoch
        self._warned_of_directory = False

    def make(self) -> None:
        """Makes the directory, for its owner alone."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def ask(self, request: Request) -> str:
        """Writes a request, whole, and returns its name."""
        self.make()
        name = f"{time.time_ns()}-{os.getpid()}.json"
        write_bytes(self.path / name, (json.dumps(request.to_json()) + "\n").encode(), mode=0o600)
        return name

    def look(self) -> list[Found]:
        """What has come since the last look, in the order of names; each file once.

        Never raises for what a file is: whatever is no request is found as refused.
        """
        try:
            with os.scandir(self.path) as entries:
                names = sorted(islice((entry.name for entry in entries if _is_open(entry.name)), _MANY))
            trouble = trouble_with(os.lstat(self.path), directory=True)
        except OSError:
            return []
        if trouble:
            if self._warned_of_directory:
                return []
            self._warned_of_directory = True
            return [Found(DIRECTORY, "?", refused=f"{self.path} {trouble}")]
        found = []
        for name in names:
            try:
                about = os.lstat(self.path / name)
            except OSError:
                continue
            key = (about.st_dev, about.st_ino, about.st_mtime_ns)
            if key not in self._seen:
                self._seen.add(key)
                found.append(self._read(name, about))
        return found

    def settle(self, names: Iterable[str], *, applied: bool) -> None:
        """Marks requests as answered, so that no later run takes them."""
        for name in names:
            path = self.path / name
            try:
                path.rename(path.with_name(name + _SETTLED[not applied]))
            except OSError:
                continue  # `look` has seen it, and does not show it again

    def _read(self, name: str, about: os.stat_result) -> Found:
        by = _user(about.st_uid)
        trouble = trouble_with(about)
        if not _NAME.fullmatch(name):
            trouble = "has a name that no request has"
        if trouble:
            return Found(name, by, refused=f"It {trouble}.")
        try:
            return Found(name, by, Request.parse(_contents(self.path / name)))
        except (ConfigurationError, OSError) as error:
            return Found(name, by, refused=str(error))


def _contents(path: Path) -> bytes:
    """The bytes of a small file, which is looked at once more when it is open."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        trouble = trouble_with(os.fstat(file.fileno()))
        if trouble:
            raise ConfigurationError(f"It {trouble}.")
        return file.read(_LONGEST + 1)


def _is_open(name: str) -> bool:
    """Whether a file has still to be looked at: it is neither being written nor answered."""
    return not (name.endswith(_SETTLED) or (name.startswith(".") and not name.endswith(".json")))


def trouble_with(about: os.stat_result, *, directory: bool = False, longest: int = _LONGEST) -> str:
    """Why a file, or the directory, is not to be trusted; empty where it is."""
    if directory and not stat.S_ISDIR(about.st_mode):
        return "is no directory"
    if not directory and not stat.S_ISREG(about.st_mode):
        return "is no plain file"
    if about.st_uid != os.geteuid():
        return f"belongs to {_user(about.st_uid)}, and the run to {_user(os.geteuid())}"
    if about.st_mode & 0o022:
        return f"can be written by others (mode {stat.S_IMODE(about.st_mode):03o}); to mend it: chmod go-w"
    if not directory and about.st_nlink != 1:
        return "has another name elsewhere"
    if not directory and about.st_size > longest:
        return f"has {about.st_size} bytes, and at most {longest} are read"
    return ""


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError("a name stands twice")
    return dict(pairs)
