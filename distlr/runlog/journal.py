"""What was decided in a run, in order, and who wants to hear of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["KEPT", "Journal"]

KEPT = ("control", "asked", "refused", "resume")
"""The kinds of decision that a run which continues a checkpoint does not take again: what came by hand or with it."""


class Journal:
    """The decisions of one `fit`: every callback that decides adds to it, those that write listen to it.

    An entry is an object of JSON values: its kind, the epoch (from 0) and the position in epochs, the clock, the factor
    on the rate and the rate after it, why, by whom, and when; and `drawn`, how far the data was: what the clock would
    show if no step had been left out, so that entries are told apart between which the clock stood still. The kinds:
    "plateau", "bad-numbers"; "control", a change by hand, "asked" while it waits for its epoch, "refused", and "again"
    where a restart makes one once more; "left-out", an epoch that lost steps; "resume".
    What concerns files alone (a refused request, a checkpoint that is continued) is in rank 0's journal only.
    """

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self._listeners: list[Callable[[dict[str, Any]], None]] = []
        self.drawn: Callable[[], int] | None = None
        """How far the data is, where `FollowEpochs` counts it."""

    def listen(self, listener: Callable[[dict[str, Any]], None]) -> None:
        """Has a function called with each entry: those that are there, and each from now on."""
        self._listeners.append(listener)
        for entry in self.entries:
            listener(entry)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Adds an entry."""
        self.entries.append(dict(entry))
        for listener in self._listeners:
            listener(self.entries[-1])

    @property
    def resumed(self) -> bool:
        """Whether the run continues a checkpoint; known on rank 0."""
        return any(entry["kind"] == "resume" for entry in self.entries)
