"""Exact metrics over all ranks, and equal moving statistics, in one or two collectives an epoch."""

from __future__ import annotations

from typing import Any

import numpy as np

from distlr.callbacks.job_callback import JobCallback
from distlr.callbacks.stage import Stage
from distlr.communicators.bundles import (
    Bundle,
    bundle_numbers,
    exchange_bundles,
    exchange_together,
    first_numbers,
    mean_over,
    to_number,
)
from distlr.sync.metrics import EagerMetrics, GraphMetrics, are_built
from distlr.sync.metrics_check import MetricsCheck
from distlr.sync.moving_statistics import exchange_with_statistics, has_statistics

__all__ = ["SyncMetrics"]


class SyncMetrics(JobCallback):
    """Writes the metrics of all ranks' samples into the epoch's logs, as one process would have computed them.

    The metrics' states are summed, not their results: exact for shards of different sizes and empty ones, for a rank
    without validation data, for AUC, precision and recall. One collective an epoch, whatever the number of metrics.
    Other values that a `train_step` or `test_step` of your own returns become the mean of the ranks' last values. So
    other callbacks see the same logs in `on_epoch_end` on every rank.

    The float weights that are not trained (batch normalization's moving statistics) become their mean over the ranks
    before the validation uses them: a model that has such needs one more collective where it is validated.

    Where a `tf.distribute` strategy spans the ranks, Keras' own reading of a metric is the sum over them already: then
    this only keeps the ranks in step, since each must read whenever another does, and gives the others' results to a
    rank without validation data.

    Ranks as threads, of which one has seen three times as many samples:

    >>> import keras, numpy as np
    >>> from distlr.testing import run_ranks
    >>> models = [keras.Sequential([keras.Input((1,)), keras.layers.Identity()]) for rank in range(2)]
    >>> for model, errors in zip(models, ([1.0, 1.0, 1.0], [5.0])):
    ...     model.compile("sgd", "mae", run_eagerly=True)
    ...     _ = model.evaluate(np.array(errors), np.zeros(len(errors)), verbose=0)
    >>> def end_of_epoch(comm):
    ...     callback, logs = SyncMetrics(), {"loss": models[comm.rank].get_metrics_result()["loss"]}
    ...     callback.bind(comm)
    ...     callback.set_model(models[comm.rank])
    ...     callback.on_epoch_end(0, logs)
    ...     return logs["loss"]
    >>> [float(models[rank].get_metrics_result()["loss"]) for rank in range(2)], run_ranks(end_of_epoch, size=2)
    ([1.0, 5.0], [2.0, 2.0])
    """

    stage = Stage.COMBINE_RANKS

    def __init__(self) -> None:
        super().__init__()
        self._epoch = -1
        self._in_fit = False
        self._check: MetricsCheck | None = None
        self._metrics: EagerMetrics | GraphMetrics | None = None
        self._trained: dict[str, Any] | None = None  # this rank's states of the training
        self._training: dict[str, float] | None = None  # the results of all ranks
        self._others: list[dict[str, Any]] = []  # by rank, what else is in its logs
        self._validates = self._any_validates = False
        self._begins_with_validation = False  # the epoch that was trained in another process
        self.validation_was_cut = False
        """Whether what this rank's validation has given is of a part of it; after `on_epoch_end` of any rank's."""

    def set_model(self, model: Any) -> None:
        """Arranges that metrics unknown to distlr are tried before their first update."""
        super().set_model(model)
        replicas = model.distribute_strategy.num_replicas_in_sync
        self._check = MetricsCheck(model, is_root=self.communicator.is_root, by_strategy=replicas > 1)
        if self.communicator.size * replicas > 1:
            self._check.watch()
            self._check.warn_of_reductions(1 if self._spans else self.communicator.size)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Refuses, before the first step, a metric that cannot be combined."""
        if self._check is not None:
            self._check.check_reset()
        self._epoch, self._in_fit = epoch, True
        self._trained = self._training = None
        self._validates = self._any_validates = False
        self._begins_with_validation = self.validation_was_cut = False

    def begin_with_validation(self) -> None:
        """Says that there is no training in the epoch that begins, on any rank, and so no metrics of it."""
        self._begins_with_validation = True

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Reads the training's states before Keras resets them for validation. Collective if there are statistics."""
        if self._in_fit:
            self._validates = True
            if self._spans or not self._begins_with_validation:
                self._exchange_training({})

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the results into the logs. Collective."""
        logs = {} if logs is None else logs
        if self._begins_with_validation and not self._spans:
            self._combine_validation(epoch, logs)
        else:
            self._end_whole_epoch(epoch, logs)
        means = mean_over([bundle_numbers(rank) for rank in self._others])
        logs.update({name: to_number(mean) for name, mean in means.items()})
        self._in_fit = False

    def _end_whole_epoch(self, epoch: int, logs: dict[str, Any]) -> None:
        others = self._beside_metrics(logs)
        if self._trained is None:  # nothing was validated on this rank
            self._exchange_training(others)
        if self._spans:
            self._share_validation(epoch, logs, others)
        else:
            self._combine(epoch, logs, others)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Names the metrics that could not be tried."""
        if self._check is not None:
            self._check.end()

    @property
    def _spans(self) -> bool:
        return self.topology.strategy_spans_ranks

    def _beside_metrics(self, logs: dict[str, Any]) -> dict[str, float]:
        """The numbers in this rank's logs that are no results of its metrics; a strategy's results are equal anyway."""
        metrics: set[str] = set()
        if not self._spans:
            if self._trained is None:
                self._current()  # else they are those of the training, of before the validation
            assert self._metrics is not None
            metrics = self._metrics.names()
        return _beside(logs, metrics)

    def _exchange_training(self, others: dict[str, float]) -> None:
        """Reads the training's states, and exchanges them now if statistics must be equal before any rank validates."""
        self._trained = {} if self._spans else self._current().states()
        if not self._spans and not has_statistics(self.model):
            return
        local_states = Bundle(self._trained, note={"validates": self._validates, "others": others})
        tag = f"training metrics of epoch {self._epoch + 1}"
        self.communicator.data_ended(self.gradient_reducer)
        bundles = exchange_with_statistics(self.communicator, self.model, local_states, tag=tag)
        notes: list[dict[str, Any]] = [rank.fields for rank in bundles]
        self._any_validates = any(note["validates"] for note in notes)
        self._others = [note["others"] for note in notes]
        if not self._spans:
            self._training = self._current().results(bundles)
        elif self._any_validates and not self._validates:
            # The others read their metrics after the validation, and every rank must when one does.
            self.model.reset_metrics()
            self.model.get_metrics_result()

    def _combine(self, epoch: int, logs: dict[str, Any], others: dict[str, float]) -> None:
        """Exchanges, in one collective, the states that were not yet, and computes the results of all ranks."""
        assert self._metrics is not None
        assert self._trained is not None
        before, now = self._metrics, self._current()
        parts = {}
        if self._training is None:
            parts["training"] = Bundle(self._trained)
            self.communicator.data_ended(self.gradient_reducer)
        if self._training is None or self._any_validates:
            note = {"others": others, "was_cut": self.validation_was_cut}
            parts["validation"] = Bundle(now.states() if self._validates else {}, note=note)
        exchanged = exchange_together(self.communicator, parts, tag=f"metrics of epoch {epoch + 1}") if parts else {}
        if "training" in exchanged:
            self._training = before.results(exchanged["training"])
        if "validation" in exchanged:
            self._read_notes([rank.fields for rank in exchanged["validation"]])
        assert self._training is not None
        logs.update({name: value for name, value in self._training.items() if name in logs})
        validated = exchanged.get("validation", [])
        if any(other.arrays for other in validated):
            logs.update({f"val_{name}": value for name, value in now.results(validated).items()})

    def _combine_validation(self, epoch: int, logs: dict[str, Any]) -> None:
        """The results of the validation alone; Keras has built no metrics on a rank that has validated nothing."""
        metrics = self._current() if self._validates and are_built(self.model.metrics) else None
        names = set() if metrics is None else metrics.names()
        note = {"others": _beside(logs, names), "was_cut": self.validation_was_cut, "has_metrics": metrics is not None}
        local_states = Bundle({} if metrics is None else metrics.states(), note=note)
        tag = f"validation metrics of epoch {epoch + 1}"
        all_ranks = exchange_bundles(self.communicator, local_states, tag=tag)
        self._read_notes([rank.fields for rank in all_ranks])
        validated = {} if metrics is None else {f"val_{name}": v for name, v in metrics.results(all_ranks).items()}
        if not all(rank.fields["has_metrics"] for rank in all_ranks):
            results = exchange_bundles(self.communicator, bundle_numbers(validated), tag=f"{tag}, for who has none")
            validated = first_numbers(results)
        logs.update(validated)

    def _read_notes(self, notes: list[dict[str, Any]]) -> None:
        """Reads what each rank reports on its validation besides the metrics' states."""
        self._others = [note["others"] for note in notes]
        self.validation_was_cut = any(note["was_cut"] for note in notes)

    def _share_validation(self, epoch: int, logs: dict[str, Any], others: dict[str, float]) -> None:
        """The results of the validation, which a strategy has computed over all ranks, for those that had none."""
        if self._any_validates:
            validated = bundle_numbers({name: value for name, value in logs.items() if name.startswith("val_")})
            tag = f"validation metrics of epoch {epoch + 1}"
            bundles = exchange_bundles(self.communicator, Bundle(validated.arrays, note=others), tag=tag)
            logs.update(first_numbers(bundles))
            self._others = [rank.fields for rank in bundles]

    def _current(self) -> EagerMetrics | GraphMetrics:
        """The model's metrics, which are traced anew where they have changed."""
        if self._metrics is None or not self._metrics.fits(self.model):
            self._metrics = (EagerMetrics if self.model.run_eagerly else GraphMetrics)(self.model)
        return self._metrics


def _beside(logs: dict[str, Any], metrics: set[str]) -> dict[str, float]:
    """The numbers in logs that are no results of these metrics, of a training or a validation."""
    beside = {name: value for name, value in logs.items() if name.removeprefix("val_") not in metrics}
    return {name: float(value) for name, value in beside.items() if isinstance(value, (int, float, np.number))}
