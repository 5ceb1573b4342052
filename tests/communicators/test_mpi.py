"""What `MpiCommunicator` does where nobody comes: a stand-in for mpi4py. The rest is in `distributed/`."""

from __future__ import annotations

import gc
import types
import weakref

import pytest

from distlr.communicators import mpi
from distlr.errors import CollectiveTimeoutError


class Alone:
    """One of two ranks, to which the other never comes."""

    rank, size = 0, 2

    def __init__(self) -> None:
        self.buffers: list[weakref.ref] = []

    def Dup(self) -> Alone:
        return self

    def Split_type(self, kind: int, key: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(rank=0, size=2, Free=lambda: None)

    def Iallgather(self, sent, received) -> types.SimpleNamespace:
        self.buffers += [weakref.ref(sent), weakref.ref(received)]
        return types.SimpleNamespace(Test=lambda: False)

    def Abort(self, status: int) -> None:
        raise SystemExit(status)


def test_time_in_which_the_process_was_suspended_does_not_count(monkeypatch) -> None:
    """For an hour, in a collective: at SIGCONT the others need their time to come."""
    now = [1000.0]
    monkeypatch.setattr(mpi.time, "monotonic", lambda: now[0])
    patience = mpi._Patience(3.0)
    for seconds, is_over in ((1, False), (3600, False), (0.5, False), (1, True)):
        now[0] += seconds
        assert patience.is_over() is is_over


def test_the_buffers_of_a_request_that_is_pending_are_kept_until_the_job_is_ended(monkeypatch) -> None:
    at_exit = []
    monkeypatch.setattr("atexit.register", at_exit.append)
    monkeypatch.setattr(mpi, "_mpi", lambda: types.SimpleNamespace(COMM_TYPE_SHARED=0))
    alone = Alone()
    communicator = mpi.MpiCommunicator(alone, timeout=0.01)
    for _ in range(2):
        with pytest.raises(CollectiveTimeoutError, match=r"\[rank 0\] waited 0.01 s"):
            communicator.barrier(tag="nobody comes")
    del communicator
    gc.collect()
    assert len(alone.buffers) == 4
    assert all(buffer() is not None for buffer in alone.buffers)
    (abort,) = at_exit
    with pytest.raises(SystemExit):
        abort()
