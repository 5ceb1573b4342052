"""Digests of what must be equal on every replica and every rank, and the comparison of ranks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from distlr.communicators import Communicator
from distlr.communicators.frames import group_by_rank
from distlr.errors import ReplicaDivergenceError
from distlr.optimizer import AdoptedOptimizer, rate_of, unwrap_loss_scale

__all__ = ["compare_ranks", "rank_state", "weights_digests"]


def weights_digests(model: Any, strategy: tf.distribute.Strategy, *, trained_alone: bool = False) -> list[str]:
    """SHA-256 of all weights, one digest for each replica of this process, over that replica's own copy.

    Args:
        model: the model with the weights.
        strategy: the strategy with the replicas.
        trained_alone: leave out the weights that are not trained.
    """
    weights = model.trainable_weights if trained_alone else model.weights
    copies = [strategy.experimental_local_results(variable.value) for variable in weights]
    replicas = max(map(len, copies), default=1)
    hashes = [hashlib.sha256() for _ in range(replicas)]
    for variable_copies in copies:
        # A variable that the strategy keeps once has one copy, and that is every replica's.
        for i, replica in enumerate(hashes):
            replica.update(np.ascontiguousarray(variable_copies[i % len(variable_copies)].numpy()).tobytes())
    return [replica.hexdigest() for replica in hashes]


def rank_state(model: Any, optimizer: Any, *, trained_alone: bool = False) -> dict[str, Any]:
    """The state that must be equal on every rank, as JSON: numbers with all their bits, and digests."""
    optimizer = unwrap_loss_scale(optimizer)
    state: dict[str, Any]
    if isinstance(optimizer, AdoptedOptimizer):
        now = optimizer.distlr.formula.reading()
        state = {
            "iterations": now.iterations,
            "learning rate": now.rate.hex(),
            "samples seen": now.samples_seen,
            "multiplier": now.multiplier.hex(),
            "applied rates": optimizer.distlr.gradients.rate_digests(),
        }
    else:
        state = {"iterations": int(optimizer.iterations.numpy()), "learning rate": rate_of(optimizer).hex()}
    return state | {"weights": weights_digests(model, model.distribute_strategy, trained_alone=trained_alone)}


def _weight_digests(model: Any) -> dict[str, str]:
    """A short digest of each weight by its name."""
    return {
        f"{i}: {weight.path}": hashlib.sha256(np.ascontiguousarray(weight.numpy()).tobytes()).hexdigest()[:16]
        for i, weight in enumerate(model.weights)
    }


def compare_ranks(
    communicator: Communicator, states: Sequence[dict[str, Any]], model: Any, *, when: str, advice: str = ""
) -> None:
    """Raises where the ranks' states differ; every rank has the same states, so all raise or none does.

    Args:
        communicator: the job's; used, on every rank, only where the weights differ, to say which.
        states: the results of `rank_state`, by rank.
        model: the model with these weights.
        when: the time of the comparison, for the message.
        advice: additional advice.

    Raises:
        ReplicaDivergenceError: states differ; the message has a line a field, with the ranks of each value.
    """
    fields = [name for name in states[0] if any(state.get(name) != states[0][name] for state in states)]
    if not fields:
        return
    lines = [f"{name}: {group_by_rank([_shown(state.get(name)) for state in states], 'with')}" for name in fields]
    if "weights" in fields:
        named = communicator.gather_json(_weight_digests(model), tag="the weights of diverged replicas")
        lines += [
            f"weight {name}: {group_by_rank([digests.get(name, 'none') for digests in named], 'with')}"
            for name in named[0]
            if len({digests.get(name) for digests in named}) > 1
        ]
    table = "\n  ".join(lines)
    to_do = "look for what changes the rate or the weights on some ranks only"
    raise ReplicaDivergenceError(
        f"[rank {communicator.rank}] The ranks are no longer one training at {when}. They differ in:\n  {table}\n"
        f"Fix: go back to the last checkpoint, and {to_do}.{advice}"
    )


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(_shown(item) for item in value)
    if isinstance(value, str) and value.startswith(("0x", "-0x")):
        return f"{float.fromhex(value)!r}"
    return value[:16] if isinstance(value, str) else repr(value)
