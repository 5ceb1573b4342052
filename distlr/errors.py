"""The exception classes of distlr.

Each is also a builtin exception (`ValueError`, `TypeError` or `RuntimeError`), so code that catches
the builtin keeps working. A message says what was set, what was found and what to do about it.
"""

from __future__ import annotations

__all__ = [
    "CollectiveTimeoutError",
    "ConfigurationError",
    "ConfigurationTypeError",
    "DistlrError",
    "DistributionError",
    "NonFiniteError",
    "RanksChanged",
    "ReplicaDivergenceError",
    "StateError",
    "received",
]


class DistlrError(Exception):
    """Base of every exception that distlr raises on purpose."""


# While TensorFlow traces a function it gives an error in it a longer message, and keeps the error's class only where
# the class is made as plain exceptions are.
setattr(DistlrError, "__init__", Exception.__init__)  # noqa: B010


class ConfigurationError(DistlrError, ValueError):
    """An argument, or a combination of arguments, that cannot be right."""


class ConfigurationTypeError(DistlrError, TypeError):
    """An argument of a type that cannot be right."""


class DistributionError(DistlrError, RuntimeError):
    """The job's replicas, ranks, scope or launcher do not fit together."""


class ReplicaDivergenceError(DistributionError):
    """Ranks whose rate, clock or weights are no longer equal."""


class StateError(DistlrError, ValueError):
    """Saved state that does not fit the optimizer it is loaded into."""


class NonFiniteError(DistlrError, ValueError):
    """A gradient, a loss or a metric that is NaN or infinite."""


class RanksChanged(DistlrError, RuntimeError):
    """Raised through `fit`, after a checkpoint, where other ranks wait to join; `distlr.elastic.run` catches it."""


class CollectiveTimeoutError(DistributionError):
    """A collective that not every rank entered in time, or entered with another tag.

    Attributes:
        by_engine: whether the engine ended it, since a rank was lost or did not come; not that the tags differ.
    """

    by_engine = False


def received(argument: str, value: object, expected: str, hint: str = "") -> str:
    """Formats the message for a bad argument: what is expected, what came, what to do.

    >>> received("warmup", "5", "a duration", "write '5ep' for 5 epochs")
    "`warmup` must be a duration. Received: warmup='5'. To mend it: write '5ep' for 5 epochs."
    """
    text = f"`{argument}` must be {expected}. Received: {argument}={value!r}."
    return f"{text} To mend it: {hint}." if hint else text
