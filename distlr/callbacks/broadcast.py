"""Rank 0's state on every rank, before the first step."""

from __future__ import annotations

from typing import Any

from distlr.callbacks.job_callback import JobCallback
from distlr.callbacks.stage import Stage
from distlr.communicators import Communicator
from distlr.optimizer import adopted_by
from distlr.sync.broadcast import broadcast_optimizer, broadcast_state
from distlr.sync.digests import compare_ranks, rank_state

__all__ = ["BroadcastState", "compare_at_end"]


class BroadcastState(JobCallback):
    """Gives every rank rank 0's model and optimizer once, before the first step of a `fit`.

    It broadcasts the weights, moving statistics among them; the variables of the optimizer, and of further optimizers
    in the model's attributes: slots, iterations, the multiplier, the clock, the state of a plateau; and the epoch at
    which `BackupAndRestore` goes on. `SyncMetrics` averages the weights that are not trained at each epoch's end.
    `ReplicaGuard` compares all that the rate depends on, and the weights. Nobody broadcasts or compares the states
    of seed generators, which differ by rank on purpose where the script seeds them so (dropout draws another mask on
    each rank), and of metrics.

    It comes last, so that all callbacks have loaded their state on rank 0 by then. It also refuses ranks that built
    different models or have different numbers of steps an epoch. Once the training has ended it compares the
    ranks a last time: a callback may change the weights in `on_train_end`.

    `job.callbacks` adds it on several ranks. Here they are threads:

    >>> import keras
    >>> from distlr.testing import run_ranks
    >>> models = [keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]) for rank in range(2)]
    >>> for model in models:
    ...     model.compile("sgd")
    >>> def begin(comm):
    ...     callback = BroadcastState()
    ...     callback.bind(comm)
    ...     callback.set_model(models[comm.rank])
    ...     callback.on_train_begin()
    >>> _ = run_ranks(begin, size=2)
    >>> all((a == b).all() for a, b in zip(models[0].get_weights(), models[1].get_weights()))
    True
    """

    stage = Stage.BROADCAST

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Compares and broadcasts. Collective."""
        params = self.params or {}
        terms = {"steps an epoch": params.get("steps"), "epochs": params.get("epochs")}
        others = [core for core in adopted_by(self.model) if core is not self.core]
        if others:
            terms["optimizers of the model"] = len(others)
        broadcast_state(self.communicator, self.model, self.model.optimizer, terms)
        for optimizer in others:
            broadcast_optimizer(self.communicator, optimizer)
        # Set for `fit` by a restoring callback, on the one rank that has read the file.
        first = self.communicator.broadcast_json(getattr(self.model, "_initial_epoch", None), tag="the first epoch")
        self.model._initial_epoch = first

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Compares the ranks after the last callback. Collective."""
        compare_at_end(self.communicator, self.model)


def compare_at_end(communicator: Communicator, model: Any, *, trained_alone: bool = False) -> None:
    """Refuses ranks that a callback made different as the training ended. Collective.

    Args:
        communicator: the job's.
        model: the trained model.
        trained_alone: leave out the weights that are not trained.

    Raises:
        ReplicaDivergenceError: on every rank.
    """
    local_state = rank_state(model, model.optimizer, trained_alone=trained_alone)
    all_ranks = communicator.gather_json(local_state, tag="replicas after fit's last callback")
    compare_ranks(
        communicator,
        all_ranks,
        model,
        when="the end of fit, after its last callback",
        advice=" A callback that changes weights as the training ends must be given on every rank.",
    )
