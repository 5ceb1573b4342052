"""Workers meet, or hear why not: threads stand for the processes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence

import pytest

from distlr.cli.local_workers import free_addresses
from distlr.communicators.rendezvous import check_addresses, meet
from distlr.errors import ConfigurationError, ConfigurationTypeError, DistributionError


def _meet(places: Sequence[tuple[Sequence[str], int]], timeout: float) -> list[str]:
    """What each of these workers hears: "" where all met."""
    heard = [""] * len(places)

    def worker(number: int, workers: Sequence[str], rank: int) -> None:
        try:
            meet(workers, rank, timeout)
        except DistributionError as error:
            heard[number] = str(error)

    threads = [
        threading.Thread(target=worker, args=(number, *place), daemon=True) for number, place in enumerate(places)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout + 15)
        assert not thread.is_alive()
    return heard


@pytest.fixture
def workers() -> list[str]:
    return free_addresses(3)


def test_all_meet_and_their_ports_are_free_again(workers) -> None:
    for _ in range(2):
        assert _meet([(workers, rank) for rank in range(3)], 10) == ["", "", ""]


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_workers_meet_by_ipv6_and_by_ipv4(workers) -> None:
    hosts = ("[::1]", "127.0.0.1", "localhost")
    mixed = check_addresses([f"{host}:{each.rpartition(':')[2]}" for host, each in zip(hosts, workers, strict=True)])
    assert _meet([(mixed, rank) for rank in range(3)], 10) == ["", "", ""]


def test_ipv6_is_refused_where_it_cannot_be_listened_to(monkeypatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with pytest.raises(ConfigurationError, match=r"an IPv4 address or a name.*'\[::1\]:12345'"):
        check_addresses(["[::1]:12345", "b:1"])


def test_where_there_is_no_ipv6_they_meet_by_ipv4(workers, monkeypatch) -> None:
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    assert _meet([(workers, rank) for rank in range(3)], 10) == ["", "", ""]


def test_one_worker_meets_nobody_and_opens_no_port(workers) -> None:
    with socket.create_server(("", int(workers[0].rpartition(":")[2]))):  # taken: it could not be opened
        assert _meet([(workers[:1], 0)], 0.1) == [""]


def test_a_worker_that_is_missing_is_named_on_all_others(workers) -> None:
    start = time.monotonic()
    for rank, said in enumerate(_meet([(workers, 0), (workers, 1)], 1)):
        assert said.startswith(f"[rank {rank}] The workers did not meet: rank 2 did not come to {workers[0]} in time")
        assert workers[2] in said
    assert time.monotonic() - start < 10


def test_without_the_first_worker_the_others_say_so(workers) -> None:
    for said in _meet([(workers, 1), (workers, 2)], 0.5):
        assert f"rank 0 cannot be reached at {workers[0]}" in said


def test_a_worker_with_another_list_is_named(workers) -> None:
    others = [*workers[:2], "elsewhere:1"]
    first, second = _meet([(workers, 0), (others, 1)], 2)
    assert "rank 1 has another list of workers" in first
    assert "rank 1 has another list of workers" in second
    assert "elsewhere:1" in first


def test_a_worker_that_cannot_be_reached_where_the_list_says(workers) -> None:
    wrong = [*workers[:2], f"no.such.host.invalid:{workers[2].rpartition(':')[2]}"]
    for said in _meet([(wrong, rank) for rank in range(3)], 2):
        assert "rank 2 came, but cannot be reached at no.such.host.invalid" in said


def test_a_worker_that_is_started_twice_finds_its_port_taken(workers) -> None:
    heard = _meet([(workers, 1), (workers, 1)], 0.5)
    assert any("cannot be opened for worker 1" in said for said in heard)


def test_what_is_no_worker_is_passed_over(workers) -> None:
    """A scan of the port, and somebody who says something else, in the middle of it."""
    host, _, port = workers[0].rpartition(":")

    def disturb() -> None:
        for said in (b"", b"GET / HTTP/1.0\r\n\r\n", b'{"other": 1}\n'):
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline:
                try:
                    with socket.create_connection((host, int(port)), timeout=1) as connection:
                        connection.sendall(said)
                    break
                except OSError:
                    time.sleep(0.01)

    disturber = threading.Thread(target=disturb, daemon=True)
    disturber.start()
    first = threading.Thread(target=lambda: heard.extend(_meet([(workers, 0)], 10)), daemon=True)
    heard: list[str] = []
    first.start()
    disturber.join(20)
    assert _meet([(workers, 1), (workers, 2)], 10) == ["", ""]
    first.join(20)
    assert heard == [""]


@pytest.mark.parametrize(
    ("given", "error", "said"),
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
def test_lists_that_cannot_be(given, error, said) -> None:
    with pytest.raises(error, match=said):
        check_addresses(given)
