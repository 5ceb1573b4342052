"""The rate in the logs, epoch by epoch."""

from __future__ import annotations

import logging
from typing import Any

from distlr.callbacks.base import JobCallback
from distlr.optimizer import is_adopted, rate_of
from distlr.plan import wrong_steps

__all__ = ["LearningRateLogger"]

_log = logging.getLogger("distlr")


class LearningRateLogger(JobCallback):
    """Writes the rate of each epoch into `logs`: Keras' progress bar, History and TensorBoard show it.

    It says so at the start where the schedule seems to be written in steps of the global batch.

    The names are `learning_rate` (the rate at the epoch's end, before what is decided there), `lr_multiplier` and
    `samples_seen`; `job.callbacks` adds it.

    >>> import distlr, keras, numpy as np
    >>> job = distlr.init(environ={})
    >>> with job.scope():
    ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    ...     model.compile(job.optimizer(keras.optimizers.SGD(0.1)), "mse")
    >>> x = np.ones((32, 2), "float32")
    >>> history = model.fit(x, x[:, :1], epochs=2, callbacks=job.callbacks(), verbose=0).history
    >>> [round(rate, 6) for rate in history["learning_rate"]], history["lr_multiplier"]
    ([0.1, 0.1], [1.0, 1.0])
    """

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Compares the schedule's length with that of the run."""
        scaled, epochs = getattr(self.core, "schedule", None), (self.params or {}).get("epochs")
        if scaled is None or not epochs or not self.communicator.is_root:
            return
        warning = wrong_steps(scaled, float(epochs))
        if warning is not None:
            _log.warning(
                "%s Fix: write the schedule as in the one-GPU script, in steps of the base batch; or "
                'job.optimizer(..., clock="steps") where it is meant so.',
                warning,
            )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the rate to the logs."""
        if logs is not None:
            logs.update(self._record())

    def _record(self) -> dict[str, float | int]:
        optimizer = self.core
        if not is_adopted(optimizer):
            return {"learning_rate": rate_of(optimizer)}
        now = optimizer.reading()
        return {"learning_rate": now.rate, "lr_multiplier": now.multiplier, "samples_seen": now.samples_seen}
