"""Steps that are taken by all replicas and ranks, or by none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from distlr.communicators.gradient_reducer import GradientReducer
from distlr.strategies.replicas import on_replicas, sum_over_replicas

__all__ = ["agreed", "are_finite", "global_norm", "only_if"]


def are_finite(gradients: Sequence[Any]) -> tf.Tensor:
    """Whether every number of these gradients, dense, sparse or None, is finite; of this replica."""
    tensors = [getattr(gradient, "values", gradient) for gradient in gradients if gradient is not None]
    return tf.reduce_all([tf.reduce_all(tf.math.is_finite(tensor)) for tensor in tensors])


def global_norm(gradients: Sequence[Any]) -> tf.Tensor:
    """The square root of the sum of all squares, in float32, of gradients of any float types; None counts nothing."""
    tensors = [getattr(gradient, "values", gradient) for gradient in gradients if gradient is not None]
    return tf.linalg.global_norm([tf.cast(tensor, tf.float32) for tensor in tensors])


def agreed(flag: tf.Tensor, reducer: GradientReducer | None) -> tf.Tensor:
    """Whether a flag is true on every replica of every rank, the same on each; in a replica."""
    (failing,) = sum_over_replicas([tf.cast(tf.logical_not(flag), tf.float32)])
    everywhere = tf.equal(failing, 0.0)
    return everywhere if reducer is None else reducer.all_true(everywhere)


def only_if(
    flag: tf.Tensor, step: Callable[..., None], otherwise: Callable[[], Any], arguments: tuple[Any, ...]
) -> None:
    """Runs a replica's step where `flag`, which all have agreed on, is true, and `otherwise` where it is not.

    What replicas do together cannot be inside a condition in each of them, so there it stands around
    them, and they are started anew in it.
    """
    if not on_replicas():
        tf.cond(flag, lambda: step(*arguments), lambda: _nothing(otherwise()))
        return

    def everywhere(strategy: tf.distribute.Strategy, flags: Any, *each: Any) -> None:
        tf.cond(
            strategy.experimental_local_results(flags)[0],
            lambda: _nothing(strategy.extended.call_for_each_replica(step, args=each)),
            lambda: _nothing(strategy.extended.call_for_each_replica(otherwise)),
        )

    tf.distribute.get_replica_context().merge_call(everywhere, args=(flag, *arguments))


def _nothing(_: Any) -> None:
    return None
