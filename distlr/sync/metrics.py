"""Exact metrics across ranks: sums of metric *states*, never averages of results.

A Keras metric is a function of a few numbers that add up over samples: `Mean` of (total, count), `AUC` of a
confusion matrix at each threshold. So the metric of all data is the function of the sums over the ranks,
exactly, also where ranks have different numbers of samples or none, and also for AUC, precision and
recall, whose means over ranks are something else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distlr._utils.checks import one_of
from distlr.communicators.bundles import Bundle, reduce_over, to_number
from distlr.communicators.frames import REDUCERS, group_by_rank
from distlr.errors import ConfigurationError, DistributionError, received

__all__ = [
    "COMBINE",
    "EagerMetrics",
    "GraphMetrics",
    "KeptStates",
    "MetricStates",
    "are_built",
    "are_distributed",
    "assign_states",
    "check_additive",
    "declared_way",
    "read_states",
    "results",
    "single_metrics",
    "state_owners",
]

COMBINE = "distlr_combine"
"""The attribute by which a metric says how its states combine over ranks: "sum" (also without it), "max" or "min"; or,
in a dictionary, how those of these names do."""


_WIDE = (np.dtype("float64"), np.dtype("int64"))  # the types in which states are sent and added up


@dataclasses.dataclass(frozen=True)
class MetricStates:
    """The states of several metrics as named arrays, and how each combines."""

    arrays: dict[str, np.ndarray]
    how: dict[str, str]


def read_states(metrics: Sequence[Any]) -> MetricStates:
    """Reads the states of the metrics on this rank.

    The names come from the metrics' places, so they are the same on ranks with the same model, though one of them has
    made other metrics before (whose names Keras then numbers), or has not made all its variables yet.
    """
    arrays: dict[str, np.ndarray] = {}
    how: dict[str, str] = {}
    for name, metric, variable in _variables(metrics):
        arrays[name] = _sendable(variable.numpy())
        how[name] = _way(metric, variable)
    return MetricStates(arrays, how)


def assign_states(metrics: Sequence[Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Assigns the states of `read_states` to the metrics; a state that is not among them stays."""
    for name, _, variable in _variables(metrics):
        if name in arrays:
            variable.assign(arrays[name].astype(variable.dtype))


class KeptStates:
    """A copy of the states of this process, to go back to; it needs no other rank, and stays on the device.

    Args:
        metrics: Keras metrics; one that has no variables yet goes back to its initial state.
        strategy: the strategy of their variables, of which each local replica has a part of its own.
    """

    def __init__(self, metrics: Sequence[Any], strategy: tf.distribute.Strategy) -> None:
        self._metrics = metrics
        self._values = [
            (part, tf.identity(part))
            for _, _, variable in _variables(metrics)
            for part in strategy.experimental_local_results(variable.value)
        ]

    def restore(self) -> None:
        """Restores the copied states."""
        for metric in self._metrics:
            metric.reset_state()
        for part, value in self._values:
            part.assign(value)


def results(
    metrics: Sequence[Any], bundles: Sequence[Bundle], compute: Callable[[], Mapping[str, Any]]
) -> dict[str, float]:
    """The result of `compute` (a model's `get_metrics_result`, for example) for the combined states of the ranks.

    The rank's own states stay as they are, so that a metric that is read or goes on counting is undisturbed.

    Args:
        metrics: Keras metrics.
        bundles: the arrays of each rank's `read_states`, or none.
        compute: reads the metrics.
    """
    entries = _variables(metrics)
    combined = reduce_over(bundles, {name: _way(metric, variable) for name, metric, variable in entries})
    values = [tf.constant(_given_or_local(combined, name, variable)) for name, _, variable in entries]
    return _numbers(_computed([variable for _, _, variable in entries], values, compute))


class EagerMetrics:
    """The metrics of a compiled model, over ranks, one state after the other, for `run_eagerly`.

    Args:
        model: the model with the metrics.
    """

    def __init__(self, model: Any) -> None:
        self._model = model

    def fits(self, model: Any) -> bool:
        """Whether this is for the metrics of the model, as it is now."""
        return model is self._model and bool(model.run_eagerly)

    def names(self) -> set[str]:
        """The names of the results."""
        return set(self._model.get_metrics_result())

    def states(self) -> dict[str, np.ndarray]:
        """The states of this rank."""
        return read_states(self._model.metrics).arrays

    def results(self, bundles: Sequence[Bundle]) -> dict[str, float]:
        """The model's results for the combined states of the ranks.

        Args:
            bundles: the arrays of each rank's `states`, or none.
        """
        return results(self._model.metrics, bundles, self._model.get_metrics_result)


class GraphMetrics:
    """The same in a graph, where each method is one call: with many states it is a few times as fast.

    Keras computes these metrics in its graph of the training step as well, so whatever they are, they can be traced.
    States of one type that combine in one way go out and in as one vector. Its name says which states it has, in what
    shapes, so that the vectors of ranks with other metrics are never added up.

    Args:
        model: the model with the metrics; built.
    """

    def __init__(self, model: Any) -> None:
        entries = _variables(model.metrics)
        self._variables = [variable for *_, variable in entries]
        groups: dict[tuple[str, str], dict[str, Any]] = {}
        for name, metric, variable in entries:
            kind = _way(metric, variable), _WIDE[not tf.as_dtype(variable.dtype).is_floating].name
            groups.setdefault(kind, {})[name] = variable
        self._how = {_vector_name(way, dtype, group): way for (way, dtype), group in groups.items()}
        vectors = [(dtype, list(group.values())) for (_, dtype), group in groups.items()]

        def read() -> list[tf.Tensor]:
            return [
                tf.concat([tf.reshape(tf.cast(variable.value, dtype), [-1]) for variable in group], axis=0)
                for dtype, group in vectors
            ]

        def compute(*states: tf.Tensor) -> Mapping[str, Any]:
            variables, values = [], []
            for vector, (_, group) in zip(states, vectors, strict=True):
                parts = tf.split(vector, [math.prod(variable.shape) for variable in group])
                variables += group
                values += [tf.cast(tf.reshape(p, v.shape), v.dtype) for p, v in zip(parts, group, strict=True)]
            return _computed(variables, values, model.get_metrics_result)

        # Concrete functions, so that a call needs no look-up.
        self._read = tf.function(read).get_concrete_function()
        self._compute = tf.function(compute).get_concrete_function(
            *(tf.TensorSpec([sum(math.prod(v.shape) for v in group)], dtype) for dtype, group in vectors)
        )

    def fits(self, model: Any) -> bool:
        """Whether the model's metrics are those that were traced."""
        now = [id(variable) for *_, variable in _variables(model.metrics)]
        return not model.run_eagerly and now == [id(variable) for variable in self._variables]

    def names(self) -> set[str]:
        """The names of the results."""
        return set(self._compute.structured_outputs)

    def states(self) -> dict[str, np.ndarray]:
        """The states of this rank."""
        return {name: vector.numpy() for name, vector in zip(self._how, self._read(), strict=True)}

    def results(self, bundles: Sequence[Bundle]) -> dict[str, float]:
        """The model's results for the combined states of the ranks.

        Args:
            bundles: the arrays of each rank's `states`, or none.

        Raises:
            DistributionError: the ranks have different metrics.
        """
        names = [sorted(bundle.arrays) for bundle in bundles]
        if any(rank_names and rank_names != sorted(self._how) for rank_names in names):
            names_by_rank = group_by_rank([f"[{', '.join(rank_names)}]" for rank_names in names], "with")
            raise DistributionError(
                "The ranks' metrics differ in the number, the order, the type or the shape of their states: "
                f"{names_by_rank}. Fix: build the same model, with the same metrics, on every rank."
            )
        combined = reduce_over(bundles, self._how)
        return _numbers(self._compute(*(tf.constant(combined[name]) for name in self._how)))


def are_built(metrics: Sequence[Any]) -> bool:
    """Whether the metrics can be read: Keras builds those of `compile` at the first batch."""
    return all(getattr(metric, "built", True) for metric in metrics)


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
        way = declared_way(metric, variable)
        if way is not None:
            one_of(f"{type(metric).__name__}.{COMBINE}", way, REDUCERS)
        if sums_alone and way in ("max", "min"):
            raise ConfigurationError(
                f"The states of the metric '{metric.name}' ({type(metric).__name__}) combine by their {way}, and a "
                "tf.distribute strategy can only add up those of its replicas. Fix: compute it in a callback "
                "of your own, or use Horovod with one replica a rank."
            )
        if way is None and np.any(variable.numpy()):
            raise ConfigurationError(
                f"The metric '{metric.name}' ({type(metric).__name__}) cannot be computed over several ranks: its "
                f"state '{variable.name}' does not start at 0, so it is no sum over samples. Fix: give the "
                f'class an attribute that says how the ranks\' states combine, {COMBINE} = "max" (or "min", or "sum").'
            )


def declared_way(metric: Any, variable: Any) -> str | None:
    """The way to combine one of its states that a metric declares; None if it declares none.

    >>> class Both(keras.metrics.Mean):
    ...     distlr_combine = {"count": "max"}
    >>> [declared_way(Both(), variable) for variable in Both().variables]
    [None, 'max']
    """
    way: Any = getattr(metric, COMBINE, None)
    if not isinstance(way, Mapping):
        return way  # type: ignore[no-any-return]
    names = [state.name for owner, state in state_owners(metric) if owner is metric]
    unknown = sorted(set(way) - set(names))
    if unknown:
        hint = "write the names that its add_variable was given"
        raise ConfigurationError(received(f"{type(metric).__name__}.{COMBINE}", unknown, f"names of {names}", hint))
    return way.get(variable.name)


def single_metrics(metrics: Sequence[Any]) -> list[Any]:
    """The metrics that have states, without Keras' wrappers around the arguments of `compile`."""
    singles: list[Any] = []
    for metric in metrics:
        inner = _wrapped_metrics(metric)
        singles += [metric] if inner is None else single_metrics(inner)
    return singles


def state_owners(metric: Any) -> list[tuple[Any, Any]]:
    """The variables of a metric, in its order, each with the metric that made it: itself, or one that is part of it.

    >>> class Two(keras.metrics.Mean):
    ...     def __init__(self):
    ...         super().__init__("two")
    ...         self.other = keras.metrics.Sum("other")
    >>> [(owner.name, variable.name) for owner, variable in state_owners(Two())]
    [('two', 'total'), ('two', 'count'), ('other', 'total')]
    """
    owners = {id(variable): part for part in _parts(metric) for variable in part._variables}
    return [(owners.get(id(variable), metric), variable) for variable in metric.variables]


def _parts(metric: Any) -> list[Any]:
    return [metric, *(part for inner in metric._metrics for part in _parts(inner))]


def _way(metric: Any, variable: Any) -> str:
    return declared_way(metric, variable) or "sum"


def _variables(metrics: Sequence[Any], prefix: str = "metric") -> list[tuple[str, Any, Any]]:
    """Each state's name, the metric that made it, and its variable."""
    entries: list[tuple[str, Any, Any]] = []
    for i, metric in enumerate(metrics):
        name = f"{prefix}/{i}"
        inner = _wrapped_metrics(metric)
        if inner is not None:
            entries += _variables(inner, name)
        else:
            entries += [(f"{name}/{j}", owner, variable) for j, (owner, variable) in enumerate(state_owners(metric))]
    return entries


def _wrapped_metrics(metric: Any) -> list[Any] | None:
    """The metrics in one of Keras' wrappers around the arguments of `compile`; None for any other metric."""
    if not type(metric).__module__.startswith("keras.src.trainers."):
        return None
    inner: list[Any] = getattr(metric, "metrics", None) or _unbuilt_metrics(metric)
    return inner


def _unbuilt_metrics(metric: Any) -> list[Any]:
    """The metric objects among the arguments of `compile`, before the first batch: Keras does not use them yet."""
    user_metrics = tf.nest.flatten(getattr(metric, "_user_metrics", None))
    return [item for item in user_metrics if isinstance(item, keras.metrics.Metric)]


def _computed(
    variables: Sequence[Any], values: Sequence[tf.Tensor], compute: Callable[[], Mapping[str, Any]]
) -> Mapping[str, Any]:
    """The result of `compute` with these values in the variables; eagerly, or as part of a graph."""
    with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
        # Some results are a variable itself, to be read now.
        return {name: tf.identity(tf.convert_to_tensor(value)) for name, value in compute().items()}


def _vector_name(way: str, dtype: str, group: Mapping[str, Any]) -> str:
    """A name such as "sum of 43 float64, 1f0c2a9b", which depends on the names, types and shapes of the states."""
    layout = json.dumps([[name, v.dtype, list(v.shape)] for name, v in group.items()])
    return f"{way} of {len(group)} {dtype}, {hashlib.sha256(layout.encode()).hexdigest()[:8]}"


def _given_or_local(combined: Mapping[str, np.ndarray], name: str, variable: Any) -> np.ndarray:
    return combined[name].astype(variable.dtype) if name in combined else variable.numpy()


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: to_number(value) for name, value in values.items()}


def _sendable(value: np.ndarray) -> np.ndarray:
    return value.astype(_WIDE[value.dtype.kind in "iub"])
