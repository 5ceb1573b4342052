"""TensorFlow's errors about a lost rank, with the rank that reports it, and the lost rank if it is known."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from distlr.communicators import Communicator
from distlr.communicators.lost_ranks import says_rank_is_lost

__all__ = ["explained", "with_text"]


def with_text(error: tf.errors.OpError, text: str) -> tf.errors.OpError:
    """The same error, of the same class, with a text before its message.

    >>> error = with_text(tf.errors.UnavailableError(None, None, "Socket closed"), "[rank 0] Rank 1 ended.")
    >>> type(error).__name__, error.message
    ('UnavailableError', '[rank 0] Rank 1 ended. Socket closed')
    """
    message = f"{text} {error.message.strip()}"
    if type(error) is tf.errors.OpError:
        return tf.errors.OpError(error.node_def, error.op, message, error.error_code)
    return type(error)(error.node_def, error.op, message)


@contextlib.contextmanager
def explained(communicator: Communicator, what: str) -> Iterator[None]:
    """Adds to an error about a lost rank which rank reports it, and which is lost; its class stays.

    Horovod's elastic mode and users' scripts recognize it by its class and by the engine's words.

    Args:
        communicator: the job's.
        what: the action that such an error ends, as the subject of a sentence.
    """
    try:
        yield
    except tf.errors.OpError as error:
        if communicator.size == 1 or not says_rank_is_lost(error.message):
            raise
        raise with_text(error, communicator.survivor_message(what, error.message)) from error
