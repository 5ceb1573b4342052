"""Workers meet before TensorFlow starts: a wrong list of workers is an error within a bounded time, on all of them.

TensorFlow itself waits for a worker that does not come for up to an hour, and takes any list. No TensorFlow here.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from distlr._arguments import digits
from distlr.communicators.frames import name_ranks
from distlr.errors import ConfigurationError, ConfigurationTypeError, DistributionError, received

__all__ = ["check_addresses", "meet"]

_RETRY = 0.1  # seconds between two attempts to connect
_GRACE = 10.0  # seconds in which somebody who has connected must speak
_LINGER = 2.0  # seconds for which a problem is told to those that come
_LONGEST = 2**20  # bytes of a message
_MAGIC = "distlr"


def check_addresses(workers: Any) -> list[str]:
    """The list, refused where an entry is no "host:port" or stands twice."""
    if isinstance(workers, str) or not isinstance(workers, Sequence):
        raise ConfigurationTypeError(received("workers", workers, 'a list such as ["host1:12345", "host2:12345"]'))
    for address in workers:
        host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
        if not host or not 0 < (digits(port) or 0) < 65536:
            raise ConfigurationError(received("workers", address, 'made of "host:port"', 'write "host1:12345"'))
        if host.startswith("[") and not socket.has_dualstack_ipv6():
            expected = "an IPv4 address or a name: this machine does not listen to IPv6 and IPv4 at once"
            raise ConfigurationError(received("workers", address, expected, 'write "host1:12345"'))
    if not workers:
        raise ConfigurationError(received("workers", workers, "at least one address"))
    twice = sorted({address for address in workers if list(workers).count(address) > 1})
    if twice:
        hint = "give each worker a port of its own"
        raise ConfigurationError(
            received("workers", twice, "different addresses, and each of these stands twice", hint)
        )
    return list(workers)


def meet(workers: Sequence[str], rank: int, timeout: float) -> None:
    """Returns once all workers have come, with the same list, and each can be reached where the list says.

    Rank 0 listens; the others come to it, and it calls each back at its own address. Everything is closed again then:
    TensorFlow takes the same ports.

    Args:
        workers: "host:port" of each, as `check_addresses` gave it.
        rank: this worker's place in the list.
        timeout: seconds to wait for the others.

    Raises:
        DistributionError: on every worker that has come: which workers are missing, have another list, cannot be
            reached, or take themselves for another.
    """
    if len(workers) == 1:
        return
    deadline = time.monotonic() + timeout
    with _listening(workers, rank) as listener:
        problem = _gather(listener, workers, deadline) if rank == 0 else _join(listener, workers, rank, deadline)
    if problem:
        raise DistributionError(f"[rank {rank}] The workers did not meet: {problem}")


@contextlib.contextmanager
def _listening(workers: Sequence[str], rank: int) -> Iterator[socket.socket]:
    port = int(workers[rank].rpartition(":")[2])
    # Where both can be had, the others come by IPv6 or by IPv4, as the list says.
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        listener = socket.create_server(("", port), family=family, backlog=len(workers) + 8, dualstack_ipv6=both)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise DistributionError(
            f"[rank {rank}] Port {port} of this machine cannot be opened for worker {rank}, {workers[rank]} "
            f"({why}). To mend it: give each worker a free port of its own, and start each once."
        ) from error
    with listener:
        yield listener


def _gather(listener: socket.socket, workers: Sequence[str], deadline: float) -> str:
    """Rank 0: waits for all, calls each back, and tells all what was found wrong; "" where nothing was."""
    came: dict[int, socket.socket] = {}
    problem = ""
    with contextlib.ExitStack() as stack:
        while len(came) < len(workers) - 1:
            connection = _accept(listener, deadline)
            if connection is None and problem:
                break
            if connection is None:
                missing = sorted(set(range(1, len(workers))) - set(came))
                where = ", ".join(workers[rank] for rank in missing[:8])
                problem = f"{name_ranks(missing)} did not come to {workers[0]} in time ({where})."
                break
            stack.enter_context(connection)
            hello = _receive(connection, min(deadline, time.monotonic() + _GRACE))
            if hello is None:
                continue  # a scan of the port, or a worker that ended
            found = "" if problem else _greet(hello, workers, came, deadline)
            if found:
                # Those that come a little later hear of it, too.
                problem, deadline = found, min(deadline, time.monotonic()) + _LINGER
            if problem:
                _send(connection, {"problem": problem})
            else:
                came[hello["rank"]] = connection
        for connection in came.values():
            _send(connection, {"problem": problem})
    return problem


def _greet(hello: dict[str, Any], workers: Sequence[str], came: dict[int, socket.socket], deadline: float) -> str:
    """What is wrong with a worker that has come; "" where nothing is."""
    rank = hello.get("rank")
    if hello.get("workers") != list(workers):
        return (
            f"rank {rank} has another list of workers. Rank 0: {list(workers)}. Rank {rank}: {hello.get('workers')}. "
            "To mend it: give every worker the same list."
        )
    if not isinstance(rank, int) or not 0 < rank < len(workers) or rank in came:
        return f"two workers take themselves for rank {rank}. To mend it: start each worker of the list once."
    try:
        with _connect(workers[rank], deadline) as back:
            _send(back, {"token": hello.get("token")})
            if _receive(back, time.monotonic() + _GRACE) == {"rank": rank}:
                return ""
    except OSError as error:
        return f"rank {rank} came, but cannot be reached at {workers[rank]} ({error}). To mend it: correct its address."
    return f"somebody else than rank {rank} answers at {workers[rank]}. To mend it: correct its address."


def _join(listener: socket.socket, workers: Sequence[str], rank: int, deadline: float) -> str:
    """Another rank: goes to rank 0, answers its call, and hears what it found wrong."""
    token = uuid.uuid4().hex
    unreachable = f"rank 0 cannot be reached at {workers[0]}. To mend it: start it, and correct its address."
    try:
        connection = _connect(workers[0], deadline)
    except OSError:
        return unreachable
    with connection:
        _send(connection, {"rank": rank, "token": token, "workers": list(workers)})
        # Rank 0 calls back, and then says what is wrong, or at once. It waits no longer than until its own deadline.
        while True:
            ready, _, _ = select.select([connection, listener], [], [], max(0.0, deadline + _GRACE - time.monotonic()))
            if not ready:
                return unreachable
            if connection in ready:
                verdict = _receive(connection, deadline + _GRACE)
                return "rank 0 ended. Look at what it said." if verdict is None else str(verdict.get("problem"))
            called = _accept(listener, deadline)
            if called is not None:
                with called:
                    if (_receive(called, time.monotonic() + _GRACE) or {}).get("token") == token:
                        _send(called, {"rank": rank})


def _connect(address: str, deadline: float) -> socket.socket:
    host, _, port = address.rpartition(":")
    while True:
        try:
            left = max(_RETRY, deadline - time.monotonic())
            return socket.create_connection((host.strip("[]"), int(port)), timeout=left)
        except OSError:
            if time.monotonic() + _RETRY >= deadline:
                raise
            time.sleep(_RETRY)


def _accept(listener: socket.socket, deadline: float) -> socket.socket | None:
    listener.settimeout(max(0.0, deadline - time.monotonic()) or 1e-3)
    try:
        return listener.accept()[0]
    except OSError:
        return None


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the other side is gone, which it finds out itself
        connection.sendall(json.dumps({_MAGIC: message}).encode() + b"\n")


def _receive(connection: socket.socket, deadline: float) -> dict[str, Any] | None:
    """One message; None where none came, or something else."""
    line = b""
    try:
        while not line.endswith(b"\n") and len(line) < _LONGEST:
            connection.settimeout(max(0.0, deadline - time.monotonic()) or 1e-3)
            part = connection.recv(4096)
            if not part:
                return None
            line += part
        message = json.loads(line)
    except (OSError, ValueError):
        return None
    said = message.get(_MAGIC) if isinstance(message, dict) else None
    return said if isinstance(said, dict) else None
