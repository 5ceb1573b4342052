"""The exception classes of distlr.

    DistlrError
     +-- ConfigurationError (ValueError)         an argument that cannot be right
     +-- ConfigurationTypeError (TypeError)      an argument of a type that cannot be right
     +-- DistributionError (RuntimeError)        replicas, ranks, scope or launcher do not fit together
     |    +-- CollectiveMismatchError            the ranks are in different collectives
     |    +-- CollectiveTimeoutError             a rank did not enter a collective in time, or has ended
     |    +-- ReplicaDivergenceError             ranks whose rate, clock or weights are no longer equal
     +-- StateError (ValueError)                 saved state that does not fit
     +-- NonFiniteError (ValueError)             a gradient, a loss or a metric is NaN or infinite
     |    +-- NonFiniteMetricError               ... the metric that a plateau watches
     +-- RanksChanged (RuntimeError)             other ranks wait to join an elastic job

Each is also a builtin exception, so code that catches the builtin keeps working. A message says what was set, what was
found and what to do about it (`Fix: ...`).
"""

from __future__ import annotations

__all__ = [
    "CollectiveMismatchError",
    "CollectiveTimeoutError",
    "ConfigurationError",
    "ConfigurationTypeError",
    "DistlrError",
    "DistributionError",
    "NonFiniteError",
    "NonFiniteMetricError",
    "RanksChanged",
    "ReplicaDivergenceError",
    "StateError",
    "received",
    "shown",
]

_SHOWN = 1000  # characters of a value


class DistlrError(Exception):
    """Base of every exception that distlr raises on purpose.

    >>> import distlr
    >>> try:
    ...     distlr.Duration.parse("5 minutes")
    ... except DistlrError as error:
    ...     print(type(error).__name__)
    ConfigurationError
    """


# While TensorFlow traces a function it adds to the message of an error in it, and keeps the error's class only where
# the class is made as plain exceptions are.
setattr(DistlrError, "__init__", Exception.__init__)  # noqa: B010


class ConfigurationError(DistlrError, ValueError):
    """An argument, or a combination of arguments, that cannot be right.

    Raised where the job, the batch, a schedule or a callback is created, or before the first step of the run.

    >>> import distlr
    >>> distlr.GlobalBatch(64, base_batch=0)
    Traceback (most recent call last):
        ...
    distlr.errors.ConfigurationError: `base_batch` must be at least 1. Received: base_batch=0.
    """


class ConfigurationTypeError(DistlrError, TypeError):
    """An argument of a type that cannot be right.

    >>> import distlr
    >>> distlr.GlobalBatch("64", base_batch=256)
    Traceback (most recent call last):
        ...
    distlr.errors.ConfigurationTypeError: `per_replica` must be an integer. Received: per_replica='64'. Fix:
    write a whole number such as 64.
    """


class DistributionError(DistlrError, RuntimeError):
    """The job's replicas, ranks, scope or launcher do not fit together.

    Raised at the start of a job, before the first step, or by a collective, on every rank:

    >>> from distlr.testing import run_ranks
    >>> try:
    ...     run_ranks(lambda comm: comm.allreduce([0.0] * (comm.rank + 1), tag="loss"), size=2)
    ... except DistributionError as error:
    ...     print(str(error).partition(" (")[0])
    The ranks disagree in allreduce 'loss'
    """


class ReplicaDivergenceError(DistributionError):
    """Ranks whose rate, clock or weights are no longer equal.

    Raised on every rank alike, by `callbacks.ReplicaGuard` at an epoch's end and by `job.check`, with a table of who
    differs in what:

    >>> import keras
    >>> from distlr.callbacks import ReplicaGuard
    >>> from distlr.testing import run_ranks
    >>> def end_of_epoch(comm):
    ...     guard = ReplicaGuard()
    ...     guard.bind(comm)
    ...     guard.set_model(models[comm.rank])
    ...     guard.on_epoch_end(0)
    >>> models = [keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]) for rank in range(2)]
    >>> for rate, model in zip((0.1, 0.2), models):
    ...     model.compile(keras.optimizers.SGD(rate))
    >>> try:
    ...     run_ranks(end_of_epoch, size=2)
    ... except ReplicaDivergenceError as error:
    ...     print(str(error).splitlines()[1].strip())
    learning rate: rank 0 with 0.10000000149011612; rank 1 with 0.20000000298023224
    """


class StateError(DistlrError, ValueError):
    """Saved state that does not fit the optimizer it is loaded into.

    Raised by loading, before anything has changed: `load_model`, `load_weights`, `set_weights`, `callbacks.Checkpoint`.

    >>> import distlr, keras
    >>> job = distlr.init(environ={})
    >>> optimizer = job.optimizer(keras.optimizers.SGD(0.1, name="sgd"))
    >>> optimizer.set_weights([0])
    Traceback (most recent call last):
        ...
    distlr.errors.StateError: The optimizer 'sgd' has 4 variables, 2 of them Keras'. Received: 1 values. Fix:
    give one for each of optimizer.variables.
    """


class NonFiniteError(DistlrError, ValueError):
    """A gradient, a loss or a metric that is NaN or infinite.

    Raised on every rank alike, by `callbacks.NonFiniteGuard`, which `job.callbacks` adds, and by a plateau:

    >>> import distlr, keras
    >>> plateau = distlr.Plateau(keras.optimizers.SGD(0.1), "val_loss")
    >>> try:
    ...     plateau.step(float("nan"))
    ... except NonFiniteError as error:
    ...     print(error)
    `val_loss` must be finite. Received: val_loss=nan. Fix: look for what diverged, or set on_nan='worse'
    or on_nan='ignore'.
    """


class NonFiniteMetricError(NonFiniteError):
    """The metric that a plateau watches is NaN or infinite, and its policy says `on_nan="raise"`.

    >>> from distlr.plateau import PlateauPolicy
    >>> policy = PlateauPolicy("val_loss")
    >>> policy.step(policy.initial_state(), float("nan"), rate=0.1)
    Traceback (most recent call last):
        ...
    distlr.errors.NonFiniteMetricError: `val_loss` must be finite. Received: val_loss=nan. Fix: look for
    what diverged, or set on_nan='worse' or on_nan='ignore'.
    """


class RanksChanged(DistlrError, RuntimeError):
    """Raised through `fit`, after a checkpoint, where other ranks wait to join; `distlr.elastic.run` catches it.

    So a `train` that catches errors of its own lets this one through:

    >>> import distlr
    >>> def train(job):
    ...     try:
    ...         raise RanksChanged("Other ranks wait to join.")  # by `fit`
    ...     except RanksChanged:
    ...         raise
    ...     except RuntimeError:
    ...         print("an error of the training's own")
    >>> distlr.elastic.run(train)  # under an elastic launcher it would call `train` again
    Traceback (most recent call last):
        ...
    distlr.errors.RanksChanged: Other ranks wait to join.
    """


class CollectiveTimeoutError(DistributionError):
    """A collective that not every rank entered in time, because a rank is slow, hangs or has ended.

    >>> from distlr.testing import run_ranks
    >>> try:
    ...     run_ranks(lambda comm: comm.barrier(tag="save") if comm.is_root else None, size=2)
    ... except CollectiveTimeoutError as error:
    ...     print(error)
    A collective can no longer complete: rank 1 ended without entering it, while rank 0 waits in barrier 'save'.
    Every rank must call the same collectives.
    """


class CollectiveMismatchError(DistributionError):
    """Ranks that are in different collectives at the same time: one reaches a call that another does not.

    Raised on every rank alike, with who is where:

    >>> from distlr.testing import run_ranks
    >>> try:
    ...     run_ranks(lambda comm: comm.barrier(tag="save" if comm.is_root else "load"), size=2)
    ... except CollectiveMismatchError as error:
    ...     print(str(error).partition(". ")[0].partition("): ")[2])
    rank 0 in barrier 'save'; rank 1 in barrier 'load'
    """


def shown(value: object) -> str:
    """A value for a message: its `repr`, or the beginning of it where it is long.

    >>> shown("a"), shown("9" * 5000)[-8:]
    ("'a'", '99999...')
    """
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def received(argument: str, value: object, expected: str, hint: str = "") -> str:
    """Formats the message for a bad argument: what is expected, what was received, what to do.

    Args:
        argument: its name.
        value: the value that was received.
        expected: what it must be, after "must be".
        hint: what to do about it, after "Fix:"; left out where the rest is clear.

    >>> received("warmup", "5", "a duration", "write '5ep' for 5 epochs")
    "`warmup` must be a duration. Received: warmup='5'. Fix: write '5ep' for 5 epochs."
    """
    text = f"`{argument}` must be {expected}. Received: {argument}={shown(value)}."
    return f"{text} Fix: {hint}." if hint else text
