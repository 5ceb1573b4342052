"""The joint operations of a `tf.distribute` strategy's replicas within a step."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from distlr.strategies.watchdog import watchdog_of

__all__ = ["on_replicas", "sum_over_replicas"]


def on_replicas() -> bool:
    """Whether the code runs in one of several replicas."""
    context = tf.distribute.get_replica_context()
    return context is not None and context.num_replicas_in_sync > 1


def sum_over_replicas(tensors: Sequence[Any]) -> list[Any]:
    """The sum of each tensor over all replicas, in one reduction: dense, sparse, or None, which stays None.

    Keras divides the loss by the number of replicas, so that the sum of the gradients is the mean over the batch.
    """
    if not on_replicas():
        return list(tensors)
    # On this replica's device: an argument of a graph has no device, which TensorFlow refuses.
    present = [tf.identity(tensor) for tensor in tensors if tensor is not None]
    if not present:
        return list(tensors)
    context = tf.distribute.get_replica_context()
    reduce = functools.partial(context.all_reduce, tf.distribute.ReduceOp.SUM)
    watchdog = watchdog_of(context.strategy)
    summed = iter(reduce(present) if watchdog is None else watchdog.watched(reduce, present))
    return [None if tensor is None else next(summed) for tensor in tensors]
