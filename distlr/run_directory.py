"""The directory of a run: what it was, what each epoch gave, and what was decided; one run at a time, as JSON.

RUN_DIR/run.json          the formula, the ranks, the versions
RUN_DIR/epochs.jsonl      a line an epoch: the rate within it, the logs, whether the replicas agreed
RUN_DIR/decisions.jsonl   a line a decision: cuts, changes by hand, refused requests
RUN_DIR/control/          requests to a run that is under way (`distlr.control`)
RUN_DIR/earlier/          what runs before this one left
"""

from __future__ import annotations

import dataclasses
import datetime
import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distlr.errors import ConfigurationError, received
from distlr.files import write_bytes, write_json

__all__ = ["Run", "RunDirectory", "now"]

RUN, EPOCHS, DECISIONS, EARLIER = "run.json", "epochs.jsonl", "decisions.jsonl", "earlier"
MODE = 0o644  # of what a restart reads again: nobody else may write it
LONGEST = 256 * 2**20  # bytes of a file that is read


def now() -> str:
    """The time, in UTC, to the second: `2026-01-31T12:00:00+00:00`."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run has left so far.

    Attributes:
        name: the directory's.
        run: when it started and, once it has, ended; its command, the parts of the formula ("job"), the planned
            epochs, the versions.
        epochs: an object an epoch, in order.
        decisions: an object a decision, in order.
    """

    name: str
    run: dict[str, Any]
    epochs: list[dict[str, Any]]
    decisions: list[dict[str, Any]]


class RunDirectory:
    """Reads and writes the files of one run. Rank 0 writes; readers may come at any time.

    Args:
        path: the directory; made when something is written first.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def begin(self, run: Mapping[str, Any]) -> None:
        """Begins a run. What an earlier one left goes to `earlier/`, under the time at which that one started."""
        there = [self.path / name for name in (RUN, EPOCHS, DECISIONS) if (self.path / name).exists()]
        if there:
            started = _started(self.path / RUN)
            place = self.path / EARLIER / started
            number = 1
            while place.exists():
                number += 1
                place = self.path / EARLIER / f"{started}-{number}"
            place.mkdir(parents=True)
            for path in there:
                path.rename(place / path.name)
        write_json(self.path / RUN, dict(run))

    def go_on(self, run: Mapping[str, Any], epoch: int, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Continues the run that is there: takes back the epochs that are trained again, and decisions.

        Args:
            run: as for `begin`; the start of the first stays.
            epoch: the first that is trained again.
            keep: says of a decision whether it stays.
        """
        old = _read_json(self.path / RUN) if (self.path / RUN).is_file() else {}
        write_json(self.path / RUN, {**run, "started": old.get("started", run["started"])})
        self._filter(EPOCHS, lambda line: line["epoch"] < epoch)
        self._filter(DECISIONS, keep)

    def end(self) -> None:
        """Notes that the run has come to its end."""
        write_json(self.path / RUN, {**_read_json(self.path / RUN), "ended": now()})

    def add_epoch(self, record: Mapping[str, Any]) -> None:
        """Appends an epoch."""
        self._append(EPOCHS, record)

    def add_decision(self, record: Mapping[str, Any]) -> None:
        """Appends a decision."""
        self._append(DECISIONS, record)

    def decisions(self) -> list[dict[str, Any]]:
        """The decisions so far."""
        return self._lines(DECISIONS)

    def read(self) -> Run:
        """All of it.

        Raises:
            ConfigurationError: there is no run, or a file is not what a run writes.
        """
        if not (self.path / RUN).is_file():
            hint = "write job.callbacks([...], run_dir=...) in the script"
            raise ConfigurationError(received("run_dir", str(self.path), f"a directory with a {RUN}", hint))
        return Run(self.path.resolve().name, _read_json(self.path / RUN), self._lines(EPOCHS), self._lines(DECISIONS))

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        # One write of a whole line: a reader sees all of it or nothing, and the next line does not join half of one.
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        path = self.path / name
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, MODE)
        try:
            before = os.fstat(descriptor).st_size
            try:
                written = os.write(descriptor, line)
                if written < len(line):
                    raise OSError(errno.ENOSPC, f"{written} bytes of {len(line)} could be written", str(path))
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, before)
                raise
        finally:
            os.close(descriptor)

    def _filter(self, name: str, keep: Callable[[dict[str, Any]], bool]) -> None:
        lines = self._lines(name)
        try:
            kept = [line for line in lines if keep(line)]
        except (KeyError, TypeError) as error:
            raise ConfigurationError(f"{self.path / name} is not what a run writes: {error!r}.") from error
        if kept != lines or not _ends_whole(self.path / name):
            text = "".join(json.dumps(line) + "\n" for line in kept)
            write_bytes(self.path / name, text.encode(), mode=MODE)

    def _lines(self, name: str) -> list[dict[str, Any]]:
        """The whole lines of a file; a last one that a crash cut off is left out."""
        path = self.path / name
        if not path.is_file():
            return []
        whole, _, _ = _text(path).rpartition("\n")
        try:
            found = [json.loads(line) for line in whole.splitlines()]
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"{path} is not what a run writes: {error}.") from error
        if not all(isinstance(line, dict) for line in found):
            raise ConfigurationError(f"{path} is not what a run writes: a line is no object.")
        return found


def _started(path: Path) -> str:
    """When the run of a `run.json` started, as a name for a directory."""
    try:
        text = str(_read_json(path).get("started"))
    except ConfigurationError:
        text = "unknown"
    return "".join(letter if letter.isalnum() else "-" for letter in text[:25])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not what a run writes: {error}.") from error
    if not isinstance(value, dict):
        raise ConfigurationError(f"{path} is not what a run writes: no object.")
    return value


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LONGEST:
            raise ConfigurationError(f"{path} is not what a run writes: over {LONGEST} bytes.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from error


def _ends_whole(path: Path) -> bool:
    return not path.is_file() or _text(path)[-1:] in ("", "\n")
