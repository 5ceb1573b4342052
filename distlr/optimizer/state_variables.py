"""The variables that distlr adds to an optimizer, each with a name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from distlr.errors import StateError
from distlr.optimizer.training_values import TrainingValues

__all__ = ["BAD_STEPS", "PREFIX", "StateVariables", "name_of", "saved_name"]

PREFIX = "distlr_"
"""The start of the name that each variable of distlr's has in a saved file and in a TensorFlow checkpoint."""

BAD_STEPS = "bad_steps"
"""The state that counts the steps that were left out for a gradient that is not finite."""

_ALWAYS_THERE = ("multiplier", "samples_seen")


def saved_name(name: str) -> str:
    """The name of a variable in a file, where a slash would open a group."""
    return PREFIX + quote(name, safe="")


def name_of(saved: str) -> str:
    """The name that `saved_name` was made from."""
    return unquote(saved[len(PREFIX) :])


class StateVariables:
    """The named variables of one optimizer, and the values that were loaded before their variables existed.

    A plain object: neither Keras' nor TensorFlow's attribute tracking sees into it. So the optimizer's own list of
    variables stays as Keras made it, position by position, and a TensorFlow checkpoint of the plain optimizer restores
    into the adopted one.

    Args:
        strategy: the strategy that the optimizer was made under.
        track: called with each new variable and its saved name, so that TensorFlow's checkpoints find it by that name,
            whatever the order in which callbacks asked for their states.

    >>> tracked = {}
    >>> def track(variable, name):
    ...     tracked[name] = variable
    >>> variables = StateVariables(tf.distribute.get_strategy(), track)
    >>> best = variables.get("plateau/best", [float("inf")])
    >>> best.assign([0.25]).numpy().tolist(), sorted(tracked)
    ([0.25], ['distlr_multiplier', 'distlr_plateau%2Fbest', 'distlr_samples_seen'])
    """

    def __init__(self, strategy: tf.distribute.Strategy, track: Callable[[Any, str], None]) -> None:
        self.training_values = TrainingValues(strategy)
        self.loaded: dict[str, npt.NDArray[Any]] = {}
        """The values that were loaded for variables which nobody has asked for yet."""
        self._strategy = strategy
        self._track = track
        self._variables: dict[str, Any] = {}
        self._initial: dict[str, npt.NDArray[Any]] = {}
        self.multiplier = self.add("multiplier", np.float64(1))
        self.samples_seen = self.add("samples_seen", np.int64(0))

    def __contains__(self, name: str) -> bool:
        """Whether the variable called `name` exists."""
        return name in self._variables

    def __iter__(self) -> Iterator[Any]:
        """The variables, in the order in which they were made."""
        return iter(self._variables.values())

    def by_name(self) -> dict[str, Any]:
        """All variables, in the order of their names."""
        return dict(sorted(self._variables.items()))

    def names(self) -> list[str]:
        """The names, in the order in which the variables were made."""
        return list(self._variables)

    def find(self, name: str) -> Any:
        """The variable called `name`, or None."""
        return self._variables.get(name)

    def get(self, name: str, initial: Sequence[float]) -> Any:
        """The float64 variable called `name`; made at the first call, with the value that was loaded for it if any.

        It is saved, loaded and broadcast with the optimizer.

        Args:
            name: tells it from the states of other callbacks.
            initial: its values at the start; one dimension.

        Raises:
            StateError: the value that was loaded under this name has another length.
        """
        if name not in self._variables:
            start = np.asarray(initial, np.float64)
            value = self.loaded.get(name, start)
            if value.shape != start.shape:
                raise StateError(
                    f"The loaded state '{name}' has shape {value.shape} and not {start.shape}. Fix: load what "
                    "this version of distlr saved."
                )
            with self._strategy.scope():
                self.add(name, value)
            self._initial[name] = start
            self.loaded.pop(name, None)
        return self._variables[name]

    def add(self, name: str, value: npt.ArrayLike) -> Any:
        """Makes the variable called `name`."""
        start = np.asarray(value)
        variable = keras.Variable(
            lambda shape, dtype: tf.constant(start, dtype),
            shape=start.shape,
            dtype=start.dtype.name,
            trainable=False,
            aggregation="only_first_replica",
            name=PREFIX + name.replace("/", "_"),
        )
        self._variables[name], self._initial[name] = variable, start
        self._track(variable, saved_name(name))
        return variable

    def decider_states(self) -> dict[str, list[float]]:
        """The states of callbacks by name, with their initial values: those that were asked for, and those loaded."""
        existing = {name: self._initial[name] for name in self._variables if name not in _ALWAYS_THERE}
        loaded = {name: value for name, value in self.loaded.items() if value.ndim == 1}
        return {
            name: np.asarray(initial).tolist()
            for name, initial in sorted({**loaded, **existing}.items())
            if np.ndim(initial) == 1
        }

    def initial_values(self) -> list[npt.NDArray[Any]]:
        """The values at the start, in the order of the variables."""
        return [self._initial[name] for name in self._variables]

    def assign(self, values: Iterable[Any]) -> None:
        """Assigns a value to each variable, in their order."""
        for variable, value in zip(self, values, strict=True):
            variable.assign(value)

    def assign_by_name(self, values: Mapping[str, npt.NDArray[Any]]) -> None:
        """Assigns loaded values: the initial value where there is none, and kept where there is no variable yet."""
        for name, variable in self._variables.items():
            variable.assign(values.get(name, self._initial[name]))
        self.loaded = {name: value for name, value in values.items() if name not in self._variables}
