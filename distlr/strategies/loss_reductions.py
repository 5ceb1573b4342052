"""Losses whose reduction over a batch gives another number on several replicas than on one device."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from distlr.errors import ConfigurationError

__all__ = ["check_one_loss_a_sample", "reduction_warnings"]


def reduction_warnings(loss: Any, ranks: int, factor: float = 1.0) -> list[str]:
    """Warnings about a compiled loss on several replicas, a sentence for each reduction that is no mean over samples.

    Each replica reduces its own share of the batch. With `sum_over_batch_size` (the default) and `mean` the mean of
    equal shares is the mean of the batch. With others it is not:

    Args:
        loss: the argument of `compile`: a loss, or a structure of losses.
        ranks: the number of ranks over which gradients are averaged; 1 if a strategy adds up those of all replicas.
        factor: the factor that scales the rate for the batch.

    >>> reduction_warnings(["mse", keras.losses.MeanSquaredError()], ranks=2, factor=8)
    []
    >>> (warning,) = reduction_warnings(keras.losses.MeanSquaredError(reduction="sum"), ranks=2)
    >>> warning.partition(":")[0]
    "reduction='sum' of the loss 'mean_squared_error'"
    """
    losses = [item for item in tf.nest.flatten(loss) if isinstance(item, keras.losses.Loss)]
    warnings = []
    for item in losses:
        name = f"reduction={item.reduction!r} of the loss '{item.name}'"
        if item.reduction == "mean_with_sample_weight":
            warnings.append(
                f"{name}: each replica divides by the weights of its own samples, so with weights that differ the mean "
                "over the replicas is not that of the batch, neither in the gradient nor in the loss that is reported, "
                "and padding of validation data counts in the latter. Fix: the default reduction, with weights whose "
                "mean is 1."
            )
        elif item.reduction not in ("sum_over_batch_size", "mean"):
            if ranks > 1:
                warnings.append(
                    f"{name}: the gradients are the mean over {ranks} ranks, which is 1/{ranks} of one device's, whose "
                    "sum is over the whole batch. Fix: the default reduction, or multiply the rate."
                )
            elif factor != 1:
                warnings.append(
                    f"{name}: the gradient grows with the batch by itself, and the rate is scaled by {factor:g} "
                    'beside it. Fix: the default reduction, or job.optimizer(..., rule="none").'
                )
    return warnings


def check_one_loss_a_sample(losses: tf.Tensor) -> None:
    """Refuses losses of another shape than (samples,) or (samples, 1): their mean over the batch is needed.

    Raises:
        ConfigurationError: it is a scalar, or has several numbers a sample.

    >>> check_one_loss_a_sample(tf.zeros((8, 1)))
    >>> try:
    ...     check_one_loss_a_sample(tf.reduce_mean(tf.zeros(8)))
    ... except ConfigurationError as error:
    ...     print(error)
    `losses` must have one number a sample, the shape (samples,), and has the shape (). Fix: give the losses of the \
samples; their mean is taken here, over all replicas.
    """
    shape = losses.shape
    if shape.rank is None or (shape.rank > 0 and all(size in (1, None) for size in shape[1:])):
        return
    fix = "give the losses of the samples; their mean is taken here, over all replicas"
    if shape.rank:
        fix = f"make one number of each sample first, such as tf.reduce_mean(losses, axis={list(range(1, shape.rank))})"
    raise ConfigurationError(
        f"`losses` must have one number a sample, the shape (samples,), and has the shape {shape}. Fix: {fix}."
    )
