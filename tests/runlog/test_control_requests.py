"""Requests to a run: what is one, and what is refused."""

from __future__ import annotations

import json
import os
import pathlib

import pytest

from distlr.errors import ConfigurationError
from distlr.runlog.control_requests import ControlDirectory, Request, is_change


@pytest.fixture(scope="session")
def hostile(load_helper):
    return load_helper(pathlib.Path(__file__).parents[1] / "_hostile_requests.py")


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request("set-lr", multiply=0.5), "set-lr --multiply 0.5"),
        (Request("set-lr", to=1e-3, at_epoch=40, force=True), "set-lr --to 0.001 --at-epoch 40 --force"),
        (Request("pause-plateau"), "pause-plateau"),
        (Request("stop", at_epoch=2), "stop --at-epoch 2"),
    ],
)
def test_a_request_is_found_once_as_it_was_asked(tmp_path, request_, words) -> None:
    run = ControlDirectory(tmp_path)
    name = ControlDirectory(tmp_path).ask(request_)
    (request,) = run.look()
    assert (request.name, request.request, request.refused) == (name, request_, "")
    assert str(request_) == words
    assert run.look() == []
    run.mark_answered([name], applied=True)
    assert ControlDirectory(tmp_path).look() == []
    assert [path.name for path in (tmp_path / "control").iterdir()] == [f"{name}.applied"]
    assert (tmp_path / "control" / f"{name}.applied").stat().st_mode & 0o777 == 0o600


def test_requests_come_in_the_order_in_which_they_were_asked(tmp_path) -> None:
    directory = ControlDirectory(tmp_path)
    names = [directory.ask(Request("set-lr", multiply=float(i))) for i in range(1, 6)]
    assert [request.name for request in directory.look()] == names


def test_a_request_that_was_cancelled_is_not_there_any_more(tmp_path) -> None:
    directory = ControlDirectory(tmp_path)
    first, second = (directory.ask(Request("set-lr", multiply=factor)) for factor in (2.0, 3.0))
    one, two = directory.look()
    assert ControlDirectory(tmp_path).cancel(first)
    assert not ControlDirectory(tmp_path).cancel(first)
    assert not directory.claim(one)
    assert directory.claim(two)
    assert not ControlDirectory(tmp_path).cancel(second)
    assert ControlDirectory(tmp_path).look() == []
    directory.mark_answered([second], applied=True)
    names = sorted(path.name for path in directory.path.iterdir())
    assert names == [f"{first}.cancelled", f"{second}.applied"]


def test_a_file_that_took_the_place_of_another_is_not_the_request_that_was_read(tmp_path) -> None:
    directory = ControlDirectory(tmp_path)
    directory.make()
    for multiply in (2.0, 3.0):
        if multiply == 3.0:
            (request,) = directory.look()
            ControlDirectory(tmp_path).cancel("mine.json")
        (directory.path / "mine.json").write_text(json.dumps({"distlr": 1, "action": "set-lr", "multiply": multiply}))
    assert not directory.claim(request)
    assert [each.request for each in directory.look()] == [Request("set-lr", multiply=3.0)]


def test_what_a_run_had_taken_as_it_died_waits_again(tmp_path) -> None:
    directory = ControlDirectory(tmp_path)
    name = directory.ask(Request("stop"))
    assert directory.claim(directory.look()[0])
    assert directory.release_claimed() == set()  # the one that has it keeps it
    other = ControlDirectory(tmp_path)
    assert other.look() == []
    assert other.release_claimed() == {name}
    assert [request.name for request in other.look()] == [name]


def test_when_a_request_expires(tmp_path) -> None:
    """By the clock of the file system: no host's own plays a part."""
    directory = ControlDirectory(tmp_path)
    directory.ask(Request("stop", valid_for=60))
    directory.ask(Request("stop"))
    limited, endless = directory.look()
    path = directory.path / limited.name
    assert limited.expires == path.stat().st_mtime_ns + 60 * 10**9
    assert endless.expires is None
    assert 0 <= directory.file_time() - path.stat().st_mtime_ns < 50 * 10**9
    assert sorted(each.name for each in directory.path.iterdir()) == sorted([limited.name, endless.name])


@pytest.mark.parametrize("value", [0, -1, 1e10, float("nan"), float("inf"), True, "60"])
def test_a_time_limit_is_a_number_of_seconds(value) -> None:
    with pytest.raises(ConfigurationError, match="valid_for"):
        Request("stop", valid_for=value)


def test_a_request_of_an_earlier_version_has_no_time_limit() -> None:
    assert Request.parse(b'{"distlr": 1, "action": "stop"}') == Request("stop")
    assert Request("stop").to_json() == {"distlr": 1, "action": "stop"}


@pytest.mark.parametrize("renamed", [True, False], ids=["settled", "unsettled"])
def test_a_thousand_files_with_long_names_do_not_starve_a_request(tmp_path, renamed) -> None:
    """Also where nothing can be marked as answered, and whether or not the request has a name that sorts last."""
    directory = ControlDirectory(tmp_path)
    directory.make()
    junk = {f"{i:04d}{'a' * 246}.json" for i in range(1000)}  # with ".refused" behind it no file can have the name
    for name in junk:
        (directory.path / name).touch(mode=0o600)
    (directory.path / "zzz.json").write_text('{"distlr": 1, "action": "stop"}')
    name = directory.ask(Request("stop"))
    looks, requests = 0, []
    while (new := directory.look()) and looks < 20:
        assert len(new) <= 100
        looks += 1
        requests += new
        if renamed:
            directory.mark_answered([each.name for each in new], applied=False)
    assert requests[0].name == name  # at the first look
    assert {each.name for each in requests[1:]} == junk | {"zzz.json"}  # each once
    assert looks == 11
    left = {path.name for path in directory.path.iterdir()}
    assert len(left) == 1002
    assert not renamed or not [name for name in left if name.endswith(".json")]


def test_a_look_goes_over_a_bounded_number_of_names(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("distlr.runlog.control_requests._NAMES", 50)
    directory = ControlDirectory(tmp_path)
    directory.make()
    for i in range(200):
        (directory.path / f"{i:04d}.json.applied").touch()
    names = []
    for _ in range(6):
        names.append(directory.ask(Request("stop")))
        requests = []
        for _ in range(2 * 5 + 1):  # at most one look that has passed its place, and two rounds
            requests += directory.look()
            directory.mark_answered([each.name for each in requests], applied=True)
        assert [each.name for each in requests] == [names[-1]]
    directory.close()


def test_a_file_that_is_being_written_is_not_looked_at(tmp_path) -> None:
    directory = ControlDirectory(tmp_path)
    directory.make()
    (tmp_path / "control" / ".1.json.abc").write_text('{"distlr": 1,')
    assert directory.look() == []


def test_no_directory_is_no_request(tmp_path) -> None:
    assert ControlDirectory(tmp_path / "nowhere").look() == []


def test_every_hostile_file_is_refused_once(tmp_path, hostile) -> None:
    """Apart from those that only the run can judge: how large the change is, and which epoch it is."""
    directory = ControlDirectory(tmp_path)
    directory.make()
    names = hostile.write(tmp_path / "control", tmp_path / "elsewhere")
    assert len(names) >= 50
    requests = {each.name: each for each in directory.look()}
    assert sorted(requests) == sorted(names)
    judged = {"too_large_a_change.json", "beyond_any_rate.json", "an_epoch_that_is_over.json"}
    assert {name for name, each in requests.items() if each.request is not None} == judged
    assert all(requests[name].refused for name in set(names) - judged)
    assert directory.look() == []
    directory.mark_answered(names, applied=False)
    assert ControlDirectory(tmp_path).look() == []


@pytest.mark.parametrize("how", ["writable", "link", "file"])
def test_a_directory_that_is_not_the_owners_alone_is_not_read(tmp_path, how) -> None:
    directory = ControlDirectory(tmp_path)
    directory.ask(Request("stop"))
    place = tmp_path / "control"
    if how == "writable":
        place.chmod(0o777)
    else:
        place.rename(tmp_path / "moved")
        place.symlink_to(tmp_path / "moved") if how == "link" else place.write_text("")
    requests = directory.look()
    if how == "file":
        assert requests == []
    else:
        assert [each.request for each in requests] == [None]
        assert ("chmod go-w" if how == "writable" else "is no directory") in requests[0].refused
        assert directory.look() == []  # said once


def test_a_file_of_another_user_is_refused_with_both_names(tmp_path, monkeypatch) -> None:
    directory = ControlDirectory(tmp_path)
    directory.ask(Request("stop"))
    path = next((tmp_path / "control").iterdir())
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
        text = "belongs to user 12345, and the run to root"
    else:
        user = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
        text = "belongs to"
    assert text in directory.look()[0].refused


@pytest.mark.parametrize(
    ("request_", "rate", "factor"),
    [
        (Request("set-lr", multiply=0.5), 0.1, 0.5),
        (Request("set-lr", to=0.2), 0.1, 2.0),
        (Request("set-lr", multiply=100), 0.1, 100),
        (Request("set-lr", to=0.001), 0.1, 0.01),
        (Request("set-lr", multiply=1000, force=True), 0.1, 1000),
    ],
)
def test_the_factor_on_the_rate(request_, rate, factor) -> None:
    assert request_.factor(rate) == pytest.approx(factor)


@pytest.mark.parametrize("value", ['"multiply": 2', '"to": 1', '"multiply": 0.5'])
def test_what_was_decided_is_a_change_that_can_be_made_again(value) -> None:
    """Also where the file says a whole number."""
    request = Request.parse(b'{"distlr": 1, "action": "set-lr", %s}' % value.encode())
    decided = {"action": request.action, "multiplier": request.factor(0.5), "by": "somebody"}
    assert is_change(json.loads(json.dumps(decided)))


@pytest.mark.parametrize(
    ("request_", "rate", "text"),
    [
        (Request("set-lr", multiply=101), 0.1, "by more than a factor of 100"),
        (
            Request("set-lr", to=0.00099),
            0.1,
            "from 0.1 to 0.00099, by more than a factor of 100. Fix: add --force",
        ),
        (Request("set-lr", multiply=1e9, force=True), 0.1, "it must be from 1e-30 to 1e+06"),
        (Request("set-lr", to=0.1), 0.0, "The rate is 0 now"),
        (Request("set-lr", to=0.1), float("nan"), "The rate is nan now"),
    ],
)
def test_a_change_that_cannot_be_meant(request_, rate, text) -> None:
    with pytest.raises(ConfigurationError) as raised:
        request_.factor(rate)
    assert text in str(raised.value)
