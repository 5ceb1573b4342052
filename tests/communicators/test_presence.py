"""The connections of the workers' meeting say, for as long as the job runs, who has ended."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading

import pytest

from distlr.communicators import presence
from distlr.communicators.presence import watch_connections


@pytest.fixture
def watched(monkeypatch):
    """Connects ranks with rank 0, and watches on all `but` one: of each its connections by rank, and what it heard."""
    monkeypatch.setattr(presence, "_GRACE", 0.05)
    opened: list[socket.socket] = []

    def connect(size: int, but: int | None = None) -> tuple[list[dict[int, socket.socket]], list[queue.Queue[int]]]:
        connections: list[dict[int, socket.socket]] = [{} for _ in range(size)]
        for rank in range(1, size):
            with socket.create_server(("127.0.0.1", 0)) as listener:
                connections[rank][0] = socket.create_connection(listener.getsockname())
                connections[0][rank] = listener.accept()[0]
            opened.extend((connections[rank][0], connections[0][rank]))
        lost_ranks: list[queue.Queue[int]] = [queue.Queue() for _ in range(size)]
        for rank in range(size):
            if rank != but:
                watch_connections(connections[rank], lost_ranks[rank].put)
        return connections, lost_ranks

    yield connect
    for connection in opened:
        end(connection)
    for thread in threading.enumerate():
        if thread.name == "distlr presence":
            thread.join(timeout=10)
    for connection in opened:
        connection.close()


def end(connection: socket.socket) -> None:
    """As the system does it for a process that ends."""
    with contextlib.suppress(OSError):  # closed already
        connection.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("lost", [0, 2])
def test_all_others_hear_who_has_ended(watched, lost) -> None:
    connections, lost_ranks = watched(4, but=lost)
    for connection in connections[lost].values():
        end(connection)
    for rank in range(4):
        if rank != lost:
            assert lost_ranks[rank].get(timeout=10) == lost


def test_what_the_guard_of_the_start_sent_is_passed_over(watched) -> None:
    connections, lost_ranks = watched(3)
    connections[1][0].sendall(b"started")
    connections[0][2].sendall(b"startedended 1")
    assert lost_ranks[2].get(timeout=10) == 1
    assert lost_ranks[1].empty()


def test_a_host_that_is_silent_is_asked(watched) -> None:
    connections, _ = watched(2)
    for connection in (connections[0][1], connections[1][0]):
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0
        for name, seconds in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, name):
                assert connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) == seconds
