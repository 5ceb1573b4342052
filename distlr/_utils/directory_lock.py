"""One job at a time in a directory: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import platform
import time
import weakref
from pathlib import Path

from distlr._utils.atomic_files import open_plain
from distlr._utils.json_lines import parse_json
from distlr.errors import ConfigurationError

__all__ = ["WAIT", "DirectoryLock", "release_all"]

WAIT = 120.0
"""Seconds that a job waits for another one: a file server needs up to 90 to notice that a host of it is gone."""

_PAUSE = 0.5  # seconds between two tries
_LONGEST = 4096  # bytes of a holder's description

_log = logging.getLogger("distlr")

# Of this process, by the path of the lock file; a lock that nobody refers to any more is released.
_held: weakref.WeakValueDictionary[str, DirectoryLock] = weakref.WeakValueDictionary()


class DirectoryLock:
    """Keeps other jobs out of a directory, while this process lives or until it is released.

    It is a `flock` on a file in the directory, which names the holder and is removed at the release. Only
    rank 0 has one. A later lock of the same process takes it over: the next `fit`, or the next generation of an elastic
    job, continues in the directory of the one before it, whose lock is `lost` then. No subprocess or forked data worker
    inherits it, so that a worker that is left behind holds nothing.

    Args:
        directory: created if it is missing.
        name: the name of the lock's file, `name.lock`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     first, second = DirectoryLock(folder, "run"), DirectoryLock(folder, "run")
    ...     first.acquire()
    ...     second.acquire()  # by the same process
    ...     first.held, first.lost, second.held, os.listdir(folder)
    ...     second.release()
    ...     os.listdir(folder)
    (False, True, True, ['run.lock'])
    []
    """

    _descriptor: int | None = None

    def __init__(self, directory: str | os.PathLike[str], name: str) -> None:
        self.path = Path(directory) / f"{name}.lock"
        self.lost = False
        self._cannot = False  # whether this file system has no locks

    @property
    def held(self) -> bool:
        """Whether this lock is held; True as well where the file system has no locks, and others can come in."""
        return self._cannot or self._descriptor is not None

    def acquire(self, timeout: float | None = None) -> None:
        """Acquires the lock, from an earlier one of this process where there is one; else waits for its holder.

        Args:
            timeout: seconds that other ranks wait meanwhile, in a collective: this waits for half of them at most, and
                never for more than `WAIT`.

        Raises:
            ConfigurationError: another process still holds it.
            OSError: the directory cannot be made.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.lost = False
        if self._cannot or (self._descriptor is not None and self._is_there(self._descriptor)):
            return
        self._close()
        seconds = WAIT if timeout is None else min(WAIT, timeout / 2)
        deadline, has_warned = time.monotonic() + seconds, False
        while not (self._take_over() or self._try()):
            holder = f"{self.path.parent} is in use by another job: {self._holder()}"
            if time.monotonic() >= deadline:
                raise ConfigurationError(
                    f"{holder}, which has not ended within {seconds:g} s. Fix: end that job, or give this one a "
                    "directory of its own."
                )
            if not has_warned:
                has_warned = True
                _log.warning("%s. This job waits up to %g s for it to end.", holder, seconds)
            time.sleep(min(_PAUSE, max(0.0, deadline - time.monotonic())))

    def release(self) -> None:
        """Releases the lock; does nothing where another lock of this process has taken it over."""
        if self._descriptor is not None and self._is_there(self._descriptor):
            with contextlib.suppress(OSError):
                self.path.unlink()  # while it is locked: who has opened it finds that it is gone, and opens it anew
        self._close()

    def __del__(self) -> None:
        """Releases the lock with the last reference to it."""
        self.release()

    def _take_over(self) -> bool:
        """Takes over an earlier lock of this process; returns whether there was one."""
        key = os.path.realpath(self.path)
        earlier = _held.get(key)
        if earlier is None or earlier._descriptor is None or not self._is_there(earlier._descriptor):
            return False
        self._descriptor, earlier._descriptor, earlier.lost = earlier._descriptor, None, True
        _held[key] = self
        return True

    def _try(self) -> bool:
        """Tries to lock the file; returns whether it is locked now, or can never be."""
        try:
            # It is opened for writing, without which NFS gives no exclusive lock.
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
            descriptor = os.open(self.path, flags, 0o644)
        except OSError as error:
            return self._go_without(error)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            # ENOLCK, EOPNOTSUPP, EINVAL and others: there are no locks here, which is no reason not to train.
            return error.errno not in (errno.EAGAIN, errno.EWOULDBLOCK) and self._go_without(error)
        if not self._is_there(descriptor):  # its holder has released it since it was opened
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        _held[os.path.realpath(self.path)] = self
        since = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        holder = {"host": platform.node(), "pid": os.getpid(), "since": since}
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a name
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, (json.dumps(holder) + "\n").encode(), 0)
            os.fsync(descriptor)  # other hosts read it
        return True

    def _go_without(self, error: OSError) -> bool:
        self._cannot = True
        _log.warning(
            "%s cannot be locked (%s), so nothing keeps a second job from writing there, too. Fix: see that one job at "
            "a time uses it.",
            self.path.parent,
            error,
        )
        return True

    def _is_there(self, descriptor: int) -> bool:
        """Whether an open file is still the one that has the name."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.lstat(self.path))
        except OSError:
            return False

    def _holder(self) -> str:
        """Describes the holder as the file names it; the file is not trusted."""
        try:
            with open_plain(self.path) as file:
                holder = parse_json(file.read(_LONGEST))
            host, since = (ascii(holder[name])[1:-1][:100] for name in ("host", "since"))
            return f"process {int(holder['pid'])} on host {host}, since {since}"
        except (OSError, ValueError, KeyError, TypeError):
            return "a process that has not said which"

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None


def release_all() -> None:
    """Releases all locks of this process, whoever has them."""
    for lock in list(_held.values()):
        lock.release()


def _forget() -> None:
    """Closes the locks of the parent in a forked process, which would hold them as long as they are open in it."""
    for lock in list(_held.values()):
        lock._close()


atexit.register(release_all)
os.register_at_fork(after_in_child=_forget)
