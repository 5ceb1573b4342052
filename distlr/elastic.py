"""Training on ranks that are lost or join meanwhile."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import keras
import tensorflow as tf

from distlr._utils.checks import positive_integer
from distlr._utils.console_log import show_log_where_none_is_configured
from distlr._utils.directory_lock import release_all
from distlr.communicators import Communicator
from distlr.errors import ConfigurationTypeError, received
from distlr.job import Job
from distlr.start import init
from distlr.strategies.local import pin_gpu

__all__ = ["run"]

T = TypeVar("T")


def run(train: Callable[[Job], T], *, timeout: float = 600.0, resets: int = 100) -> T:
    """Calls `train(job)`, and calls it anew with a new job whenever ranks were lost or have joined.

        def train(job):
            batch = job.batch(per_replica=64, base_batch=256, samples_per_epoch=60_000)
            with job.scope():
                ...                                   # model and optimizer, as ever
            model.fit(job.shard(data, batch), epochs=90, callbacks=job.callbacks([Checkpoint("run/checkpoints")]))

        distlr.elastic.run(train)

    Under `horovodrun --min-np 1 --host-discovery-script ...`. Batch, factor, traced functions and data are all made
    again for the new number of ranks, so that nothing of the old one can be left. `callbacks.Checkpoint`, which
    is needed, in a directory that every host sees, brings the run to where it was: a lost rank costs the steps since
    the last checkpoint, and no more. New ranks join after a checkpoint that all write for this purpose. Any error that
    does not come from a lost rank ends the process, with that error. Without the elastic launcher it is
    `train(distlr.init())`.

    Args:
        train: takes the job, and returns when the training is done.
        timeout: seconds; see `distlr.init`.
        resets: how often the ranks may change.

    Returns:
        The result of `train`.

    Raises:
        ConfigurationError, ConfigurationTypeError: an argument cannot be right; `train` is not called then.
        DistributionError: the ranks changed more often than `resets`.

    >>> run(lambda job: (job.rank, job.size))  # without a launcher
    (0, 1)
    """
    if not callable(train):
        raise ConfigurationTypeError(received("train", train, "a function of the job"))
    resets = positive_integer("resets", resets)
    from distlr.communicators.horovod.elastic import is_elastic, run_elastic

    show_log_where_none_is_configured()
    if not is_elastic():
        return train(init(timeout=timeout))
    pinned = False

    def generation(communicator: Communicator) -> T:
        nonlocal pinned
        if not pinned:  # once: TensorFlow starts with it
            pin_gpu(communicator.local_rank, communicator.local_size)
            pinned = True
        keras.utils.clear_session()
        gc.collect()
        try:
            return train(Job(tf.distribute.get_strategy(), "horovod", communicator))
        finally:
            release_all()  # locks of directories: rank 0 of the next generation may be another process

    return run_elastic(generation, timeout=timeout, resets=resets)
