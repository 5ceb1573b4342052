"""The contract of gradient reducers, which combine the gradients of all ranks in the graph of an update."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import TypeAlias

from distlr.communicators.step_signals import StepSignals

__all__ = ["BooleanTensor", "Gradient", "GradientReducer"]

Gradient: TypeAlias = object
"""A gradient of TensorFlow's, which has no types: a tensor, `tf.IndexedSlices`, or None."""

BooleanTensor: TypeAlias = object
"""A boolean tensor of TensorFlow's."""


class GradientReducer(abc.ABC):
    """Reduces the gradients of one optimizer over the ranks; a communicator makes one (`Communicator.gradients`).

    Its methods are called while an update is traced or runs, on every rank, in the same order.

    Attributes:
        signals: this rank's signals to the others, which travel with the gradients.
    """

    def __init__(self) -> None:
        self.signals = StepSignals()

    @property
    def terms(self) -> str:
        """A text that must be equal on all ranks: the optimizer's place in the job, and how gradients are sent."""
        return ""

    @abc.abstractmethod
    def average(self, gradients: Sequence[Gradient], names: Sequence[str]) -> list[Gradient]:
        """The mean over the batch of each gradient, and all ranks' signals.

        Args:
            gradients: one a variable: a tensor, `tf.IndexedSlices`, or None, which stays None.
            names: one a variable, the same on all ranks, none twice.
        """

    @abc.abstractmethod
    def all_true(self, flag: BooleanTensor) -> BooleanTensor:
        """Whether a boolean tensor is true on every rank; the same on each."""
