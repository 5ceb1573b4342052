"""The GPUs of this machine."""

from __future__ import annotations

import tensorflow as tf

from distlr.strategies.mirrored import mirrored

__all__ = ["local_gpus"]


def local_gpus() -> tf.distribute.Strategy | None:
    """A `MirroredStrategy` over this machine's GPUs, or None with fewer than two."""
    gpus = tf.config.list_logical_devices("GPU")
    return mirrored([gpu.name for gpu in gpus]) if len(gpus) > 1 else None
