"""Gradient accumulation and moving averages on the replicas of a `tf.distribute` strategy; plain Keras has neither.

Keras decides inside each replica whether it is time, and what replicas do together cannot be inside a condition there.
Here the condition stands around the replicas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

__all__ = ["apply_accumulated", "overwrite_with_averages"]


def apply_accumulated(
    sums: Sequence[Any], steps: int, iterations: Any, update_weights: Callable[[list[tf.Tensor]], None]
) -> None:
    """Updates the weights by the mean of the accumulated gradients at every step that completes an update.

    Args:
        sums: the accumulators of this replica, to which this step's gradients are added already.
        steps: the number of steps that an update takes.
        iterations: Keras' count of steps, before this one.
        update_weights: clips the mean gradients and applies them, started anew in each replica.
    """
    completes_update = tf.equal((iterations + 1) % steps, 0)

    def replica() -> None:
        update_weights([tf.convert_to_tensor(total) / tf.cast(steps, total.dtype) for total in sums])

    def update(strategy: tf.distribute.Strategy) -> None:
        strategy.extended.call_for_each_replica(replica)
        for total in sums:
            strategy.extended.update(total.value, lambda local: local.assign(tf.zeros_like(local)), group=False)

    def around_replicas(strategy: tf.distribute.Strategy, completes_update: Any) -> None:
        # The same on all replicas of all workers.
        tf.cond(strategy.experimental_local_results(completes_update)[0], lambda: update(strategy), lambda: None)

    tf.distribute.get_replica_context().merge_call(around_replicas, args=(completes_update,))


def overwrite_with_averages(frequency: int, iterations: Any, overwrite: Callable[[], None]) -> None:
    """Puts the moving averages into the model every `frequency` updates (`ema_overwrite_frequency`), on all replicas.

    Args:
        frequency: in Keras' `iterations`, which count updates where an optimizer accumulates.
        iterations: before this step.
        overwrite: puts them in.
    """

    def around_replicas(strategy: tf.distribute.Strategy) -> None:
        tf.cond(tf.equal((iterations + 1) % frequency, 0), overwrite, lambda: None)

    tf.distribute.get_replica_context().merge_call(around_replicas)
