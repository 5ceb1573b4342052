"""Float weights that are not trained: batch normalization's moving statistics, which each replica computes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from distlr.communicators import Communicator
from distlr.communicators.bundles import Bundle, exchange_bundles, exchange_together, mean_over

__all__ = ["average_over_replicas", "average_sums", "exchange_with_statistics", "has_statistics"]


def _read(model: Any) -> dict[str, np.ndarray]:
    """The first local replica's values in float64, by a name that is the same on every rank."""
    return {name: np.asarray(_copies(model, variable)[0], np.float64) for name, variable in _statistics(model).items()}


def _assign(model: Any, values: Mapping[str, np.ndarray]) -> None:
    """Gives all local replicas these values."""
    for name, variable in _statistics(model).items():
        variable.assign(tf.cast(values[name], variable.dtype))


def exchange_with_statistics(communicator: Communicator, model: Any, bundle: Bundle, *, tag: str) -> list[Bundle]:
    """Exchanges a bundle of every rank, and sets the statistics to their mean in the same collective. Collective.

    Args:
        communicator: the job's.
        model: the model with the statistics; the same on every rank.
        bundle: the bundle of this rank.
        tag: names the call; the same on all ranks.
    """
    all_ranks = exchange_together(communicator, {"said": bundle, "statistics": Bundle(_read(model))}, tag=tag)
    _assign(model, mean_over(all_ranks["statistics"]))
    return all_ranks["said"]


def average_sums(communicator: Communicator, model: Any, variables: Sequence[Any], *, tag: str) -> None:
    """Sets variables to which each replica adds for itself to their mean over all replicas of all ranks. Collective.

    A later sum over the replicas is then unchanged, on whatever replicas the run goes on.

    Args:
        communicator: the job's.
        model: the model with the variables.
        variables: the variables; as many on every rank.
        tag: names the call; the same on all ranks.
    """
    copies = {str(i): _copies(model, variable) for i, variable in enumerate(variables)}
    means = {name: np.asarray(np.mean(each, axis=0, dtype=np.float64)) for name, each in copies.items()}
    if communicator.size > 1:
        means = mean_over(exchange_bundles(communicator, Bundle(means), tag=tag))
    for i, variable in enumerate(variables):
        variable.assign(tf.cast(means[str(i)], variable.dtype))


def has_statistics(model: Any) -> bool:
    """Whether the model has any."""
    return bool(_statistics(model))


def average_over_replicas(model: Any) -> None:
    """Sets them to their mean over the local replicas, if these differ."""
    for variable in _statistics(model).values():
        copies = _copies(model, variable)
        if any((copy != copies[0]).any() for copy in copies[1:]):
            mean = np.mean(np.asarray(copies, np.float64), axis=0)
            variable.assign(mean.astype(copies[0].dtype))


def _statistics(model: Any) -> dict[str, Any]:
    return {
        f"weight/{i}": variable
        for i, variable in enumerate(model.non_trainable_weights)
        if tf.as_dtype(variable.dtype).is_floating
    }


def _copies(model: Any, variable: Any) -> list[np.ndarray]:
    local = model.distribute_strategy.experimental_local_results(variable.value)
    return [copy.numpy() for copy in local]
