"""The directory of a run: its configuration, epochs and decisions as JSON; one run at a time.

RUN_DIR/run.json          the formula, the ranks, the versions
RUN_DIR/epochs.jsonl      a line an epoch: the rate within it, the logs, whether the replicas agreed
RUN_DIR/decisions.jsonl   a line a decision: cuts, changes by hand, refused requests
RUN_DIR/run.lock          the process that writes here, while a run is under way (`distlr._utils.directory_lock`)
RUN_DIR/control/          requests to a run that is under way (`distlr.runlog.control_requests`)
RUN_DIR/earlier/          the files of runs before this one

A crash or a power cut may damage a line: readers skip it and report it, and a run that continues keeps the file as it
was under another name.
"""

from __future__ import annotations

import dataclasses
import datetime
import errno
import itertools
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distlr._utils.atomic_files import write_bytes, write_json
from distlr._utils.checks import counted
from distlr._utils.directory_lock import DirectoryLock
from distlr._utils.json_lines import Lines, parse_json, read_file, read_lines
from distlr.errors import ConfigurationError, received

__all__ = ["Run", "RunDirectory", "now"]

RUN, EPOCHS, DECISIONS, EARLIER = "run.json", "epochs.jsonl", "decisions.jsonl", "earlier"
MODE = 0o644  # of files that a restart reads again: nobody else may write them

_log = logging.getLogger("distlr")


def now() -> str:
    """The time, in UTC, to the second: `2026-01-31T12:00:00+00:00`."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


@dataclasses.dataclass(frozen=True)
class Run:
    """The contents of a run's directory so far.

    Attributes:
        name: the directory's.
        run: when it started and, once it has, ended; its command, the parts of the formula ("job"), the planned
            epochs, the versions.
        epochs: an object an epoch, in order.
        decisions: an object a decision, in order.
        damage: a sentence for each file that could not be read in full.
    """

    name: str
    run: dict[str, Any]
    epochs: list[dict[str, Any]]
    decisions: list[dict[str, Any]]
    damage: tuple[str, ...] = ()


class RunDirectory:
    """Reads and writes the files of one run. Rank 0 writes, one run at a time; readers may come at any time.

    Args:
        path: the directory; made when something is written first.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = DirectoryLock(self.path, "run")

    def acquire(self, timeout: float | None = None) -> None:
        """Locks the directory for this process; see `DirectoryLock.acquire`."""
        self._lock.acquire(timeout)

    def release(self) -> None:
        """Releases the lock of the directory."""
        self._lock.release()

    def begin(self, run: Mapping[str, Any]) -> None:
        """Begins a run. The files of an earlier one move to `earlier/`, under the time at which it started."""
        self.acquire()
        existing = [self.path / name for name in (RUN, EPOCHS, DECISIONS) if os.path.lexists(self.path / name)]
        if existing:
            started = _start_name(self.path / RUN)
            place = self.path / EARLIER / started
            number = 1
            while place.exists():
                number += 1
                place = self.path / EARLIER / f"{started}-{number}"
            place.mkdir(parents=True)
            for path in existing:
                path.rename(place / path.name)
        write_json(self.path / RUN, dict(run))

    def resume(self, run: Mapping[str, Any], epoch: int, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Continues the run in the directory: removes the epochs that are trained again, and decisions.

        Args:
            run: as for `begin`; the start of the first stays.
            epoch: the first that is trained again.
            keep: returns whether a decision stays.
        """
        self.acquire()
        started = run["started"]
        if os.path.lexists(self.path / RUN):
            try:
                started = _read_json(self.path / RUN).get("started", started)
            except ConfigurationError as error:
                _log.warning(
                    "%s When the run started is lost; the file as it was is %s.", error, _copy_damaged(self.path / RUN)
                )
        write_json(self.path / RUN, {**run, "started": started})
        self._filter(EPOCHS, lambda line: line["epoch"] < epoch)
        self._filter(DECISIONS, keep)

    def end(self) -> None:
        """Notes that the run has come to its end."""
        self._check_lock()
        write_json(self.path / RUN, {**_read_json(self.path / RUN), "ended": now()})

    def add_epoch(self, record: Mapping[str, Any]) -> None:
        """Appends an epoch."""
        self._append(EPOCHS, record)

    def add_decision(self, record: Mapping[str, Any]) -> None:
        """Appends a decision."""
        self._append(DECISIONS, record)

    def decisions(self) -> list[dict[str, Any]]:
        """Reads the decisions so far, without damaged lines."""
        return self.decision_lines().objects

    def decision_lines(self) -> Lines:
        """Reads the decisions so far, and counts the damaged lines.

        Raises:
            ConfigurationError: the file cannot be read.
        """
        return self._lines(DECISIONS)

    def read(self) -> Run:
        """Reads the whole run; of damaged files as much as can be read.

        Raises:
            ConfigurationError: there is no run, or a file cannot be read.
        """
        if not (self.path / RUN).is_file():
            hint = "write job.callbacks([...], run_dir=...) in the script"
            raise ConfigurationError(received("run_dir", str(self.path), f"a directory with a {RUN}", hint))
        lines_by_file = {name: self._lines(name) for name in (EPOCHS, DECISIONS)}
        damage = tuple(
            f"{name} cannot be read in {counted(lines.damaged, 'line')}."
            for name, lines in lines_by_file.items()
            if lines.damaged
        )
        run, name = _read_json(self.path / RUN), self.path.resolve().name
        return Run(name, run, lines_by_file[EPOCHS].objects, lines_by_file[DECISIONS].objects, damage)

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        self._check_lock()
        # One write of a whole line: a reader sees all of it or nothing, and the next line does not join half of one.
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        path = self.path / name
        # Without a wait where a pipe has the name.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(path, flags, MODE)
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

    def _check_lock(self) -> None:
        if self._lock.lost:
            raise ConfigurationError(
                f"{self.path} has the files of a later run of this process. Fix: give each run a run_dir of its own."
            )

    def _filter(self, name: str, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Removes lines that are not to be kept, and logs how many could not be read."""
        path, lines = self.path / name, self._lines(name)
        damaged, remaining = lines.damaged, []
        for line in lines.objects:
            try:
                remaining += [line] if keep(line) else []
            except (KeyError, TypeError):
                damaged += 1
        if damaged:
            _log.warning(
                "%s is not what a run writes in %s, which this run leaves out. The file as it was is %s.",
                path,
                counted(damaged, "line"),
                _copy_damaged(path),
            )
        elif lines.unfinished:
            _log.info(
                "The last line of %s was not finished, as a crash leaves it; where it is half it is cut off.", path
            )
        if damaged or lines.unfinished or remaining != lines.objects:
            text = "".join(json.dumps(line) + "\n" for line in remaining)
            write_bytes(path, text.encode(), mode=MODE)

    def _lines(self, name: str) -> Lines:
        """Reads the lines of a file, without a last one that a crash cut off."""
        try:
            return read_lines(self.path / name)
        except OSError as error:
            raise ConfigurationError(f"{self.path / name} cannot be read: {error}.") from error


def _start_name(path: Path) -> str:
    """When the run of a `run.json` started, as a name for a directory."""
    try:
        text = str(_read_json(path).get("started"))
    except ConfigurationError:
        text = "unknown"
    return "".join(letter if letter.isalnum() else "-" for letter in text[:25])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(read_file(path))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is not what a run writes: {error}.") from error
    if not isinstance(value, dict):
        raise ConfigurationError(f"{path} is not what a run writes: no object.")
    return value


def _copy_damaged(path: Path) -> Path:
    """Copies a damaged file, which is about to be replaced; one that cannot be copied is renamed."""
    names = itertools.chain(
        [f"{path.name}.damaged"], (f"{path.name}.damaged-{number}" for number in itertools.count(2))
    )
    aside = next(place for name in names if not os.path.lexists(place := path.with_name(name)))
    try:
        write_bytes(aside, read_file(path), mode=MODE)
    except OSError:
        path.rename(aside)
    return aside
