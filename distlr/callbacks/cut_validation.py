"""A long validation that a SIGTERM ends in time, and an epoch that begins again with its validation."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from distlr.callbacks.checkpoint import Checkpoint
from distlr.callbacks.job_callback import JobCallback
from distlr.callbacks.stage import Stage
from distlr.callbacks.sync_metrics import SyncMetrics
from distlr.checkpoint.run_state import seed_values
from distlr.sync.metrics import are_built

__all__ = ["CutValidation"]

GRACE = 8.0
"""Seconds that a validation may still take after a SIGTERM: Slurm and Kubernetes kill after 30, and a file is to be
written before."""


class CutValidation(JobCallback):
    """Ends a validation that would outlast a SIGTERM by more than `GRACE` seconds; `job.callbacks` adds it.

    No decision uses the result of a part of a validation. At the epoch's end, before any decider, all ranks
    learn whether it was cut on one of them, in the collective that `SyncMetrics` makes anyway. Then they write a
    checkpoint that says that the epoch's training is done and its validation is not, and end with 143. A run that is
    continued begins with that validation: an epoch without a step, whose logs have the results of its training.

    A rank cuts its own validation, so the others are in time only if all of them got the signal. A validation is never
    cut if one `tf.distribute` strategy spans the ranks, since they compute each of its batches together, nor if Keras
    does not know how many steps an epoch has: its next epochs would be as short as the one without a step.

    >>> import distlr
    >>> job = distlr.init(environ={})
    >>> [type(callback).__name__ for callback in job.callbacks([Checkpoint("checkpoints")])]
    ['PreflightCheck', 'DataPositionSync', 'CutValidation', 'LearningRateLogger', 'NonFiniteGuard', 'Checkpoint']

    Args:
        checkpoint: the job's, whose signals end a validation.
        metrics: the `SyncMetrics` of a job of several ranks.
    """

    stage = Stage.CUT_VALIDATION
    stops_with_all_ranks = True

    def __init__(self, checkpoint: Checkpoint, metrics: SyncMetrics | None = None) -> None:
        super().__init__()
        self._checkpoint, self._metrics = checkpoint, metrics
        self._training_logs: dict[str, Any] | None = None  # logs of an epoch whose validation alone is left
        self._is_in_epoch = self._was_cut = False
        self._seeds: list[tuple[Any, np.ndarray]] = []  # as the validation began
        self._without_warning = contextlib.ExitStack()
        self._without_metrics = contextlib.ExitStack()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Checks whether the validation alone is left of the epoch."""
        self._is_in_epoch, self._was_cut = True, False
        self._training_logs = self._checkpoint.training_logs_of(epoch)
        if self._training_logs is not None and self._metrics is not None:
            self._metrics.begin_with_validation()

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Ends the data of an epoch of which the validation alone is left, before a step is made or counted."""
        if self._training_logs is None:
            return
        self._without_warning.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Your input ran out of data")
        # Keras reads the metrics now, and where a rank has no validation data after it, and raises where no batch has
        # built them.
        self._without_metrics.enter_context(_empty_before_built(self.model))
        raise StopIteration  # as at the end of the data

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Looks for the signal after each validation step of Keras: a callback of batches would delay the device."""
        self._without_warning.close()
        self._stop_looking()
        if self._is_in_epoch and not self.topology.strategy_spans_ranks and self._checkpoint.may_leave_unvalidated:
            self._seeds = seed_values(self.model)
            self.model.test_function = _WatchedStep(self.model.test_function, self._look)

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Restores the seed generators from which a part of a validation has drawn."""
        self._stop_looking()
        if self._was_cut:
            for seed, value in self._seeds:
                seed.assign(value)
            if self._metrics is not None:
                self._metrics.validation_was_cut = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Ends the process if the validation of any rank was cut (collective then); otherwise completes the logs."""
        self._without_warning.close()
        self._without_metrics.close()
        self._is_in_epoch = False
        training_logs, self._training_logs = self._training_logs, None
        logs = {} if logs is None else logs
        if training_logs is not None:
            validation_logs = dict(logs)
            logs.clear()
            logs.update(training_logs | validation_logs)
        if self._was_cut if self._metrics is None else self._metrics.validation_was_cut:
            self._checkpoint.leave_unvalidated(
                {name: value for name, value in logs.items() if not name.startswith("val_")}
            )

    def _look(self) -> None:
        """Ends the validation if the job must end soon."""
        leaving_for = self._checkpoint.signals.leaving_for
        if leaving_for is not None and leaving_for > GRACE:
            self._was_cut = self.model.stop_evaluating = True

    def _stop_looking(self) -> None:
        if isinstance(self.model.test_function, _WatchedStep):
            self.model.test_function = self.model.test_function.step


class _WatchedStep:
    """Keras' step of a validation, and after it a look."""

    def __init__(self, step: Callable[[Any], Any], look: Callable[[], None]) -> None:
        self.step, self._look = step, look

    def __call__(self, iterator: Any) -> Any:
        logs = self.step(iterator)
        self._look()
        return logs


@contextlib.contextmanager
def _empty_before_built(model: Any) -> Iterator[None]:
    """Lets Keras read the model's metrics before their first batch: they have no result then."""
    attributes = vars(model)
    of_the_user = {name: attributes[name] for name in ("get_metrics_result",) if name in attributes}
    get_metrics_result = model.get_metrics_result
    attributes["get_metrics_result"] = lambda: get_metrics_result() if are_built(model.metrics) else {}
    try:
        yield
    finally:
        del attributes["get_metrics_result"]
        attributes.update(of_the_user)
