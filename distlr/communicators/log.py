"""How many collectives one rank was in, and what they cost."""

from __future__ import annotations

__all__ = ["CollectiveLog"]


class CollectiveLog:
    """Counts the collectives of one rank.

    Attributes:
        total: number of collectives that this rank entered.
        bytes_sent: bytes that this rank handed to the backend, headers included.
        seconds: how long this rank was in collectives, most of which it waits for others.
    """

    def __init__(self) -> None:
        self.total = 0
        self.bytes_sent = 0
        self.seconds = 0.0

    def enter(self, bytes_sent: int) -> None:
        """Counts one collective."""
        self.total += 1
        self.bytes_sent += bytes_sent
