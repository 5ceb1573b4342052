"""Connects the workers before TensorFlow starts: a wrong list is an error on all of them, within a bounded time.

TensorFlow itself accepts any list, and waits up to an hour for a worker that does not come. No TensorFlow here.

Anybody who can reach the ports can connect, so no message is trusted (`signed_messages`). Many connections are read at
once, each for a bounded time, and messages of strangers are ignored. A difference between workers that know the job's
secret is an error. Without a secret a stranger can pretend to be a worker.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import ipaddress
import os
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence

from distlr._utils.checks import digits
from distlr._utils.json_types import JSON
from distlr._utils.rank_names import name_ranks
from distlr.errors import ConfigurationError, ConfigurationTypeError, DistributionError, received
from distlr.startup.signed_messages import LONGEST, SECRET, Messenger
from distlr.startup.start_guard import guard_start

__all__ = ["check_addresses", "connected_workers", "is_on_this_machine", "wait_for_workers"]

_RETRY = 0.1  # seconds between two attempts to connect
_GRACE = 10.0  # seconds within which a process that has connected must send a message
_LINGER = 2.0  # seconds for which workers that connect later still receive a problem
_SHOWN = 1000  # characters of another process' message
_STRANGERS = 256  # unidentified connections that are read at the same time; one more closes the oldest
_ATTEMPTS = 20  # where the other side closes a connection unread: it has too many, or has ended

_ENDED = "rank 0 ended. Fix: look at what it said last."

_Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def check_addresses(workers: object) -> list[str]:
    """Validates the list of workers: each entry is a "host:port", and none occurs twice."""
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
    duplicates = sorted({address for address in workers if list(workers).count(address) > 1})
    if duplicates:
        hint = "give each worker a port of its own"
        raise ConfigurationError(
            received("workers", duplicates, "different addresses, and each of these stands twice", hint)
        )
    return list(workers)


def is_on_this_machine(workers: Sequence[str]) -> bool:
    """Whether every address of the list is one of the loopback interface, which other machines cannot reach.

    >>> is_on_this_machine(["localhost:1", "127.0.0.1:2", "[::1]:3"]), is_on_this_machine(["localhost:1", "host:1"])
    (True, False)
    """
    return all(_is_loopback(_host(address)) for address in workers)


def wait_for_workers(workers: Sequence[str], rank: int, timeout: float, secret: str = "") -> None:
    """Returns once all workers have connected, with the same list, and each can be reached at its address in it.

    Rank 0 listens, the others connect to it, and it calls each back at its own address. Then all are closed.

    Args:
        workers: "host:port" of each, as `check_addresses` returns it.
        rank: this worker's place in the list.
        timeout: seconds to wait for the others.
        secret: shared by all workers of the job; with an empty one a stranger can pretend to be a worker.

    Raises:
        DistributionError: on every worker that has connected. It names the workers that are missing, have another
            list, cannot be reached, or claim the rank of another.
    """
    _close(_connect_workers(workers, rank, timeout, secret))


@contextlib.contextmanager
def connected_workers(
    workers: Sequence[str], rank: int, timeout: float, secret: str = ""
) -> Iterator[dict[int, socket.socket]]:
    """Waits as `wait_for_workers` does, and then watches the workers while the body of the context starts TensorFlow.

    TensorFlow would wait for a worker that has ended, deaf to signals. So the processes of the other workers are ended
    instead, with a message that names it. TensorFlow listens at the same ports; the connections between the workers are
    the value of the context, and stay open (`presence`).
    """
    connections = _connect_workers(workers, rank, timeout, secret)
    try:
        with guard_start(connections, rank, timeout):
            yield connections
    except BaseException:
        _close(connections)
        raise


def _connect_workers(workers: Sequence[str], rank: int, timeout: float, secret: str) -> dict[int, socket.socket]:
    """Returns the open connection to rank 0, or on rank 0 those to all other ranks, by rank."""
    if len(workers) == 1:
        return {}
    place = _FirstWorker if rank == 0 else _OtherWorker
    worker = place(workers, rank, time.monotonic() + timeout, Messenger(secret))
    problem = _run(worker.wait_for_workers())
    if problem:
        _close(worker.connections)
        raise DistributionError(f"[rank {rank}] The workers could not connect: {problem}")
    return worker.connections


def _close(connections: Mapping[int, socket.socket]) -> None:
    for connection in connections.values():
        connection.close()


def _run(coroutine: Coroutine[object, object, str]) -> str:
    """Runs a coroutine; in a thread of its own where an event loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(asyncio.run(coroutine)))
    thread.start()
    thread.join()
    return results[0]


class _Worker:
    """One worker while all connect: it listens at its own address.

    Args:
        workers, rank: see `wait_for_workers`.
        deadline: until when it waits for the others, by the monotonic clock.
        messenger: reads and writes the job's messages.
    """

    def __init__(self, workers: Sequence[str], rank: int, deadline: float, messenger: Messenger) -> None:
        self.workers, self.rank, self.deadline, self.messenger = list(workers), rank, deadline, messenger
        self.connections: dict[int, socket.socket] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers: collections.deque[asyncio.Task[None]] = collections.deque()  # of the tasks, the oldest first

    @property
    def seconds_left(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    @contextlib.asynccontextmanager
    async def _listening(self, handle: _Handler) -> AsyncIterator[None]:
        """Calls the handler with each connection, many at the same time, and closes the connection after that."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            self._strangers.append(task)
            if len(self._strangers) > _STRANGERS:
                self._strangers.popleft().cancel()
            try:
                await handle(reader, writer)
            except asyncio.CancelledError:
                pass  # too many connections, or all workers have connected
            finally:
                writer.close()
                self._tasks.discard(task)
                self._trust(task)

        servers = []
        try:
            for listener in _listeners(self.workers, self.rank):
                servers.append(await asyncio.start_server(serve, sock=listener, limit=LONGEST))
            yield
        finally:
            for server in servers:
                server.close()
            for task in self._tasks:
                task.cancel()

    def _trust(self, task: asyncio.Task[None] | None) -> None:
        """Keeps a connection open however many strangers connect."""
        with contextlib.suppress(ValueError):  # it is trusted already, or closed
            self._strangers.remove(task)  # type: ignore[arg-type]

    async def _connect(
        self, address: str, is_patient: bool = True
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connects to an address; tries until the deadline, or once."""
        host, port = _host(address), int(address.rpartition(":")[2])
        while True:
            try:
                attempt = asyncio.open_connection(host, port, limit=LONGEST)
                return await asyncio.wait_for(attempt, max(_RETRY, self.seconds_left))
            except asyncio.TimeoutError:
                raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
            except OSError:
                if not is_patient or self.seconds_left <= _RETRY:
                    raise
                await asyncio.sleep(_RETRY)

    def _keep(self, rank: int, writer: asyncio.StreamWriter) -> None:
        """Keeps a copy of a connection, which stays open when its stream is closed."""
        self.connections[rank] = socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno()))


class _FirstWorker(_Worker):
    """Rank 0, to which the others connect."""

    def __init__(self, workers: Sequence[str], rank: int, deadline: float, messenger: Messenger) -> None:
        super().__init__(workers, rank, deadline, messenger)
        self._came: dict[int, tuple[asyncio.StreamWriter, str]] = {}  # by rank, with the token of its hello
        self._calling: set[int] = set()
        self._problem = ""
        self._decided = asyncio.Event()

    async def wait_for_workers(self) -> str:
        """Returns the problem, and sends it to all that have connected; an empty text where all may start."""
        async with self._listening(self._greet):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._decided.wait(), self.seconds_left)
            if self._problem:
                await asyncio.sleep(_LINGER)  # workers that connect a little later receive it, too
            elif len(self._came) < len(self.workers) - 1:
                self._problem = self._missing()
            for rank, (writer, token) in self._came.items():
                self._tell(writer, token)
                if not self._problem:
                    self._keep(rank, writer)
            await asyncio.sleep(0)  # what was written is sent as the streams are closed
        return self._problem

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Identifies a worker that has connected, and keeps its connection open until the outcome is known."""
        nonce = secrets.token_hex(16)
        self.messenger.send(writer, {"nonce": nonce})
        hello = await self.messenger.receive(reader, min(_GRACE, self.seconds_left))
        token = None if hello is None else hello.get("token")
        if hello is None or hello.get("nonce") != nonce or not isinstance(token, str):
            return  # a scan of the port, a worker that ended, a stranger
        self._trust(asyncio.current_task())
        problem = self._problem or await self._check(hello)
        if problem:
            self._problem = self._problem or problem
            self._tell(writer, token)
            self._decided.set()
            return
        rank = hello["rank"]
        assert isinstance(rank, int)  # by `_check`
        self._came[rank] = writer, token
        if len(self._came) == len(self.workers) - 1:
            self._decided.set()
        await reader.read()  # until the outcome is known

    async def _check(self, hello: dict[str, JSON]) -> str:
        """Returns the problem with a worker that has connected; an empty text where there is none."""
        rank = hello.get("rank")
        if hello.get("workers") != self.workers:
            who, list_of_other = _printable(rank), _printable(hello.get("workers"))
            return (
                f"rank {who} has another list of workers. Rank 0: {self.workers}. Rank {who}: {list_of_other}. Fix: "
                "give every worker the same list."
            )
        if type(rank) is not int or not 0 < rank < len(self.workers) or rank in self._came or rank in self._calling:
            return f"two workers take themselves for rank {_printable(rank)}. Fix: start each worker of the list once."
        self._calling.add(rank)
        address = self.workers[rank]
        for _ in range(_ATTEMPTS):
            try:
                reader, writer = await self._connect(address)
            except OSError as error:
                return f"rank {rank} came, but cannot be reached at {address} ({error}). Fix: correct its address."
            with contextlib.closing(writer):
                self.messenger.send(writer, {"call": hello["token"]})
                answer = await self.messenger.receive(reader, _GRACE)
            if answer == {"rank": rank, "token": hello["token"]}:
                return ""
            if answer is not None or not _is_closed(reader):
                break
            await asyncio.sleep(_RETRY)
        return f"somebody else than rank {rank} answers at {address}. Fix: correct its address."

    def _tell(self, writer: asyncio.StreamWriter, token: str) -> None:
        self.messenger.send(writer, {"token": token, "problem": self._problem})

    def _missing(self) -> str:
        missing = sorted(set(range(1, len(self.workers))) - set(self._came))
        where = ", ".join(self.workers[rank] for rank in missing[:8])
        problem = f"{name_ranks(missing)} did not come to {self.workers[0]} in time ({where})."
        if self.messenger.refused:
            problem += (
                f" {self.messenger.refused} messages were not signed with this job's secret. Fix: if they are the "
                f"workers', start all of them with the same {SECRET}."
            )
        return problem


class _OtherWorker(_Worker):
    """A rank that connects to rank 0, answers its call, and receives the problem from it."""

    def __init__(self, workers: Sequence[str], rank: int, deadline: float, messenger: Messenger) -> None:
        super().__init__(workers, rank, deadline, messenger)
        self._token = secrets.token_hex(16)

    async def wait_for_workers(self) -> str:
        """Returns the problem; an empty text where all may start."""
        problem: str | None = None
        async with self._listening(self._answer):
            for attempt in range(_ATTEMPTS):
                try:
                    reader, writer = await self._connect(self.workers[0], is_patient=attempt == 0)
                except OSError:
                    return _ENDED if attempt else self._unreachable
                with contextlib.closing(writer):
                    problem = await self._ask(reader, writer)
                if problem is not None:
                    return problem
                await asyncio.sleep(_RETRY)
        return self._unanswered(_ENDED)

    @property
    def _unreachable(self) -> str:
        return f"rank 0 cannot be reached at {self.workers[0]}. Fix: start it, and correct its address."

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str | None:
        """Returns the problem, or an empty text; None where rank 0 closed the connection before it knew this rank."""
        question = await self.messenger.receive(reader, min(_GRACE, self.seconds_left))
        if question is None:
            return None if _is_closed(reader) else self._unanswered(self._unreachable)
        hello = {"rank": self.rank, "token": self._token, "workers": self.workers, "nonce": question.get("nonce")}
        self.messenger.send(writer, hello)
        # Rank 0 sends the problem at once, or after it has called back, by its own deadline.
        verdict = await self.messenger.receive(reader, self.seconds_left + _GRACE + _LINGER)
        if verdict is None or verdict.get("token") != self._token:
            return None if verdict is None and _is_closed(reader) else self._unanswered(_ENDED)
        problem = verdict.get("problem")
        if problem == "":
            self._keep(0, writer)
            return ""
        return "".join(letter if letter.isprintable() else "?" for letter in str(problem))

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        call = await self.messenger.receive(reader, _GRACE)
        if call is not None and call.get("call") == self._token:
            self.messenger.send(writer, {"rank": self.rank, "token": self._token})

    def _unanswered(self, problem: str) -> str:
        if not self.messenger.refused:
            return problem
        return (
            f"what answers at {self.workers[0]} does not know this job's secret. Fix: start all workers with the same "
            f"{SECRET}."
        )


def _is_closed(reader: asyncio.StreamReader) -> bool:
    """Whether the other side has closed a connection, and all that it sent was read."""
    return reader.at_eof() or reader.exception() is not None


def _listeners(workers: Sequence[str], rank: int) -> Iterator[socket.socket]:
    """Sockets that listen at the address in the list, or everywhere where its name is not that of an interface."""
    address = workers[rank]
    port = int(address.rpartition(":")[2])
    try:
        yield from _listen_at(_own_addresses(workers, rank), port) or _listen_everywhere(port)
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise DistributionError(
            f"[rank {rank}] Port {port} of this machine cannot be opened for worker {rank}, {address} ({why}). Fix: "
            "give each worker a free port of its own, and start each once."
        ) from error


def _own_addresses(workers: Sequence[str], rank: int) -> list[str]:
    """The addresses to listen at; none where only listening everywhere is sure to work.

    Many machines know their own name as one of the loopback interface, at which the others could not reach them.
    """
    try:
        entries = socket.getaddrinfo(_host(workers[rank]), None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    addresses = sorted({str(entry[4][0]) for entry in entries})
    on_loopback = any(_is_loopback(address) for address in addresses)
    return [] if on_loopback and not is_on_this_machine(workers) else addresses


def _listen_at(addresses: Sequence[str], port: int) -> list[socket.socket]:
    listeners = []
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            listeners.append(socket.create_server((address, port), family=family, backlog=_STRANGERS))
        except OSError as error:
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                for listener in listeners:
                    listener.close()
                raise
    return listeners


def _listen_everywhere(port: int) -> list[socket.socket]:
    # Where the machine has both, the others connect over IPv6 or IPv4, depending on the list.
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return [socket.create_server(("", port), family=family, backlog=_STRANGERS, dualstack_ipv6=both)]


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


def _printable(value: object) -> str:
    """Another process' message for a log: without escape codes and new lines, and cut where it is long."""
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
