"""Signals that travel with the gradients: at no collective's cost, received at the same update on every rank."""

from __future__ import annotations

import enum
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["StepSignal", "StepSignals"]


class StepSignal(enum.Enum):
    """A message of one rank to all ranks, with the gradients of an update."""

    STOP = "stop"
    """End the training."""
    SAVE = "save"
    """Write a checkpoint, and continue."""
    LEAVE = "leave"
    """Write a checkpoint, and end the process."""
    REGROUP = "regroup"
    """Write a checkpoint, and start again with other ranks."""
    NON_FINITE = "non-finite"
    """A loss is NaN or infinite."""
    MANUAL_CONTROL = "manual control"
    """Rank 0 has a request by hand for all ranks."""
    WAITS = "waits"
    """This rank makes no update, and waits in a collective; never set by `send`."""

    @property
    def place(self) -> int:
        """The place of the signal in the vector that travels, from 0."""
        return _ORDER.index(self)


_ORDER = list(StepSignal)


class SignalVariable(Protocol):
    """The part of a `tf.Variable` with a number for each signal that is used."""

    def numpy(self) -> npt.NDArray[np.float32]:
        """A copy of the numbers."""

    def read_value(self) -> object:
        """The numbers as a tensor."""

    def assign(self, value: object) -> object:
        """Replaces the numbers."""


class StepSignals:
    """The signals that this rank sends, and those that all ranks have received.

    Attributes:
        sent: a variable of this process, for each signal 1 where this rank sends it.
        received: a variable of this process, for each signal above 0 where any rank sent it before the last update.
    """

    def __init__(self) -> None:
        import tensorflow as tf

        first = tf.VariableAggregation.ONLY_FIRST_REPLICA  # in the scope of a strategy: assigned in a replica
        self.sent: SignalVariable = tf.Variable([0.0] * len(_ORDER), trainable=False, aggregation=first)
        self.received: SignalVariable = tf.Variable([0.0] * len(_ORDER), trainable=False, aggregation=first)

    def send(self, signal: StepSignal) -> None:
        """Sends a signal to all ranks, with the next update's gradients."""
        _set(self.sent, signal, 1.0)

    def clear(self, signal: StepSignal) -> None:
        """Forgets that this rank sends a signal, and that it was received."""
        _set(self.sent, signal, 0.0)
        _set(self.received, signal, 0.0)

    def is_sent(self, signal: StepSignal) -> bool:
        """Whether this rank sends a signal."""
        return bool(self.sent.numpy()[signal.place] > 0)

    def has_received(self, signal: StepSignal) -> bool:
        """Whether any rank sent a signal before the last update; the same on all ranks."""
        return bool(self.received.numpy()[signal.place] > 0)


def _set(variable: SignalVariable, signal: StepSignal, value: float) -> None:
    values = variable.numpy()
    if values[signal.place] != value:
        values[signal.place] = value
        variable.assign(values)
