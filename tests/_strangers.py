"""Strangers at the ports of a job's workers: what they send is passed over, and none of it reaches a log."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Sequence

from distlr.startup.signed_messages import Messenger

__all__ = ["HOSTILE", "WORD", "disturb"]

WORD = "stranger"  # in every text of theirs that a log could show


def _forged(**hello: object) -> bytes:
    return Messenger().encode({"token": WORD, "nonce": WORD, "workers": [WORD], **hello})


HOSTILE = [
    b"",
    b"\n",
    b"[" * 200_000 + b"\n",
    b"9" * 200_000 + b"\n",
    b"x" * 3_000_000,
    b"\xff\xfe\x00\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 64,  # TensorFlow's workers speak HTTP/2
    b'{"distlr": 3, "signature": 4}\n',
    b'{"distlr": "[[[[", "signature": ""}\n',
    _forged(rank=1)[:40],  # half a hello
    _forged(rank=1),
    _forged(rank=f"\x1b[31m{WORD}\nline"),
    _forged(rank=[1]),
    _forged(rank=10**300),
    _forged(rank=True, workers=None),
    Messenger().encode({"call": WORD}),
    Messenger().encode({"token": WORD, "problem": f"\x1b[31m{WORD}"}),
]


def disturb(addresses: Sequence[str], stop: threading.Event, count: int = 200, seconds: float = 90) -> list[int]:
    """Connects `count` times to each address that listens, and sends something hostile.

    Every third connection says nothing, and every third answers the worker's question under a wrong signature.
    All stay open until the end.

    Args:
        addresses: "host:port" of each worker.
        stop: ends it at once.
        count: connections to each address.
        seconds: how long it goes on where an address does not listen.

    Returns:
        How many connections each address took.
    """
    taken = [0] * len(addresses)
    deadline = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        while min(taken) < count and not stop.is_set() and time.monotonic() < deadline:
            for place, address in enumerate(addresses):
                if taken[place] < count:
                    taken[place] += _connect(stack, address, taken[place], addresses)
            time.sleep(0.002)
    return taken


def _connect(stack: contextlib.ExitStack, address: str, number: int, workers: Sequence[str]) -> bool:
    """Whether somebody listened there."""
    host, _, port = address.rpartition(":")
    try:
        connection = stack.enter_context(socket.create_connection((host, int(port)), timeout=1))
    except OSError:
        return False
    connection.settimeout(0.2)
    with contextlib.suppress(OSError):
        if number % 3 == 1:
            connection.sendall(HOSTILE[number // 3 % len(HOSTILE)])
        elif number % 3 == 2:
            question = Messenger().decode(connection.recv(4096).replace(b"\n", b"")) or {}
            hello = {"rank": 1, "token": WORD, "workers": list(workers), "nonce": question.get("nonce", WORD)}
            connection.sendall(Messenger("another secret").encode(hello))
    return True
