"""Requests to a run that is under way: files that `distlr control` writes and rank 0 reads, trusting none of them.

A request is a small JSON object in `RUN_DIR/control/`, which belongs to the user whose run it is. Nothing in it is
executed. A file that is not exactly a request is refused, with the reason, and changes nothing. The end of a file's
name shows its state:

ID.json             it waits, and can be cancelled
ID.json.taken       rank 0 applies it now; a run that continues after a crash checks whether it was applied
ID.json.applied, ID.json.refused, ID.json.cancelled
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pwd
import re
import secrets
import stat
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from distlr._utils.atomic_files import write_bytes
from distlr.errors import ConfigurationError
from distlr.runlog.request import ACTIONS, Request, is_change

__all__ = ["ACTIONS", "ControlDirectory", "PendingRequest", "Request", "find_trust_problem", "is_change"]

DIRECTORY = "control"
_LONGEST = 4096  # bytes of a request
_NAMES = 10_000  # names that one look reads
_READ = 100  # files that one look reads
_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}\.json")
_ASKED = re.compile(r"[0-9]{19}-[0-9]{1,10}\.json")  # a name that `ask` returns
_TAKEN, _CANCELLED = ".taken", ".cancelled"
_ANSWERED = (".applied", ".refused")


@dataclasses.dataclass(frozen=True)
class PendingRequest:
    """A file in the control directory.

    Attributes:
        name: of the file, which names the request in the run's decisions.
        by: the name of the file's owner.
        request: its content; None where it is refused.
        refused: the reason of a refusal.
        written: when it was written, in ns, by the clock of the file system; see `ControlDirectory.file_time`.
        came: when it came into the directory, by the same clock.
        file: which file it is, also after a change of its name.
    """

    name: str
    by: str
    request: Request | None = None
    refused: str = ""
    written: int = 0
    came: int = 0
    file: tuple[int, int, int] = (0, 0, 0)

    @property
    def expires(self) -> int | None:
        """Until when it is valid, in ns, by the clock of the file system; None for no limit."""
        if self.request is None or self.request.valid_for is None:
            return None
        return self.written + int(self.request.valid_for * 1e9)


class ControlDirectory:
    """The requests to one run.

    Args:
        run_dir: the run's directory.
    """

    def __init__(self, run_dir: str | os.PathLike[str]) -> None:
        self.path = Path(run_dir) / DIRECTORY
        self._seen: set[str] = set()  # names of files that could not be renamed, or wait for their epoch
        self._claimed: set[str] = set()
        self._scan: Iterator[os.DirEntry[str]] | None = None  # where the next look continues
        self._warned_of_directory = False

    # -- the user ------------------------------------------------------------------------------------

    def make(self) -> None:
        """Makes the directory, for its owner alone."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def ask(self, request: Request) -> str:
        """Writes a request, whole, and returns its name."""
        self.make()
        name = f"{time.time_ns()}-{os.getpid()}.json"
        write_bytes(self.path / name, (json.dumps(request.to_json()) + "\n").encode(), mode=0o600)
        return name

    def cancel(self, name: str) -> bool:
        """Cancels a request; returns False where it is no longer there, because a run has claimed it.

        Raises:
            OSError: the file cannot be renamed.
        """
        try:
            (self.path / name).rename(self.path / (name + _CANCELLED))
        except FileNotFoundError:
            return False
        return True

    def was_claimed(self, name: str) -> bool:
        """Whether a run has claimed a request, or has answered it."""
        return os.path.lexists(self.path / (name + _TAKEN)) or self.was_answered(name)

    def waiting(self, most: int = _NAMES) -> list[PendingRequest]:
        """Lists the requests without an answer, in the order of names; claims none.

        Args:
            most: the largest number of files to read.

        Raises:
            OSError: the directory cannot be read.
        """
        try:
            with os.scandir(self.path) as entries:
                names = sorted(islice((entry.name for entry in entries if _is_open(entry.name)), most))
        except FileNotFoundError:
            return []
        return [request for name in names if (request := self._read(name)) is not None]

    # -- the run -------------------------------------------------------------------------------------

    def look(self) -> list[PendingRequest]:
        """Returns the files that are new since the last look, each once.

        Requests of `ask` come first, in the order in which they were written, then others in the order of names. One
        look reads 10,000 names and 100 files, and the next one continues there. So a look costs a step no more than
        that, and the number of files limits after how many looks a request is read.

        A file that is no request raises nothing: it is returned as refused.
        """
        try:
            names = self._next_names()
            trouble = find_trust_problem(os.lstat(self.path), directory=True)
        except OSError:
            self.close()
            return []
        if trouble:
            self.close()
            if self._warned_of_directory:
                return []
            self._warned_of_directory = True
            return [PendingRequest(DIRECTORY, "?", refused=f"{self.path} {trouble}")]
        new = sorted((not _ASKED.fullmatch(name), name) for name in names if name not in self._seen)
        chosen = [name for _, name in new[:_READ]]
        requests = [each for name in chosen if (each := self._read(name)) is not None]
        self._seen.update(each.name for each in requests)
        return requests

    def claim(self, request: PendingRequest) -> bool:
        """Claims a request, which nobody can cancel any more; returns False where it is no longer there."""
        path = self.path / request.name
        try:
            if _identity(os.lstat(path)) != request.file:
                raise FileNotFoundError
            path.rename(path.with_name(request.name + _TAKEN))
        except FileNotFoundError:
            self._seen.discard(request.name)
            return False
        except OSError:
            return True  # it cannot be renamed, so that nobody can cancel it either
        self._claimed.add(request.name)
        return True

    def mark_answered(self, names: Iterable[str], *, applied: bool) -> None:
        """Marks requests as answered, so that no later run claims them."""
        suffix = _ANSWERED[not applied]
        for name in names:
            source = self.path / (name + _TAKEN if name in self._claimed else name)
            # With the suffix a long name may be too long.
            short = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
            for target in (name, short):
                try:
                    source.rename(self.path / (target + suffix))
                except OSError:
                    continue  # else `look` has seen it, and does not show it again
                self._seen.discard(name)
                self._claimed.discard(name)
                break

    def was_answered(self, name: str) -> bool:
        """Whether a file of this name was answered, so that one that waits now is another."""
        return any(os.path.lexists(self.path / (name + suffix)) for suffix in _ANSWERED)

    def release_claimed(self) -> set[str]:
        """Releases the requests that a run had claimed as it died, and returns their names.

        Those that it had applied are in its decisions.
        """
        released: set[str] = set()
        try:
            with os.scandir(self.path) as entries:
                names = list(islice((entry.name for entry in entries if entry.name.endswith(_TAKEN)), _NAMES))
        except OSError:
            return released
        for name in names:
            path = self.path / name.removesuffix(_TAKEN)
            if _NAME.fullmatch(path.name) and path.name not in self._claimed and not os.path.lexists(path):
                try:
                    (self.path / name).rename(path)
                except OSError:
                    continue
                released.add(path.name)
        return released

    def file_time(self) -> int:
        """Now, in ns, by the clock that stamps the files here: that of a file server, which no host need agree with."""
        probe = self.path / f".clock.{secrets.token_hex(4)}"
        try:
            descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                return os.fstat(descriptor).st_mtime_ns
            finally:
                os.close(descriptor)
                probe.unlink()
        except OSError:
            return time.time_ns()  # the directory is full, or cannot be written

    def close(self) -> None:
        """Ends the scan of the directory that the next look would have continued."""
        scan, self._scan = self._scan, None
        if scan is not None:
            scan.close()  # type: ignore[attr-defined]

    # -- files ---------------------------------------------------------------------------------------

    def _next_names(self) -> list[str]:
        """The waiting names among the next ones in the directory; at its end the scan begins anew."""
        if self._scan is None:
            self._scan = os.scandir(self.path)
        names = [entry.name for entry in islice(self._scan, _NAMES)]
        if len(names) < _NAMES:
            self.close()
        return [name for name in names if _is_open(name)]

    def _read(self, name: str) -> PendingRequest | None:
        """Reads a file as a request; None where the file has gone."""
        try:
            status = os.lstat(self.path / name)
        except OSError:
            return None
        pending = PendingRequest(
            name, _user(status.st_uid), written=status.st_mtime_ns, came=status.st_ctime_ns, file=_identity(status)
        )
        trouble = find_trust_problem(status)
        if not _NAME.fullmatch(name):
            trouble = "has a name that no request has"
        if trouble:
            return dataclasses.replace(pending, refused=f"It {trouble}.")
        try:
            return dataclasses.replace(pending, request=Request.parse(_contents(self.path / name)))
        except (ConfigurationError, OSError) as error:
            return dataclasses.replace(pending, refused=str(error))


def _contents(path: Path) -> bytes:
    """Reads a small file, after checking it once more when it is open."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        trouble = find_trust_problem(os.fstat(file.fileno()))
        if trouble:
            raise ConfigurationError(f"It {trouble}.")
        return file.read(_LONGEST + 1)


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _is_open(name: str) -> bool:
    """Whether a file is still to be read: it is not being written, and was not claimed, answered or cancelled."""
    ended = (*_ANSWERED, _TAKEN, _CANCELLED)
    return not (name.endswith(ended) or (name.startswith(".") and not name.endswith(".json")))


def find_trust_problem(status: os.stat_result, *, directory: bool = False, longest: int = _LONGEST) -> str:
    """Returns why a file, or the directory, cannot be trusted; an empty text where it can."""
    if directory and not stat.S_ISDIR(status.st_mode):
        return "is no directory"
    if not directory and not stat.S_ISREG(status.st_mode):
        return "is no plain file"
    if status.st_uid != os.geteuid():
        return f"belongs to {_user(status.st_uid)}, and the run to {_user(os.geteuid())}"
    if status.st_mode & 0o022:
        return f"can be written by others (mode {stat.S_IMODE(status.st_mode):03o}). Fix: chmod go-w"
    if not directory and status.st_nlink != 1:
        return "has another name elsewhere"
    if not directory and status.st_size > longest:
        return f"has {status.st_size} bytes, and at most {longest} are read"
    return ""


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
