"""Which callbacks decide about the training, and so must be the same on every rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from distlr.callbacks.job_callback import JobCallback
from distlr.plateau.policy import PlateauPolicy

__all__ = ["WRITERS", "configurations", "may_stop_within_epoch"]

_KERAS = keras.callbacks

WRITERS = (_KERAS.ModelCheckpoint, _KERAS.BackupAndRestore, _KERAS.TensorBoard, _KERAS.CSVLogger)
"""Keras' callbacks that write files and decide nothing; of several ranks, rank 0 alone needs them."""

# The settings that a callback decides by. Left out are `verbose`, which may differ by rank, and functions, whose effect
# the guard compares.
_CONFIGURATION: tuple[tuple[type, tuple[str, ...]], ...] = (
    (
        _KERAS.EarlyStopping,
        ("monitor", "mode", "min_delta", "patience", "baseline", "restore_best_weights", "start_from_epoch"),
    ),
    (_KERAS.ReduceLROnPlateau, ("monitor", "mode", "min_delta", "factor", "patience", "cooldown", "min_lr")),
    (_KERAS.LearningRateScheduler, ()),
    (_KERAS.SwapEMAWeights, ("swap_on_epoch",)),
    (_KERAS.TerminateOnNaN, ("raise_error",)),
)

_BATCH_HOOKS = ("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end")


def configurations(callbacks: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """The known deciders and distlr's callbacks with their settings, as JSON, which must be the same on every rank.

    The keys are the names of classes; a second callback of a class is "... (2)".

    >>> configurations([_KERAS.SwapEMAWeights(), _KERAS.CSVLogger("log.csv"), _KERAS.SwapEMAWeights(True)])
    {'SwapEMAWeights': {'swap_on_epoch': False}, 'SwapEMAWeights (2)': {'swap_on_epoch': True}}
    """
    described: dict[str, dict[str, Any]] = {}
    for callback in callbacks:
        kinds = [attributes for kind, attributes in _CONFIGURATION if isinstance(callback, kind)]
        if isinstance(callback, JobCallback):
            kinds = [(*next(iter(kinds), ()), *callback.decides_by)]
        if kinds:
            name = type(callback).__name__
            count = 1 + sum(key == name or key.startswith(f"{name} (") for key in described)
            described[name if count == 1 else f"{name} ({count})"] = {
                attribute: _as_json(getattr(callback, attribute, None)) for attribute in next(iter(kinds), ())
            }
    return described


def may_stop_within_epoch(callback: Any) -> bool:
    """Whether a callback may stop the training in the middle of an epoch: it looks at each batch, in step with it.

    >>> may_stop_within_epoch(_KERAS.TerminateOnNaN()), may_stop_within_epoch(_KERAS.EarlyStopping())
    (True, False)
    """
    if getattr(callback, "async_safe", False):
        return False
    return any(_writes_what_may_stop(callback, hook) for hook in _BATCH_HOOKS)


def _writes_what_may_stop(callback: Any, hook: str) -> bool:
    """Whether a hook may stop one rank alone: it is not that of Keras' base, of its writers or of distlr."""
    if hook in vars(callback):  # as a `LambdaCallback` has its hooks
        return True
    writer = next((kind for kind in type(callback).__mro__ if hook in vars(kind)), _KERAS.Callback)
    if writer is _KERAS.Callback or vars(writer).get("stops_with_all_ranks", False):
        return False
    # A user's class derived from a writer may also stop the training elsewhere, such as in `_save_model`.
    return writer not in WRITERS or not type(callback).__module__.startswith("keras.")


def _as_json(value: Any) -> Any:
    if isinstance(value, PlateauPolicy):
        return {field.name: _as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return float(value) if hasattr(value, "__float__") else str(value)
