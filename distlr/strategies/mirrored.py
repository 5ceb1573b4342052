"""A mirrored strategy that can be made again in the same process."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import tensorflow as tf

__all__ = ["mirrored"]

_KEYS = 100_000  # more collectives than one strategy traces
_strategies = itertools.count(1)


def mirrored(devices: Sequence[str]) -> tf.distribute.Strategy:
    """A `MirroredStrategy` whose collectives are its own.

    TensorFlow numbers the collectives of every strategy from the same number on. Two strategies over the same
    devices in one process (a notebook's cell that is run again, two tests) then meet in each other's, and the
    second one fails with "Shape mismatch in the collective instance". TensorFlow's own tests move this number too.
    """
    made = tf.distribute.MirroredStrategy
    base = made._collective_key_base
    made._collective_key_base = next(_strategies) * _KEYS
    try:
        return made(devices)
    finally:
        made._collective_key_base = base
