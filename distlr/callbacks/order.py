"""The order of callbacks: checks, writers into the logs, deciders, savers, reports."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import keras

from distlr.callbacks.broadcast import BroadcastState
from distlr.callbacks.deciders import WRITERS
from distlr.callbacks.guard import ReplicaGuard
from distlr.callbacks.job_callback import JobCallback
from distlr.callbacks.non_finite_guard import NonFiniteGuard
from distlr.callbacks.same_callbacks import SameCallbacks
from distlr.callbacks.stage import Stage
from distlr.callbacks.sync_metrics import SyncMetrics
from distlr.communicators import Communicator
from distlr.errors import ConfigurationError, received

__all__ = ["check_savers", "for_ranks", "ordered", "watches_numbers"]

_KERAS = keras.callbacks

_log = logging.getLogger("distlr")

# The stages of Keras' callbacks. A derived class has the stage of its base, or of the first one here that is a base.
_KERAS_STAGES = {
    _KERAS.LearningRateScheduler: Stage.DECIDE,
    _KERAS.ReduceLROnPlateau: Stage.DECIDE,
    _KERAS.EarlyStopping: Stage.DECIDE,
    _KERAS.TerminateOnNaN: Stage.DECIDE,
    _KERAS.ModelCheckpoint: Stage.SAVE,
    _KERAS.BackupAndRestore: Stage.SAVE,
    _KERAS.TensorBoard: Stage.RECORD,
    _KERAS.CSVLogger: Stage.RECORD,
}


def ordered(callbacks: Sequence[Any]) -> list[Any]:
    """The callbacks by stage, and within a stage as they were given.

    >>> from distlr.callbacks import ReduceLROnPlateau
    >>> given = [_KERAS.CSVLogger("log.csv"), _KERAS.ModelCheckpoint("best.keras"), ReduceLROnPlateau()]
    >>> [type(callback).__name__ for callback in ordered(given)]
    ['ReduceLROnPlateau', 'ModelCheckpoint', 'CSVLogger']
    """
    return sorted(callbacks, key=_stage)


def check_savers(callbacks: Sequence[Any]) -> None:
    """Refuses a backup in the middle of an epoch by Keras, which would train the epoch's first samples twice.

    Raises:
        ConfigurationError: a `BackupAndRestore(save_freq=)` by batches.

    >>> check_savers([_KERAS.BackupAndRestore("backup", save_freq=100)])
    Traceback (most recent call last):
        ...
    distlr.errors.ConfigurationError: `save_freq` must be 'epoch': Keras begins the epoch anew, whose samples
    the clock and the weights have had already. Received: save_freq=100. Fix: write
    distlr.callbacks.Checkpoint('backup', every='100ba').
    """
    for callback in callbacks:
        frequency = getattr(callback, "save_freq", "epoch")
        if isinstance(callback, _KERAS.BackupAndRestore) and frequency != "epoch":
            hint = f"write distlr.callbacks.Checkpoint({str(callback.backup_dir)!r}, every='{frequency}ba')"
            what = "'epoch': Keras begins the epoch anew, whose samples the clock and the weights have had already"
            raise ConfigurationError(received("save_freq", frequency, what, hint))


def watches_numbers(callbacks: Sequence[Any]) -> bool:
    """Whether one of the callbacks already decides what happens at a NaN."""
    return any(isinstance(callback, (NonFiniteGuard, _KERAS.TerminateOnNaN)) for callback in callbacks)


def for_ranks(callbacks: Sequence[Any], communicator: Communicator) -> list[Any]:
    """The callbacks of a job of several ranks: with those that it needs, without those that are rank 0's alone.

    Args:
        callbacks: the callbacks of one rank.
        communicator: the job's.

    >>> from distlr.callbacks import LearningRateLogger
    >>> from distlr.testing import run_ranks
    >>> given = [LearningRateLogger(), _KERAS.CSVLogger("log.csv")]
    >>> run_ranks(lambda comm: [type(callback).__name__ for callback in for_ranks(given, comm)], size=2)
    [['LearningRateLogger', 'CSVLogger', 'SyncMetrics', 'ReplicaGuard', 'BroadcastState', 'SameCallbacks'],
    ['LearningRateLogger', 'SyncMetrics', 'ReplicaGuard', 'BroadcastState', 'SameCallbacks']]
    """
    written = [callback for callback in callbacks if isinstance(callback, WRITERS)]
    local_callbacks = [callback for callback in callbacks if communicator.is_root or callback not in written]
    added: list[Any] = [SyncMetrics()]
    if not any(isinstance(callback, ReplicaGuard) for callback in local_callbacks):
        added.append(ReplicaGuard())
    added.append(BroadcastState())
    if communicator.is_root:
        names = ", ".join(type(callback).__name__ for callback in added)
        quiet = ", ".join(type(callback).__name__ for callback in written)
        _log.info("On %d ranks: %s added%s.", communicator.size, names, f"; {quiet} on rank 0 alone" if quiet else "")
    return [*local_callbacks, *added, SameCallbacks([*local_callbacks, *added])]


def _stage(callback: Any) -> Stage:
    default = JobCallback.stage
    if isinstance(callback, JobCallback) and isinstance(callback.stage, Stage) and callback.stage is not default:
        return callback.stage
    return next((stage for kind, stage in _KERAS_STAGES.items() if isinstance(callback, kind)), default)
