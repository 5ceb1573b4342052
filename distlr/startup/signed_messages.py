"""Messages between the workers of one job over plain sockets: a line of JSON each, signed where they share a secret.

No message is trusted: it is read within a bounded time, up to a bounded length, and only as JSON.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Mapping

from distlr._utils.json_types import JSON

__all__ = ["SECRET", "Messenger"]

SECRET = "DISTLR_SECRET"
"""The environment variable with the secret that all workers of a job share."""

LONGEST = 2**20
"""Bytes of a message: enough for a list of some ten thousand addresses."""

_MAGIC = "distlr"


class Messenger:
    """Writes and reads the messages of one job.

    A message is `{"distlr": text, "signature": HMAC-SHA256 of the text}`, the text being JSON itself. An answer repeats
    the random number of its question, so that a message that was recorded earlier is useless.

    Args:
        secret: shared by all workers; with an empty one every well-formed message is accepted.
    """

    def __init__(self, secret: str = "") -> None:
        self.secret = secret
        self.refused = 0
        """The number of messages that were not signed with the secret."""

    def encode(self, message: Mapping[str, object]) -> bytes:
        """Encodes a message as the line that is sent."""
        text = json.dumps(message)
        return json.dumps({_MAGIC: text, "signature": self._signature(text)}).encode() + b"\n"

    def decode(self, line: bytes) -> dict[str, JSON] | None:
        """Decodes a line; None where it is no message, or is not signed with the secret.

        >>> ours, theirs = Messenger("secret"), Messenger("another")
        >>> ours.decode(ours.encode({"rank": 1})), ours.decode(theirs.encode({"rank": 1})), ours.decode(b"GET /")
        ({'rank': 1}, None, None)
        """
        try:
            envelope = json.loads(line)
            text, signature = envelope[_MAGIC], envelope["signature"]
            if not (isinstance(text, str) and isinstance(signature, str)):
                return None
            if not hmac.compare_digest(signature.encode(), self._signature(text).encode()):
                self.refused += 1
                return None
            message = json.loads(text)
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        return message if isinstance(message, dict) else None

    async def receive(self, reader: asyncio.StreamReader, seconds: float) -> dict[str, JSON] | None:
        """Returns the next message of a connection; None where no valid one comes in time."""
        try:
            return self.decode(await asyncio.wait_for(reader.readuntil(b"\n"), max(0.0, seconds)))
        except (asyncio.TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            return None

    def send(self, writer: asyncio.StreamWriter, message: Mapping[str, object]) -> None:
        """Sends a message, unless the connection is closing."""
        if not writer.is_closing():
            writer.write(self.encode(message))

    def _signature(self, text: str) -> str:
        return hmac.new(self.secret.encode(), text.encode(), hashlib.sha256).hexdigest() if self.secret else ""
