"""Workers meet, or hear why not: threads stand for the processes."""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import socket
import threading
import time
from collections.abc import Sequence

import pytest

from distlr.errors import ConfigurationError, ConfigurationTypeError, DistributionError
from distlr.startup import rendezvous
from distlr.startup.local_workers import find_free_addresses
from distlr.startup.rendezvous import check_addresses, wait_for_workers
from distlr.startup.signed_messages import Messenger


def _connect(places: Sequence[tuple[Sequence[str], int]], timeout: float, secrets: Sequence[str] = ()) -> list[str]:
    """What each of these workers hears: "" where all met. `secrets`: of each of them."""
    problems = [""] * len(places)

    def worker(number: int, workers: Sequence[str], rank: int) -> None:
        try:
            wait_for_workers(workers, rank, timeout, secrets[number] if secrets else "")
        except DistributionError as error:
            problems[number] = str(error)

    threads = [
        threading.Thread(target=worker, args=(number, *place), daemon=True) for number, place in enumerate(places)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout + 15)
        assert not thread.is_alive()
    return problems


@pytest.fixture
def workers() -> list[str]:
    return find_free_addresses(3)


def test_all_meet_and_their_ports_are_free_again(workers) -> None:
    for _ in range(2):
        assert _connect([(workers, rank) for rank in range(3)], 10) == ["", "", ""]


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_workers_meet_by_ipv6_and_by_ipv4(workers) -> None:
    hosts = ("[::1]", "127.0.0.1", "localhost")
    mixed = check_addresses([f"{host}:{each.rpartition(':')[2]}" for host, each in zip(hosts, workers, strict=True)])
    assert _connect([(mixed, rank) for rank in range(3)], 10) == ["", "", ""]


def test_ipv6_is_refused_where_it_cannot_be_listened_to(monkeypatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with pytest.raises(ConfigurationError, match=r"an IPv4 address or a name.*'\[::1\]:12345'"):
        check_addresses(["[::1]:12345", "b:1"])


def test_where_there_is_no_ipv6_they_meet_by_ipv4(workers, monkeypatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    assert _connect([(workers, rank) for rank in range(3)], 10) == ["", "", ""]


def test_one_worker_meets_nobody_and_opens_no_port(workers) -> None:
    with socket.create_server(("", int(workers[0].rpartition(":")[2]))):  # taken: it could not be opened
        assert _connect([(workers[:1], 0)], 0.1) == [""]


def test_a_worker_that_is_missing_is_named_on_all_others(workers) -> None:
    start = time.monotonic()
    for rank, problem in enumerate(_connect([(workers, 0), (workers, 1)], 1)):
        assert problem.startswith(
            f"[rank {rank}] The workers could not connect: rank 2 did not come to {workers[0]} in time"
        )
        assert workers[2] in problem
    assert time.monotonic() - start < 10


def test_without_the_first_worker_the_others_say_so(workers) -> None:
    for problem in _connect([(workers, 1), (workers, 2)], 0.5):
        assert f"rank 0 cannot be reached at {workers[0]}" in problem


def test_a_worker_with_another_list_is_named(workers) -> None:
    other_list = [*workers[:2], "elsewhere:1"]
    first, second = _connect([(workers, 0), (other_list, 1)], 2)
    assert "rank 1 has another list of workers" in first
    assert "rank 1 has another list of workers" in second
    assert "elsewhere:1" in first


def test_a_worker_that_cannot_be_reached_where_the_list_says(workers) -> None:
    wrong = [*workers[:2], f"no.such.host.invalid:{workers[2].rpartition(':')[2]}"]
    for problem in _connect([(wrong, rank) for rank in range(3)], 2):
        assert "rank 2 came, but cannot be reached at no.such.host.invalid" in problem


def test_a_worker_that_is_started_twice_finds_its_port_taken(workers) -> None:
    problems = _connect([(workers, 1), (workers, 1)], 0.5)
    assert any("cannot be opened for worker 1" in problem for problem in problems)


def test_what_is_no_worker_is_passed_over(workers) -> None:
    """A scan of the port, and somebody who says something else, in the middle of it."""
    host, _, port = workers[0].rpartition(":")

    def disturb() -> None:
        for message in (b"", b"GET / HTTP/1.0\r\n\r\n", b'{"other": 1}\n'):
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                try:
                    with socket.create_connection((host, int(port)), timeout=1) as connection:
                        connection.sendall(message)
                    break
                except OSError:
                    time.sleep(0.01)

    disturber = threading.Thread(target=disturb, daemon=True)
    disturber.start()
    first = threading.Thread(target=lambda: problems.extend(_connect([(workers, 0)], 10)), daemon=True)
    problems: list[str] = []
    first.start()
    disturber.join(20)
    assert _connect([(workers, 1), (workers, 2)], 10) == ["", ""]
    first.join(20)
    assert problems == [""]


@pytest.fixture(scope="session")
def strangers(load_helper):
    return load_helper(pathlib.Path(__file__).parents[1] / "_strangers.py")


@pytest.mark.parametrize("first", [0, 2], ids=["rank 0 waits for the others", "the others wait for rank 0"])
def test_strangers_do_not_keep_workers_from_meeting(workers, strangers, first) -> None:
    """While one worker waits for the others, and while all meet."""
    stop, problems, secrets = threading.Event(), [], ["of the job"] * 3
    waiting = threading.Thread(target=lambda: problems.extend(_connect([(workers, first)], 30, secrets)), daemon=True)
    disturber = threading.Thread(target=strangers.disturb, args=(workers, stop), daemon=True)
    disturber.start()
    waiting.start()
    time.sleep(1)
    other_ranks = [rank for rank in range(3) if rank != first]
    assert _connect([(workers, rank) for rank in other_ranks], 30, secrets) == ["", ""]
    waiting.join(60)
    stop.set()
    disturber.join(30)
    assert problems == [""]


def test_a_worker_that_waits_is_not_pushed_out(workers) -> None:
    """By strangers who come after it, of whom the oldest go."""
    problems: list[str] = []
    places = [(workers, 0), (workers, 1)]
    waiting = threading.Thread(target=lambda: problems.extend(_connect(places, 30, ["of the job"] * 3)), daemon=True)
    waiting.start()
    host, _, port = workers[0].rpartition(":")
    with contextlib.ExitStack() as stack:
        stack.enter_context(_connected(host, int(port)))
        time.sleep(1)  # worker 1 has come
        for _ in range(300):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=5))
        assert _connect([(workers, 2)], 30, ["of the job"]) == [""]
        waiting.join(60)
    assert problems == ["", ""]


@pytest.mark.parametrize("handler", ["_FirstWorker._greet", "_OtherWorker._answer"])
def test_who_is_pushed_out_before_it_spoke_comes_again(workers, monkeypatch, handler) -> None:
    """As many strangers as come at the same moment: a connection is closed before it is read."""
    place, name = handler.split(".")
    handle, numbers = getattr(getattr(rendezvous, place), name), itertools.count()

    async def pushed_out(self, reader, writer) -> None:
        if next(numbers) >= 4:
            await handle(self, reader, writer)

    monkeypatch.setattr(getattr(rendezvous, place), name, pushed_out)
    assert _connect([(workers, rank) for rank in range(3)], 30, ["of the job"] * 3) == ["", "", ""]


def test_what_a_stranger_says_is_printable_in_a_log(workers) -> None:
    """Without a secret a forged hello is an error; its text must not reach a terminal raw."""
    problems: list[str] = []
    waiting = threading.Thread(target=lambda: problems.extend(_connect([(workers, 0)], 10)), daemon=True)
    waiting.start()
    host, _, port = workers[0].rpartition(":")
    with _connected(host, int(port)) as connection, connection.makefile("rwb") as stream:
        nonce = Messenger().decode(stream.readline())["nonce"]
        hello = {"token": "t", "nonce": nonce, "rank": "\x1b[31m\n", "workers": ["\x1b]0;title\x07" * 500]}
        stream.write(Messenger().encode(hello))
        stream.flush()
        waiting.join(30)
    assert "has another list of workers" in problems[0]
    assert problems[0].isprintable()
    assert len(problems[0]) < 3000


def _connected(host: str, port: int) -> socket.socket:
    deadline = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection((host, port), timeout=10)
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_hello_that_was_recorded_is_worth_nothing(workers) -> None:
    """Signed with the job's secret, but for another meeting: it answers no question of this one."""
    secrets = ["of the job"] * 3
    recorded = Messenger("of the job").encode({"rank": 1, "token": "old", "nonce": "old", "workers": ["another:1"]})
    problems: list[str] = []
    waiting = threading.Thread(target=lambda: problems.extend(_connect([(workers, 0)], 20, secrets)), daemon=True)
    waiting.start()
    host, _, port = workers[0].rpartition(":")
    with _connected(host, int(port)) as connection:
        connection.sendall(recorded)
        assert _connect([(workers, 1), (workers, 2)], 20, secrets) == ["", ""]
    waiting.join(30)
    assert problems == [""]


def test_workers_of_two_secrets_do_not_meet_and_hear_why(workers) -> None:
    first, second = _connect([(workers[:2], 0), (workers[:2], 1)], 2, ["one", "two"])
    assert "rank 1 did not come" in first
    assert "does not know this job's secret" in second or "not signed with this job's secret" in second


def test_workers_of_this_machine_listen_on_it_alone() -> None:
    workers = [address.replace("localhost", "127.0.0.1") for address in find_free_addresses(2)]
    listening: list[str] = []

    def look() -> None:
        """The state of TCP sockets in Linux: a listening one has the state 0A."""
        port = f"{int(workers[0].rpartition(':')[2]):04X}"
        deadline = time.monotonic() + 5
        while not listening and time.monotonic() < deadline:
            for table in ("tcp", "tcp6"):
                rows = [row.split() for row in pathlib.Path("/proc/net", table).read_text().splitlines()[1:]]
                listening.extend(row[1] for row in rows if row[1].endswith(f":{port}") and row[3] == "0A")
            time.sleep(0.02)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    _connect([(workers, 0)], 1)
    looking.join(10)
    assert [address.partition(":")[0] for address in listening] == ["0100007F"]


@pytest.mark.parametrize(
    ("addresses", "error", "problem"),
    [
        ("a:1,b:2", ConfigurationTypeError, "a list such as"),
        (7, ConfigurationTypeError, "a list such as"),
        ([], ConfigurationError, "at least one address"),
        (["a"], ConfigurationError, "'host:port'|\"host:port\""),
        (["a:b"], ConfigurationError, "host:port"),
        (["a:0"], ConfigurationError, "host:port"),
        (["a:65536"], ConfigurationError, "host:port"),
        (["a:+1"], ConfigurationError, "host:port"),
        (["a:\u0661\u0662"], ConfigurationError, "host:port"),
        (["a:" + "9" * 5000], ConfigurationError, "host:port"),
        ([None], ConfigurationError, "host:port"),
        (["a:1", "b:1", "a:1"], ConfigurationError, "stands twice"),
    ],
)
def test_lists_that_cannot_be(addresses, error, problem) -> None:
    with pytest.raises(error, match=problem):
        check_addresses(addresses)
