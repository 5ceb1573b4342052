"""The plateau across ranks: rank 0 decides on the global metric, every rank applies what it received."""

from __future__ import annotations

import logging
from typing import Any

from distlr.communicators import Communicator, single_process_communicator
from distlr.communicators.rank_zero import compute_on_root
from distlr.errors import ConfigurationError, DistributionError, NonFiniteMetricError, received
from distlr.optimizer import handle
from distlr.plateau.policy import Decision, PlateauPolicy, PlateauState

__all__ = ["Plateau"]

_log = logging.getLogger("distlr")


class Plateau:
    """Cuts the rate when a metric stops improving, for loops without `fit`.

        plateau = distlr.Plateau(optimizer, "val_loss", factor=0.1, patience=5, communicator=job.communicator)
        for epoch in range(epochs):
            ...
            plateau.step(val_loss)

    The policy's state is kept in the optimizer's variables, under the monitor's name and mode, so it is
    saved and restored with them. (For a plain Keras optimizer it is kept here, and ends with the process.)

    >>> import keras
    >>> optimizer = keras.optimizers.SGD(0.1)
    >>> plateau = Plateau(optimizer, "val_loss", factor=0.5, patience=1)
    >>> [plateau.step(loss).cut for loss in (1.0, 1.0, 0.5)]
    [False, True, False]
    >>> float(optimizer.learning_rate)
    0.05

    Args:
        optimizer: distlr's, or a plain Keras one with a float rate.
        monitor: the metric's name.
        communicator: how the ranks agree; by default there is one rank.
        policy: a `PlateauPolicy`, in place of `monitor` and the arguments.
        **arguments: of `PlateauPolicy`, those of Keras' `ReduceLROnPlateau` among them.

    Raises:
        ConfigurationError: an argument is out of range, or the optimizer's rate cannot be cut.
        DistributionError: a launcher started several ranks and `communicator` was not given.
    """

    def __init__(
        self,
        optimizer: Any,
        monitor: str = "val_loss",
        *,
        communicator: Communicator | None = None,
        policy: PlateauPolicy | None = None,
        **arguments: Any,
    ) -> None:
        self.policy = PlateauPolicy(monitor, **arguments) if policy is None else policy
        if communicator is None:
            communicator = single_process_communicator(type(self).__name__, "pass communicator=job.communicator")
        self.communicator = communicator
        self.decisions: list[dict[str, Any]] = []
        self._handle = handle(optimizer)
        self._steps = 0
        if self.policy.mode_guessed:
            hint = (
                f"write mode='min' or mode='max': nothing tells whether '{self.policy.monitor}' is better low or high"
            )
            raise ConfigurationError(received("mode", self.policy.mode, "'min' or 'max' for this metric", hint))
        # Every rank creates the variable now: under a strategy that spans the ranks all must create it together.
        self._handle.read(self._name, self.policy.initial_state().as_vector())

    def step(self, value: float | None, *, epoch: int | None = None) -> Decision:
        """Decides and applies, at an epoch's end. Collective: every rank calls it.

        Args:
            value: the global metric, or None where there is none. Only rank 0's counts.
            epoch: the epoch's number, for the record; counted from 0 by default.

        Returns:
            The decision, the same on every rank.

        Raises:
            NonFiniteMetricError: on every rank, when rank 0's value is not finite and `on_nan` is "raise".

        >>> import keras
        >>> plateau = Plateau(keras.optimizers.SGD(0.1), "accuracy", factor=0.5, patience=2)
        >>> [plateau.step(value).reason for value in (0.9, 0.8, 0.9)]
        ['accuracy is 0.9, the first value', 'accuracy did not improve on 0.9 for 1 epoch', 'accuracy did not
        improve on 0.9 for 2 epochs']
        """
        epoch = self._steps if epoch is None else epoch
        self._steps = epoch + 1
        reply = compute_on_root(
            self.communicator,
            lambda: self._decide(value),
            tag=f"plateau {self.policy.key} {epoch}",
            what="decide",
            raised=(NonFiniteMetricError, DistributionError),
        )
        if "skipped" in reply:
            return Decision(1.0, reply["skipped"], improved=False)
        decision = Decision.from_dict(reply["decision"])
        state = PlateauState.from_vector(reply["state"])
        self._handle.write(self._name, state.as_vector())
        if decision.cut:
            before = self._handle.rate
            self._handle.multiply(decision.multiplier)
            after = self._handle.rate
            self.decisions.append(
                {
                    "epoch": epoch,
                    "multiplier": decision.multiplier,
                    "reason": decision.reason,
                    "learning_rate": after,
                }
            )
            if self.communicator.is_root:
                words = (epoch + 1, decision.reason, before, after)
                _log.info("Epoch %d: %s; the rate goes from %.6g to %.6g.", *words)
        return decision

    @property
    def _name(self) -> str:
        return f"plateau/{self.policy.key}"

    def _decide(self, value: float | None) -> dict[str, Any]:
        """Decides, on rank 0; raises where the state, the metric or the user's schedule is wrong."""
        if value is None:
            return {"skipped": f"{self.policy.monitor} is not there"}
        if self._handle.paused:
            return {"skipped": "plateaus are paused by hand"}
        vector = self._handle.read(self._name, self.policy.initial_state().as_vector())
        state = PlateauState.from_vector(vector)
        rate, in_warmup = self._handle.now()
        state, decision = self.policy.step(state, value, rate=rate, in_warmup=in_warmup)
        return {"decision": decision.to_dict(), "state": list(state.as_vector())}
