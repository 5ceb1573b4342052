"""The training's values: those that the next update goes on from, whatever is in the model for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

__all__ = ["TrainingValues"]


class TrainingValues:
    """Knows which variable holds each value of the training while the model has other weights than the training's.

    A model may have other weights between two updates: the moving average of its own, for a validation and for what is
    saved after it. The training's values are then in other variables. Whatever keeps the state of a training, or goes
    back to one, reads and writes by `holder`, and does not have to know what is in the model.

    Args:
        strategy: under which the variables were made.

    >>> weight, average = keras.Variable([0.1]), keras.Variable([0.7])
    >>> values = TrainingValues(tf.distribute.get_strategy())
    >>> values.put_in([(weight, average)])
    >>> float(weight.numpy()[0]) == float(average.numpy()[0]), values.holder(weight) is average, bool(values)
    (False, True, True)
    >>> with values.in_place():
    ...     round(float(weight.numpy()[0]), 6)
    0.1
    >>> values.put_back()
    >>> round(float(weight.numpy()[0]), 6), values.holder(weight) is weight, bool(values)
    (0.1, True, False)
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self._strategy = strategy
        self._pairs: list[tuple[Any, Any]] = []
        self._holders: dict[int, Any] = {}

    def __bool__(self) -> bool:
        """Whether something else than the training's values is in the model."""
        return bool(self._pairs)

    def holder(self, variable: Any) -> Any:
        """The variable that holds the training's value of this one; mostly this one."""
        return self._holders.get(id(variable), variable)

    def put_in(self, pairs: Sequence[tuple[Any, Any]]) -> None:
        """Exchanges the values of each weight and a variable beside it; nothing where that was done already."""
        if self._pairs:
            return
        self._exchange(pairs)
        self._pairs = list(pairs)
        self._holders = {id(a): b for pair in pairs for a, b in (pair, pair[::-1])}

    def put_back(self) -> None:
        """Puts the training's values into their own variables again, to the bit."""
        self._exchange(self._pairs)
        self.forget()

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The training's values in their own variables for a moment, for what reads the model by itself."""
        pairs = self._pairs
        self.put_back()
        try:
            yield
        finally:
            self.put_in(pairs)

    def keep(self) -> None:
        """Makes the values that are in the model now the training's, also in the variables beside the weights."""
        for weight, beside in self._pairs:
            self._strategy.extended.update(_held(beside), _assign, args=(_held(weight),))
        self.forget()

    def forget(self) -> None:
        """Makes each variable its own holder again, after the training's values were assigned to all of them."""
        self._pairs, self._holders = [], {}

    def _exchange(self, pairs: Sequence[tuple[Any, Any]]) -> None:
        for weight, beside in pairs:
            self._strategy.extended.update(_held(weight), _swap, args=(_held(beside),))


def _held(variable: Any) -> Any:
    return variable.value if isinstance(variable, keras.Variable) else variable


def _assign(variable: Any, other: Any) -> None:
    variable.assign(other)


def _swap(first: Any, second: Any) -> None:
    # Keras' callback adds and subtracts, which rounds: a small weight with a large average is lost.
    value = first.read_value()
    first.assign(second)
    second.assign(value)
