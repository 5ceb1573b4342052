"""Requests to a process by signals, which all ranks of a job carry out at the same step."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import Any

from distlr.communicators import Communicator
from distlr.communicators.gradient_reducer import GradientReducer
from distlr.communicators.step_signals import StepSignal
from distlr.errors import ConfigurationError, received

__all__ = ["REASONS", "Signals"]

ACTIONS = {"SIGTERM": StepSignal.LEAVE, "SIGUSR1": StepSignal.SAVE}
"""What a signal of the operating system asks all ranks for."""

REASONS = {
    StepSignal.LEAVE: "SIGTERM",
    StepSignal.SAVE: "SIGUSR1",
    StepSignal.REGROUP: "other ranks join",
}
"""Why the ranks are asked to do something."""


class Signals:
    """Listens to signals, and passes their requests to the other ranks, with the gradients.

    Args:
        names: the names of the signals.
    """

    def __init__(self, names: Sequence[str]) -> None:
        unknown = [name for name in names if name not in ACTIONS]
        if unknown or isinstance(names, str):
            raise ConfigurationError(received("signals", names, f"some of {', '.join(map(repr, ACTIONS))}"))
        self.names = tuple(names)
        self._requests: set[StepSignal] = set()
        self._leaving_since: float | None = None
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        """Whether it listens to any."""
        return bool(self.names)

    def listen(self) -> None:
        """Installs the handlers of the signals, in the main thread: Python delivers signals to no other."""
        if threading.current_thread() is not threading.main_thread():
            return
        for name in self.names:
            number = signal.Signals[name]
            before = signal.signal(number, self._on_signal)
            earlier = getattr(before, "__self__", None)
            if isinstance(earlier, Signals):  # left by a training that ended with an error
                before = earlier._before.get(number, signal.SIG_DFL)
            self._before[number] = before

    def stop(self) -> None:
        """Restores the earlier handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def requests(self, communicator: Communicator, reducer: GradientReducer | None) -> set[StepSignal]:
        """The requests to carry out now: on one rank all, on several ranks those that all of them have received.

        Args:
            communicator: the job's.
            reducer: the gradient reducer of the optimizer, which carries signals; without one the ranks receive none.
        """
        if communicator.ranks_changed:
            self._requests.add(StepSignal.REGROUP)
        if communicator.size == 1:
            return set(self._requests)
        if reducer is None:
            return set()
        for kind in tuple(self._requests):  # a signal may add to it
            reducer.signals.send(kind)
        kinds = {signal for signal in REASONS if reducer.signals.has_received(signal)}
        if StepSignal.LEAVE in kinds:
            self._note_leaving()
        return kinds

    def mark_done(
        self, kinds: Iterable[StepSignal], communicator: Communicator, reducer: GradientReducer | None
    ) -> None:
        """Forgets requests that were carried out."""
        for kind in kinds:
            self._requests.discard(kind)
            if kind == StepSignal.LEAVE:
                self._leaving_since = None
            if communicator.size > 1 and reducer is not None:
                reducer.signals.clear(kind)

    @property
    def leaving(self) -> bool:
        """Whether this process was asked to end, and has not."""
        return StepSignal.LEAVE in self._requests

    @property
    def leaving_for(self) -> float | None:
        """Seconds since this process knows that the job is to end; None where it goes on."""
        return None if self._leaving_since is None else time.monotonic() - self._leaving_since

    def _note_leaving(self) -> None:
        if self._leaving_since is None:
            self._leaving_since = time.monotonic()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        kind = ACTIONS[signal.Signals(number).name]
        self._requests.add(kind)
        if kind == StepSignal.LEAVE:
            self._note_leaving()
            signal.signal(number, self._before[number])  # a second one is not to wait
