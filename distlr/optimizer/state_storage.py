"""All variables of an optimizer in Keras' files, under names instead of positions.

Keras numbers an optimizer's variables, and skips *all* of them, with a warning only, when their number
differs. Here each has a name, values that are loaded before the optimizer is built are kept until then, and values that
do not fit are an error. A plain Keras optimizer's numbered variables load too.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from distlr.errors import StateError
from distlr.optimizer.state_variables import PREFIX, StateVariables, name_of, saved_name

__all__ = ["KerasVariables", "StateStorage", "plain_variables"]

_ITERATION, _RATE, _SLOT = "iteration", "learning_rate", "slot_"

_log = logging.getLogger("distlr")


class KerasVariables(Protocol):
    """The variables of a Keras optimizer, and what messages say of it.

    Attributes:
        name: Keras' name of it.
        built: whether it has its slots.
        _variables: all of its variables, in Keras' order.
        _iterations: its count of steps, one of them.
        _learning_rate: its rate; one of them where it is a number, else a schedule.
    """

    name: str
    built: bool
    _variables: Any
    _iterations: Any
    _learning_rate: Any


@dataclasses.dataclass
class _SavedState:
    """The content of a file for one optimizer."""

    iteration: npt.NDArray[Any]
    rate: npt.NDArray[Any] | None
    slots: list[npt.NDArray[Any]]
    named: dict[str, npt.NDArray[Any]]
    numbered: bool = False
    """From a plain optimizer: then the first of the slots may be its rate; their number decides, once it is known."""
    before: list[tuple[Any, npt.NDArray[Any]]] = dataclasses.field(default_factory=list)
    """The variables that were loaded before the optimizer was built, with their values before that."""


class StateStorage:
    """Saves and loads all variables of one optimizer, which is handed to each method.

    Args:
        variables: those that distlr added.
    """

    def __init__(self, variables: StateVariables) -> None:
        self._variables = variables
        self._loaded: _SavedState | None = None  # before the optimizer was built
        self._refusal: StateError | None = None

    @property
    def has_loaded_slots(self) -> bool:
        """Whether slots were loaded that wait for the optimizer to be built."""
        return self._loaded is not None

    def save(self, optimizer: KerasVariables, store: Any) -> None:
        """Writes every variable: `iteration`, `learning_rate` (a float rate), `slot_0`..., `distlr_...`."""
        iteration, rate, slots = plain_variables(optimizer)
        store[_ITERATION] = iteration.numpy()
        if rate is not None:
            store[_RATE] = rate.numpy()
        values = [self._variables.training_values.holder(slot).numpy() for slot in slots]
        if self._loaded is not None and not optimizer.built:
            values = _rate_and_slots(self._loaded, rate is not None)[1]
        for i, value in enumerate(values):
            store[f"{_SLOT}{i}"] = value
        for name in self._variables.names():
            store[saved_name(name)] = self._variables.find(name).numpy()
        for name, value in self._variables.loaded.items():
            store[saved_name(name)] = value

    def load(self, optimizer: KerasVariables, store: Any) -> None:
        """Reads what `save` wrote, or what a plain Keras optimizer did.

        Raises:
            StateError: the number or the shape of the variables does not fit; nothing was changed. The slots of an
                optimizer that is not built yet can be compared only when it is; then `build` raises.
        """
        entries = {key: np.asarray(store[key]) for key in store.keys()}  # noqa: SIM118 (an HDF5 entry is no dict)
        refusal, self._refusal = self._refusal, None
        if not entries:
            if refusal is not None:
                # Keras tries an optimizer that failed once more wherever else the model refers to it, finds nothing
                # saved there, and would count that as a success.
                raise refusal
            _log.warning(
                "The file holds no state of the optimizer '%s', which keeps its own (of step %d).",
                optimizer.name,
                int(optimizer._iterations.numpy()),
            )
            return
        try:
            state = _read(optimizer, entries)
            self._check(optimizer, state)
        except StateError as error:
            self._refusal = error
            raise
        self._assign(optimizer, state)

    def assign_loaded_slots(self, optimizer: KerasVariables) -> None:
        """Assigns the slots that were loaded before the optimizer was built.

        Raises:
            StateError: they do not fit; all that was loaded with them was undone.
        """
        state = self._loaded
        if state is None:
            return
        with tf.init_scope():  # the first step of a loop without `fit` builds inside its tf.function
            self._loaded = None
            try:
                _check_slots(optimizer, state)
            except StateError:
                for variable, value in state.before:
                    variable.assign(value)
                self._variables.loaded = {}
                raise
            _, rate, slots = plain_variables(optimizer)
            loaded_rate, values = _rate_and_slots(state, len(state.slots) != len(slots))
            if rate is not None and loaded_rate is None:
                # The value that was assigned to the rate is a slot of one element.
                rate.assign(next(value for variable, value in state.before if variable is rate))
            for variable, value in zip(slots, values, strict=bool(values)):
                variable.assign(value)

    def split_weights(self, optimizer: KerasVariables, weights: Any) -> tuple[list[Any], list[Any]]:
        """Splits values in the order of `optimizer.variables` into Keras' and distlr's, and checks them.

        Those of a plain optimizer, without distlr's, are accepted as well: its clock is derived from its iterations.

        Raises:
            StateError: their number fits neither, or a shape does not.
        """
        variables = [*optimizer._variables, *self._variables]
        plain = len(optimizer._variables)
        if len(weights) not in (plain, len(variables)):
            raise StateError(
                f"The optimizer '{optimizer.name}' has {len(variables)} variables, {plain} of them Keras'. Received: "
                f"{len(weights)} values. Fix: give one for each of optimizer.variables."
            )
        for variable, value in zip(variables, weights, strict=False):
            _check_shape(optimizer, variable.path, value, variable.shape)
        return list(weights[:plain]), list(weights[plain:]) or list(self._variables.initial_values())

    def _check(self, optimizer: KerasVariables, state: _SavedState) -> None:
        _check_shape(optimizer, _ITERATION, state.iteration, ())
        if state.rate is not None:
            _check_shape(optimizer, _RATE, state.rate, ())
        for name in self._variables.names():
            if name in state.named:
                _check_shape(optimizer, saved_name(name), state.named[name], self._variables.find(name).shape)
        if optimizer.built:
            _check_slots(optimizer, state)

    def _assign(self, optimizer: KerasVariables, state: _SavedState) -> None:
        iteration, rate, slots = plain_variables(optimizer)
        self._variables.training_values.forget()
        has_rate = len(state.slots) != len(slots) if optimizer.built else rate is not None
        loaded_rate, values = _rate_and_slots(state, has_rate)
        state.before = [(v, v.numpy()) for v in (iteration, rate, *self._variables) if v is not None]
        iteration.assign(state.iteration)
        if rate is not None and loaded_rate is not None:
            if not np.isclose(loaded_rate, rate.numpy()):
                _log.info(
                    "The loaded state has the base rate %g where the script has %g; the loaded one is used.",
                    float(loaded_rate),
                    float(rate.numpy()),
                )
            rate.assign(loaded_rate)
        self._variables.assign_by_name(state.named)
        if not optimizer.built:
            self._loaded = state
            return
        self._loaded = None
        for variable, value in zip(slots, values, strict=bool(values)):
            variable.assign(value)


def plain_variables(optimizer: KerasVariables) -> tuple[Any, Any, list[Any]]:
    """Keras' own variables: the iteration, the rate if it is a float, and the slots in order."""
    rate, slots = None, []
    for variable in optimizer._variables:
        if variable is optimizer._learning_rate:
            rate = variable
        elif variable is not optimizer._iterations:
            slots.append(variable)
    return optimizer._iterations, rate, slots


def _read(optimizer: KerasVariables, entries: dict[str, npt.NDArray[Any]]) -> _SavedState:
    if _ITERATION in entries:
        count = sum(key.startswith(_SLOT) for key in entries)
        return _SavedState(
            entries[_ITERATION],
            entries.get(_RATE),
            [entries[f"{_SLOT}{i}"] for i in range(count)],
            {name_of(key): value for key, value in entries.items() if key.startswith(PREFIX)},
        )
    try:
        first, *rest = [entries[str(i)] for i in range(len(entries))]
    except KeyError:
        raise StateError(
            f"The saved state of optimizer '{optimizer.name}' is neither distlr's nor Keras'. Found the keys "
            f"{sorted(entries)[:8]}. Fix: load a file written by Keras 3."
        ) from None
    # Without a multiplier and a clock: these start afresh, and the clock is derived from the iterations.
    return _SavedState(first, None, rest, {}, numbered=True)


def _rate_and_slots(state: _SavedState, has_rate: bool) -> tuple[npt.NDArray[Any] | None, list[npt.NDArray[Any]]]:
    """Tells the rate from the slots in a plain optimizer's numbered variables, where it comes first if at all."""
    if state.numbered and has_rate and state.slots and state.slots[0].shape == ():
        return state.slots[0], state.slots[1:]
    return state.rate, state.slots


def _check_slots(optimizer: KerasVariables, state: _SavedState) -> None:
    slots = plain_variables(optimizer)[2]
    _, values = _rate_and_slots(state, len(state.slots) != len(slots))
    if slots and not values and int(state.iteration) == 0:
        if int(optimizer._iterations.numpy()) == 0:
            return  # saved before it was built, and loaded before it was used
        raise StateError(
            f"The state was saved before the optimizer '{optimizer.name}' was built, so its {len(slots)} slot "
            "variables are not in it, and those of an optimizer in use cannot be reset. Fix: call "
            "optimizer.build(model.trainable_variables) before saving, or load into a new optimizer."
        )
    if len(values) != len(slots):
        raise StateError(
            f"The saved state does not fit the optimizer '{optimizer.name}' ({type(optimizer).__name__}): it has "
            f"{len(values)} slot variables, the optimizer {len(slots)}. (Keras would have dropped all of it with a "
            "warning.) Fix: make the optimizer as it was saved (class, momentum, EMA, accumulation), for the "
            "same model."
        )
    for i, (value, variable) in enumerate(zip(values, slots, strict=True)):
        _check_shape(optimizer, f"{_SLOT}{i} ({variable.path})", value, variable.shape)


def _check_shape(optimizer: KerasVariables, what: str, value: Any, shape: Any) -> None:
    if tuple(np.shape(value)) != tuple(shape):
        raise StateError(
            f"The saved state does not fit the optimizer '{optimizer.name}': {what} has the shape "
            f"{tuple(np.shape(value))} and not {tuple(shape)}. Fix: load it into the model that it was saved "
            "with."
        )
