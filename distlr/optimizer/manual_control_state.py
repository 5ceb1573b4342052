"""The changes by hand that a run has had, kept in the optimizer's variables so that a restart goes on with them."""

from __future__ import annotations

from typing import NamedTuple

from distlr.optimizer.state_variables import StateVariables

__all__ = ["MANUAL_CONTROL", "ManualControlState", "read_manual_control", "write_manual_control"]

MANUAL_CONTROL = "steered"
"""The name of the state; files have it."""


class ManualControlState(NamedTuple):
    """The changes by hand that a run has had, told by the place of the last one.

    Attributes:
        paused: whether plateaus are not to cut.
        clock: the run's clock at the last change.
        moment: the moment at that clock, a `runlog.manual_changes.Moment`.
        number: how many changes were made at that clock and moment.
    """

    paused: int = 0
    clock: int = 0
    moment: int = 0
    number: int = 0


def read_manual_control(variables: StateVariables) -> ManualControlState:
    """The changes that the run has had, and whether they paused plateaus."""
    variable = variables.find(MANUAL_CONTROL)
    return ManualControlState() if variable is None else ManualControlState(*(int(value) for value in variable.numpy()))


def write_manual_control(variables: StateVariables, state: ManualControlState | None = None) -> None:
    """Notes a change by hand; None only makes the variable, which every rank has to do."""
    variable = variables.get(MANUAL_CONTROL, ManualControlState())
    if state is not None:
        variable.assign([float(value) for value in state])
