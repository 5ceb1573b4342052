"""Keras' callbacks that were written for one GPU: the rates that they see and give are those of the base batch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from distlr.callbacks.job_callback import JobCallback
from distlr.callbacks.plateau import ReduceLROnPlateau
from distlr.callbacks.stage import Stage
from distlr.optimizer import AdoptedOptimizer, unwrap_loss_scale
from distlr.scaling.rules import rule_name

__all__ = ["BaseRates"]

_log = logging.getLogger("distlr")


class BaseRates(JobCallback):
    """Lets Keras' `LearningRateScheduler` work in rates of the base batch, as in the one-GPU script.

    Its function receives `schedule(t) * multiplier`, the rate that the one-GPU script would have now, and its result
    is multiplied by the factor and the warmup and applied. So all of these are right under any rule, in and after the
    warmup: `lr * 0.1`, `lr`, a table of rates by epoch, `max(lr * 0.5, 1e-4)`. One line in the log says both numbers.

    A plateau's `min_lr` is the rate as it is applied, after scaling, Keras' too; where there is one a line says that.

    `job.callbacks` adds it where there is such a callback:

    >>> import distlr, numpy as np
    >>> job = distlr.init(environ={})
    >>> batch = job.batch(per_replica=8, base_batch=4, samples_per_epoch=8)
    >>> with job.scope():
    ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    ...     model.compile(job.optimizer(keras.optimizers.SGD(0.5), batch), "mse")
    >>> table = keras.callbacks.LearningRateScheduler(lambda epoch: [0.5, 0.25][epoch])
    >>> x = np.ones((8, 2), "float32")
    >>> history = model.fit(x, x[:, :1], batch_size=8, epochs=2, callbacks=job.callbacks([table]), verbose=0).history
    >>> history["learning_rate"]  # twice the table's, at twice the base batch
    [1.0, 0.5]

    Args:
        callbacks: the user's, of this rank.
    """

    stage = Stage.CHECK

    def __init__(self, callbacks: Sequence[Any]) -> None:
        super().__init__()
        self._schedulers = [c for c in callbacks if isinstance(c, keras.callbacks.LearningRateScheduler)]
        self._plateaus = [(type(callback).__name__, _min_lr(callback)) for callback in callbacks]
        self._resumed: int | None = None  # the epoch that `fit` continues in its middle

    @staticmethod
    def is_needed(callbacks: Sequence[Any]) -> bool:
        """Whether one of these has rates that were written for one GPU."""
        return any(isinstance(c, keras.callbacks.LearningRateScheduler) or _min_lr(c) for c in callbacks)

    def skip_resumed_epoch(self, epoch: int) -> None:
        """Leaves the schedulers out as this epoch begins once more: what they set there is in the rate already.

        Args:
            epoch: from 0; called by `Checkpoint`, as `fit` begins.
        """
        self._resumed = epoch

    def is_resumed(self, epoch: int) -> bool:
        """Whether this epoch had begun before, in the run that is continued."""
        return epoch == self._resumed

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Puts the change of units around the schedulers' functions."""
        self._unwrap()  # left by an interrupted `fit`
        core = self.core
        if not isinstance(core, AdoptedOptimizer):
            return
        for scheduler in self._schedulers:
            scheduler.schedule = _InBaseRates(scheduler, self, speaks=self.communicator.is_root)
        if core.distlr.formula.batch_schedule is None:
            return
        factor = core.distlr.formula.batch_schedule.factor
        if factor != 1.0 and self.communicator.is_root:
            for name, min_lr in self._plateaus:
                if min_lr:
                    _log.info(
                        "%s(min_lr=%g) is the rate as it is applied, after scaling: %g for the base batch. To keep a "
                        "limit that was written for the base batch: min_lr=%g.",
                        name,
                        min_lr,
                        min_lr / factor,
                        min_lr * factor,
                    )

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Gives the schedulers their functions back."""
        self._unwrap()
        self._resumed = None

    def _unwrap(self) -> None:
        for scheduler in self._schedulers:
            if isinstance(scheduler.schedule, _InBaseRates):
                scheduler.schedule = scheduler.schedule.function


class _InBaseRates:
    """A scheduler's function, between the rates of the base batch and those that are applied."""

    def __init__(self, scheduler: Any, rates: BaseRates, *, speaks: bool) -> None:
        self.function = scheduler.schedule
        self._scheduler, self._rates, self._speaks = scheduler, rates, speaks

    def __call__(self, epoch: int, lr: float | None = None) -> Any:
        """Sets the rate, and returns the one that is applied, which Keras then sets as well; in Keras' own ways to ask.

        Args:
            epoch: from 0.
            lr: the rate that is applied; None where the function takes the epoch alone.
        """
        core = unwrap_loss_scale(self._scheduler.model.optimizer)
        if self._rates.is_resumed(epoch):  # `lr * 0.5` would halve it twice
            return core.learning_rate
        if core.distlr.formula.batch_schedule is None:
            return self.function(epoch) if lr is None else self.function(epoch, lr)
        before = core.distlr.formula.base_rate
        rate = self.function(epoch) if lr is None else self.function(epoch, before)
        if not isinstance(rate, (float, np.float32, np.float64)):
            return rate  # which Keras refuses
        if rate != before:
            core.distlr.formula.set_base_rate(float(rate))
        self._log_factor(core, float(rate))
        return core.learning_rate

    def _log_factor(self, core: Any, rate: float) -> None:
        factor = core.distlr.formula.batch_schedule.factor
        if not self._speaks or factor == 1.0:
            return
        self._speaks = False
        _log.info(
            "%s gives rates for the base batch: %g is applied as %g (x %g, %s)%s.",
            type(self._scheduler).__name__,
            rate,
            rate * factor,
            factor,
            rule_name(core.distlr.formula.batch_schedule.rule),
            ", once the warmup is over" if core.distlr.formula.in_warmup else "",
        )


def _min_lr(callback: Any) -> float:
    """The limit of a plateau, or 0."""
    if isinstance(callback, keras.callbacks.ReduceLROnPlateau):
        return float(callback.min_lr)
    return float(callback.policy.min_lr) if isinstance(callback, ReduceLROnPlateau) else 0.0
