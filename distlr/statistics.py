"""Float weights that are not trained: batch normalization's moving statistics, which each replica computes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["assign_statistics", "average_over_replicas", "read_statistics"]


def read_statistics(model: Any) -> dict[str, np.ndarray]:
    """The first local replica's values in float64, by a name that is the same on every rank."""
    return {name: np.asarray(_copies(model, variable)[0], np.float64) for name, variable in _statistics(model).items()}


def assign_statistics(model: Any, values: Mapping[str, np.ndarray]) -> None:
    """Gives all local replicas these values."""
    for name, variable in _statistics(model).items():
        variable.assign(tf.cast(values[name], variable.dtype))


def average_over_replicas(model: Any) -> None:
    """Makes them their mean over the local replicas, where these differ."""
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
