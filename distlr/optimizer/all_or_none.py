"""Steps that all replicas and ranks take, or none of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from distlr.communicators.gradient_reducer import GradientReducer
from distlr.strategies.replicas import on_replicas, sum_over_replicas

__all__ = ["are_finite", "global_norm", "run_if", "true_everywhere"]


def are_finite(gradients: Sequence[Any]) -> tf.Tensor:
    """Whether every number of this replica's gradients (dense, sparse or None) is finite."""
    tensors = [getattr(gradient, "values", gradient) for gradient in gradients if gradient is not None]
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in tensors])


def global_norm(gradients: Sequence[Any]) -> tf.Tensor:
    """The square root of the sum of all squares, in float32, of gradients of any float types; None counts as zero."""
    tensors = [getattr(gradient, "values", gradient) for gradient in gradients if gradient is not None]
    return tf.linalg.global_norm([tf.cast(tensor, tf.float32) for tensor in tensors])


def true_everywhere(flag: tf.Tensor, reducer: GradientReducer | None) -> tf.Tensor:
    """Whether a flag is true on every replica of every rank; all get the same answer. Called in a replica."""
    (failing,) = sum_over_replicas([tf.cast(tf.logical_not(flag), tf.float32)])
    on_this_rank = tf.equal(failing, 0.0)
    return on_this_rank if reducer is None else reducer.all_true(on_this_rank)


def run_if(
    flag: tf.Tensor, step: Callable[..., None], otherwise: Callable[[], Any], arguments: tuple[Any, ...]
) -> None:
    """Runs a replica's step where `flag`, which is the same on all, is true, and `otherwise` where it is not.

    A condition inside each replica cannot contain what replicas do together. So the condition stands around the
    replicas, which are started anew in it.
    """
    if not on_replicas():
        tf.cond(flag, lambda: step(*arguments), lambda: _nothing(otherwise()))
        return

    def around_replicas(strategy: tf.distribute.Strategy, flags: Any, *replica_arguments: Any) -> None:
        tf.cond(
            strategy.experimental_local_results(flags)[0],
            lambda: _nothing(strategy.extended.call_for_each_replica(step, args=replica_arguments)),
            lambda: _nothing(strategy.extended.call_for_each_replica(otherwise)),
        )

    tf.distribute.get_replica_context().merge_call(around_replicas, args=(flag, *arguments))


def _nothing(_: Any) -> None:
    return None
