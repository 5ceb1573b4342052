"""What a Keras optimizer gains when distlr adopts it: the formula, the update, and here its state and its config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from distlr.optimizer import saving
from distlr.optimizer.adoption import CLIMB, NO_CLIMB, STEERED, UNSTEERED
from distlr.optimizer.update import FormulaUpdate

__all__ = ["ScaledOptimizer"]


class ScaledOptimizer(FormulaUpdate):
    """Mixed in before a Keras optimizer's own class; `adopt` puts it there. Not built by hand.

    `lr(t) = schedule(t) * factor(k) * warmup(t) * multiplier`, computed once an update, in graph, in
    float64, and cast at the end.

    >>> import distlr
    >>> job = distlr.init(environ={})
    >>> optimizer = job.optimizer(keras.optimizers.SGD(0.1), job.batch(per_replica=8, base_batch=4))
    >>> isinstance(optimizer, ScaledOptimizer), isinstance(optimizer, keras.optimizers.SGD), optimizer.schedule.factor
    (True, True, 2.0)
    >>> variable = keras.Variable([1.0])
    >>> optimizer.apply([keras.ops.ones(1)], [variable])
    >>> float(variable.numpy()[0]), optimizer.samples_seen
    (0.8, 8)
    """

    @property
    def variables(self) -> list[Any]:
        """Keras' own, in its order, and after them what distlr added."""
        plain: list[Any] = super().variables  # type: ignore[misc]
        return plain + self._distlr.variables

    def build(self, variables: Sequence[Any]) -> None:
        """As in Keras, and what was loaded before is put into the new slots."""
        was_built, adoption = self.built, self._distlr
        adoption.building = True
        try:
            super().build(variables)
        finally:
            adoption.building = False
        self.built = True
        if adoption.multipliers is not None:
            adoption.multipliers.check([variable.path for variable in self._trainable_variables])
        if not was_built:
            saving.load_held(self)

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """As in Keras; averages that a callback has put into the model stay there, and are not exchanged once more."""
        values = self._distlr.training_values
        if values:
            values.keep()
        else:
            super().finalize_variable_values(var_list)  # type: ignore[misc]

    def assign(self, variable: Any, value: Any) -> None:
        """As in Keras, but a build does not overwrite what a TensorFlow checkpoint gave a slot as it was made."""
        if not (self._distlr.building and getattr(variable, "_update_uid", -1) >= 0):
            super().assign(variable, value)  # type: ignore[misc]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """As in Keras, in the order of `variables`; those of a plain optimizer, without distlr's, are taken as well.

        Raises:
            StateError: their number or a shape does not fit; nothing has changed then.
        """
        plain, own = saving.split_weights(self, weights)
        super().set_weights(plain)  # type: ignore[misc]
        for variable, value in zip(self._distlr.variables, own, strict=True):
            variable.assign(value)

    def save_own_variables(self, store: Any) -> None:
        """As in Keras, with names in place of numbers, and distlr's among them."""
        saving.save(self, store)

    def load_own_variables(self, store: Any) -> None:
        """Loads what was saved, of a plain Keras optimizer too: its multiplier is 1, and its clock derived.

        Raises:
            StateError: it is of another optimizer or another model.
        """
        saving.load(self, store)
        for name, initial in ((CLIMB, NO_CLIMB), (STEERED, UNSTEERED)):
            if name in self._distlr.held_states and not self._distlr.spans_processes:
                self.state(name, initial)  # the formula or a plateau needs it; nobody else will ask for it

    def get_config(self) -> dict[str, Any]:
        """The plain optimizer, as Keras serializes it, the arguments of its scaling, and how gradients are reduced."""
        adoption = self._distlr
        return {
            "optimizer": keras.saving.serialize_keras_object(adoption.plain(self)),
            "scaling": None if adoption.scaled is None else adoption.scaled.options(),
            "scale": list(adoption.extras.scale),
            "momentum_correction": adoption.previous_rate is not None,
            "follows": {name: keras.saving.serialize_keras_object(s) for name, s in adoption.follows.items()},
            "multipliers": None if adoption.multipliers is None else adoption.multipliers.patterns,
            "reduction": adoption.reduction.config(),
        }
