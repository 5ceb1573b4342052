"""Keras' callbacks that put other weights into the model or save its weights, adapted to the training's values."""

from __future__ import annotations

import functools
from typing import Any

import keras

from distlr.optimizer import averages, is_adopted, training_values_of

__all__ = ["ADAPTATIONS", "adapt"]


class _ExactSwap:
    """`SwapEMAWeights` that restores each weight to the bit, and tells the optimizer which values are in the model."""

    model: Any
    _ema_weights_in_model: bool

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        # An interrupted `fit` has left the averages in the model, or an ended one the note that it has them.
        if is_adopted(self.model.optimizer):
            training_values_of(self.model.optimizer).put_back()
            self._ema_weights_in_model = False
        super().on_train_begin(logs)  # type: ignore[misc]

    def _swap_variables(self) -> None:
        optimizer = self.model.optimizer
        pairs = averages(optimizer)
        if not pairs or not is_adopted(optimizer):
            super()._swap_variables()  # type: ignore[misc]
        elif self._ema_weights_in_model:
            training_values_of(optimizer).put_back()
        else:
            training_values_of(optimizer).put_in(pairs)

    def _finalize_ema_values(self) -> None:
        # At the end of the last epoch Keras gives up the training's weights here. Savers come after that, and distlr's
        # optimizer does it when all epochs have ended, where an early stop ended them as well.
        if not is_adopted(self.model.optimizer):
            super()._finalize_ema_values()  # type: ignore[misc]


class _TrainingBackup:
    """`BackupAndRestore` that saves the training's weights while the model has others."""

    model: Any

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        with training_values_of(self.model.optimizer).in_place():
            super().on_epoch_end(epoch, logs)  # type: ignore[misc]


_MIXINS = ((keras.callbacks.SwapEMAWeights, _ExactSwap), (keras.callbacks.BackupAndRestore, _TrainingBackup))

ADAPTATIONS = tuple(mixin for _, mixin in _MIXINS)
"""What `adapt` mixes into a callback; it is no callback of distlr's by that."""


def adapt(callback: Any) -> None:
    """Changes the class of one of these callbacks in place, so that it works with the training's values.

    Any other callback stays as it is, and so does the effect of these on an optimizer that is not distlr's.

    Args:
        callback: a callback of Keras, or of a class derived from Keras'.

    >>> swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    >>> adapt(swap)
    >>> isinstance(swap, keras.callbacks.SwapEMAWeights), swap.swap_on_epoch
    (True, True)
    """
    base: Any = type(callback)
    for kind, mixin in _MIXINS:
        if isinstance(callback, kind) and not isinstance(callback, mixin):
            callback.__class__ = _derived(mixin, base)


@functools.cache
def _derived(mixin: Any, base: Any) -> type:
    return type(base.__name__, (mixin, base), {"__module__": base.__module__, "__qualname__": base.__qualname__})
