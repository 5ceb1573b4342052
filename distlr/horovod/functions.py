"""Horovod's optimizer and collectives, under its names."""

from __future__ import annotations

import dataclasses
import logging
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np

from distlr.communicators.horovod.gradients import check_compression
from distlr.errors import ConfigurationError, received
from distlr.horovod._process import check_root, current_job, size
from distlr.optimizer import is_adopted, unwrap_loss_scale
from distlr.sync import broadcast as _state

__all__ = [
    "Average",
    "Compression",
    "DistributedOptimizer",
    "Sum",
    "allgather",
    "allreduce",
    "broadcast",
    "broadcast_variables",
    "load_model",
]

Average, Sum = "average", "sum"
"""How ranks' values combine, for `op=`."""

Compression = SimpleNamespace(none="none", fp16="fp16")
"""What gradients are sent as, for `compression=`."""

_log = logging.getLogger("distlr")


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
    core = unwrap_loss_scale(optimizer)
    if backward_passes_per_step > 1:
        core.gradient_accumulation_steps = backward_passes_per_step  # Keras then applies their mean
    adopted = current_job().optimizer(optimizer, compression=compression)
    factor = 1.0 if average_aggregated_gradients else float(backward_passes_per_step)
    gradients = core.distlr.gradients
    gradients.reduction = dataclasses.replace(gradients.reduction, sums=op == Sum, factor=factor)
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
    check_root(root_rank)
    _state.broadcast_variables(current_job().communicator, list(variables), tag="hvd.broadcast_variables")


def allreduce(value: Any, name: str | None = None, average: bool | None = None, op: str = Average) -> Any:
    """The mean (or the sum) of a value over the ranks, as a numpy array. Collective.

    Args:
        value: a number or an array, of one shape on all ranks. It is added in float64 (int64 if whole); the result has
            its type, so a mean of integers is cut off.
        name: the name of the call; the same on all ranks.
        average: Horovod's older name for `op`; it has precedence.
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
    total = current_job().communicator.allreduce(wide, tag=f"hvd.allreduce {name or ''}")
    mean = average if average is not None else op == Average
    return (total / size()).astype(array.dtype) if mean else total.astype(array.dtype)


def allgather(value: Any, name: str | None = None) -> Any:
    """The ranks' arrays, one behind another, as a numpy array. Collective.

    Args:
        value: an array of one type and one shape but for the first dimension.
        name: the name of the call; the same on all ranks.

    >>> import distlr.horovod as hvd
    >>> hvd.init()
    >>> hvd.allgather([hvd.rank()]).tolist() == list(range(hvd.size()))
    True
    """
    return np.concatenate(current_job().communicator.allgather(np.asarray(value), tag=f"hvd.allgather {name or ''}"))


def broadcast(value: Any, root_rank: int, name: str | None = None) -> Any:
    """The value of one rank, as a numpy array. Collective.

    Args:
        value: a value of one type and shape on all ranks.
        root_rank: the rank whose value is returned.
        name: the name of the call; the same on all ranks.

    >>> import distlr.horovod as hvd
    >>> hvd.init()
    >>> hvd.broadcast([hvd.rank(), 7], root_rank=0)
    array([0, 7])
    """
    return current_job().communicator.broadcast(np.asarray(value), root=root_rank, tag=f"hvd.broadcast {name or ''}")


def load_model(
    filepath: Any,
    custom_objects: Any = None,
    compression: str | None = None,
    *,
    op: str | None = None,
    average_aggregated_gradients: bool | None = None,
) -> Any:
    """`keras.models.load_model`, with the optimizer reducing its gradients over the ranks as it did when it was saved.

    The arguments of `DistributedOptimizer` are in the file. Those given here replace them, which a line in the log
    says. A file of a plain optimizer, or of an earlier version, has none: then the mean is taken, also over several
    backward passes.

    Args:
        filepath: the path of a model that a plain optimizer or one of distlr's was saved with.
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
    >>> loaded.optimizer.distlr.gradients.reducer is not None
    True
    """
    job = current_job()
    _check_op(op or Average)
    check_compression(compression or Compression.none)
    model = keras.models.load_model(filepath, custom_objects=custom_objects)
    if model.optimizer is None:  # the model was saved without being compiled
        return model
    core = unwrap_loss_scale(model.optimizer)
    passes = float(core.gradient_accumulation_steps or 1)
    arguments = {
        "compression": compression,
        "sums": None if op is None else op == Sum,
        "factor": None if average_aggregated_gradients is None else 1.0 if average_aggregated_gradients else passes,
    }
    changes = {name: value for name, value in arguments.items() if value is not None}
    if is_adopted(core):
        gradients = core.distlr.gradients
        saved = gradients.reduction
        gradients.reduction = dataclasses.replace(saved, **changes)
        if gradients.reduction != saved and job.is_root:
            _log.warning("%s says %r, and hvd.load_model %r, which goes first.", filepath, saved, gradients.reduction)
        job._connect(core)
    else:  # a plain optimizer
        job.optimizer(model.optimizer, compression=compression or Compression.none)
        gradients = core.distlr.gradients
        gradients.reduction = dataclasses.replace(gradients.reduction, **changes)
    return model


def _check_op(op: Any) -> None:
    if op not in (Average, Sum):
        hint = "take it from distlr.horovod, not from Horovod"
        raise ConfigurationError(received("op", op, "hvd.Average or hvd.Sum", hint))
