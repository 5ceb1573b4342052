"""Gradient accumulation on the replicas of a `tf.distribute` strategy, which plain Keras cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

__all__ = ["accumulate"]


def accumulate(optimizer: Any, gradients: Sequence[Any], variables: Sequence[Any]) -> None:
    """Adds to the accumulators, each replica for itself, and applies their mean every so many steps.

    Keras decides inside each replica, and what replicas do together cannot be inside a condition there. Here the
    condition stands outside of the replicas, which are started anew in it.

    Args:
        optimizer: a built Keras optimizer that accumulates.
        gradients: of this replica, one a variable.
        variables: what they are of.
    """
    steps = optimizer.gradient_accumulation_steps
    sums = [optimizer._accumulated_gradients[optimizer._get_variable_index(variable)] for variable in variables]
    optimizer._backend_increment_gradient_accumulators(gradients, sums)
    updates = tf.equal((optimizer._iterations + 1) % steps, 0)

    def replica() -> None:
        # As Keras does at an update, whose `iterations` counts updates (Adam corrects its moments by it).
        means = [tf.convert_to_tensor(total) / tf.cast(steps, total.dtype) for total in sums]
        means = optimizer._clip_gradients(means)
        optimizer._apply_weight_decay(variables)
        optimizer._backend_update_step(means, list(variables), optimizer.learning_rate)

    def update(strategy: tf.distribute.Strategy) -> None:
        strategy.extended.call_for_each_replica(replica)
        for total in sums:
            strategy.extended.update(total.value, lambda local: local.assign(tf.zeros_like(local)), group=False)

    def everywhere(strategy: tf.distribute.Strategy, updates: Any) -> None:
        # Equal on all replicas of all workers.
        tf.cond(strategy.experimental_local_results(updates)[0], lambda: update(strategy), lambda: None)

    tf.distribute.get_replica_context().merge_call(everywhere, args=(updates,))
    if optimizer.use_ema:  # at every step, as in Keras
        optimizer._update_model_variables_moving_average(optimizer._trainable_variables)
        if optimizer.ema_overwrite_frequency:
            overwrite_with_averages(optimizer)


def overwrite_with_averages(optimizer: Any) -> None:
    """Puts the averages into the model where `ema_overwrite_frequency` says so; all replicas together, as Keras cannot.

    Keras asks whether it is time in each replica, and TensorFlow lets no replica meet the others in a condition.
    """

    def overwrite(strategy: tf.distribute.Strategy) -> None:
        due = tf.equal((optimizer.iterations + 1) % optimizer.ema_overwrite_frequency, 0)
        everyone = optimizer._trainable_variables
        tf.cond(due, lambda: optimizer._overwrite_model_variables_with_average_value(everyone), lambda: None)

    tf.distribute.get_replica_context().merge_call(overwrite)
