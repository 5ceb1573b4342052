"""Gradient accumulation on the replicas of a `tf.distribute` strategy, which plain Keras cannot."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

__all__ = ["accumulate"]


def accumulate(
    optimizer: Any, gradients: Sequence[Any], variables: Sequence[Any], apply: Callable[[list[Any], list[Any]], None]
) -> None:
    """Adds to the accumulators, each replica for itself, and applies their mean every so many steps.

    Keras decides inside each replica, and what replicas do together cannot be inside a condition there. Here the
    condition stands outside of the replicas, which are started anew in it.

    Args:
        optimizer: a built Keras optimizer that accumulates.
        gradients: of this replica, one a variable.
        variables: what they are of.
        apply: Keras' own way to apply gradients.
    """
    steps = optimizer.gradient_accumulation_steps
    sums = [optimizer._accumulated_gradients[optimizer._get_variable_index(variable)] for variable in variables]
    optimizer._backend_increment_gradient_accumulators(gradients, sums)
    updates = tf.equal((optimizer._iterations + 1) % steps, 0)

    def replica() -> None:
        apply([tf.convert_to_tensor(total) / tf.cast(steps, total.dtype) for total in sums], list(variables))

    def update(strategy: tf.distribute.Strategy) -> None:
        with _without(optimizer, gradient_accumulation_steps=None, use_ema=False):
            strategy.extended.call_for_each_replica(replica)
        for total in sums:
            strategy.extended.update(total.value, lambda local: local.assign(tf.zeros_like(local)), group=False)

    def everywhere(strategy: tf.distribute.Strategy, updates: Any) -> None:
        # Equal on all replicas of all workers.
        tf.cond(strategy.experimental_local_results(updates)[0], lambda: update(strategy), lambda: None)

    def overwrite(strategy: tf.distribute.Strategy) -> None:
        due = tf.equal((optimizer.iterations + 1) % optimizer.ema_overwrite_frequency, 0)
        everyone = optimizer._trainable_variables
        tf.cond(due, lambda: optimizer._overwrite_model_variables_with_average_value(everyone), lambda: None)

    context = tf.distribute.get_replica_context()
    context.merge_call(everywhere, args=(updates,))
    if optimizer.use_ema:  # at every step, as in Keras
        optimizer._update_model_variables_moving_average(optimizer._trainable_variables)
        if optimizer.ema_overwrite_frequency:
            context.merge_call(overwrite)


@contextlib.contextmanager
def _without(optimizer: Any, **attributes: Any) -> Iterator[None]:
    """Other attributes for a while; outside of the replicas, whose threads take turns."""
    before = {name: getattr(optimizer, name) for name in attributes}
    for name, value in attributes.items():
        setattr(optimizer, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(optimizer, name, value)
