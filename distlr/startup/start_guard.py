"""Notices, while TensorFlow connects this worker with the others, that one of them ends.

TensorFlow waits for it in C++, holding the interpreter's lock: no thread and no signal handler of Python's runs
meanwhile. So another process watches the connections between the workers. This file is its program as well, so it
imports nothing of distlr.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from typing import NoReturn

__all__ = ["ENDED", "guard_start"]

_STARTED = b"started"
"""A worker sends it to the others, and to its guard, once TensorFlow has started."""
ENDED = b"ended "
"""Rank 0 sends it to the others, followed by the number of the rank that ended."""


@contextlib.contextmanager
def guard_start(connections: Mapping[int, socket.socket], rank: int, timeout: float) -> Iterator[None]:
    """Ends this process, with a message, if a worker ends before TensorFlow has started on it, or too late.

    Args:
        connections: to rank 0, or on rank 0 to each other rank, by rank. They break for the others once this process
            and then its guard have ended.
        rank: this worker's.
        timeout: seconds that TensorFlow may take.
    """
    if not connections:
        yield
        return
    reading, writing = os.pipe()
    pairs = [f"{other}:{connection.fileno()}" for other, connection in connections.items()]
    numbers = [connection.fileno() for connection in connections.values()]
    words = [sys.executable, "-S", "-E", __file__, str(os.getpid()), str(rank), str(timeout), str(reading), *pairs]
    guard = subprocess.Popen(words, pass_fds=[reading, *numbers], stdin=subprocess.DEVNULL)
    os.close(reading)
    try:
        with open(writing, "wb", buffering=0) as pipe:  # its end tells the guard that this worker has ended
            yield
            with contextlib.suppress(BrokenPipeError):
                pipe.write(_STARTED)
    finally:
        guard.wait()


def _watch(parent: int, rank: int, timeout: float, pipe: int, connections: dict[int, socket.socket]) -> None:
    """Returns once TensorFlow has started here, or this worker has ended; ends it where another one has."""

    def end(what: str) -> NoReturn:
        print(
            f"[rank {rank}] {what} before TensorFlow had connected all workers, which it would wait for without end. "
            "This process ends. Fix: look at what the others said last.",
            file=sys.stderr,
            flush=True,
        )
        if os.getppid() == parent:  # else it has ended by itself
            os.kill(parent, signal.SIGKILL)  # the only signal that does not wait for the interpreter's lock
        sys.exit(1)

    signal.signal(signal.SIGTERM, lambda *_: end("SIGTERM came"))
    waiting, deadline = dict(connections), time.monotonic() + timeout
    while True:
        numbers = {other: connection.fileno() for other, connection in waiting.items()}
        ready, _, _ = select.select([pipe, *numbers.values()], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            end(f"{timeout:g} s passed")
        if pipe in ready:
            if os.read(pipe, len(_STARTED)) == _STARTED:
                _send(connections, _STARTED)
            return
        for other in [other for other, number in numbers.items() if number in ready]:
            message = _receive(waiting.pop(other))
            if message == _STARTED:
                continue
            ended = message.removeprefix(ENDED).decode() if message.startswith(ENDED) else str(other)
            _send(waiting, ENDED + ended.encode())
            end(f"Rank {ended} ended")


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(32)
    except OSError:
        return b""


def _send(connections: Mapping[int, socket.socket], message: bytes) -> None:
    for connection in connections.values():
        with contextlib.suppress(OSError):
            connection.sendall(message)


if __name__ == "__main__":
    _, parent, rank, timeout, pipe, *pairs = sys.argv
    numbers = [pair.split(":") for pair in pairs]
    connections = {int(other): socket.socket(fileno=int(number)) for other, number in numbers}
    _watch(int(parent), int(rank), float(timeout), int(pipe), connections)
