"""Ranks as threads: what happens when one stays away, ends or raises."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from distlr.communicators import ThreadGroup, run_ranks
from distlr.errors import (
    CollectiveTimeoutError,
    ConfigurationError,
    ConfigurationTypeError,
    DistributionError,
)


def caught(fn):
    with pytest.raises(DistributionError) as info:
        fn()
    return info.value


def test_missing_collective_times_out_on_every_other_rank_and_is_named():
    release = threading.Event()

    def fn(comm):
        if comm.rank == 1:
            release.wait(5)
            return caught(lambda: comm.allreduce(1.0, tag="late"))
        error = caught(lambda: comm.allreduce(np.ones(2), tag="metrics" if comm.rank == 0 else "stop"))
        release.set()
        return error

    start = time.monotonic()
    raised = run_ranks(fn, 3, timeout=0.3)
    assert 0.3 <= time.monotonic() - start < 3
    for error in raised:
        assert type(error) is CollectiveTimeoutError
        assert "within 0.3 s: rank 1 did not arrive" in str(error)
        assert "rank 0 waits in allreduce 'metrics'; rank 2 waits in allreduce 'stop'" in str(error)
    assert len({id(error) for error in raised}) == 3


def test_rank_that_returns_early_ends_the_others_at_once():
    def fn(comm):
        comm.barrier(tag="start")
        return None if comm.rank == 2 else caught(lambda: comm.barrier(tag="end"))

    start = time.monotonic()
    raised = run_ranks(fn, 3, timeout=20)
    assert time.monotonic() - start < 5
    assert raised[2] is None
    for error in raised[:2]:
        assert type(error) is CollectiveTimeoutError
        assert "rank 2 ended without entering it" in str(error)
        assert "in barrier 'end'" in str(error)


def test_one_ranks_exception_ends_all():
    errors = {}

    def fn(comm):
        comm.barrier(tag="start")
        if comm.rank == 1:
            raise KeyError("boom")
        try:
            comm.allgather(np.ones(1), tag="metrics")
        except DistributionError as error:
            errors[comm.rank] = error
            raise

    start = time.monotonic()
    with pytest.raises(KeyError, match="boom") as info:
        run_ranks(fn, 3, timeout=20)
    assert time.monotonic() - start < 5
    assert "Raised on rank 1 of 3." in info.value.__notes__
    assert sorted(errors) == [0, 2]
    for error in errors.values():
        assert "Rank 1 failed with KeyError: 'boom'" in str(error)
        assert error.__cause__ is info.value


def test_failed_group_stays_failed():
    group = ThreadGroup(2, timeout=5)
    group.abort(1, ValueError("gone"))
    for comm in group.communicators:
        for _ in range(2):
            with pytest.raises(DistributionError, match="Rank 1 failed with ValueError: gone"):
                comm.barrier(tag="t")
    closed = ThreadGroup(2, timeout=5)
    closed.close("the test is over")
    with pytest.raises(DistributionError, match="the test is over"):
        closed.communicators[0].barrier(tag="t")


def test_failures_of_pytest_itself_pass_through():
    def fn(comm):
        if comm.rank == 0:
            pytest.fail("an assertion of the test")
        comm.barrier(tag="t")

    with pytest.raises(pytest.fail.Exception, match="an assertion of the test"):
        run_ranks(fn, 2, timeout=5)


def test_rank_that_never_ends_is_named_within_the_limit():
    release = threading.Event()
    try:
        with pytest.raises(DistributionError, match=r"After 0\.2 s rank 1 of 2 had not ended"):
            run_ranks(lambda comm: comm.rank == 1 and release.wait(10), 2, timeout=5, limit=0.2)
    finally:
        release.set()


def test_a_thread_that_ends_late_has_its_result(monkeypatch):
    release = threading.Event()
    finish = ThreadGroup.finish

    def late(group, rank):
        finish(group, rank)
        if rank == 1:  # here the interpreter collects garbage, say
            release.wait(10)

    monkeypatch.setattr(ThreadGroup, "finish", late)
    try:
        assert run_ranks(lambda comm: comm.rank, 3, timeout=0.2) == [0, 1, 2]
    finally:
        release.set()


def test_rank_that_computes_on_does_not_hold_back_a_failure():
    release = threading.Event()

    def fn(comm):
        if comm.rank == 0:
            release.wait(10)
        else:
            raise ValueError("boom")

    try:
        start = time.monotonic()
        with pytest.raises(ValueError, match="boom"):
            run_ranks(fn, 2, timeout=0.3)
        assert time.monotonic() - start < 3
    finally:
        release.set()


def test_two_threads_on_one_communicator_are_refused():
    group = ThreadGroup(2, timeout=5)
    entered = threading.Event()
    exchange = group.exchange

    def first():
        with pytest.raises(DistributionError):
            group.communicators[0].barrier(tag="first")

    def watched(rank, frame, label):
        entered.set()
        return exchange(rank, frame, label)

    group.exchange = watched
    thread = threading.Thread(target=first, daemon=True)
    thread.start()
    assert entered.wait(5)
    deadline = time.monotonic() + 5
    while not group._round.arrived and time.monotonic() < deadline:
        time.sleep(0.001)
    with pytest.raises(DistributionError, match="Two threads use the communicator of rank 0"):
        group.communicators[0].barrier(tag="second")
    group.close("over")
    thread.join(5)
    assert not thread.is_alive()


def test_no_thread_is_left_behind():
    threads = run_ranks(lambda comm: (comm.allreduce(1, tag="t"), threading.current_thread())[1], 8)
    assert len(set(threads)) == 8
    assert not any(thread.is_alive() for thread in threads)


def test_results_are_in_rank_order():
    turns = [threading.Event() for _ in range(5)]

    def fn(comm):  # the last rank ends first
        if comm.rank < 4:
            turns[comm.rank + 1].wait(5)
        turns[comm.rank].set()
        return comm.rank

    assert run_ranks(fn, 5) == [0, 1, 2, 3, 4]


def test_a_group_of_numpys_numbers():
    assert len(ThreadGroup(np.int64(2), np.float32(5)).communicators) == 2


@pytest.mark.parametrize(
    ("size", "timeout", "kind", "message"),
    [
        (0, 1.0, ConfigurationError, "size=0"),
        (-1, 1.0, ConfigurationError, "size=-1"),
        ("2", 1.0, ConfigurationTypeError, "size='2'"),
        (True, 1.0, ConfigurationTypeError, "size=True"),
        (2, 0.0, ConfigurationError, "timeout=0.0"),
        (2, float("nan"), ConfigurationError, "timeout=nan"),
        (2, float("inf"), ConfigurationError, "timeout=inf"),
        (2, 1e300, ConfigurationError, "timeout=1e"),
        (2, "3", ConfigurationTypeError, "timeout='3'"),
    ],
)
def test_bad_groups(size, timeout, kind, message):
    with pytest.raises(kind, match=message):
        ThreadGroup(size, timeout)
