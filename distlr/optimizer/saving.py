"""The optimizer's variables in Keras' files, under names instead of positions.

Keras numbers an optimizer's variables, and skips *all* of them, with a warning only, when their number
differs. Here each has a name, what is loaded before the optimizer is built is kept until then, and what
does not fit is an error. A plain Keras optimizer's numbered variables load too.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from distlr.errors import StateError
from distlr.optimizer.adoption import PREFIX

__all__ = ["load", "load_held_slots", "save"]

_ITERATION, _RATE, _SLOT = "iteration", "learning_rate", "slot_"

_log = logging.getLogger("distlr")


def save(optimizer: Any, store: Any) -> None:
    """Writes every variable: `iteration`, `learning_rate` (a float rate), `slot_0`..., `distlr_...`."""
    adoption = optimizer._distlr
    for name, variable in _named_plain(optimizer).items():
        store[name] = variable.numpy()
    for name, variable in adoption.named.items():
        store[_key(name)] = variable.numpy()
    for name, value in {**adoption.held_states, **adoption.held_slots}.items():
        store[_key(name) if name in adoption.held_states else name] = value


def load(optimizer: Any, store: Any) -> None:
    """Reads what `save` wrote, or what a plain Keras optimizer did.

    Raises:
        StateError: the number or the shape of the variables does not fit; nothing was changed.
    """
    entries = {key: np.asarray(store[key]) for key in store.keys()}  # noqa: SIM118 (an HDF5 entry is no dict)
    if _ITERATION not in entries:
        entries = _from_plain(optimizer, entries)
    slots = {key: value for key, value in entries.items() if key.startswith(_SLOT)}
    if optimizer.built:
        _check_slots(optimizer, slots, int(entries[_ITERATION]))
    adoption = optimizer._distlr
    plain = _named_plain(optimizer)
    plain[_ITERATION].assign(entries[_ITERATION])
    if _RATE in entries and _RATE in plain:
        if not np.isclose(entries[_RATE], plain[_RATE].numpy()):
            _log.info(
                "The loaded state has the base rate %g where the script has %g; the loaded one is used.",
                float(entries[_RATE]),
                float(plain[_RATE].numpy()),
            )
        plain[_RATE].assign(entries[_RATE])
    states = {_name(key): value for key, value in entries.items() if key.startswith(PREFIX)}
    for name, value in states.items():
        if name in adoption.named:
            adoption.named[name].assign(value)
        else:
            adoption.held_states[name] = value
    adoption.held_slots = slots
    if optimizer.built:
        load_held_slots(optimizer)


def load_held_slots(optimizer: Any) -> None:
    """Assigns the slots that were loaded before the optimizer was built."""
    adoption = optimizer._distlr
    slots = adoption.held_slots
    if not slots:
        return
    _check_slots(optimizer, slots, int(optimizer._iterations.numpy()))
    plain = _named_plain(optimizer)
    for name, value in slots.items():
        plain[name].assign(value)
    adoption.held_slots = {}


def _named_plain(optimizer: Any) -> dict[str, Any]:
    """Keras' own variables by name: the iteration, the rate if it is a float, then the slots in order."""
    named: dict[str, Any] = {_ITERATION: optimizer._iterations}
    slots = []
    for variable in optimizer._variables:
        if variable is optimizer._learning_rate:
            named[_RATE] = variable
        elif variable is not optimizer._iterations:
            slots.append(variable)
    return {**named, **{f"{_SLOT}{i}": variable for i, variable in enumerate(slots)}}


def _from_plain(optimizer: Any, entries: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names a plain optimizer's numbered variables; its clock is derived from its iterations."""
    try:
        numbered = [entries[str(i)] for i in range(len(entries))]
    except KeyError:
        raise StateError(
            f"The saved state of optimizer '{optimizer.name}' is neither distlr's nor Keras'. Found the keys "
            f"{sorted(entries)[:8]}. To mend it: load a file written by Keras 3."
        ) from None
    rest = numbered[1:]
    # The rate is the second variable of an optimizer with a float rate, and a scalar. A scalar weight's slot
    # could stand there too, so the number of slots decides where it is known.
    slots = sum(name.startswith(_SLOT) for name in _named_plain(optimizer))
    has_rate = bool(rest) and rest[0].shape == () and (not optimizer.built or len(rest) != slots)
    named: dict[str, Any] = {
        _ITERATION: numbered[0],
        PREFIX + "multiplier": np.float64(1),
        PREFIX + "samples_seen": np.int64(0),
    }
    if has_rate:
        named[_RATE] = rest.pop(0)
    return {**named, **{f"{_SLOT}{i}": value for i, value in enumerate(rest)}}


def _check_slots(optimizer: Any, slots: dict[str, np.ndarray], iterations: int) -> None:
    if not slots and iterations == 0:
        return  # saved before the first update: there is nothing to keep yet
    expected = {name: v for name, v in _named_plain(optimizer).items() if name.startswith(_SLOT)}
    if len(slots) != len(expected):
        raise StateError(
            f"The saved state does not fit the optimizer '{optimizer.name}' ({type(optimizer).__name__}): it has "
            f"{len(slots)} slot variables, the optimizer {len(expected)}. (Keras would have dropped all of it with a "
            "warning.) To mend it: make the optimizer as it was saved (class, momentum, EMA, accumulation), for the "
            "same model."
        )
    for name, variable in expected.items():
        if tuple(slots[name].shape) != tuple(variable.shape):
            raise StateError(
                f"The saved state does not fit the optimizer '{optimizer.name}': {name} ({variable.path}) has shape "
                f"{tuple(slots[name].shape)} in the file and {tuple(variable.shape)} in the optimizer. To mend it: "
                "load it into the model that it was saved with."
            )


def _key(name: str) -> str:
    return PREFIX + name.replace("/", ":")


def _name(key: str) -> str:
    return key[len(PREFIX) :].replace(":", "/")
