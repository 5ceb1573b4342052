"""A model's weights and its optimizer's slots as they were, to go back to."""

from __future__ import annotations

from typing import Any

import numpy as np

from distlr.optimizer import slots_of

__all__ = ["Snapshot"]


class Snapshot:
    """Copies in this process' memory, of this rank: weights, moving statistics, and what the optimizer has gathered.

    Not the clock, the multiplier and the states of deciders: a run that goes back to earlier weights does so later.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._values: list[tuple[Any, np.ndarray]] = []

    def __bool__(self) -> bool:
        return bool(self._values)

    def take(self) -> bool:
        """Copies, unless a number is not finite; says whether it did."""
        values = [(variable, variable.numpy()) for variable in [*self.model.weights, *slots_of(self.model.optimizer)]]
        if not all(np.isfinite(value).all() for _, value in values):
            return False
        self._values = values
        return True

    def restore(self) -> None:
        """Gives the variables the copied values."""
        for variable, value in self._values:
            variable.assign(value)
