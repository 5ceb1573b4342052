"""Reads from an engine's error which rank has ended, and writes the message of the ranks that are left."""

from __future__ import annotations

import re

__all__ = ["lost_worker", "says_rank_is_lost", "survivor_message"]

_LOST = ("Horovod has been shut down", "Collective ops is aborted", "from remote target")
_WORKER = re.compile(r"(?:from remote target|Task) /job:(chief|worker)/replica:\d+/task:(\d+)")


def says_rank_is_lost(message: str) -> bool:
    """Whether an engine's error means that a rank is lost, and not that something is wrong on this one.

    A message that begins with a rank comes from another layer of distlr and stays as it is.

    >>> says_rank_is_lost("Collective ops is aborted by: Socket closed")
    True
    >>> says_rank_is_lost("Incompatible shapes: [2] vs. [3]")
    False
    """
    return "[rank " not in message and any(words in message for words in _LOST)


def lost_worker(message: str, chiefs: int = 0) -> int | None:
    """The rank of the worker to which TensorFlow's connection broke, if the message names it; Horovod names none.

    >>> lost_worker("... GRPC error information from remote target /job:worker/replica:0/task:1 while ...")
    1

    Args:
        message: TensorFlow's.
        chiefs: the workers of the job that are called a chief, whose rank comes first.
    """
    match = _WORKER.search(message)
    if match is None:
        return None
    return int(match[2]) + (chiefs if match[1] == "worker" else 0)


def survivor_message(rank: int, size: int, what: str, timeout: float | None, lost: int | None = None) -> str:
    """The error text of a rank that is left, which stands before its engine's message.

    >>> print(survivor_message(0, 2, "An update", 600, lost=1))
    [rank 0] An update ended because rank 1 of 2 ended, or cannot be reached. Fix: look at what the others said last.

    Args:
        rank: this rank.
        size: number of ranks.
        what: what ended.
        timeout: seconds that the engine waits, or None where it has no limit.
        lost: the rank that is gone, where it is known.
    """
    if lost is not None and lost != rank:
        why = f"rank {lost} of {size} ended, or cannot be reached"
    else:
        why = f"a rank of {size} ended, or did not come within {timeout or float('inf'):g} s"
    return f"[rank {rank}] {what} ended because {why}. Fix: look at what the others said last."
