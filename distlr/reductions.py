"""Losses that are another number on several replicas than on one device, by how they are reduced over a batch."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

__all__ = ["reduction_warnings"]


def reduction_warnings(loss: Any, ranks: int, factor: float = 1.0) -> list[str]:
    """What to say of a compiled loss on several replicas, a sentence for each reduction that is no mean over samples.

    Each replica reduces its own share of the batch. With `sum_over_batch_size` (the default) and `mean` the mean of
    equal shares is the mean of the batch. With others it is not:

    Args:
        loss: what `compile` was given: a loss, or a structure of them.
        ranks: over how many ranks the gradients are averaged; 1 where a strategy adds those of all replicas up.
        factor: that the rate is scaled by for the batch.

    >>> reduction_warnings(["mse", keras.losses.MeanSquaredError()], ranks=2, factor=8)
    []
    >>> (warning,) = reduction_warnings(keras.losses.MeanSquaredError(reduction="sum"), ranks=2)
    >>> warning.partition(":")[0]
    "reduction='sum' of the loss 'mean_squared_error'"
    """
    losses = [item for item in tf.nest.flatten(loss) if isinstance(item, keras.losses.Loss)]
    found = []
    for item in losses:
        name = f"reduction={item.reduction!r} of the loss '{item.name}'"
        if item.reduction == "mean_with_sample_weight":
            found.append(
                f"{name}: each replica divides by the weights of its own samples, so with weights that differ the mean "
                "over the replicas is not that of the batch, neither in the gradient nor in the loss that is reported, "
                "and padding of validation data counts in the latter. Fix: the default reduction, with weights whose "
                "mean is 1."
            )
        elif item.reduction not in ("sum_over_batch_size", "mean"):
            if ranks > 1:
                found.append(
                    f"{name}: the gradients are the mean over {ranks} ranks, which is 1/{ranks} of one device's, whose "
                    "sum is over the whole batch. Fix: the default reduction, or multiply the rate."
                )
            elif factor != 1:
                found.append(
                    f"{name}: the gradient grows with the batch by itself, and the rate is scaled by {factor:g} "
                    'beside it. Fix: the default reduction, or job.optimizer(..., rule="none").'
                )
    return found
