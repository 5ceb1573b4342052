"""The check that all ranks train with the callbacks that must be the same on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distlr.callbacks.deciders import configurations, may_stop_within_epoch
from distlr.callbacks.guard import ReplicaGuard
from distlr.callbacks.job_callback import JobCallback
from distlr.callbacks.stage import Stage
from distlr.sync.broadcast import check_equal

__all__ = ["SameCallbacks"]


class SameCallbacks(JobCallback):
    """Refuses, before the first step and on every rank, deciders that only some ranks have.

    A rank that alone stops, cuts the rate or restores weights ends as another model than the others. It compares
    distlr's callbacks, which talk to the other ranks, and those of Keras that decide (`EarlyStopping`,
    `ReduceLROnPlateau`, `LearningRateScheduler`, `SwapEMAWeights`, `TerminateOnNaN`), with their settings. A
    callback that only writes or prints may be on one rank alone. `ReplicaGuard` compares the effect of unknown classes.

    `job.callbacks` adds it on several ranks. Here they are threads, of which one alone stops early:

    >>> import distlr, keras
    >>> from distlr.testing import run_ranks
    >>> def begin(comm):
    ...     given = [keras.callbacks.EarlyStopping("loss", patience=2)] if comm.is_root else []
    ...     callback = SameCallbacks(given)
    ...     callback.bind(comm)
    ...     try:
    ...         callback.on_train_begin()
    ...     except distlr.errors.DistributionError as error:
    ...         return "EarlyStopping" in str(error)
    >>> run_ranks(begin, size=2)
    [True, True]

    Args:
        callbacks: those of this rank.
    """

    stage = Stage.CHECK

    def __init__(self, callbacks: Sequence[Any]) -> None:
        super().__init__()
        self._guards = [callback for callback in callbacks if isinstance(callback, ReplicaGuard)]
        self._in_order = [type(callback).__name__ for callback in callbacks if isinstance(callback, JobCallback)]
        self._deciders = configurations(callbacks)
        self._may_stop = any(map(may_stop_within_epoch, callbacks))
        for guard in self._guards:
            guard.stops_within_epoch = self._may_stop

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Compares, and tells the guard whether a callback of any rank may stop within an epoch. Collective."""
        # Before other callbacks begin: one that a single rank has may make a variable, which all ranks make together.
        may_stop = check_equal(
            self.communicator,
            {"callbacks": self._deciders, "the callbacks' order": self._in_order},
            tag="the callbacks",
            note=self._may_stop,
        )
        for guard in self._guards:
            guard.watch_steps(any(may_stop))
