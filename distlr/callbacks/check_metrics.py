"""The check of metrics where replicas alone add their states up."""

from __future__ import annotations

from typing import Any

from distlr.callbacks.job_callback import JobCallback
from distlr.callbacks.stage import Stage
from distlr.sync.metrics_check import MetricsCheck

__all__ = ["CheckMetrics"]


class CheckMetrics(JobCallback):
    """Refuses a metric whose states are no sums, since a `tf.distribute` strategy adds up those of its replicas.

    `job.callbacks` adds it where one process has several replicas; over ranks `SyncMetrics` does the same.

    >>> import keras
    >>> class Largest(keras.metrics.Metric):
    ...     def __init__(self, name="largest"):
    ...         super().__init__(name=name)
    ...         self.largest = self.add_variable((), "zeros", name="largest")
    ...     def update_state(self, y_true, y_pred, sample_weight=None):
    ...         self.largest.assign(keras.ops.maximum(self.largest, keras.ops.max(y_pred)))
    ...     def result(self):
    ...         return self.largest + 0.0
    >>> model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse", metrics=[Largest()])
    >>> try:
    ...     model.fit(keras.ops.ones((4, 1)), keras.ops.ones((4, 1)), callbacks=[CheckMetrics()], verbose=0)
    ... except ValueError as error:
    ...     print(str(error).partition(":")[0])
    The metric 'largest' (Largest) cannot be computed over several replicas, which add its states up
    """

    stage = Stage.COMBINE_RANKS

    def __init__(self) -> None:
        super().__init__()
        self._check: MetricsCheck | None = None

    def set_model(self, model: Any) -> None:
        """Arranges that metrics unknown to distlr are tried before their first update."""
        super().set_model(model)
        self._check = MetricsCheck(model, is_root=self.communicator.is_root, by_strategy=True)
        self._check.watch()
        self._check.warn_of_reductions()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Refuses, before the first step, metrics that cannot be sums."""
        if self._check is not None:
            self._check.check_reset()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Names the metrics that could not be tried."""
        if self._check is not None:
            self._check.end()
