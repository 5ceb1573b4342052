"""The GPUs of this machine."""

from __future__ import annotations

import logging

import tensorflow as tf

from distlr.errors import DistributionError
from distlr.strategies.mirrored import mirrored

__all__ = ["local_gpus", "pin_gpu"]

_log = logging.getLogger("distlr")


def local_gpus() -> tf.distribute.Strategy | None:
    """A `MirroredStrategy` over this machine's GPUs, or None with fewer than two."""
    gpus = tf.config.list_logical_devices("GPU")
    return mirrored([gpu.name for gpu in gpus]) if len(gpus) > 1 else None


def pin_gpu(local_rank: int, local_size: int) -> None:
    """Gives this process the GPU of its local rank alone, with memory that grows as it is used.

    With fewer GPUs than processes some share one: such a job is a simulation, and a warning says so. Without a GPU
    nothing is done.

    Raises:
        DistributionError: TensorFlow has started already, on all GPUs.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return
    if len(gpus) < local_size and local_rank == 0:
        _log.warning("%d processes share %d GPUs of this machine.", local_size, len(gpus))
    gpu = gpus[local_rank % len(gpus)]
    try:
        tf.config.set_visible_devices(gpu, "GPU")
        tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError as error:
        raise DistributionError(
            f"[local rank {local_rank}] The process must be given its GPU before TensorFlow starts. Fix: call "
            "distlr.init before the first TensorFlow operation."
        ) from error
