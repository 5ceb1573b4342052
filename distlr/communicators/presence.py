"""Notices, for as long as the job runs, that a worker has ended or that its host is gone.

TensorFlow notices it in a transfer that is under way, and not where this worker waits for another one to begin. So the
connections between the workers stay open: the system closes those of a process that ends, and probes a host that is
silent. A process that is suspended keeps its connections. No TensorFlow here.
"""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping

from distlr.startup.start_guard import ENDED

__all__ = ["watch_connections"]

_GRACE = 1.0  # seconds in which the last messages of an ended worker arrive
# Seconds of silence before a host is probed, seconds between probes, and unanswered probes after which it is gone.
_ASKED_AFTER, _ASKED_EVERY, _UNANSWERED = 20, 10, 4
_ENDED = re.compile(ENDED + rb"(\d{1,9})")


def watch_connections(connections: Mapping[int, socket.socket], on_lost: Callable[[int], None]) -> None:
    """Calls `on_lost` in a thread of its own, once, with the rank of the first worker that ends.

    Rank 0 sends that rank to the others, which are connected with rank 0 alone. A worker that has finished counts as
    well: the others continue with work that does not wait for it.

    Args:
        connections: to rank 0, or on rank 0 to each other rank, by rank.
        on_lost: ends every wait for that worker.
    """
    for connection in connections.values():
        _enable_keepalive(connection)
    if connections:
        arguments = dict(connections), on_lost
        threading.Thread(target=_watch, args=arguments, name="distlr presence", daemon=True).start()


def _watch(connections: dict[int, socket.socket], on_lost: Callable[[int], None]) -> None:
    lost = _first_lost(connections)
    for rank, connection in connections.items():
        if rank != lost:
            with contextlib.suppress(OSError):
                connection.sendall(ENDED + b"%d" % lost)
    time.sleep(_GRACE)
    on_lost(lost)
    for connection in connections.values():
        connection.close()


def _first_lost(connections: Mapping[int, socket.socket]) -> int:
    with selectors.DefaultSelector() as selector:
        for rank, connection in connections.items():
            selector.register(connection, selectors.EVENT_READ, rank)
        while True:
            for key, _ in selector.select():
                try:
                    message = connections[key.data].recv(64)
                except OSError:
                    message = b""
                ended = _ENDED.search(message)  # behind what the guard of the start may have sent
                if ended:
                    return int(ended[1])
                if not message:
                    return int(key.data)


def _enable_keepalive(connection: socket.socket) -> None:
    connection.setblocking(True)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # macOS calls the first of them otherwise.
    for names, value in [
        (("TCP_KEEPIDLE", "TCP_KEEPALIVE"), _ASKED_AFTER),
        (("TCP_KEEPINTVL",), _ASKED_EVERY),
        (("TCP_KEEPCNT",), _UNANSWERED),
    ]:
        number = next((getattr(socket, name) for name in names if hasattr(socket, name)), None)
        if number is not None:
            connection.setsockopt(socket.IPPROTO_TCP, number, value)
