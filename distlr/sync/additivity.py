"""Tells whether the states of a metric are sums over batches, by its class or by a trial with random numbers.

Ranks and replicas add the states of a metric up. That is right if each update adds a term of its batch alone,
`s + d(batch)`: the sum of the ranks' states is then what one process would have counted of all their batches. It is
wrong for a maximum, for Welford's variance and for a moving average, though their states begin at 0 as well.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distlr.sync.metrics import COMBINE, declared_way, state_owners

__all__ = ["Verdict", "is_known", "try_updates"]

_SAMPLES, _FEW = (16, 11), (3, 2)  # for the two batches; the same on every rank, or ranks could judge differently
_LARGE = 100_000  # numbers of one sample, from which on there are few
_ANY_LENGTH = 5  # for a dimension that the step leaves open
_EXACT, _HALF = 1e-4, 2e-2  # the error of a sum by rounding, relative to its parts: in float32, and in float16


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of a trial of a metric.

    Attributes:
        sums: whether its states are sums over batches; None where it could not be tried.
        of_samples: whether they are sums over samples, so that it does not matter how these are batched.
        reason: which state is no sum, or why the metric could not be tried.
    """

    sums: bool | None
    of_samples: bool = True
    reason: str = ""


def is_known(metric: Any) -> bool:
    """Whether a metric says how its states combine, or updates them as a metric of Keras does; all of those add up.

    >>> is_known(keras.metrics.AUC()), is_known(keras.metrics.Metric())
    (True, False)
    """
    if isinstance(getattr(metric, COMBINE, None), str):
        return True
    update = getattr(metric.update_state, "__func__", metric.update_state)
    return update is not keras.metrics.Metric.update_state and str(update.__module__).startswith("keras.src.metrics.")


def try_updates(metric: Any, arguments: Sequence[Any], named: dict[str, Any]) -> Verdict:
    """Tries whether two updates add up, from states of 0; the states of the metric itself stay as they are.

    Args:
        metric: a metric of Keras, with its variables.
        arguments: the arguments of an update. Only type and shape of tensors and arrays matter; other values are used.
        named: the arguments that are passed by name.

    >>> class Largest(keras.metrics.Metric):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.largest = self.add_variable((), "zeros", name="largest")
    ...     def update_state(self, y):
    ...         self.largest.assign(keras.ops.maximum(self.largest, keras.ops.max(y)))
    >>> try_updates(keras.metrics.Mean(), [tf.ones([8])], {})
    Verdict(sums=True, of_samples=True, reason='')
    >>> try_updates(Largest(), [tf.ones([8])], {}).sums
    False
    """
    parts = tf.nest.flatten((list(arguments), named))
    if _hidden_states(metric):
        return Verdict(None, reason="it has a state in a tf.Variable, which Keras does not know")
    if any(isinstance(part, tf.__internal__.CompositeTensor) for part in parts):
        return Verdict(None, reason="it is called with ragged or sparse tensors")
    verdicts: list[Verdict] = []
    # In a thread of its own nothing is traced, no replica waits for others, and no scope of Keras is open.
    thread = threading.Thread(target=lambda: verdicts.append(_verdict_of(metric, (list(arguments), named), parts)))
    thread.start()
    thread.join()
    return verdicts[0]


def _hidden_states(metric: Any) -> bool:
    return any(isinstance(item, tf.Variable) for item in tf.nest.flatten(list(vars(metric).values())))


def _verdict_of(metric: Any, structure: Any, parts: list[Any]) -> Verdict:
    conclusive, of_samples, reason = False, True, "it counted nothing of random numbers"
    traced = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)  # or a function of the metric's own would keep the trace made here
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for draw in (_labels, _uniform, _normal):
                try:
                    trial = _trial(metric, structure, parts, draw)
                except Exception as error:  # a user's function may fail with these numbers
                    reason = f"it raised {type(error).__name__} on random numbers"
                    continue
                if not all(map(_are_close, trial.first, trial.again)):
                    return Verdict(None, reason="it gives other states for the same numbers")
                for variable, *states in zip(trial.variables, trial.first, trial.second, trial.both, strict=True):
                    if not _adds_up(variable, *states):
                        return Verdict(False, reason=_why_no_sum(variable, *states))
                conclusive = conclusive or any(map(np.any, trial.both))
                of_samples = of_samples and all(map(_are_close, trial.both, trial.whole))
    finally:
        tf.config.run_functions_eagerly(traced)
    return Verdict(True, of_samples) if conclusive else Verdict(None, reason=reason)


@dataclasses.dataclass(frozen=True)
class _Trial:
    """The states after one batch, twice; after another; after one and the other; after both as one batch."""

    variables: list[Any]
    first: list[np.ndarray]
    again: list[np.ndarray]
    second: list[np.ndarray]
    both: list[np.ndarray]
    whole: list[np.ndarray]


def _trial(metric: Any, structure: Any, parts: list[Any], draw: _Draw) -> _Trial:
    generator, classes = np.random.default_rng(0), _classes(parts)
    # A state that declares how it combines is no sum.
    variables = [variable for owner, variable in state_owners(metric) if declared_way(owner, variable) is None]

    def batch_of(samples: int) -> list[Any]:
        return [
            tf.cast(draw(generator, _shape(part, samples), tf.as_dtype(part.dtype), place == 0, classes), part.dtype)
            if _is_array(part)
            else part
            for place, part in enumerate(parts)
        ]

    metric_variables = {id(variable) for variable in metric.variables}
    others: dict[int, Any] = {}  # such as the states of seeds, which go on: random numbers then show in `again`

    def states_after(*batches: list[Any]) -> list[np.ndarray]:
        zeros = [(variable, tf.zeros(variable.shape, variable.dtype)) for variable in metric.variables]
        with keras.StatelessScope(state_mapping=zeros) as scope:
            scope.state_mapping.update(others)
            for batch in batches:
                arguments, named = tf.nest.pack_sequence_as(structure, batch)
                metric.update_state(*arguments, **named)
        others.update((key, value) for key, value in scope.state_mapping.items() if key not in metric_variables)
        return [tf.cast(scope.get_current_value(variable), tf.float64).numpy() for variable in variables]

    large = any(math.prod(_shape(part, 1)) > _LARGE for part in parts if _is_array(part))
    one, other = map(batch_of, _FEW if large else _SAMPLES)
    joined = [
        tf.concat([a, b], axis=0) if _is_array(part) and part.shape.rank else a
        for part, a, b in zip(parts, one, other, strict=True)
    ]
    return _Trial(variables, *(states_after(*batches) for batches in ([one], [one], [other], [one, other], [joined])))


def _is_array(part: Any) -> bool:
    return isinstance(part, (tf.Tensor, np.ndarray))


def _shape(part: Any, samples: int) -> list[int]:
    """The shape with another number of samples: an update may be called with any number."""
    return [samples, *(length or _ANY_LENGTH for length in part.shape[1:])] if len(part.shape) else []


def _classes(parts: Sequence[Any]) -> int:
    """The number of classes: the last dimension of the predictions, if it is more than one."""
    arrays = [part for part in parts if _is_array(part) and tf.as_dtype(part.dtype).is_floating]
    return max([2, *(part.shape[-1] or 2 for part in arrays if len(part.shape) > 1)])


_Draw = Callable[[np.random.Generator, list[int], tf.DType, bool, int], np.ndarray]


def _labels(generator: np.random.Generator, shape: list[int], dtype: tf.DType, first: bool, classes: int) -> np.ndarray:
    """The first argument as labels, one-hot if its last dimension is that of the classes; others add up to 1."""
    if not dtype.is_floating:
        return _whole(generator, shape, dtype, classes)
    wide = len(shape) > 1 and shape[-1] == classes
    if first:
        labels = generator.integers(0, classes, shape[:-1] if wide else shape)
        return np.eye(classes)[labels] if wide else labels
    values = generator.uniform(0.05, 0.95, shape)
    return np.asarray(values / values.sum(axis=-1, keepdims=True) if wide else values)


def _uniform(
    generator: np.random.Generator, shape: list[int], dtype: tf.DType, first: bool, classes: int
) -> np.ndarray:
    if not dtype.is_floating:
        return _whole(generator, shape, dtype, classes)
    return np.asarray(generator.uniform(0.05, 0.95, shape))


def _normal(generator: np.random.Generator, shape: list[int], dtype: tf.DType, first: bool, classes: int) -> np.ndarray:
    if not dtype.is_floating:
        return _whole(generator, shape, dtype, classes)
    return np.asarray(generator.normal(0.0, 2.0, shape))


def _whole(generator: np.random.Generator, shape: list[int], dtype: tf.DType, classes: int) -> np.ndarray:
    return np.asarray(generator.integers(0, 2 if dtype == tf.bool else classes, shape))


def _adds_up(variable: Any, first: np.ndarray, second: np.ndarray, both: np.ndarray) -> bool:
    if variable.dtype == "bool":  # a flag: that of any rank
        return bool(np.all(np.maximum(first, second) == both))
    tolerance = _HALF if "16" in variable.dtype else _EXACT
    return not np.any(_differs(first, second, both, tolerance))


def _differs(first: np.ndarray, second: np.ndarray, both: np.ndarray, tolerance: float) -> np.ndarray:
    """Where the sum certainly differs; a number that is not finite does not count."""
    with np.errstate(all="ignore"):
        parts = np.abs(first) + np.abs(second) + np.abs(both)
        return np.asarray(np.isfinite(parts) & (np.abs(first + second - both) > tolerance * parts + 1e-12))


def _are_close(one: np.ndarray, other: np.ndarray) -> bool:
    return not np.any(_differs(one, np.zeros_like(one), other, _HALF))


def _why_no_sum(variable: Any, first: np.ndarray, second: np.ndarray, both: np.ndarray) -> str:
    """The reason, such as: its state 'largest' is no sum (0.9 of one batch, 0.7 of another, 0.9 of both)."""
    where = int(np.argmax(_differs(first, second, both, _EXACT).reshape(-1)))
    one, other, of_both = (float(states.reshape(-1)[where]) for states in (first, second, both))
    which = ""
    if not math.isclose(one, other):
        which = {max(one, other): ", the larger", min(one, other): ", the smaller"}.get(of_both, "")
    return (
        f"its state '{variable.name}' is no sum over batches (tried with random numbers it was {one:.4g} after one "
        f"batch, {other:.4g} after another, and {of_both:.4g}{which}, after both)"
    )
