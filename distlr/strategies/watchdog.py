"""The limit on how long an update, or a collective of the control plane, waits for other workers."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context

__all__ = ["Watchdog", "end_collectives", "limit_waits", "watchdog_of"]

_NONE = tf.distribute.experimental.CommunicationOptions(timeout_seconds=0)


class Watchdog:
    """Ends this process' collectives when one of them has waited for too long.

    TensorFlow can limit a collective itself, but starts two threads for each and keeps them until the time has passed:
    at fifty steps a second and ten minutes the process aborts. It also counts the time in which the process was
    suspended. So the collectives of an update and of the control plane have no such limit. They count their beginnings
    and ends, an update's in the graph, and one thread reads the counts at intervals.

    Args:
        timeout: seconds.
        rank: this worker's, for the message.
    """

    def __init__(self, timeout: float, rank: int) -> None:
        self.timeout, self.rank = timeout, rank
        first = tf.VariableAggregation.ONLY_FIRST_REPLICA  # as in `StepSignals`
        with tf.device("/CPU:0"):  # where it can be read while a GPU waits
            self._begun = tf.Variable(0, trainable=False, dtype=tf.int64, aggregation=first)
            self._ended = tf.Variable(0, trainable=False, dtype=tf.int64, aggregation=first)
        self._begun_eagerly = self._ended_eagerly = 0
        self._what = "An update"
        self._thread: threading.Thread | None = None
        self._seen, self._looked, self._waited = (0, 0), 0.0, 0.0

    def watched(self, reduce: Callable[..., list[Any]], tensors: Sequence[tf.Tensor]) -> list[Any]:
        """Calls `reduce(tensors, options=)` in a replica, counted, and without TensorFlow's own limit.

        Args:
            reduce: the function that waits for the other workers.
            tensors: dense or sparse; the last one waits for the count.
        """
        self._start()
        *others, last = tensors
        with tf.control_dependencies([last]):  # the end of the data stops the step before it counts
            begun = self._begun.assign_add(1)
        with tf.control_dependencies([begun]):
            last = tf.identity(last)
        *others, last = reduce([*others, last], options=_NONE)
        with tf.control_dependencies([last]):
            self._ended.assign_add(1)
        return [*others, last]

    @contextlib.contextmanager
    def watching(self, what: str) -> Iterator[None]:
        """Counts a collective that runs eagerly, outside of updates, in the context.

        Args:
            what: the collective's name in the error.
        """
        self._start()
        self._what = what
        self._begun_eagerly += 1
        try:
            yield
        finally:
            self._ended_eagerly += 1
            self._what = "An update"

    def counts(self) -> tuple[int, int]:
        """How many such waits have begun, and how many have ended."""
        begun, ended = int(self._begun.numpy()), int(self._ended.numpy())
        return begun + self._begun_eagerly, ended + self._ended_eagerly

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=_watch, args=(weakref.ref(self),), name="distlr watchdog", daemon=True
            )
            self._thread.start()

    @property
    def pause(self) -> float:
        """Seconds between two looks at the counts."""
        return min(5.0, self.timeout / 10)

    def is_stuck(self, now: float) -> bool:
        """Whether a collective has begun and not ended, and no count has changed for the whole timeout.

        Between two looks at most two pauses count: in the rest of the time this process was suspended, and the others
        with it if a scheduler did that.

        Args:
            now: seconds on a clock that never goes back.
        """
        counts = self.counts()
        passed, self._looked = min(now - self._looked, 2 * self.pause), now
        is_waiting = counts == self._seen and counts[0] != counts[1]
        self._seen, self._waited = counts, self._waited + passed if is_waiting else 0.0
        return self._waited > self.timeout

    def end(self) -> None:
        """Ends the collectives because one has waited for too long."""
        end_collectives(
            tf.errors.DEADLINE_EXCEEDED,
            f"[rank {self.rank}] {self._what} has waited for the other workers for {self.timeout:g} s: one has ended, "
            "hangs, or is elsewhere. Fix: look at what the others said last; give distlr.init(timeout=) "
            "more seconds if one may take so long.",
        )


def end_collectives(code: int, message: str) -> None:
    """Makes each operation that waits for other workers raise an error, now and later.

    Args:
        code: the kind of error, of `tf.errors`.
        message: the error's.
    """
    context.context().abort_collective_ops(code, message)


def _watch(reference: weakref.ref[Watchdog]) -> None:
    while (watchdog := reference()) is not None:
        if watchdog.is_stuck(time.monotonic()):
            watchdog.end()
            return
        pause = watchdog.pause
        del watchdog  # which may end with its strategy
        time.sleep(pause)


def limit_waits(strategy: tf.distribute.Strategy, timeout: float, rank: int) -> Watchdog:
    """Limits how long updates and collectives on a strategy wait for other workers; a second call changes the limit."""
    watchdog = watchdog_of(strategy)
    if watchdog is None:
        watchdog = strategy._distlr_watchdog = Watchdog(timeout, rank)
    watchdog.timeout = timeout
    return watchdog


def watchdog_of(strategy: tf.distribute.Strategy) -> Watchdog | None:
    """The watchdog of a strategy, if it has other workers."""
    return getattr(strategy, "_distlr_watchdog", None)
