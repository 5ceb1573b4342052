"""A mirrored strategy that can be made again in the same process, and whose iterators are quick where it can."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from distlr.strategies.batches import divided, is_divided

__all__ = ["mirrored"]

_KEYS = 100_000  # more collectives than one strategy traces
_strategies = itertools.count(1)


class CpuMirroredStrategy(tf.distribute.MirroredStrategy):
    """A `MirroredStrategy` over logical CPUs, which share one memory: one iterator serves all."""

    def experimental_distribute_dataset(self, dataset: Any, options: Any = None) -> Any:
        """The same shares as in TensorFlow; batches of dense tensors come from one ordinary iterator."""
        if is_divided(dataset):
            return dataset
        specs = tf.nest.flatten(dataset.element_spec)
        if options is None and all(isinstance(spec, tf.TensorSpec) and spec.shape.rank for spec in specs):
            return divided(dataset, self)
        return super().experimental_distribute_dataset(dataset, options)


def mirrored(devices: Sequence[str]) -> tf.distribute.Strategy:
    """A `MirroredStrategy` whose collectives are its own.

    TensorFlow numbers the collectives of every strategy from the same number on. Two strategies over the same
    devices in one process (a notebook's cell that is run again, two tests) then use each other's, and the
    second one fails with "Shape mismatch in the collective instance". TensorFlow's own tests move this number too.
    """
    on_cpus = all(tf.DeviceSpec.from_string(device).device_type == "CPU" for device in devices)
    cls = CpuMirroredStrategy if on_cpus else tf.distribute.MirroredStrategy
    base = cls._collective_key_base
    cls._collective_key_base = next(_strategies) * _KEYS
    try:
        return cls(devices)
    finally:
        cls._collective_key_base = base
