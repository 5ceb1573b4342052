"""The check of callbacks that cannot work in a model that trains with other optimizers than the compiled one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from distlr.callbacks.job_callback import JobCallback
from distlr.communicators import Communicator
from distlr.errors import ConfigurationError
from distlr.optimizer import AdoptedOptimizer, adopted_by, unwrap_loss_scale

__all__ = ["OtherOptimizers"]

_KERAS = keras.callbacks


class OtherOptimizers:
    """Refuses, by name, callbacks that would act on `model.optimizer` alone, or keep its state alone.

    It judges by the optimizers that the step applies. A model with an optimizer for each of its parts (a GAN) trains.
    A callback that would lose a state, or change an optimizer that nobody uses, is refused before the first update.

    Args:
        model: compiled.
        communicator: the job's.
        callbacks: the callbacks of the `fit`.
    """

    def __init__(self, model: Any, communicator: Communicator, callbacks: Sequence[Any]) -> None:
        self.model = model
        self.communicator = communicator
        self.callbacks = callbacks

    def check_applied(self, core: Any) -> None:
        """Refuses callbacks that ignore this optimizer, as it is applied, if it is adopted and not the model's own."""
        if core is unwrap_loss_scale(self.model.optimizer) or not isinstance(core, AdoptedOptimizer):
            return
        for callback in self.callbacks:
            reason = callback.leaves_out_other_optimizers if isinstance(callback, JobCallback) else None
            if isinstance(callback, (_KERAS.BackupAndRestore, _KERAS.ModelCheckpoint)) and not self._is_found(core):
                reason = "saves the optimizers that are attributes of the model alone"
            if reason is not None:
                raise ConfigurationError(
                    f"[rank {self.communicator.rank}] {type(callback).__name__} {reason}, and the train_step applies "
                    f"'{core.name}', too, which is not model.optimizer. Fix: leave {type(callback).__name__} out; "
                    "weights alone are kept by keras.callbacks.ModelCheckpoint(path, save_weights_only=True), with the "
                    "optimizers in attributes of the model. (Checkpoints of several come in a later version.)"
                )

    def check_step(self, applied: Sequence[Any]) -> None:
        """Refuses callbacks that would change the rate of the model's own optimizer if the step never applies it."""
        compiled = unwrap_loss_scale(self.model.optimizer)
        others = [core.name for core in applied if isinstance(core, AdoptedOptimizer)]
        if not others or any(core is compiled for core in applied):
            return
        for callback in self.callbacks:
            acts = callback.acts_on_rate if isinstance(callback, JobCallback) else False
            if acts or isinstance(callback, (_KERAS.ReduceLROnPlateau, _KERAS.LearningRateScheduler)):
                raise ConfigurationError(
                    f"[rank {self.communicator.rank}] {type(callback).__name__} changes the rate of model.optimizer, "
                    f"'{compiled.name}', which the train_step never applies; it applies {_listed(others)}. Fix: give "
                    "compile the optimizer whose rate is to be changed, super().compile(optimizer=...), and apply "
                    f"self.optimizer; or leave {type(callback).__name__} out"
                    f"{' (job.callbacks(run_dir=) adds it)' if type(callback).__name__ == 'ManualControl' else ''}."
                )

    def _is_found(self, core: Any) -> bool:
        return any(core is each for each in adopted_by(self.model))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in dict.fromkeys(names))
