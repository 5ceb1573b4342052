"""A model's weights and its optimizer's slots as they were, to go back to."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from distlr.optimizer import AdoptedOptimizer, slots_of, training_values_of, unwrap_loss_scale

__all__ = ["Snapshot", "TrainingStateSnapshot"]


class Snapshot:
    """Copies in this process' memory, of this rank: weights, moving statistics, and what the optimizer has gathered.

    They are the training's values, also while the model has the averages of its weights in it. The clock, the
    multiplier and the states of deciders are not copied: a run that goes back to earlier weights keeps its time.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._values: list[tuple[Any, np.ndarray]] = []

    def __bool__(self) -> bool:
        """Whether something was copied."""
        return bool(self._values)

    def copy_if_finite(self) -> bool:
        """Copies, unless a number is not finite; returns whether it did."""
        held = training_values_of(self.model.optimizer)
        variables = [*self.model.weights, *slots_of(self.model.optimizer)]
        values = [(variable, held.holder(variable).numpy()) for variable in variables]
        if not all(np.isfinite(value).all() for _, value in values):
            return False
        self._values = values
        return True

    def restore(self) -> None:
        """Gives the variables the copied values."""
        held = training_values_of(self.model.optimizer)
        for variable, value in self._values:
            held.holder(variable).assign(value)


class TrainingStateSnapshot:
    """Copies of all that a step of this rank changes, a copy a local replica: to go back to the bit.

    It copies weights, moving statistics and the states of seed generators (dropout); of the optimizer the slots, the
    iterations, clock and multiplier, the states of deciders, the loss scale, and the digests of the rates. The metrics
    are not copied.
    Nothing is asked of other ranks, neither here nor in `restore`.

    Args:
        model: built and compiled, its optimizer built.
    """

    def __init__(self, model: Any) -> None:
        core = unwrap_loss_scale(model.optimizer)
        variables = [*model.variables, *model.optimizer.variables]
        variables += core.distlr.gradients.replica_variables if isinstance(core, AdoptedOptimizer) else []
        self._values: list[tuple[Any, np.ndarray]] = []
        for variable in variables:
            held = variable.value if isinstance(variable, keras.Variable) else variable
            copies = model.distribute_strategy.experimental_local_results(held)
            self._values += [(copy, copy.numpy()) for copy in copies]

    def restore(self) -> None:
        """Gives each replica's variables the copied values."""
        for copy, value in self._values:
            copy.assign(value)
