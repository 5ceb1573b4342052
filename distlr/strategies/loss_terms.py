"""Whether a loss is divided by the batch of all replicas, read from the graph that computes it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection
from typing import Any

import tensorflow as tf

__all__ = ["Term", "loss_terms"]

_SAME = {"Identity", "Cast", "Neg", "EnsureShape", "Reshape", "Squeeze", "ExpandDims", "CheckNumerics"}
_ADDED = {"Add", "AddV2", "AddN", "Sub", "Pack", "ConcatV2", "SelectV2"}
_QUOTIENTS = {"RealDiv", "Div", "DivNoNan"}
_REDUCED = {"Sum", "Mean"}
_READ = {"ReadVariableOp", "StopGradient", "Const"}
_FUNCTIONS = {"PartitionedCall", "StatefulPartitionedCall", "If", "StatelessIf", "While", "StatelessWhile"}


_DEEPEST = 150  # operations on one way, each a few calls of Python's


class Term(enum.Enum):
    """The kind of a term of a loss, with regard to the sum of the gradients of all replicas."""

    SHARE = "divided by the batch of all replicas, as Keras' losses and `job.mean_loss` are"
    MEAN = "the mean over one replica's batch"
    SUM = "a sum over the batch, which is one of all replicas' samples"
    OTHER = "something else, which each replica adds once more"
    UNKNOWN = "the result of a condition, of another function, or of something that is not linear in a loss of Keras"


def loss_terms(
    loss: tf.Tensor, replicas: int, samples: int | None, shares: Collection[Any], keras: Collection[Any]
) -> set[Term]:
    """The kinds of the terms that add up to a loss.

    Args:
        loss: a tensor of a graph; if it is no scalar TensorFlow computes the gradient of its sum.
        replicas: the number of the strategy's replicas, whose gradients are summed.
        samples: the samples of a step on all these replicas, if known.
        shares: references to tensors that are shares, whatever the graph looks like.
        keras: references to the results of Keras' own losses, whose last step is to divide by the replicas.
    """
    return _Walk(replicas, samples, shares, keras).terms(loss, None, within_keras=False)


class _Walk:
    """Walks from a loss back along the operations that are linear in it."""

    def __init__(self, replicas: int, samples: int | None, shares: Collection[Any], keras: Collection[Any]) -> None:
        self.replicas, self.samples, self.shares, self.keras = replicas, samples, shares, keras
        self._known: dict[tuple[Any, ...], set[Term]] = {}
        self._depth = 0

    def terms(self, tensor: tf.Tensor, reduced: Term | None, within_keras: bool) -> set[Term]:
        """The terms of a tensor that is later summed (SUM) or averaged (MEAN) over the batch, or neither (None)."""
        key = tensor.ref(), reduced, within_keras
        if key not in self._known:
            if self._depth == _DEEPEST:
                return {Term.UNKNOWN}
            self._depth += 1
            self._known[key] = self._terms(tensor, reduced, within_keras)
            self._depth -= 1
        return self._known[key]

    def _terms(self, tensor: tf.Tensor, reduced: Term | None, within_keras: bool) -> set[Term]:
        reference, op = tensor.ref(), tensor.op
        if reference in self.shares:
            return {Term.SHARE}
        within_keras = within_keras or reference in self.keras
        is_number = op.type == "Placeholder" and tensor.shape.rank == 0  # from outside, a weight for example
        if op.type in _READ or is_number or tf.get_static_value(tensor) is not None:
            return set()
        inputs = list(op.inputs)

        def of(parts: list[tf.Tensor], now: Term | None = reduced) -> set[Term]:
            return set().union(*(self.terms(part, now, within_keras) for part in parts))

        if op.type in _SAME:
            return of(inputs[:1])
        if op.type == "IdentityN":
            return of([inputs[tensor.value_index]])
        if op.type in _ADDED:
            return of([part for part in inputs if part.dtype.is_floating])
        if op.type in _REDUCED:
            # The innermost one over the batch counts: outside of it there is no axis of the batch any more.
            return of(inputs[:1], self._reduction(op) or reduced)
        if op.type == "Mul":
            return self._product(inputs, of, within_keras)
        if op.type in _QUOTIENTS:
            return self._quotient(inputs, of)
        if op.type in _FUNCTIONS:
            return {Term.UNKNOWN}
        return {self._leaf(tensor, reduced)}

    def _product(self, inputs: list[tf.Tensor], of: Callable[..., set[Term]], within_keras: bool) -> set[Term]:
        factors = [of([part]) for part in inputs]
        terms = set().union(*factors)
        if {Term.SHARE} in factors:
            return {Term.SHARE}  # whatever it is weighted by
        for part in inputs:
            factor = tf.get_static_value(part)
            if factor is None or factor.ndim or not terms:
                continue
            if self.samples and abs(factor * self.samples - 1) < _CLOSE:
                return {Term.SHARE}
            if abs(factor * self.replicas - 1) < _CLOSE:
                # In Keras' losses that is the division; in a user's it may be a weight of 0.5 on two replicas, too.
                return {Term.SHARE if within_keras else Term.UNKNOWN}
        return terms

    def _quotient(self, inputs: list[tf.Tensor], of: Callable[..., set[Term]]) -> set[Term]:
        above, below = inputs
        terms = of([above])
        divisor = tf.get_static_value(below)
        if divisor is None:
            if not (_is_count(below) or _depends_on_data(below)):  # the sum of a mask, for example
                return terms
            shared = self.replicas in _static_factors(below)
            return {Term.SHARE} if shared else {Term.MEAN if term is Term.SUM else term for term in terms}
        if divisor.ndim == 0 and divisor in (self.replicas, self.samples):
            return {Term.SHARE} if terms else terms
        if divisor.ndim == 0 and self.samples and divisor * self.replicas == self.samples:
            return {Term.MEAN if term is Term.SUM else term for term in terms}
        return terms

    def _reduction(self, op: tf.Operation) -> Term | None:
        """The effect of a sum or a mean on the batch: None if it is over other axes, or a stack of losses."""
        value = op.inputs[0]
        if value.op.type == "Pack" and all(part.shape.rank == 0 for part in value.op.inputs):
            return None
        axes = tf.get_static_value(op.inputs[1])
        if axes is not None and value.shape.rank is not None:
            over = {int(axis) % max(value.shape.rank, 1) for axis in axes.reshape(-1)}
            batch_axis = int(
                value.op.type == "Pack" and value.op.get_attr("axis") == 0
            )  # a stack of losses, one a sample
            if batch_axis not in over:
                return None
        return Term.MEAN if op.type == "Mean" else Term.SUM

    def _leaf(self, tensor: tf.Tensor, reduced: Term | None) -> Term:
        if reduced is Term.MEAN:
            return Term.MEAN
        if reduced is None and tensor.shape.rank == 0:
            known = {reference.deref().op.name for reference in (*self.shares, *self.keras)}
            return Term.UNKNOWN if any(op.name in known for op in _reached(tensor)) else Term.OTHER
        return Term.SUM if _depends_on_data(tensor) else Term.OTHER  # a penalty on the weights


_CLOSE = 1e-6


def _reached(tensor: tf.Tensor) -> list[tf.Operation]:
    """All operations that a tensor is computed by."""
    seen, todo = {}, [tensor.op]
    while todo:
        op = todo.pop()
        if op.name not in seen:
            seen[op.name] = op
            todo += [part.op for part in op.inputs]
    return list(seen.values())


def _depends_on_data(tensor: tf.Tensor) -> bool:
    """Whether a tensor depends on anything but variables and constants: the batch, random numbers."""
    return any(
        (op.type == "Placeholder" and op.outputs[0].dtype not in (tf.resource, tf.variant))
        or "Iterator" in op.type
        or "Optional" in op.type
        or "Random" in op.type
        for op in _reached(tensor)
    )


def _is_count(tensor: tf.Tensor) -> bool:
    """Whether a divisor is computed from whole numbers: the size of something."""
    return any(output.dtype.is_integer for op in _reached(tensor) for output in op.outputs)


def _static_factors(tensor: tf.Tensor) -> list[float]:
    """The constant numbers that a divisor is a product of, among others."""
    factors = [op for op in _reached(tensor) if op.type == "Mul"]
    values = [tf.get_static_value(part) for op in factors for part in op.inputs]
    return [float(value) for value in values if value is not None and value.ndim == 0]
