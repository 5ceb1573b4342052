"""The order of callbacks: what checks, what writes into the logs, what decides, what saves, what reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from distlr.callbacks.audit import Audit
from distlr.callbacks.logger import LearningRateLogger
from distlr.callbacks.plateau import ReduceLROnPlateau
from distlr.callbacks.sync_statistics import SyncStatistics

__all__ = ["ordered"]

_KERAS = keras.callbacks

# A saver must see what the deciders of the same epoch changed, or a restart loses the last cut.
_STAGES: tuple[tuple[type, ...], ...] = (
    (Audit,),
    (SyncStatistics, LearningRateLogger),
    (
        _KERAS.LearningRateScheduler,
        ReduceLROnPlateau,
        _KERAS.ReduceLROnPlateau,
        _KERAS.EarlyStopping,
        _KERAS.TerminateOnNaN,
    ),
    (_KERAS.ModelCheckpoint, _KERAS.BackupAndRestore),
    (_KERAS.TensorBoard, _KERAS.CSVLogger),
)
_USERS_STAGE = 2  # a callback that is not known may decide


def ordered(callbacks: Sequence[Any]) -> list[Any]:
    """The callbacks by stage, and within a stage as they were given."""
    return sorted(callbacks, key=_stage)


def _stage(callback: Any) -> int:
    for number, classes in enumerate(_STAGES):
        if isinstance(callback, classes):
            return number
    return _USERS_STAGE
