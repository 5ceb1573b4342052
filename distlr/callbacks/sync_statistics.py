"""The mean, over the replicas, of the weights that are not trained."""

from __future__ import annotations

from typing import Any

from distlr.callbacks.job_callback import JobCallback
from distlr.callbacks.stage import Stage
from distlr.sync.moving_statistics import average_over_replicas

__all__ = ["SyncStatistics"]


class SyncStatistics(JobCallback):
    """Makes batch normalization's moving statistics, and any other float weight that is not trained, equal.

    Each replica updates them from its own share of the batch, so they differ; validation would compute with
    different models and a checkpoint would hold the first replica's. They become the mean over the
    replicas before each validation and at each epoch's end. `job.callbacks` adds it on several replicas.

    On one replica they stay as they are:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])
    >>> callback = SyncStatistics()
    >>> callback.set_model(model)
    >>> callback.on_epoch_end(0)
    >>> model.layers[0].moving_mean.numpy().tolist()
    [0.0, 0.0]
    """

    stage = Stage.COMBINE_RANKS

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Averages the statistics before the validation."""
        average_over_replicas(self.model)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Averages the statistics before anything is saved, if there was no validation."""
        average_over_replicas(self.model)
