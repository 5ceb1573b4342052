"""Horovod's callbacks, under its names."""

from __future__ import annotations

import functools
from typing import Any

import keras

from distlr.callbacks import BroadcastState, ReplicaGuard, SyncMetrics
from distlr.callbacks.broadcast import compare_at_end
from distlr.errors import ConfigurationError, received
from distlr.horovod._process import check_root, current_job, rank, size
from distlr.optimizer import unwrap_loss_scale

__all__ = [
    "BroadcastGlobalVariablesCallback",
    "LearningRateScheduleCallback",
    "LearningRateWarmupCallback",
    "MetricAverageCallback",
]


class BroadcastGlobalVariablesCallback(BroadcastState):
    """Rank 0's model and optimizer on every rank before the first step; see `distlr.callbacks.BroadcastState`.

    At each epoch's end and after `fit`'s last callback it compares the ranks' rates, clocks and trained weights, and
    makes the stop of one rank the stop of all.

    Args:
        root_rank: 0.
        device: without effect.

    Raises:
        ConfigurationError: `root_rank` is another one.
        DistributionError: `init` was not called.

    >>> import numpy as np
    >>> import distlr.horovod as hvd
    >>> hvd.init()
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(hvd.DistributedOptimizer(keras.optimizers.SGD(0.1)), "mse")
    >>> callbacks = [hvd.callbacks.BroadcastGlobalVariablesCallback(0), hvd.callbacks.MetricAverageCallback()]
    >>> model.fit(np.ones((8, 2)), np.ones(8), callbacks=callbacks, verbose=0).epoch
    [0]
    """

    def __init__(self, root_rank: int, device: str = "") -> None:
        super().__init__()
        check_root(root_rank)
        self.bind(current_job().communicator)
        self._guard = _LastGuard()
        self._guard.bind(self.communicator)

    def set_model(self, model: Any) -> None:
        """Also refuses callbacks that `job.callbacks` would refuse."""
        super().set_model(model)
        current_job().audit().set_model(model)
        self._guard.set_model(model)

    def on_train_begin(self, logs: Any = None) -> None:
        """Compares and broadcasts. Collective."""
        super().on_train_begin(logs)
        self._guard.append_to_history()

    def on_train_end(self, logs: Any = None) -> None:
        """Does nothing: callbacks behind this one may still change the weights."""


class _LastGuard(ReplicaGuard):
    """Compares the ranks after all callbacks of a `fit`, whose list the drop-in does not see.

    Keras puts its own History behind the user's callbacks. The weights that are not trained may differ by
    rank, as with Horovod.
    """

    trained_alone = True

    def append_to_history(self) -> None:
        """Arranges that this `fit`'s History, the last callback, calls it."""
        history = getattr(self.model, "history", None)
        if self.communicator.size == 1 or history is None:  # None where a loop of one's own calls the callbacks
            return
        record = functools.partial(type(history).on_epoch_end, history)

        def on_epoch_end(epoch: int, logs: Any = None) -> None:
            record(epoch, logs)
            self._epoch = epoch
            self.on_epoch_end(epoch, logs)

        def on_train_end(logs: Any = None) -> None:
            del history.on_epoch_end, history.on_train_end  # the methods of the class come back
            compare_at_end(self.communicator, self.model, trained_alone=True)

        history.on_epoch_end, history.on_train_end = on_epoch_end, on_train_end


class MetricAverageCallback(SyncMetrics):
    """The metrics of all ranks' samples in the epoch's logs, exact where Horovod's are the mean of the ranks'.

    Args:
        device: without effect.

    Raises:
        DistributionError: `init` was not called.

    >>> import distlr.horovod as hvd
    >>> hvd.init()
    >>> hvd.callbacks.MetricAverageCallback().communicator.name
    'horovod'
    """

    def __init__(self, device: str = "") -> None:
        super().__init__()
        self.bind(current_job().communicator)


class LearningRateScheduleCallback(keras.callbacks.Callback):
    """`rate = initial_lr * multiplier(epoch)` for `start_epoch <= epoch < end_epoch`.

    Args:
        initial_lr: the rate that is multiplied: already multiplied by `size()`.
        multiplier: a number, or a function of the epoch.
        start_epoch: the first epoch that it is applied in.
        end_epoch: the first one that it is not applied in any more; None for the end of the run.
        staircase: set at each epoch's beginning; otherwise at each batch, with a fraction of the epoch.
        momentum_correction: multiply the momentum by the ratio of the new rate to the old one
            (Goyal et al. 2017, arXiv 1706.02677, section 3).
        steps_per_epoch: batches an epoch, where Keras does not know.

    >>> import numpy as np
    >>> import distlr.horovod as hvd
    >>> hvd.init()
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(hvd.DistributedOptimizer(keras.optimizers.SGD(0.1)), "mse")
    >>> decay = hvd.callbacks.LearningRateScheduleCallback(0.1, lambda epoch: 0.5**epoch)
    >>> history = model.fit(np.ones((8, 2)), np.ones(8), epochs=3, callbacks=[decay], verbose=0).history
    >>> [round(rate, 6) for rate in history["lr"]]
    [0.1, 0.05, 0.025]
    """

    def __init__(
        self,
        initial_lr: float,
        multiplier: Any,
        start_epoch: int = 0,
        end_epoch: int | None = None,
        staircase: bool = True,
        momentum_correction: bool = True,
        steps_per_epoch: int | None = None,
    ) -> None:
        super().__init__()
        if initial_lr is None:
            raise ConfigurationError(received("initial_lr", None, "a rate", "write the rate of the optimizer"))
        self.initial_lr, self.multiplier = initial_lr, multiplier
        self.start_epoch, self.end_epoch = start_epoch, end_epoch
        # A multiplier that is a number changes at `start_epoch` alone.
        self.staircase = staircase or not callable(multiplier)
        self.momentum_correction, self.steps_per_epoch = momentum_correction, steps_per_epoch
        self._epoch = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Reads the number of steps from Keras."""
        if self.steps_per_epoch is None and not self.staircase:
            self.steps_per_epoch = (self.params or {}).get("steps")
            if self.steps_per_epoch is None:
                hint = "pass the number of batches an epoch"
                raise ConfigurationError(received("steps_per_epoch", None, "given where Keras does not know it", hint))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Sets the rate if it changes at this batch."""
        if self._epoch < self.start_epoch or (self.end_epoch is not None and self._epoch >= self.end_epoch):
            return
        if self.staircase and batch == 0:
            self._set(self._epoch)
        elif not self.staircase:
            self._set(self._epoch + batch / (self.steps_per_epoch or 1))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Writes the rate into the logs, as Horovod's does."""
        if logs is not None:
            logs["lr"] = float(self.model.optimizer.learning_rate)

    def _set(self, epoch: float) -> None:
        optimizer = unwrap_loss_scale(self.model.optimizer)
        old = float(optimizer.learning_rate)
        new = self.initial_lr * (self.multiplier(epoch) if callable(self.multiplier) else self.multiplier)
        optimizer.learning_rate = new
        if self.momentum_correction and old > 0 and new != old:
            for momentum in getattr(optimizer, "momentums", None) or ():
                momentum.assign(momentum * (new / old))


class LearningRateWarmupCallback(LearningRateScheduleCallback):
    """From `initial_lr / size()` to `initial_lr` over `warmup_epochs`, batch by batch.

    Args:
        initial_lr: the rate after the warmup: already multiplied by `size()`.
        warmup_epochs: its length.
        momentum_correction: see `LearningRateScheduleCallback`.
        steps_per_epoch: see `LearningRateScheduleCallback`.
        verbose: above 0, rank 0 says when it is done.

    >>> import distlr.horovod as hvd
    >>> hvd.init()
    >>> warmup = hvd.callbacks.LearningRateWarmupCallback(0.1 * hvd.size(), warmup_epochs=5)
    >>> warmup.start_epoch, warmup.end_epoch
    (0, 5)
    """

    def __init__(
        self,
        initial_lr: float,
        warmup_epochs: int = 5,
        momentum_correction: bool = True,
        steps_per_epoch: int | None = None,
        verbose: int = 0,
    ) -> None:
        def multiplier(epoch: float) -> float:
            # One batch on, so that an epoch ends on a round number, as in Horovod.
            epoch += 1.0 / (self.steps_per_epoch or 1)
            return 1.0 / size() * (epoch * (size() - 1) / warmup_epochs + 1)

        super().__init__(initial_lr, multiplier, 0, warmup_epochs, False, momentum_correction, steps_per_epoch)
        self.verbose = verbose

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Prints that the warmup is done."""
        super().on_epoch_end(epoch, logs)
        if epoch + 1 == self.end_epoch and self.verbose > 0 and rank() == 0:
            print(
                f"\nEpoch {epoch + 1}: finished gradual learning rate warmup to "
                f"{float(self.model.optimizer.learning_rate):g}."
            )
