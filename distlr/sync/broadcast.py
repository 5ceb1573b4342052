"""Rank 0's state on every rank: the one place that broadcasts a model and its optimizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from distlr.communicators import Communicator
from distlr.communicators.bundles import broadcast_arrays
from distlr.communicators.frames import group_by_rank
from distlr.errors import DistributionError, StateError
from distlr.optimizer import AdoptedOptimizer, strategy_of, unwrap_loss_scale

__all__ = ["broadcast_optimizer", "broadcast_state", "broadcast_variables", "check_equal"]

_DECIDERS = "states of deciders"


def broadcast_state(
    communicator: Communicator, model: Any, optimizer: Any = None, terms: Mapping[str, Any] | None = None
) -> None:
    """Gives every rank rank 0's weights and optimizer variables, and allows the optimizer to step from then on.

    It broadcasts `model.weights` (batch normalization's moving statistics among them) and all variables of the
    optimizer: its slots and iterations, the multiplier, the clock and the state of a plateau. It does not broadcast
    the states of seed generators, or every rank would draw the same dropout masks, nor those of metrics.

    Collective: first the ranks compare what they have, so that two that built different models
    both say so.

    Args:
        communicator: the job's.
        model: a built model.
        optimizer: its optimizer, built; or None.
        terms: JSON values that must be equal on all ranks too, by the name that a message gives them.

    Raises:
        DistributionError: the ranks differ in the number, the shapes or the types of the variables, in the parts of
            the rate's formula, or in `terms`.
    """
    variables = list(model.weights)
    formula: Any = None
    exchange: Any = None
    if optimizer is not None:
        core = unwrap_loss_scale(optimizer)
        if not optimizer.built:
            try:
                with strategy_of(optimizer).scope():
                    optimizer.build(model.trainable_variables)
            except StateError as error:  # an error in the state that rank 0 alone has loaded
                communicator.refuse("broadcast_json", _DECIDERS, error)
        optimizer_variables: dict[str, Any] = {}
        if isinstance(core, AdoptedOptimizer):
            # A decider's state that rank 0 alone has loaded is made on every rank, together.
            states = core.distlr.variables.decider_states()
            for name, initial in communicator.broadcast_json(states, tag=_DECIDERS).items():
                core.distlr.state(name, initial)
            optimizer_variables = core.distlr.variables.by_name()
            reducer = core.distlr.gradients.reducer
            exchange = None if reducer is None else f"{reducer.terms}, {core.distlr.gradients.reduction.terms}"
        added = {id(variable) for variable in optimizer_variables.values()}
        variables += [v for v in optimizer.variables if id(v) not in added] + list(optimizer_variables.values())
        if isinstance(core, AdoptedOptimizer):
            formula = _formula(core)
    check_equal(
        communicator,
        {
            "variables": [f"{variable.dtype} {tuple(variable.shape)}" for variable in variables],
            "formula": formula,
            "exchange of gradients": exchange,
            **(terms or {}),
        },
        tag="what the ranks have built",
    )
    broadcast_variables(communicator, variables, tag="rank 0's state")
    if optimizer is not None and isinstance(unwrap_loss_scale(optimizer), AdoptedOptimizer):
        unwrap_loss_scale(optimizer).distlr.gradients.has_rank_zero_state = True


def broadcast_optimizer(communicator: Communicator, optimizer: Any) -> None:
    """Gives every rank rank 0's state of an adopted optimizer beside `model.optimizer`, as far as it has any.

    If the script has not built it, its slots are made when it is first applied: only then its weights are known.
    Collective.

    Raises:
        DistributionError: the ranks differ in its variables, or in the parts of its rate's formula.
    """
    core = unwrap_loss_scale(optimizer)
    own_variables = core.distlr.variables.by_name()
    added = {id(variable) for variable in own_variables.values()}
    variables = [variable for variable in core.variables if id(variable) not in added] + list(own_variables.values())
    check_equal(
        communicator,
        {
            f"variables of '{core.name}'": [f"{variable.dtype} {tuple(variable.shape)}" for variable in variables],
            f"formula of '{core.name}'": _formula(core),
            f"exchange of gradients of '{core.name}'": getattr(core.distlr.gradients.reducer, "terms", None),
        },
        tag="an optimizer that the ranks have built",
    )
    broadcast_variables(communicator, variables, tag="rank 0's state of another optimizer")
    core.distlr.gradients.has_rank_zero_state = True


def _formula(core: AdoptedOptimizer) -> dict[str, Any] | None:
    """The parts of the formula that must be equal on all ranks; None where nothing is scaled."""
    if core.distlr.formula.batch_schedule is None:
        return None
    return {
        name: value
        for name, value in core.distlr.formula.batch_schedule.explain().items()
        if not name.endswith("_rate")
    }


def broadcast_variables(communicator: Communicator, variables: Sequence[Any], *, tag: str) -> None:
    """Assigns rank 0's values to the variables of every rank, bit for bit. Collective."""
    values = [variable.numpy() for variable in variables]
    sent = broadcast_arrays(communicator, values, tag=tag)
    for variable, old, new in zip(variables, values, sent, strict=True):
        if old.tobytes() != new.tobytes():
            variable.assign(new)


def check_equal(communicator: Communicator, parts: dict[str, Any], *, tag: str, note: Any = None) -> list[Any]:
    """Refuses, on every rank, values that differ by rank. Collective; the values are exchanged only if they differ.

    Args:
        communicator: the job's.
        parts: JSON values by the name that a message gives them.
        tag: names the call; the same on all ranks.
        note: a JSON value that may differ by rank.

    Returns:
        Every rank's note.
    """
    texts = {name: json.dumps(part, sort_keys=True, default=str) for name, part in parts.items()}
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
    all_ranks = communicator.gather_json({"digest": digest, "note": note}, tag=tag)
    if len({rank["digest"] for rank in all_ranks}) == 1:
        return [rank["note"] for rank in all_ranks]
    texts_of_ranks = communicator.gather_json(texts, tag=f"{tag}, which differs")
    different_names = [name for name in texts if len({rank_texts.get(name) for rank_texts in texts_of_ranks}) > 1]
    shown = []
    for name in different_names:
        values = [json.loads(rank_texts.get(name, "null")) for rank_texts in texts_of_ranks]
        shown.append(f"{name}: {group_by_rank([_difference(values, value) for value in values], 'with')}")
    advice = "run the same script with the same arguments on every rank"
    if "callbacks" in different_names:
        advice += "; give job.callbacks the same list on every rank (what writes files it leaves to rank 0 by itself)"
    raise DistributionError(
        f"[rank {communicator.rank}] The ranks are not about to train the same: they differ in {'; '.join(shown)}. "
        f"Fix: {advice}."
    )


def _difference(values: Sequence[Any], value: Any) -> str:
    """One rank's value, shortened to the part in which any two ranks differ.

    For a list that is the first entry that differs, and its length; for a dict the entries that differ.

    Args:
        values: the values by rank.
        value: the value of the rank.
    """
    if all(isinstance(other, dict) for other in values):
        common = [name for name in value if all(other.get(name, ...) == value[name] for other in values)]
        rest = {name: part for name, part in value.items() if name not in common}
        return json.dumps(rest) if rest else "none"
    if not isinstance(value, list):
        return json.dumps(value)
    lists = [other if isinstance(other, list) else [] for other in values]
    for i in range(min(map(len, lists))):
        if len({json.dumps(entries[i]) for entries in lists}) > 1:
            return f"number {i + 1} of {len(value)}: {value[i]}"
    return f"{len(value)} of them"
