"""The changes by hand of a run and their places, read from the run's decisions."""

from __future__ import annotations

import enum
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from distlr._utils.checks import counted
from distlr._utils.json_lines import LONGEST_FILE, Lines
from distlr.errors import ConfigurationError
from distlr.runlog.control_requests import find_trust_problem, is_change
from distlr.runlog.directory import DECISIONS, RunDirectory

__all__ = ["Moment", "Place", "changes_to_repeat", "describe_change", "read_answers", "read_changes"]

_log = logging.getLogger("distlr")

_DID = {
    "pause-plateau": "paused the plateaus",
    "resume-plateau": "let the plateaus go on",
    "stop": "stopped the training",
}


class Moment(enum.IntEnum):
    """When a change is made: after a batch, at an epoch's end, or as the run begins."""

    BATCH = 0
    EPOCH_END = 1
    BEGIN = 2


class Place(NamedTuple):
    """The place of a change in a run; changes are made in the order of their places.

    `clock` is the position in the data. The run's own clock stands still where a step is left out, so it would no
    longer tell an epoch's end from the next epoch's first batch.
    """

    clock: int
    moment: int

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Place:
        """The place of an entry that has one."""
        return cls(entry.get("drawn", entry["clock"]), entry["moment"])


def read_changes(run: RunDirectory) -> list[dict[str, Any]]:
    """Reads the changes by hand from the run's decisions, in the order of their places.

    A line that cannot be read is warned of and ends no training: without a change by hand the run is another one.
    """
    path = run.path / DECISIONS
    trouble = find_trust_problem(path.lstat(), longest=LONGEST_FILE) if os.path.lexists(path) else ""
    try:
        lines = Lines([]) if trouble else run.decision_lines()
    except ConfigurationError as error:
        trouble, lines = f"cannot be read: {error.__cause__}", Lines([])
    if trouble:
        _log.warning("%s %s, so none of the changes by hand in it is made again.", path, trouble)
    if lines.damaged:
        _log.warning(
            "%s cannot be read in %s. A change by hand that stood there is NOT made again. Fix: compare the rate with "
            "the one that was asked for, and ask once more with `distlr control` where it is another.",
            path,
            counted(lines.damaged, "line"),
        )
    entries = [entry for entry in lines.objects if entry.get("kind") == "control"]
    changes = [entry for entry in entries if is_change(entry) and _has_place(entry)]
    if len(changes) < len(entries):
        _log.warning("%s: %d lines are no changes by hand, and are left out.", path, len(entries) - len(changes))
    return sorted(changes, key=Place.of)


def read_answers(run: RunDirectory) -> dict[str, str]:
    """Reads the answer to each request, by its name, from the decisions: "asked" (it waits), "control" or "refused"."""
    try:
        lines = run.decisions()
    except ConfigurationError:
        return {}  # `read_changes` warns of it
    kinds = ("asked", "control", "refused")
    return {str(line.get("id")): line["kind"] for line in lines if line.get("kind") in kinds}


def changes_to_repeat(changes: Sequence[Mapping[str, Any]], last: Place, already_made: int) -> list[dict[str, Any]]:
    """The changes that a continued run makes again: it has had all before `last`, and `already_made` of those there.

    >>> three = [{"clock": 8, "moment": 0, "action": "stop", "multiplier": None, "by": who} for who in "abc"]
    >>> [change["by"] for change in changes_to_repeat(three, Place(8, 0), 1)], changes_to_repeat(three, Place(8, 1), 0)
    (['b', 'c'], [])

    Args:
        changes: the result of `read_changes`.
        last: the place of the last one that the run has had.
        already_made: how many of those at that place it has had.
    """
    later = [entry for entry in changes if Place.of(entry) >= last]
    past = [entry for entry in later if Place.of(entry) == last][:already_made]
    names = ("moment", "action", "multiplier", "by")
    return [
        {"clock": Place.of(entry).clock, **{name: entry[name] for name in names}}
        for entry in later
        if entry not in past
    ]


def describe_change(change: Mapping[str, Any]) -> str:
    """Describes a change for a log: who made it, and which it was."""
    action = _DID.get(change["action"]) or f"multiplied the rate by {change['multiplier']:.6g}"
    return f"{change['by']} {action}"


def _has_place(entry: Mapping[str, Any]) -> bool:
    """Whether a line of the decisions has the place of its change."""
    counts = [entry.get("clock"), entry.get("drawn", 0)]
    return all(type(count) is int for count in counts) and entry.get("moment") in tuple(Moment)
