"""Loss scaling in which all replicas agree whether a step is skipped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from distlr.optimizer.adopted import SHORTCUTS, AdoptedOptimizer
from distlr.optimizer.all_or_none import true_everywhere

__all__ = ["AgreedLossScaleOptimizer", "make_loss_scale_agree"]

# An unbuilt LossScaleOptimizer of Keras numbers its iteration and rate, then its inner optimizer's.
_NUMBERED_UNBUILT = 4


@keras.saving.register_keras_serializable("distlr")
class AgreedLossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """Keras' `LossScaleOptimizer`, skipping a step on all replicas and ranks when one has a gradient not finite.

    As shipped only the first replica's gradients are looked at (its comment holds that they are summed
    already, which they are not): an overflow elsewhere makes the weights infinite.

    The names that an adopted optimizer has, `samples_seen` and the others, are read from the optimizer inside.
    """

    def __init__(self, inner_optimizer: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(inner_optimizer, *args, **kwargs)
        make_loss_scale_agree(self)  # made here when a saved model is loaded

    def __getattr__(self, name: str) -> Any:
        """The names that distlr adds to the optimizer inside, if it is adopted."""
        inner = self.__dict__.get("inner_optimizer")
        if (name == "distlr" or name in SHORTCUTS) and isinstance(inner, AdoptedOptimizer):
            return getattr(inner, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def check_finite(self, grads: Sequence[Any]) -> tf.Tensor:
        """Whether the gradients are finite on every replica of every rank, the same on each."""
        inner = self.inner_optimizer
        reducer = inner.distlr.gradients.reducer if isinstance(inner, AdoptedOptimizer) else None
        return true_everywhere(super().check_finite(grads), reducer)

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Sets all of `variables` (Keras' class leaves the inner optimizer's as they are)."""
        own_count = len(self._variables)
        super().set_weights(weights[:own_count])
        self.inner_optimizer.set_weights(weights[own_count:])

    def save_own_variables(self, store: Any) -> None:
        """Saves the two that are its own; the inner optimizer saves its variables itself."""
        held = self.__dict__.get("_distlr_held")
        if self.built:
            held = self.step_counter.numpy(), self.dynamic_scale.numpy()
        if held is not None:
            store["step_counter"], store["dynamic_scale"] = held

    def load_own_variables(self, store: Any) -> None:
        """Loads them, also from the numbered ones of Keras' class (iteration, rate, then these two)."""
        keys = set(store.keys())
        if "dynamic_scale" in keys:
            counter, scale = "step_counter", "dynamic_scale"
        elif len(keys) > _NUMBERED_UNBUILT:
            counter, scale = "2", "3"
        else:
            return  # saved before the first step
        held = (store[counter][()], store[scale][()])
        if self.built:
            self._assign(held)
        else:
            self.__dict__["_distlr_held"] = held

    def build(self, var_list: Sequence[Any]) -> None:
        """Builds once (Keras' class adds its two variables again at every call)."""
        if self.built:
            return
        super().build(var_list)
        held = self.__dict__.pop("_distlr_held", None)
        if held is not None:
            with tf.init_scope():
                self._assign(held)

    def _assign(self, held: tuple[Any, Any]) -> None:
        self.step_counter.assign(held[0])
        self.dynamic_scale.assign(held[1])


def make_loss_scale_agree(optimizer: Any) -> Any:
    """Makes a plain `LossScaleOptimizer` an agreeing one, in place; leaves any other optimizer alone."""
    if type(optimizer) is keras.optimizers.LossScaleOptimizer:
        optimizer.__class__ = AgreedLossScaleOptimizer
    if isinstance(optimizer, AgreedLossScaleOptimizer) and isinstance(optimizer.inner_optimizer, AdoptedOptimizer):
        optimizer.inner_optimizer.distlr.gradients.loss_scale_agrees = True
    return optimizer
