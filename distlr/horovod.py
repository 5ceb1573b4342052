"""The drop-in for `horovod.tensorflow.keras`: the same names and meanings, working on Keras 3.

    import distlr.horovod as hvd           # instead of: import horovod.tensorflow.keras as hvd

    hvd.init()
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.01 * hvd.size(), momentum=0.9))
    model.fit(..., callbacks=[hvd.callbacks.BroadcastGlobalVariablesCallback(0), hvd.callbacks.MetricAverageCallback()])

On Keras 3 Horovod's own `DistributedOptimizer` averages nothing and says nothing, and its callbacks raise. As there, a
rate is what you give: already multiplied by `size()`. distlr's own front door (`distlr.init`) scales it for you.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np

from distlr import broadcast as _state
from distlr.callbacks import BroadcastState, ReplicaGuard, SyncMetrics
from distlr.callbacks.broadcast import compare_at_end
from distlr.communicators import horovod as _backend
from distlr.communicators.horovod_gradients import check_compression
from distlr.errors import ConfigurationError, DistributionError, received
from distlr.job import Job
from distlr.optimizer import inner, is_adopted
from distlr.start import init as _init

__all__ = [
    "Average",
    "Compression",
    "DistributedOptimizer",
    "Sum",
    "allgather",
    "allreduce",
    "broadcast",
    "broadcast_variables",
    "callbacks",
    "init",
    "is_initialized",
    "load_model",
    "local_rank",
    "local_size",
    "rank",
    "shutdown",
    "size",
]

Average, Sum = "average", "sum"
"""How ranks' values combine, for `op=`."""

Compression = SimpleNamespace(none="none", fp16="fp16")
"""What gradients are sent as, for `compression=`."""

_job: Job | None = None

_log = logging.getLogger("distlr")


def init() -> None:
    """Starts Horovod, gives this process its GPU, and remembers the job. Call it first.

    Raises:
        DistributionError: Horovod cannot be loaded, or sees fewer ranks than the launcher started.

    >>> import distlr.horovod as hvd
    >>> hvd.init()
    >>> hvd.is_initialized()
    True
    """
    global _job
    if _job is None:
        _job = _init("horovod")


def shutdown() -> None:
    """Ends Horovod's part of this process.

    Over MPI a process cannot start Horovod again afterwards: MPI aborts it.

    >>> import distlr.horovod as hvd
    >>> hvd.init()
    >>> hvd.shutdown()
    >>> hvd.is_initialized()
    False
    """
    global _job
    _job = None
    _backend.stop()


def is_initialized() -> bool:
    """Whether `init` was called.

    >>> import distlr.horovod as hvd
    >>> hvd.init()
    >>> hvd.is_initialized()
    True
    """
    return _job is not None


def rank() -> int:
    """This process' number, from 0.

    Raises:
        DistributionError: `init` was not called.

    >>> import distlr.horovod as hvd
    >>> hvd.init()
    >>> hvd.rank()  # on one rank
    0
    """
    return _current().rank


def size() -> int:
    """Number of processes.

    Raises:
        DistributionError: `init` was not called.

    >>> import distlr.horovod as hvd
    >>> hvd.init()
    >>> hvd.size()  # on one rank
    1
    """
    return _current().size


def local_rank() -> int:
    """This process' number on its host.

    Raises:
        DistributionError: `init` was not called.

    >>> import distlr.horovod as hvd
    >>> hvd.init()
    >>> hvd.local_rank()  # on one rank
    0
    """
    return _current().communicator.local_rank


def local_size() -> int:
    """Number of processes on this host.

    Raises:
        DistributionError: `init` was not called.

    >>> import distlr.horovod as hvd
    >>> hvd.init()
    >>> hvd.local_size()  # on one rank
    1
    """
    return _current().communicator.local_size


def DistributedOptimizer(
    optimizer: Any,
    name: str | None = None,
    device_dense: str = "",
    device_sparse: str = "",
    compression: str = Compression.none,
    sparse_as_dense: bool = False,
    gradient_predivide_factor: float = 1.0,
    op: str = Average,
    num_groups: int = 0,
    groups: Any = None,
    backward_passes_per_step: int = 1,
    average_aggregated_gradients: bool = False,
) -> Any:
    """Makes a Keras optimizer average its gradients over the ranks. The rate is not scaled: it is what you gave.

    The arguments are Horovod's. `name`, `device_dense`, `device_sparse`, `num_groups`, `groups`, `sparse_as_dense` and
    `gradient_predivide_factor` change how Horovod computes and not what, and are without effect here.

    Args:
        optimizer: an optimizer of Keras 3; the same object comes back.
        compression: `Compression.none` or `Compression.fp16`.
        op: `Average` or `Sum`.
        backward_passes_per_step: steps whose gradients are added up for one update; their sum, as in Horovod.
        average_aggregated_gradients: their mean instead.

    Raises:
        ConfigurationError: `op` or `compression` is none of these.
        DistributionError: `init` was not called.

    >>> import distlr.horovod as hvd
    >>> hvd.init()
    >>> optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.25 * hvd.size(), momentum=0.9))
    >>> isinstance(optimizer, keras.optimizers.SGD), float(optimizer.learning_rate) / hvd.size()
    (True, 0.25)
    """
    _check_op(op)
    if backward_passes_per_step > 1:
        inner(optimizer).gradient_accumulation_steps = backward_passes_per_step  # Keras then applies their mean
    adopted = _current().optimizer(optimizer, compression=compression)
    core = inner(adopted)
    factor = 1.0 if average_aggregated_gradients else float(backward_passes_per_step)
    core.reduction = dataclasses.replace(core.reduction, sums=op == Sum, factor=factor)
    return adopted


def broadcast_variables(variables: Any, root_rank: int = 0) -> None:
    """Gives every rank the variables of rank 0. Collective.

    Args:
        variables: Keras' or TensorFlow's, in the same order on every rank.
        root_rank: 0.

    Raises:
        ConfigurationError: `root_rank` is another one.

    >>> import distlr.horovod as hvd
    >>> hvd.init()
    >>> variable = keras.Variable(float(hvd.rank()))
    >>> hvd.broadcast_variables([variable])
    >>> float(variable.numpy())
    0.0
    """
    _check_root(root_rank)
    _state.broadcast_variables(_current().communicator, list(variables), tag="hvd.broadcast_variables")


def allreduce(value: Any, name: str | None = None, average: bool | None = None, op: str = Average) -> Any:
    """The mean (or the sum) of a value over the ranks, as a numpy array. Collective.

    Args:
        value: a number or an array, of one shape on all ranks. It is added in float64 (int64 if whole); the result has
            its type, so a mean of integers is cut off.
        name: of the call; the same on all ranks.
        average: Horovod's older word for `op`, which it goes before.
        op: `Average` or `Sum`.

    >>> import distlr.horovod as hvd
    >>> hvd.init()
    >>> hvd.allreduce([1.0, 2.0])
    array([1., 2.])
    >>> int(hvd.allreduce(1, op=hvd.Sum)) == hvd.size()
    True
    """
    _check_op(op)
    array = np.asarray(value)
    wide = array.astype("float64" if array.dtype.kind == "f" else "int64")
    total = _current().communicator.allreduce(wide, tag=f"hvd.allreduce {name or ''}")
    mean = average if average is not None else op == Average
    return (total / size()).astype(array.dtype) if mean else total.astype(array.dtype)


def allgather(value: Any, name: str | None = None) -> Any:
    """The ranks' arrays, one behind another, as a numpy array. Collective.

    Args:
        value: an array of one type and one shape but for the first dimension.
        name: of the call; the same on all ranks.

    >>> import distlr.horovod as hvd
    >>> hvd.init()
    >>> hvd.allgather([hvd.rank()]).tolist() == list(range(hvd.size()))
    True
    """
    return np.concatenate(_current().communicator.allgather(np.asarray(value), tag=f"hvd.allgather {name or ''}"))


def broadcast(value: Any, root_rank: int, name: str | None = None) -> Any:
    """The value of one rank, as a numpy array. Collective.

    Args:
        value: of one type and shape on all ranks.
        root_rank: whose.
        name: of the call; the same on all ranks.

    >>> import distlr.horovod as hvd
    >>> hvd.init()
    >>> hvd.broadcast([hvd.rank(), 7], root_rank=0)
    array([0, 7])
    """
    return _current().communicator.broadcast(np.asarray(value), root=root_rank, tag=f"hvd.broadcast {name or ''}")


def load_model(
    filepath: Any,
    custom_objects: Any = None,
    compression: str | None = None,
    *,
    op: str | None = None,
    average_aggregated_gradients: bool | None = None,
) -> Any:
    """`keras.models.load_model`, with the optimizer reducing its gradients over the ranks as it did when it was saved.

    What `DistributedOptimizer` was told is in the file; what is given here goes before it, and a line says so. A file
    of a plain optimizer, or of an earlier version, does not say it: then the mean is taken, also of several backward
    passes.

    Args:
        filepath: of a model that a plain optimizer or one of distlr's was saved with.
        custom_objects: see Keras.
        compression: `Compression.none` or `Compression.fp16`; by default as saved.
        op: `Average` or `Sum`; by default as saved.
        average_aggregated_gradients: whether the mean over backward passes is taken; by default as saved.

    Raises:
        ConfigurationError: `op` or `compression` is none of these.
        DistributionError: `init` was not called.

    >>> import distlr.horovod as hvd
    >>> hvd.init()
    >>> import os, tempfile
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "model.keras")
    ...     model.save(path)
    ...     loaded = hvd.load_model(path)
    >>> loaded.optimizer.exchange is not None
    True
    """
    job = _current()
    _check_op(op or Average)
    check_compression(compression or Compression.none)
    model = keras.models.load_model(filepath, custom_objects=custom_objects)
    if model.optimizer is None:  # the model was saved without being compiled
        return model
    core = inner(model.optimizer)
    passes = float(core.gradient_accumulation_steps or 1)
    given = {
        "compression": compression,
        "sums": None if op is None else op == Sum,
        "factor": None if average_aggregated_gradients is None else 1.0 if average_aggregated_gradients else passes,
    }
    asked = {name: value for name, value in given.items() if value is not None}
    if is_adopted(core):
        saved = core.reduction
        core.reduction = dataclasses.replace(saved, **asked)
        if core.reduction != saved and job.is_root:
            _log.warning("%s says %r, and hvd.load_model %r, which goes first.", filepath, saved, core.reduction)
        job._connect(core)
    else:  # a plain optimizer
        job.optimizer(model.optimizer, compression=compression or Compression.none)
        core.reduction = dataclasses.replace(core.reduction, **asked)
    return model


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
        _check_root(root_rank)
        self.bind(_current().communicator)
        self._guard = _LastGuard()
        self._guard.bind(self.communicator)

    def set_model(self, model: Any) -> None:
        """Refuses, too, what `job.callbacks` would refuse."""
        super().set_model(model)
        _current().audit().set_model(model)
        self._guard.set_model(model)

    def on_train_begin(self, logs: Any = None) -> None:
        """Compares and broadcasts. Collective."""
        super().on_train_begin(logs)
        self._guard.come_last()

    def on_train_end(self, logs: Any = None) -> None:
        """Nothing: callbacks behind this one may change the weights yet."""


class _LastGuard(ReplicaGuard):
    """Compares the ranks after all callbacks of a `fit`, whose list the drop-in does not see.

    Keras puts its own History behind the user's callbacks. Of each rank's own may be the weights that are not trained,
    as with Horovod.
    """

    trained_alone = True

    def come_last(self) -> None:
        """Has this `fit`'s History call it."""
        history = getattr(self.model, "history", None)
        if self.communicator.size == 1 or history is None:  # None where a loop of one's own calls the callbacks
            return
        record = functools.partial(type(history).on_epoch_end, history)

        def on_epoch_end(epoch: int, logs: Any = None) -> None:
            record(epoch, logs)
            self._epoch = epoch
            self.on_epoch_end(epoch, logs)

        def on_train_end(logs: Any = None) -> None:
            del history.on_epoch_end, history.on_train_end  # the class' own come back
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
        self.bind(_current().communicator)


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
        """Takes the number of steps from Keras."""
        if self.steps_per_epoch is None and not self.staircase:
            self.steps_per_epoch = (self.params or {}).get("steps")
            if self.steps_per_epoch is None:
                hint = "pass the number of batches an epoch"
                raise ConfigurationError(received("steps_per_epoch", None, "given where Keras does not know it", hint))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Notes the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Sets the rate, where this batch is one for it."""
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
        optimizer = inner(self.model.optimizer)
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
        momentum_correction: see `LearningRateScheduleCallback`; likewise `steps_per_epoch`.
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
        """Says that the warmup is done."""
        super().on_epoch_end(epoch, logs)
        if epoch + 1 == self.end_epoch and self.verbose > 0 and rank() == 0:
            print(
                f"\nEpoch {epoch + 1}: finished gradual learning rate warmup to "
                f"{float(self.model.optimizer.learning_rate):g}."
            )


callbacks = SimpleNamespace(
    BroadcastGlobalVariablesCallback=BroadcastGlobalVariablesCallback,
    LearningRateScheduleCallback=LearningRateScheduleCallback,
    LearningRateWarmupCallback=LearningRateWarmupCallback,
    MetricAverageCallback=MetricAverageCallback,
)
"""The callbacks, where Horovod has them."""


def _current() -> Job:
    if _job is None:
        raise DistributionError("Horovod was not started. To mend it: call hvd.init() first.")
    return _job


def _check_op(op: Any) -> None:
    if op not in (Average, Sum):
        hint = "take it from distlr.horovod, not from Horovod"
        raise ConfigurationError(received("op", op, "hvd.Average or hvd.Sum", hint))


def _check_root(root_rank: int) -> None:
    if root_rank != 0:
        hint = "write 0: rank 0 decides, saves and restores in distlr"
        raise ConfigurationError(received("root_rank", root_rank, "0", hint))
