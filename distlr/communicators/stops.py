"""A request to stop that travels with the gradients: at no collective's cost, at the same update on every rank."""

from __future__ import annotations

__all__ = ["StopRequest"]


class StopRequest:
    """What this rank wants, and what all have agreed on; an exchange of gradients carries one to the other.

    Attributes:
        wanted: a variable of this process, 1 where it wants to stop.
        agreed: a variable of this process, above 0 where any rank wanted to stop before the last update.
    """

    def __init__(self) -> None:
        import tensorflow as tf

        first = tf.VariableAggregation.ONLY_FIRST_REPLICA  # in the scope of a strategy: assigned in a replica
        self.wanted = tf.Variable(0.0, trainable=False, aggregation=first)
        self.agreed = tf.Variable(0.0, trainable=False, aggregation=first)

    def request_stop(self) -> None:
        """Lets all ranks know, with the next update's gradients, that this one wants to stop."""
        self.wanted.assign(1.0)

    def take_back(self) -> None:
        """Forgets this rank's request and what was agreed."""
        self.wanted.assign(0.0)
        self.agreed.assign(0.0)

    @property
    def stop_requested(self) -> bool:
        """Whether this rank wants to stop."""
        return bool(self.wanted.numpy() > 0)

    @property
    def stop_agreed(self) -> bool:
        """Whether any rank wanted to stop before the last update; the same on all ranks."""
        return bool(self.agreed.numpy() > 0)
