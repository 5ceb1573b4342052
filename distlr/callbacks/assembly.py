"""The callbacks of a job: those given, those that every job needs, bound to the job and in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras

from distlr.callbacks.base_rates import BaseRates
from distlr.callbacks.check_metrics import CheckMetrics
from distlr.callbacks.checkpoint import Checkpoint
from distlr.callbacks.cut_validation import CutValidation
from distlr.callbacks.data_position_sync import DataPositionSync
from distlr.callbacks.job_callback import JobCallback
from distlr.callbacks.logger import LearningRateLogger
from distlr.callbacks.manual_control import ManualControl
from distlr.callbacks.non_finite_guard import NonFiniteGuard
from distlr.callbacks.order import check_savers, for_ranks, ordered, watches_numbers
from distlr.callbacks.other_weights import adapt
from distlr.callbacks.plateau import ReduceLROnPlateau
from distlr.callbacks.preflight_check import PreflightCheck
from distlr.callbacks.run_recorder import RunRecorder
from distlr.callbacks.sync_metrics import SyncMetrics
from distlr.callbacks.sync_statistics import SyncStatistics
from distlr.callbacks.tensorboard_scalars import TensorBoardScalars
from distlr.communicators import Communicator
from distlr.data.position import Position
from distlr.errors import ConfigurationError, ConfigurationTypeError, received
from distlr.runlog.journal import Journal

__all__ = ["assembled"]


def assembled(
    callbacks: Sequence[Any],
    *,
    communicator: Communicator,
    local_replicas: int,
    audit: PreflightCheck,
    positions: Sequence[Position],
    run_dir: str | os.PathLike[str] | None,
    explain: Callable[[], dict[str, Any]],
) -> list[Any]:
    """Returns the list of `job.callbacks`; see there.

    Args:
        callbacks: the user's.
        communicator: the job's.
        local_replicas: the number of replicas of this process.
        audit: the job's check of a run.
        positions: the positions of the job's training data.
        run_dir: see `job.callbacks`.
        explain: gives the parts of the formula.

    Raises:
        ConfigurationError, ConfigurationTypeError: something given cannot work.

    >>> import distlr
    >>> job = distlr.init(environ={})
    >>> plateau = keras.callbacks.ReduceLROnPlateau()
    >>> [type(callback).__name__ for callback in job.callbacks([plateau])]  # calls it
    ['PreflightCheck', 'DataPositionSync', 'LearningRateLogger', 'NonFiniteGuard', 'ReduceLROnPlateau']
    """
    all_callbacks = list(callbacks) if isinstance(callbacks, (list, tuple)) else [None]
    for callback in all_callbacks:
        if not isinstance(callback, keras.callbacks.Callback):
            what = callbacks if callback is None else callback
            hint = "write job.callbacks([distlr.callbacks.ReduceLROnPlateau()]), for example"
            raise ConfigurationTypeError(received("callbacks", what, "a list of Keras callbacks", hint))
    if not _has(all_callbacks, LearningRateLogger):
        all_callbacks.append(LearningRateLogger())
    check_savers(all_callbacks)
    if communicator.may_lose_ranks and not _has(all_callbacks, Checkpoint):
        raise ConfigurationError(
            "In an elastic job the training begins anew whenever the ranks change, and without a checkpoint from "
            "the start. Fix: job.callbacks([distlr.callbacks.Checkpoint(directory, every=...), ...])."
        )
    plateaus = [callback.policy for callback in all_callbacks if isinstance(callback, ReduceLROnPlateau)]
    _check_plateaus([policy.key for policy in plateaus])
    if not watches_numbers(all_callbacks):
        all_callbacks.append(NonFiniteGuard(ignore={policy.monitor for policy in plateaus if policy.on_nan != "raise"}))
    if BaseRates.is_needed(all_callbacks):
        all_callbacks.append(BaseRates(all_callbacks))
    follow = DataPositionSync(positions)
    all_callbacks += [audit, follow]
    if run_dir is not None:
        all_callbacks += [
            ManualControl(run_dir),
            RunRecorder(run_dir, explain),
            TensorBoardScalars(Path(run_dir) / "tensorboard"),
        ]
    if local_replicas > 1:
        all_callbacks += [
            SyncStatistics(),
            *([CheckMetrics()] if communicator.size == 1 else []),  # else SyncMetrics does
        ]
    if communicator.size > 1:
        all_callbacks = for_ranks(all_callbacks, communicator)
    checkpoints = [callback for callback in all_callbacks if isinstance(callback, Checkpoint)]
    if checkpoints:
        metrics = next((callback for callback in all_callbacks if isinstance(callback, SyncMetrics)), None)
        all_callbacks.append(CutValidation(checkpoints[-1], metrics))
    audit.others = all_callbacks
    journal = Journal()
    for callback in all_callbacks:
        adapt(callback)
        if isinstance(callback, JobCallback):
            callback.bind(communicator, journal)
        if isinstance(callback, Checkpoint):
            callback.bind_data(follow)
            callback.bind_callbacks(all_callbacks)
        if isinstance(callback, ManualControl):
            callback.bind_plateau(bool(plateaus))
    return ordered(all_callbacks)


def _check_plateaus(keys: Sequence[str]) -> None:
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ConfigurationError(
            f"{keys.count(twice[0])} ReduceLROnPlateau watch {twice[0]}. The optimizer keeps one state for it, in "
            "which they would count each epoch more than once. Fix: leave all but one out."
        )


def _has(callbacks: Sequence[Any], kind: type) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)
