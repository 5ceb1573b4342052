"""The mean, over the replicas, of the weights that are not trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from distlr.callbacks.base import JobCallback

__all__ = ["SyncStatistics"]


class SyncStatistics(JobCallback):
    """Makes batch normalization's moving statistics, and any other float weight that is not trained, equal.

    Each replica updates them from its own share of the batch, so they differ; validation would compute with
    different models and a checkpoint would hold the first replica's. They become the mean over the
    replicas before each validation and at each epoch's end. `job.callbacks` adds it on several replicas.

    Args:
        strategy: the job's strategy.
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        super().__init__()
        self.strategy = strategy

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Averages before the validation."""
        self._average()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Averages before anything is saved, where there was no validation."""
        self._average()

    def _average(self) -> None:
        for variable in self.model.non_trainable_variables:
            if not tf.as_dtype(variable.dtype).is_floating:
                continue
            copies = [copy.numpy() for copy in self.strategy.experimental_local_results(variable.value)]
            if any((copy != copies[0]).any() for copy in copies[1:]):
                mean = np.mean(np.asarray(copies, np.float64), axis=0)
                variable.assign(mean.astype(copies[0].dtype))
