"""The rate in the logs, epoch by epoch."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Any

from distlr.callbacks.job_callback import JobCallback
from distlr.callbacks.stage import Stage
from distlr.optimizer import adopted_by, is_adopted, rate_of
from distlr.schedules.preview import wrong_steps

__all__ = ["LearningRateLogger"]

_log = logging.getLogger("distlr")


class LearningRateLogger(JobCallback):
    """Writes the rate of each epoch into `logs`: Keras' progress bar, History and TensorBoard show it.

    It warns at the start if the schedule seems to be written in steps of the global batch.

    The names are `learning_rate` (the rate at the epoch's end, before what is decided there), `lr_multiplier` and
    `samples_seen`; `job.callbacks` adds it. If a model trains with other optimizers, and never with the
    compiled one, the names end in each optimizer's name: `learning_rate_adam_1`.

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

    stage = Stage.LOG_RATE

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Compares the schedule's length with that of the run."""
        batch_schedule = self.core.distlr.formula.batch_schedule if is_adopted(self.core) else None
        epochs = (self.params or {}).get("epochs")
        if batch_schedule is None or not epochs or not self.communicator.is_root:
            return
        warning = wrong_steps(batch_schedule, float(epochs))
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
        core = self.core
        adopted = adopted_by(self.model)
        if not is_adopted(core) and (not adopted or int(core.iterations.numpy())):
            return {"learning_rate": rate_of(core)}
        # Where the model's own optimizer, Keras' default, is never applied, those that are: by name if several.
        shown = {"": core} if is_adopted(core) else _by_name(adopted)
        if len(shown) == 1:
            shown = {"": next(iter(shown.values()))}
        record: dict[str, float | int] = {}
        for suffix, optimizer in shown.items():
            now = optimizer.distlr.formula.reading()
            values = {"learning_rate": now.rate, "lr_multiplier": now.multiplier, "samples_seen": now.samples_seen}
            record.update({f"{name}{suffix}": value for name, value in values.items()})
        return record


def _by_name(optimizers: Sequence[Any]) -> dict[str, Any]:
    """The optimizers by the suffix of their columns' names; before Keras 3.13 those of one class have one name."""
    named: dict[str, Any] = {}
    for optimizer in optimizers:
        names = (f"_{optimizer.name}{f'_{count}' if count else ''}" for count in itertools.count())
        named[next(name for name in names if name not in named)] = optimizer
    return named
