"""The drop-in for `horovod.tensorflow.keras`: the same names and meanings, working on Keras 3.

    import distlr.horovod as hvd           # instead of: import horovod.tensorflow.keras as hvd

    hvd.init()
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(0.01 * hvd.size(), momentum=0.9))
    model.fit(..., callbacks=[hvd.callbacks.BroadcastGlobalVariablesCallback(0), hvd.callbacks.MetricAverageCallback()])

On Keras 3 Horovod's own `DistributedOptimizer` averages nothing and says nothing, and its callbacks raise. As in
Horovod, the rate is the one that you give, already multiplied by `size()`. distlr's own front door (`distlr.init`)
scales it for you.
"""

import distlr._utils.keras_setup  # noqa: F401  (checks the installation first)
from distlr.horovod import callbacks
from distlr.horovod._process import init, is_initialized, local_rank, local_size, rank, shutdown, size
from distlr.horovod.functions import (
    Average,
    Compression,
    DistributedOptimizer,
    Sum,
    allgather,
    allreduce,
    broadcast,
    broadcast_variables,
    load_model,
)

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
