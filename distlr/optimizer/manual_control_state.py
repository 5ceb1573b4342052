"""The changes by hand that a run has had, kept in the optimizer's variables so that a restart goes on with them."""

from __future__ import annotations

from typing import NamedTuple

from distlr.optimizer.state_variables import StateVariables

__all__ = ["MANUAL_CONTROL", "ManualControlState", "read_manual_control", "write_manual_control"]

MANUAL_CONTROL = "steered"
"""The name of the state; files have it."""


class ManualControlState(NamedTuple):
    """Which changes by hand a run has had: all up to a place, and so many of those at that place.

    Attributes:
        paused: whether plateaus are not to cut.
        clock: where the last one was made, as the run counts.
        moment: when there, a `changes.Moment`.
        made: how many there.
    """

    paused: int = 0
    clock: int = 0
    moment: int = 0
    made: int = 0


def read_manual_control(variables: StateVariables) -> ManualControlState:
    """The changes that the run has had, and whether they paused plateaus."""
    variable = variables.find(MANUAL_CONTROL)
    return ManualControlState() if variable is None else ManualControlState(*(int(value) for value in variable.numpy()))


def write_manual_control(variables: StateVariables, state: ManualControlState | None = None) -> None:
    """Notes a change by hand; None only makes the variable, which every rank has to do."""
    variable = variables.get(MANUAL_CONTROL, ManualControlState())
    if state is not None:
        variable.assign([float(value) for value in state])
