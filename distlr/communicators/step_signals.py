"""Requests that travel with the gradients: at no collective's cost, heard at the same update on every rank."""

from __future__ import annotations

__all__ = ["KINDS", "Requests"]

KINDS = ("stop", "save", "leave", "regroup", "bad", "steer", "waits")
"""To end the training; to write a checkpoint and go on, to end the process, or to begin anew with other ranks; that a
loss is not finite; that rank 0 has something to say that was asked for by hand; and, never set by `request`, that a
rank makes no update but waits in a collective."""


class Requests:
    """What this rank wants, and what all have heard of; an exchange of gradients carries one to the other.

    Attributes:
        wanted: a variable of this process, for each kind 1 where it is requested here.
        agreed: a variable of this process, for each kind above 0 where any rank wanted it before the last update.
    """

    def __init__(self) -> None:
        import tensorflow as tf

        first = tf.VariableAggregation.ONLY_FIRST_REPLICA  # in the scope of a strategy: assigned in a replica
        self.wanted = tf.Variable([0.0] * len(KINDS), trainable=False, aggregation=first)
        self.agreed = tf.Variable([0.0] * len(KINDS), trainable=False, aggregation=first)

    @property
    def terms(self) -> str:
        """What must be equal on all ranks, of the exchange that carries them."""
        return ""

    def request(self, kind: str) -> None:
        """Lets all ranks know, with the next update's gradients, what this one wants."""
        self._set(self.wanted, kind, 1.0)

    def take_back(self, kind: str) -> None:
        """Forgets this rank's request and what was agreed."""
        self._set(self.wanted, kind, 0.0)
        self._set(self.agreed, kind, 0.0)

    def requested(self, kind: str) -> bool:
        """Whether this rank wants it."""
        return bool(self.wanted.numpy()[KINDS.index(kind)] > 0)

    def agreed_on(self, *kinds: str) -> set[str]:
        """Which of these any rank wanted before the last update; the same on all ranks."""
        agreed = self.agreed.numpy()
        return {kind for kind in kinds if agreed[KINDS.index(kind)] > 0}

    def _set(self, variable: object, kind: str, value: float) -> None:
        values = variable.numpy()  # type: ignore[attr-defined]
        if values[KINDS.index(kind)] != value:
            values[KINDS.index(kind)] = value
            variable.assign(values)  # type: ignore[attr-defined]
