"""The optimizer's variables in Keras' files, under names instead of positions.

Keras numbers an optimizer's variables, and skips *all* of them, with a warning only, when their number
differs. Here each has a name, what is loaded before the optimizer is built is kept until then, and what
does not fit is an error. A plain Keras optimizer's numbered variables load too.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from distlr.errors import StateError
from distlr.optimizer.adoption import PREFIX, name_of, saved_name

__all__ = ["load", "load_held", "read_state", "save", "slots_of", "split_weights", "write_state"]

_ITERATION, _RATE, _SLOT = "iteration", "learning_rate", "slot_"

_log = logging.getLogger("distlr")


@dataclasses.dataclass
class _State:
    """What a file holds for one optimizer."""

    iteration: np.ndarray
    rate: np.ndarray | None
    slots: list[np.ndarray]
    states: dict[str, np.ndarray]
    numbered: bool = False
    """From a plain optimizer: then the first of the slots may be its rate; their number decides, once it is known."""
    before: list[tuple[Any, np.ndarray]] = dataclasses.field(default_factory=list)
    """The variables that were loaded before the optimizer was built, with their values before that."""


def save(optimizer: Any, store: Any) -> None:
    """Writes every variable: `iteration`, `learning_rate` (a float rate), `slot_0`..., `distlr_...`."""
    adoption = optimizer._distlr
    iteration, rate, slots = _plain_variables(optimizer)
    store[_ITERATION] = iteration.numpy()
    if rate is not None:
        store[_RATE] = rate.numpy()
    values = [adoption.training_values.holder(slot).numpy() for slot in slots]
    if adoption.held is not None and not optimizer.built:
        values = _rate_and_slots(adoption.held, rate is not None)[1]
    for i, value in enumerate(values):
        store[f"{_SLOT}{i}"] = value
    for name, variable in adoption.named.items():
        store[saved_name(name)] = variable.numpy()
    for name, value in adoption.held_states.items():
        store[saved_name(name)] = value


def load(optimizer: Any, store: Any) -> None:
    """Reads what `save` wrote, or what a plain Keras optimizer did.

    Raises:
        StateError: the number or the shape of the variables does not fit; nothing was changed. The slots of an
            optimizer that is not built yet can be compared only when it is; then `build` raises.
    """
    adoption = optimizer._distlr
    entries = {key: np.asarray(store[key]) for key in store.keys()}  # noqa: SIM118 (an HDF5 entry is no dict)
    refused, adoption.refused = adoption.refused, None
    if not entries:
        if refused is not None:
            # Keras tries an optimizer that failed once more wherever else the model refers to it, finds nothing
            # saved there, and would count that as a success.
            raise refused
        _log.warning(
            "The file holds no state of the optimizer '%s', which keeps its own (%d samples seen).",
            optimizer.name,
            optimizer.samples_seen,
        )
        return
    try:
        state = _read(optimizer, entries)
        _check(optimizer, state)
    except StateError as error:
        adoption.refused = error
        raise
    _assign(optimizer, state)


def slots_of(optimizer: Any) -> list[Any]:
    """The variables in which an optimizer, distlr's or Keras', gathers what it has seen: not rate and iterations."""
    return _plain_variables(_parts(optimizer)[0][1])[2]


def read_state(optimizer: Any) -> dict[str, np.ndarray]:
    """All variables of an adopted optimizer, and of a `LossScaleOptimizer` around it, by the names of `save`."""
    stores: dict[str, dict[str, np.ndarray]] = {}
    for prefix, part in _parts(optimizer):
        part.save_own_variables(stores.setdefault(prefix, {}))
    return {prefix + name: np.asarray(value) for prefix, store in stores.items() for name, value in store.items()}


def write_state(optimizer: Any, state: Mapping[str, np.ndarray]) -> None:
    """Gives an optimizer what `read_state` gave, built or not; see `load`."""
    for prefix, part in _parts(optimizer):
        inside = [name for name in state if name.startswith(prefix)]
        part.load_own_variables({name[len(prefix) :]: state[name] for name in inside})


def _parts(optimizer: Any) -> list[tuple[str, Any]]:
    core = getattr(optimizer, "inner_optimizer", optimizer)
    return [("inner/", core), *([] if core is optimizer else [("outer/", optimizer)])]


def load_held(optimizer: Any) -> None:
    """Assigns the slots that were loaded before the optimizer was built.

    Raises:
        StateError: they do not fit; all that was loaded with them was undone.
    """
    adoption = optimizer._distlr
    state = adoption.held
    if state is None:
        return
    with tf.init_scope():  # the first step of a loop without `fit` builds inside its tf.function
        adoption.held = None
        try:
            _check_slots(optimizer, state)
        except StateError:
            for variable, value in state.before:
                variable.assign(value)
            adoption.held_states = {}
            raise
        _, rate, slots = _plain_variables(optimizer)
        loaded, values = _rate_and_slots(state, len(state.slots) != len(slots))
        if rate is not None and loaded is None:
            # What was taken for the rate is a slot of one element.
            rate.assign(next(value for variable, value in state.before if variable is rate))
        for variable, value in zip(slots, values, strict=bool(values)):
            variable.assign(value)


def split_weights(optimizer: Any, weights: Any) -> tuple[list[Any], list[Any]]:
    """Splits values in the order of `optimizer.variables` into Keras' and distlr's, and checks them.

    Those of a plain optimizer, without distlr's, are taken as well: its clock is derived from its iterations.

    Raises:
        StateError: their number fits neither, or a shape does not.
    """
    variables, adoption = optimizer.variables, optimizer._distlr
    plain = len(optimizer._variables)
    if len(weights) not in (plain, len(variables)):
        raise StateError(
            f"The optimizer '{optimizer.name}' has {len(variables)} variables, {plain} of them Keras'. Received: "
            f"{len(weights)} values. Fix: give one for each of optimizer.variables."
        )
    for variable, value in zip(variables, weights, strict=False):
        _check_shape(optimizer, variable.path, value, variable.shape)
    return list(weights[:plain]), list(weights[plain:]) or list(adoption.initial.values())


def _plain_variables(optimizer: Any) -> tuple[Any, Any, list[Any]]:
    """Keras' own variables: the iteration, the rate if it is a float, and the slots in order."""
    rate, slots = None, []
    for variable in optimizer._variables:
        if variable is optimizer._learning_rate:
            rate = variable
        elif variable is not optimizer._iterations:
            slots.append(variable)
    return optimizer._iterations, rate, slots


def _read(optimizer: Any, entries: dict[str, np.ndarray]) -> _State:
    if _ITERATION in entries:
        count = sum(key.startswith(_SLOT) for key in entries)
        return _State(
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
    return _State(first, None, rest, {}, numbered=True)


def _rate_and_slots(state: _State, has_rate: bool) -> tuple[np.ndarray | None, list[np.ndarray]]:
    """Tells the rate from the slots in a plain optimizer's numbered variables, where it comes first if at all."""
    if state.numbered and has_rate and state.slots and state.slots[0].shape == ():
        return state.slots[0], state.slots[1:]
    return state.rate, state.slots


def _check(optimizer: Any, state: _State) -> None:
    _check_shape(optimizer, _ITERATION, state.iteration, ())
    if state.rate is not None:
        _check_shape(optimizer, _RATE, state.rate, ())
    for name, variable in optimizer._distlr.named.items():
        if name in state.states:
            _check_shape(optimizer, saved_name(name), state.states[name], variable.shape)
    if optimizer.built:
        _check_slots(optimizer, state)


def _check_slots(optimizer: Any, state: _State) -> None:
    slots = _plain_variables(optimizer)[2]
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


def _check_shape(optimizer: Any, what: str, value: Any, shape: Any) -> None:
    if tuple(np.shape(value)) != tuple(shape):
        raise StateError(
            f"The saved state does not fit the optimizer '{optimizer.name}': {what} has the shape "
            f"{tuple(np.shape(value))} and not {tuple(shape)}. Fix: load it into the model that it was saved "
            "with."
        )


def _assign(optimizer: Any, state: _State) -> None:
    adoption = optimizer._distlr
    iteration, rate, slots = _plain_variables(optimizer)
    adoption.training_values.forget()
    has_rate = len(state.slots) != len(slots) if optimizer.built else rate is not None
    loaded_rate, values = _rate_and_slots(state, has_rate)
    state.before = [(v, v.numpy()) for v in (iteration, rate, *adoption.variables) if v is not None]
    iteration.assign(state.iteration)
    if rate is not None and loaded_rate is not None:
        if not np.isclose(loaded_rate, rate.numpy()):
            _log.info(
                "The loaded state has the base rate %g where the script has %g; the loaded one is used.",
                float(loaded_rate),
                float(rate.numpy()),
            )
        rate.assign(loaded_rate)
    for name, variable in adoption.named.items():
        variable.assign(state.states.get(name, adoption.initial[name]))
    adoption.held_states = {name: value for name, value in state.states.items() if name not in adoption.named}
    if not optimizer.built:
        adoption.held = state
        return
    adoption.held = None
    for variable, value in zip(slots, values, strict=bool(values)):
        variable.assign(value)
