"""The bound on what an update waits for other workers; with workers, `tests/distributed`."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest
import tensorflow as tf

from distlr.strategies import watchdog as module
from distlr.strategies.watchdog import Watchdog, limit_waits, watchdog_of


@pytest.fixture
def ended(monkeypatch):
    """An event in place of the end of the process' collectives."""
    event = threading.Event()
    monkeypatch.setattr(Watchdog, "end", lambda self: event.set())
    return event


def waiting(dog: Watchdog, on: threading.Event | None = None) -> None:
    """An update that waits for other workers until `on`."""

    def reduce(tensors, options):
        assert options.timeout_seconds == 0
        if on is not None:
            on.wait(20)
        return tensors

    dog.watched(reduce, [tf.ones(2), tf.ones(1)])


def test_a_wait_that_does_not_end_is_ended(ended) -> None:
    dog = Watchdog(0.2, rank=1)
    thread = threading.Thread(target=waiting, args=(dog, ended), daemon=True)
    thread.start()
    assert ended.wait(20)
    thread.join(20)
    assert dog.counts() == (1, 1)


def test_only_a_wait_in_which_nothing_moves_for_the_whole_time_is_stuck() -> None:
    dog = Watchdog(10.0, rank=1)

    def stuck_at(first: int, last: int) -> list[bool]:
        return [dog.is_stuck(float(second)) for second in range(first, last + 1)]  # a look each second

    assert not any(stuck_at(1000, 1020))  # nothing has begun
    dog._begun.assign_add(1)
    assert not any(stuck_at(1021, 1031))
    dog._ended.assign_add(1)
    dog._begun.assign_add(1)  # the next wait, in the moment in which the last one ended
    assert not any(stuck_at(1032, 1042))
    assert dog.is_stuck(1043.0)
    dog._ended.assign_add(1)
    assert not any(stuck_at(1044, 1099))  # an epoch's validation, or a checkpoint


def test_time_in_which_the_process_was_suspended_does_not_count() -> None:
    """SIGSTOP for an hour in an update that waits: at SIGCONT the others, suspended too, need their time to go on."""
    dog = Watchdog(10.0, rank=1)
    dog._begun.assign_add(1)
    assert not dog.is_stuck(1000.0)
    assert not dog.is_stuck(1001.0)
    assert not dog.is_stuck(4601.0)
    assert not any(dog.is_stuck(4601.0 + second) for second in range(1, 8))
    assert dog.is_stuck(4610.0)


def test_a_collective_outside_of_updates_counts_too(ended) -> None:
    dog = Watchdog(0.2, rank=1)
    with dog.watching("barrier 'done'"):
        assert ended.wait(20)
        assert dog.counts() == (1, 0)
    assert dog.counts() == (1, 1)
    assert not any(dog.is_stuck(1000.0 + second) for second in range(9))


def test_the_thread_ends_with_the_watchdog() -> None:
    dog = Watchdog(0.5, rank=0)
    waiting(dog)
    thread, gone = dog._thread, weakref.ref(dog)
    del dog
    deadline = time.monotonic() + 20
    while gone() is not None and time.monotonic() < deadline:
        gc.collect()
    assert gone() is None
    thread.join(20)
    assert not thread.is_alive()


def test_the_error_says_who_waited_for_how_long(monkeypatch) -> None:
    messages = []
    monkeypatch.setattr(module.context.context(), "abort_collective_ops", lambda code, text: messages.append(text))
    dog = Watchdog(600.0, rank=3)
    dog.end()
    with dog.watching("barrier 'done'"):
        dog.end()
    assert messages[0].startswith("[rank 3] An update has waited for the other workers for 600 s")
    assert messages[1].startswith("[rank 3] barrier 'done' has waited for the other workers for 600 s")


def test_a_strategy_has_one_and_the_last_time_counts() -> None:
    strategy = tf.distribute.OneDeviceStrategy("/CPU:0")
    assert watchdog_of(strategy) is None
    limit_waits(strategy, 600.0, rank=0)
    dog = watchdog_of(strategy)
    limit_waits(strategy, 30.0, rank=0)
    assert watchdog_of(strategy) is dog
    assert dog.timeout == 30.0
