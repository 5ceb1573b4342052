"""The stages of a batch's and an epoch's end, in order: checks, deciders, savers and so on."""

from __future__ import annotations

import enum

__all__ = ["Stage"]


class Stage(enum.IntEnum):
    """When a callback has its turn; `job.callbacks` orders by it, and within a stage keeps the order given."""

    CHECK = enum.auto()
    """Refuses a run that cannot be right."""
    COMBINE_RANKS = enum.auto()
    """Makes metrics and moving statistics those of all ranks."""
    CUT_VALIDATION = enum.auto()
    """Ends the process where a validation was cut: nothing is decided on what a part of it gave."""
    LOG_RATE = enum.auto()
    """Writes the rate into the logs, before anything changes it."""
    CHECK_NUMBERS = enum.auto()
    """Looks for NaN and infinity."""
    DECIDE = enum.auto()
    """Decides on the logs. A callback that is not known may decide, so it has its turn here."""
    COMPARE_RANKS = enum.auto()
    """Proves that every rank applied what was decided, before anything is saved."""
    SAVE = enum.auto()
    """Saves the model: it must see what the deciders of the same epoch changed, or a restart loses the last cut."""
    RECORD = enum.auto()
    """Writes down what happened."""
    CHECKPOINT = enum.auto()
    """Saves the run: what all others have counted is in it, and they begin to count before it gives that back."""
    BROADCAST = enum.auto()
    """Gives rank 0's state to all ranks, once every callback has made its variables."""
