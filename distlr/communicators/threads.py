"""Ranks as threads of one process: the meaning of the real backends, without a launcher.

Every rank must call; a rank that stays away, ends or raises ends the collective on all the others, with an
error that names it. Nothing polls: ranks sleep on one condition and are woken by the rank that completes or
breaks the round.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from distlr._utils.checks import positive_integer, positive_real
from distlr._utils.rank_names import name_ranks
from distlr.communicators.communicator import Communicator
from distlr.communicators.frames import Frame
from distlr.errors import CollectiveTimeoutError, ConfigurationError, DistributionError, received

__all__ = ["ThreadCommunicator", "ThreadGroup", "run_ranks"]

T = TypeVar("T")


class _Round:
    """One collective: the frames of the ranks that have arrived, and all frames once all have."""

    def __init__(self) -> None:
        self.arrived: dict[int, tuple[Frame, str]] = {}
        self.frames: list[Frame] | None = None

    def waiting(self) -> str:
        """Names the ranks that wait, and where."""
        places: dict[str, list[int]] = {}
        for rank, (_, label) in sorted(self.arrived.items()):
            places.setdefault(label, []).append(rank)
        text = "; ".join(
            f"{name_ranks(ranks)} {'waits' if len(ranks) == 1 else 'wait'} in {label}"
            for label, ranks in places.items()
        )
        return text or "no rank waits"


class ThreadGroup:
    """Connects `size` ranks that are threads of this process.

    Once a collective has failed the group stays broken, as a real job would: every later collective raises
    the same reason.

    Args:
        size: number of ranks, at least 1.
        timeout: seconds that a collective waits for the ranks that have not arrived.

    Attributes:
        communicators: one `ThreadCommunicator` per rank, in rank order. Each belongs to one thread.

    Raises:
        ConfigurationError, ConfigurationTypeError: an argument cannot be right.

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> group = ThreadGroup(2)
    >>> with ThreadPoolExecutor(2) as pool:
    ...     list(pool.map(lambda comm: comm.allreduce(1 + comm.rank, tag="sum").item(), group.communicators))
    [3, 3]
    """

    def __init__(self, size: int, timeout: float = 30.0) -> None:
        self.size = positive_integer("size", size)
        self.timeout = positive_real("timeout", timeout)
        if self.timeout > threading.TIMEOUT_MAX:
            raise ConfigurationError(received("timeout", timeout, f"at most {threading.TIMEOUT_MAX:g} seconds"))
        self.communicators = [ThreadCommunicator(self, rank) for rank in range(size)]
        self._changed = threading.Condition()
        self._round = _Round()
        self._ended: set[int] = set()
        # A way to build the error, not the error: each thread needs an exception object of its own.
        self._broken: Callable[[], DistributionError] | None = None

    def abort(self, rank: int, error: BaseException) -> None:
        """Ends every collective, present and future, because `rank` failed with `error`."""
        with self._changed:
            waiting = self._round.waiting()

            def build() -> DistributionError:
                text = f"Rank {rank} failed with {type(error).__name__}: {error}. Meanwhile {waiting}."
                failure = DistributionError(text)
                failure.__cause__ = error
                return failure

            self._break(build)

    def close(self, reason: str) -> None:
        """Ends every collective, present and future, for a reason that is no rank's."""
        with self._changed:
            self._break(lambda: DistributionError(reason))

    def finish(self, rank: int) -> None:
        """Notes that `rank` ended without an error. A collective that waits for it, now or later, fails at once."""
        with self._changed:
            self._ended.add(rank)
            self._check_ended()

    def exchange(self, rank: int, frame: Frame, label: str) -> list[Frame]:
        """Exchanges frames with the other ranks: the primitive behind `ThreadCommunicator`.

        Args:
            rank: the calling rank.
            frame: its frame.
            label: the collective's name in messages.

        Returns:
            Every rank's frame, in rank order.

        Raises:
            CollectiveTimeoutError: a rank did not come in time, or has ended.
            DistributionError: a rank failed, the group was closed, or two threads use one rank.
        """
        with self._changed:
            if self._broken is not None:
                raise self._broken()
            current = self._round
            if rank in current.arrived:
                raise DistributionError(
                    f"Two threads use the communicator of rank {rank}: one waits in {current.arrived[rank][1]}, "
                    f"the other enters {label}. Give each thread its own communicator."
                )
            current.arrived[rank] = (frame, label)
            if len(current.arrived) == self.size:
                current.frames = [current.arrived[other][0] for other in range(self.size)]
                self._round = _Round()
                self._changed.notify_all()
                return current.frames
            self._check_ended()
            self._changed.wait_for(lambda: current.frames is not None or self._broken is not None, self.timeout)
            # A complete round counts even if a rank broke the group right after it.
            if current.frames is not None:
                return current.frames
            if self._broken is None:
                missing = set(range(self.size)) - set(current.arrived)
                text = (
                    f"Not every rank entered a collective within {self.timeout:g} s: {name_ranks(missing)} "
                    f"did not arrive, while {current.waiting()}. Every rank must call the same collectives."
                )
                self._break(lambda: CollectiveTimeoutError(text))
            assert self._broken is not None
            raise self._broken()

    def _check_ended(self) -> None:
        absent = self._ended - set(self._round.arrived)
        if absent and self._round.arrived:
            text = (
                f"A collective can no longer complete: {name_ranks(absent)} ended without entering it, while "
                f"{self._round.waiting()}. Every rank must call the same collectives."
            )
            self._break(lambda: CollectiveTimeoutError(text))

    def _break(self, build: Callable[[], DistributionError]) -> None:
        if self._broken is None:
            self._broken = build
            self._changed.notify_all()


class ThreadCommunicator(Communicator):
    """One rank of a `ThreadGroup`. All its ranks are on one host.

    Args:
        group: connects it with the others.
        rank: its number; only one thread may use it.

    >>> run_ranks(lambda comm: (comm.name, comm.rank, comm.size), 2)
    [('threads', 0, 2), ('threads', 1, 2)]
    """

    def __init__(self, group: ThreadGroup, rank: int) -> None:
        super().__init__("threads", rank, group.size, rank, group.size)
        self._group = group
        self.timeout = group.timeout

    def _exchange(self, frame: Frame, label: str) -> Sequence[Frame]:
        return self._group.exchange(self.rank, frame, label)


def run_ranks(
    fn: Callable[[Communicator], T], size: int, timeout: float = 30.0, *, limit: float | None = None
) -> list[T]:
    """Runs a function on `size` ranks, each a thread, and returns what each returned.

    >>> run_ranks(lambda comm: comm.allreduce(comm.rank, tag="sum").item(), 3)
    [3, 3, 3]

    Args:
        fn: called on each rank with its communicator.
        size: number of ranks, at least 1.
        timeout: seconds that one collective waits for the ranks that have not arrived.
        limit: seconds for the whole run; 10 times `timeout` unless given.

    Returns:
        The results in rank order.

    Raises:
        BaseException: what the first rank to fail raised, with a note that names the rank. The other ranks
            are ended by it in their next collective.
        DistributionError: a rank ran past `limit`. Its thread is left behind, as a daemon.
    """
    group = ThreadGroup(size, timeout)
    limit = 10 * group.timeout if limit is None else limit
    results: dict[int, T] = {}
    failures: list[tuple[int, BaseException]] = []
    settled = threading.Event()  # every rank has its result, or one has failed

    def run(comm: Communicator) -> None:
        """One rank, in its thread: its result or its error, and word of its end to the others."""
        try:
            results[comm.rank] = fn(comm)
        except BaseException as error:
            # Before the abort, so that the cause stands before its consequences on the other ranks.
            failures.append((comm.rank, error))
            group.abort(comm.rank, error)
            settled.set()
        else:
            group.finish(comm.rank)
            if len(results) == size:
                settled.set()

    threads = [
        threading.Thread(target=run, args=(comm,), name=f"distlr-rank-{comm.rank}", daemon=True)
        for comm in group.communicators
    ]
    try:
        for thread in threads:
            thread.start()
        settled.wait(limit)
        # After a failure the others end in their next collective; one that computes on gets only this. A thread that
        # has its result is about to end, but the interpreter may pause in it, for seconds, to collect garbage.
        deadline = time.monotonic() + (group.timeout if settled.is_set() else 0.0)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
    except BaseException:  # such as an interrupt: do not leave the ranks waiting for each other
        group.close("The run was interrupted from outside the ranks.")
        raise
    unfinished = [rank for rank in range(size) if rank not in results]
    if unfinished and not failures:
        reason = f"After {limit:g} s {name_ranks(unfinished)} of {size} had not ended."
        group.close(reason)
        raise DistributionError(reason)
    if failures:
        rank, failure = failures[0]
        _add_note(failure, f"Raised on rank {rank} of {size}.")
        raise failure
    return [results[rank] for rank in range(size)]


def _add_note(error: BaseException, note: str) -> None:
    if sys.version_info >= (3, 11):
        error.add_note(note)
    else:  # what `add_note` does; tools that print notes on 3.10 read it there
        error.__notes__ = [*getattr(error, "__notes__", []), note]  # type: ignore[attr-defined]
