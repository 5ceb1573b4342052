"""Which callbacks decide about the training, and so must be the same on every rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from distlr.callbacks.bad_numbers import BadNumbers
from distlr.callbacks.checkpoint import Checkpoint
from distlr.callbacks.guard import ReplicaGuard
from distlr.callbacks.job_callback import JobCallback
from distlr.callbacks.plateau import ReduceLROnPlateau
from distlr.callbacks.steering import Steering
from distlr.plateau.policy import PlateauPolicy

__all__ = ["WRITERS", "configurations", "may_stop_within_epoch"]

_KERAS = keras.callbacks

WRITERS = (_KERAS.ModelCheckpoint, _KERAS.BackupAndRestore, _KERAS.TensorBoard, _KERAS.CSVLogger)
"""Keras' callbacks that write files and decide nothing; of several ranks, rank 0 alone needs them."""

# What a callback decides by. Left out: `verbose`, which one rank alone may have, and functions, whose effect the guard
# compares.
_CONFIGURATION: tuple[tuple[type, tuple[str, ...]], ...] = (
    (
        _KERAS.EarlyStopping,
        ("monitor", "mode", "min_delta", "patience", "baseline", "restore_best_weights", "start_from_epoch"),
    ),
    (_KERAS.ReduceLROnPlateau, ("monitor", "mode", "min_delta", "factor", "patience", "cooldown", "min_lr")),
    (_KERAS.LearningRateScheduler, ()),
    (_KERAS.SwapEMAWeights, ("swap_on_epoch",)),
    (_KERAS.TerminateOnNaN, ("raise_error",)),
    (ReduceLROnPlateau, ("policy", "restore_best")),
    (BadNumbers, ("policy", "factor", "limit", "each_step")),
    (Checkpoint, ("every",)),
    (ReplicaGuard, ("every",)),
    (Steering, ("every",)),
)

_BATCH_HOOKS = ("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end")


def configurations(callbacks: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """What must be the same on every rank, as JSON: known deciders and distlr's callbacks, with what they decide by.

    By their class; a second one of a class is "... (2)".

    >>> configurations([_KERAS.SwapEMAWeights(), _KERAS.CSVLogger("log.csv"), _KERAS.SwapEMAWeights(True)])
    {'SwapEMAWeights': {'swap_on_epoch': False}, 'SwapEMAWeights (2)': {'swap_on_epoch': True}}
    """
    described: dict[str, dict[str, Any]] = {}
    for callback in callbacks:
        kinds = [attributes for kind, attributes in _CONFIGURATION if isinstance(callback, kind)]
        if kinds or isinstance(callback, JobCallback):
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
    module = type(callback).__module__
    if getattr(callback, "async_safe", False):
        return False
    if isinstance(callback, JobCallback) and module.startswith("distlr."):
        return False  # distlr's own do not stop one rank alone
    if isinstance(callback, WRITERS) and module.startswith("keras."):
        return False
    return any(not _is_default(callback, hook) for hook in _BATCH_HOOKS)


def _is_default(callback: Any, hook: str) -> bool:
    """Whether a hook is the one of Keras' base class; a `LambdaCallback` has its hooks on the instance."""
    method = getattr(callback, hook, None)
    return getattr(method, "__func__", method) is getattr(_KERAS.Callback, hook)


def _as_json(value: Any) -> Any:
    if isinstance(value, PlateauPolicy):
        return {field.name: _as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return float(value) if hasattr(value, "__float__") else str(value)
