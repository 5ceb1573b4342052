"""The number of collectives that one rank entered, and their cost."""

from __future__ import annotations

__all__ = ["CollectiveLog"]


class CollectiveLog:
    """Counts the collectives of one rank.

    Attributes:
        total: number of collectives that this rank entered.
        bytes_sent: bytes that this rank handed to the backend, headers included.
        seconds: how long this rank was in collectives, most of which it waits for others.

    >>> from distlr.communicators import SingleCommunicator
    >>> comm = SingleCommunicator()
    >>> for loss in (2.0, 1.0):
    ...     _ = comm.allreduce(loss, tag="loss")
    >>> comm.log.total, comm.log.bytes_sent > 16
    (2, True)
    """

    def __init__(self) -> None:
        self.total = 0
        self.bytes_sent = 0
        self.seconds = 0.0

    def enter(self, bytes_sent: int) -> None:
        """Counts one collective."""
        self.total += 1
        self.bytes_sent += bytes_sent
