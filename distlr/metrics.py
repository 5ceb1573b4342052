"""Exact metrics across ranks: sums of metric *states*, never averages of results.

A Keras metric is a function of a few numbers that add up over samples: `Mean` of (total, count), `AUC` of a
confusion matrix at each threshold. So the metric of all data is the function of the sums over the ranks,
exactly, also where ranks have different numbers of samples or none, and also for AUC, precision and
recall, whose means over ranks are something else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distlr._arguments import one_of
from distlr.communicators.frames import REDUCERS
from distlr.communicators.fused import number
from distlr.errors import ConfigurationError

__all__ = [
    "COMBINE",
    "GraphMetrics",
    "MetricStates",
    "are_distributed",
    "assign_states",
    "check_additive",
    "read_states",
    "results",
]

COMBINE = "distlr_combine"
"""The attribute by which a metric says how its states combine over ranks: "sum" (also without it), "max" or "min"."""


_WIDE = (np.dtype("float64"), np.dtype("int64"))  # what states are sent and added up in


@dataclasses.dataclass(frozen=True)
class MetricStates:
    """The states of several metrics as named arrays, and how each combines."""

    arrays: dict[str, np.ndarray]
    how: dict[str, str]


def read_states(metrics: Sequence[Any]) -> MetricStates:
    """What the metrics have counted on this rank.

    The names come from the metrics' places, so they are the same on ranks with the same model, though one of them has
    made other metrics before (whose names Keras then numbers), or has not made all its variables yet.
    """
    arrays: dict[str, np.ndarray] = {}
    how: dict[str, str] = {}
    for name, metric, variable in _variables(metrics):
        arrays[name] = _sendable(variable.numpy())
        how[name] = getattr(metric, COMBINE, "sum")
    return MetricStates(arrays, how)


def assign_states(metrics: Sequence[Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Gives the metrics the states that `read_states` had read; one that is not among them stays."""
    for name, _, variable in _variables(metrics):
        if name in arrays:
            variable.assign(arrays[name].astype(variable.dtype))


def results(
    metrics: Sequence[Any], combined: Mapping[str, np.ndarray], compute: Callable[[], Mapping[str, Any]]
) -> dict[str, float]:
    """What `compute` gives (a model's `get_metrics_result`, for example) while the metrics have these states.

    The rank's own states are put back afterwards, so that a metric that is read or goes on counting is undisturbed.
    """
    found = _variables(metrics)
    values = [tf.constant(_given_or_own(combined, name, variable)) for name, _, variable in found]
    return _numbers(_computed([variable for _, _, variable in found], values, compute))


class GraphMetrics:
    """`read_states` and `results` of a compiled model, each one call of a graph: of many states, a few times as fast.

    Keras computes these metrics in its graph of the training step as well, so whatever they are, they can be traced.
    All states go in and out as two vectors, of the floats and of the whole numbers.

    Args:
        model: whose metrics; built.
    """

    def __init__(self, model: Any) -> None:
        self._found = _variables(model.metrics)
        variables = [variable for _, _, variable in self._found]

        def compute(vectors: Sequence[tf.Tensor]) -> Mapping[str, Any]:
            parts = zip(_parts(vectors, variables), variables, strict=True)
            values = [tf.cast(tf.reshape(part, variable.shape), variable.dtype) for part, variable in parts]
            return _computed(variables, values, model.get_metrics_result)

        self._read, self._results = tf.function(lambda: _flat(variables)), tf.function(compute)

    def fits(self, model: Any) -> bool:
        """Whether the model's metrics still are those that were traced."""
        return [id(variable) for *_, variable in self._found] == [id(v) for *_, v in _variables(model.metrics)]

    def states(self) -> MetricStates:
        """What `read_states` gives."""
        parts = _parts([vector.numpy() for vector in self._read()], [variable for _, _, variable in self._found])
        arrays = {
            name: part.reshape(variable.shape) for (name, _, variable), part in zip(self._found, parts, strict=True)
        }
        return MetricStates(arrays, {name: getattr(metric, COMBINE, "sum") for name, metric, _ in self._found})

    def results(self, combined: Mapping[str, np.ndarray]) -> dict[str, float]:
        """The model's results while its metrics have these states."""
        parts: tuple[list[np.ndarray], ...] = tuple([np.zeros(0, wide)] for wide in _WIDE)
        for name, _, variable in self._found:
            parts[_kind(variable)].append(_given_or_own(combined, name, variable).reshape(-1))
        vectors = [tf.constant(np.concatenate(part), wide) for part, wide in zip(parts, _WIDE, strict=True)]
        return _numbers(self._results(vectors))


def are_distributed(metrics: Sequence[Any]) -> bool:
    """Whether the metrics were made in the scope of a strategy of several replicas, which adds their states up."""
    return any(isinstance(variable.value, tf.distribute.DistributedValues) for _, _, variable in _variables(metrics))


def check_additive(metrics: Sequence[Any], sums_alone: bool = False) -> None:
    """Refuses a metric that cannot be combined; call it where the metrics have just been reset.

    Args:
        metrics: Keras metrics.
        sums_alone: whether only sums can be: a `tf.distribute` strategy adds the states up by itself.

    Raises:
        ConfigurationError: states that do not start at 0 cannot be sums, and the metric does not say what they are.
    """
    for _, metric, variable in _variables(metrics):
        way = getattr(metric, COMBINE, None)
        if way is not None:
            one_of(f"{type(metric).__name__}.{COMBINE}", way, REDUCERS)
        if sums_alone and way in ("max", "min"):
            raise ConfigurationError(
                f"The states of the metric '{metric.name}' ({type(metric).__name__}) combine by their {way}, and a "
                "tf.distribute strategy over several workers can only add them. To mend it: compute it in a callback "
                "of your own, or use Horovod."
            )
        if way is None and np.any(variable.numpy()):
            raise ConfigurationError(
                f"The metric '{metric.name}' ({type(metric).__name__}) cannot be computed over several ranks: its "
                f"state '{variable.name}' does not start at 0, so it is no sum over samples. To mend it: give the "
                f'class an attribute that says how the ranks\' states combine, {COMBINE} = "max" (or "min", or "sum").'
            )


def _variables(metrics: Sequence[Any], prefix: str = "metric") -> list[tuple[str, Any, Any]]:
    """Each state's name, the metric that it belongs to, and its variable."""
    found: list[tuple[str, Any, Any]] = []
    for i, metric in enumerate(metrics):
        name = f"{prefix}/{i}"
        inner = getattr(metric, "metrics", None) or _given(metric)
        if inner:  # Keras' wrapper around what `compile` was given
            found += _variables(inner, name)
        else:
            found += [(f"{name}/{j}", metric, variable) for j, variable in enumerate(metric.variables)]
    return found


def _given(metric: Any) -> list[Any]:
    """The metric objects that `compile` was given, while Keras has not put them to use: before the first batch."""
    given = tf.nest.flatten(getattr(metric, "_user_metrics", None))
    return [item for item in given if isinstance(item, keras.metrics.Metric)]


def _computed(
    variables: Sequence[Any], values: Sequence[tf.Tensor], compute: Callable[[], Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Eagerly, or as part of a graph: gives the variables other values for as long as `compute` runs."""
    own = [tf.identity(variable.value) for variable in variables]
    try:
        for variable, value in zip(variables, values, strict=True):
            variable.value.assign(value)  # without what Keras does around it, which takes as long again
        # Some results are a variable itself, to be read now.
        return {name: tf.identity(tf.convert_to_tensor(value)) for name, value in compute().items()}
    finally:
        for variable, value in zip(variables, own, strict=True):
            variable.value.assign(value)


def _kind(variable: Any) -> int:
    """The place in `_WIDE` of the type in which a state is sent and added up."""
    return int(not tf.as_dtype(variable.dtype).is_floating)


def _flat(variables: Sequence[Any]) -> list[tf.Tensor]:
    """All values as one vector for each type of `_WIDE`."""
    parts: list[list[tf.Tensor]] = [[tf.zeros([0], wide)] for wide in _WIDE]
    for variable in variables:
        parts[_kind(variable)].append(tf.reshape(tf.cast(variable.value, _WIDE[_kind(variable)]), [-1]))
    return [tf.concat(part, axis=0) for part in parts]


def _parts(vectors: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
    """The inverse of `_flat`, of arrays or of tensors: what of the vectors is each variable's, still flat."""
    parts, starts = [], [0, 0]
    for variable in variables:
        kind = _kind(variable)
        end = starts[kind] + math.prod(variable.shape)
        parts.append(vectors[kind][starts[kind] : end])
        starts[kind] = end
    return parts


def _given_or_own(combined: Mapping[str, np.ndarray], name: str, variable: Any) -> np.ndarray:
    return combined[name].astype(variable.dtype) if name in combined else variable.numpy()


def _numbers(found: Mapping[str, Any]) -> dict[str, float]:
    return {name: number(value) for name, value in found.items()}


def _sendable(value: np.ndarray) -> np.ndarray:
    return value.astype(_WIDE[value.dtype.kind in "iub"])
