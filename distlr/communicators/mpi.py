"""The communicator over MPI (mpi4py): the control plane of jobs that have no TensorFlow in them."""

from __future__ import annotations

import atexit
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Protocol

import numpy as np

from distlr._utils.checks import positive_real
from distlr.communicators.communicator import Communicator
from distlr.communicators.frames import Frame, split_frames
from distlr.errors import CollectiveTimeoutError, DistributionError

__all__ = ["MpiCommunicator"]

_AWAKE = 1.0  # seconds between two polls: after a longer pause the process was suspended
_FIRST_PAUSE, _LONGEST_PAUSE = 10e-6, 1e-3  # seconds


class _Request(Protocol):
    def Test(self) -> bool: ...


class _Host(Protocol):
    rank: int
    size: int

    def Free(self) -> None: ...


class Intracommunicator(Protocol):
    """The part of an `mpi4py.MPI.Intracomm` that is used; mpi4py itself is optional."""

    rank: int
    size: int

    def Dup(self) -> Intracommunicator:
        """See `MPI_Comm_dup`."""

    def Split_type(self, split_type: int, key: int) -> _Host:
        """See `MPI_Comm_split_type`."""

    def Iallgather(self, sendbuf: object, recvbuf: object) -> _Request:
        """See `MPI_Iallgather`."""

    def Iallgatherv(self, sendbuf: object, recvbuf: object) -> _Request:
        """See `MPI_Iallgatherv`."""

    def Abort(self, errorcode: int) -> None:
        """See `MPI_Abort`."""


class MpiCommunicator(Communicator):
    """The ranks of an mpi4py communicator: `COMM_WORLD`, `COMM_SELF`, or a part that `Split` made.

    It is for control alone: gradients do not pass through it. It works on a duplicate of the communicator,
    so that it never receives messages of other libraries; its construction is collective.

    A waiting rank polls, so that hundreds of ranks can share a few cores, and waits no longer than
    `timeout`. After that the MPI job cannot go on: this process then ends all of it as it exits
    (`MPI_Abort`), or MPI would wait at the end for ever.

    Args:
        communicator: an mpi4py intracommunicator; `MPI.COMM_WORLD` by default.
        timeout: seconds that a collective waits for the other ranks.

    Raises:
        DistributionError: mpi4py, or the MPI library under it, cannot be loaded.
    """

    def __init__(self, communicator: Intracommunicator | None = None, timeout: float = 600.0) -> None:
        self.timeout = positive_real("timeout", timeout)
        mpi = _mpi()
        self._communicator = (mpi.COMM_WORLD if communicator is None else communicator).Dup()
        place = int(self._communicator.rank), int(self._communicator.size)
        host = self._communicator.Split_type(mpi.COMM_TYPE_SHARED, key=place[0])  # who share this host's memory
        super().__init__("mpi", *place, int(host.rank), int(host.size))
        host.Free()
        # Requests that nobody waits for any more, with their buffers.
        self._abandoned: list[tuple[_Request, tuple[np.ndarray, ...]]] = []

    def _exchange(self, frame: Frame, label: str) -> Sequence[Frame]:
        # MPI counts units of 8 bytes here, so that its 32-bit counts reach 16 GiB. The counts are exchanged first.
        patience = _Patience(float(self.timeout or 0.0))
        words = frame.view(np.int64)
        local_count, counts = np.array([words.size], np.int64), np.empty(self.size, np.int64)
        self._wait(self._communicator.Iallgather(local_count, counts), (local_count, counts), patience, label)
        received = np.empty(int(counts.sum()), np.int64)
        request = self._communicator.Iallgatherv(words, [received, counts.tolist()])
        self._wait(request, (words, received), patience, label)
        return split_frames(received.view(np.uint8), self.size, label)

    def _wait(self, request: _Request, buffers: tuple[np.ndarray, ...], patience: _Patience, label: str) -> None:
        pause = _FIRST_PAUSE
        while not request.Test():
            if patience.is_over():
                self._abandon(request, buffers)
                raise CollectiveTimeoutError(
                    f"[rank {self.rank}] waited {self.timeout:g} s in {label} for the other ranks of {self.size}. "
                    "Every rank must call the same collectives: look for one that only some ranks reach, or for a "
                    "rank that ended or is slow."
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _abandon(self, request: _Request, buffers: tuple[np.ndarray, ...]) -> None:
        """Ends the job as this process exits, and keeps the buffers until then: MPI may still write to them."""
        if not self._abandoned:
            atexit.register(self._abort)
        self._abandoned.append((request, buffers))

    def _abort(self) -> None:
        self._communicator.Abort(1)


class _Patience:
    """The time that a rank waits, without the time in which it was suspended: the others are suspended then, too.

    Args:
        seconds: how long.
    """

    def __init__(self, seconds: float) -> None:
        self._left, self._looked = seconds, time.monotonic()

    def is_over(self) -> bool:
        """Whether the time has passed; must be called in short intervals."""
        now = time.monotonic()
        self._left -= min(now - self._looked, _AWAKE)
        self._looked = now
        return self._left < 0


def _mpi() -> ModuleType:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise DistributionError(
            f'mpi4py cannot be loaded: {error}. Fix: pip install "distlr[mpi]", and put the MPI library that '
            "mpi4py was built for where the loader finds it."
        ) from error
    module: ModuleType = MPI  # untyped where mpi4py is not installed
    return module
