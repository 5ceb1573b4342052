"""The decisions of a run, in order, and their listeners."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

__all__ = ["KEPT", "Journal", "JournalEntry"]

KEPT = ("control", "asked", "refused", "resume")
"""The kinds of decision that a run which continues a checkpoint does not make again: by hand, or by continuing."""


@dataclasses.dataclass(frozen=True)
class JournalEntry:
    """One decision.

    Attributes:
        kind: "plateau"; "bad-numbers"; "control", a change by hand, "asked" while it waits for its epoch, "refused",
            and "again" where a restart makes one once more; "left-out", an epoch that lost steps; "resume"; or a kind
            of a callback of one's own.
        epoch: in which epoch, from 0.
        at: the position in epochs.
        between: whether it was at the epoch's end, or before it began, and not after one of its batches.
        clock: the samples seen; without a batch the updates.
        drawn: the position in the data: the clock as if no step had been left out. It distinguishes entries between
            which the clock stood still.
        samples_seen: the clock where it counts samples, else None.
        multiplier: the factor on the rate; None where the rate stayed.
        learning_rate: the rate after it; None where it is not finite.
        reason: why, in a few words.
        by: who decided.
        time: when, in UTC.
        details: other JSON values of the kind.
    """

    kind: str
    epoch: int
    at: float
    between: bool
    clock: int
    drawn: int
    samples_seen: int | None
    multiplier: float | None
    learning_rate: float | None
    reason: str
    by: str
    time: str
    details: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """The entry as an object of JSON, as in `decisions.jsonl`."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        details = fields.pop("details")
        return {**fields, **details}


class Journal:
    """The decisions of one `fit`: every callback that decides adds to it, those that write listen to it.

    An entry about files alone (a refused request, a checkpoint that is continued) is in rank 0's journal only.
    """

    def __init__(self) -> None:
        self.entries: list[JournalEntry] = []
        self._listeners: list[Callable[[JournalEntry], None]] = []
        self.drawn: Callable[[], int] | None = None
        """Returns the position in the data, where `DataPositionSync` counts it."""

    def listen(self, listener: Callable[[JournalEntry], None]) -> None:
        """Calls a function with each entry so far, and with each later one."""
        self._listeners.append(listener)
        for entry in self.entries:
            listener(entry)

    def add(self, entry: JournalEntry) -> None:
        """Adds an entry."""
        self.entries.append(entry)
        for listener in self._listeners:
            listener(entry)

    @property
    def resumed(self) -> bool:
        """Whether the run continues a checkpoint; known on rank 0."""
        return any(entry.kind == "resume" for entry in self.entries)
