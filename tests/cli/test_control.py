"""`distlr control` and `distlr completion`, as they are typed."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import subprocess

import pytest

from distlr.cli import control
from distlr.cli.completion import SHELLS
from distlr.cli.main import main
from distlr.runlog.control_requests import ControlDirectory, Request
from distlr.runlog.directory import RunDirectory


@pytest.fixture
def run(tmp_path) -> str:
    RunDirectory(tmp_path).begin({"started": "now"})
    return str(tmp_path)


@pytest.mark.parametrize(
    ("words", "request_"),
    [
        (["set-lr", "--multiply", "0.5"], Request("set-lr", multiply=0.5)),
        (
            ["set-lr", "--to", "1e-3", "--at-epoch", "40", "--force"],
            Request("set-lr", to=1e-3, at_epoch=40, force=True),
        ),
        (["pause-plateau", "--at-epoch", "3"], Request("pause-plateau", at_epoch=3)),
        (["resume-plateau"], Request("resume-plateau")),
        (["stop"], Request("stop")),
    ],
)
def test_what_is_typed_is_asked(run, capsys, words, request_) -> None:
    assert main(["control", run, *words]) == 0
    (request,) = ControlDirectory(run).look()
    assert request.request == dataclasses.replace(request_, valid_for=3600.0)
    assert f"asked: {request_}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["set-lr"], "one of the arguments --multiply --to is required"),
        (["set-lr", "--multiply", "2", "--to", "1"], "not allowed with"),
        (["set-lr", "--multiply", "-1"], "`multiply` must be a finite number above 0"),
        (["set-lr", "--to", "nan"], "`to` must be a finite number above 0"),
        (["stop", "--at-epoch", "0"], "`at_epoch` must be a whole number from 1"),
        (["faster"], "invalid choice"),
        (["stop", "--valid-for", "0"], "`valid_for` must be a number of seconds above 0"),
        (["stop", "--valid-for", "nan"], "`valid_for` must be a number of seconds above 0"),
        (["cancel", "../run.json"], "`ID` must be an ID that `distlr control RUN_DIR list` shows"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_no_file(run, capsys, words, text) -> None:
    try:
        code = main(["control", run, *words])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1
    assert ControlDirectory(run).look() == []


def test_a_directory_without_a_run(tmp_path, capsys) -> None:
    assert main(["control", str(tmp_path), "stop"]) == 2
    assert "a directory with a run.json" in capsys.readouterr().err


def test_a_place_for_requests_that_cannot_be_made_is_one_line(run, capsys) -> None:
    ControlDirectory(run).path.write_text("")
    assert main(["control", run, "stop"]) == 2
    error = capsys.readouterr().err
    assert "The request cannot be written: " in error
    assert error.count("\n") == 1


def test_a_run_that_has_ended(run, capsys) -> None:
    RunDirectory(run).end()
    assert main(["control", run, "stop"]) == 2
    assert "there is nothing left to control" in capsys.readouterr().err
    assert ControlDirectory(run).look() == []


@pytest.mark.parametrize(("kind", "code"), [("control", 0), ("refused", 1)])
def test_the_answer_is_waited_for(run, capsys, monkeypatch, kind, code) -> None:
    ask = ControlDirectory.ask

    def answered(self, request):
        name = ask(self, request)
        RunDirectory(run).add_decision({"kind": "refused", "id": "another", "reason": "no"})
        RunDirectory(run).add_decision({"kind": kind, "id": name, "reason": "the reason"})
        return name

    monkeypatch.setattr(ControlDirectory, "ask", answered)
    assert main(["control", run, "stop", "--wait", "5"]) == code
    assert capsys.readouterr().out == f"{kind}: the reason\n"


def test_no_answer_in_time(run, capsys) -> None:
    assert main(["control", run, "stop", "--wait", "0.01"]) == 3
    error = capsys.readouterr().err
    assert "is the run under way?" in error
    (request,) = ControlDirectory(run).waiting()
    assert f"To take it back: distlr control {run} cancel {request.name}" in error
    until = datetime.datetime.fromtimestamp(os.stat(ControlDirectory(run).path / request.name).st_mtime + 3600)
    assert f"still waits, until {until:%Y-%m-%d %H:%M:%S}" in error


def test_a_request_is_valid_for_as_long_as_somebody_waits(run, monkeypatch) -> None:
    monkeypatch.setattr(control, "_answer", lambda *_: None)
    main(["control", run, "stop", "--wait", "7200"])
    main(["control", run, "stop", "--wait", "7200", "--valid-for", "60"])
    assert [request.request.valid_for for request in ControlDirectory(run).waiting()] == [7200, 60]


@pytest.mark.parametrize("claimed", [False, True])
def test_an_interrupt_takes_the_request_back_where_no_run_has_taken_it(run, capsys, monkeypatch, claimed) -> None:
    def interrupted(directory, name, seconds):
        if claimed:
            (request,) = ControlDirectory(run).waiting()
            assert ControlDirectory(run).claim(request)
        raise KeyboardInterrupt

    monkeypatch.setattr(control, "_answer", interrupted)
    assert main(["control", run, "stop", "--wait", "60"]) == 130
    text = capsys.readouterr().out
    assert ("was taken by the run already, and cannot be cancelled" if claimed else "cancelled: ") in text
    assert ControlDirectory(run).look() == []
    (path,) = ControlDirectory(run).path.iterdir()
    assert path.name.endswith(".json.taken" if claimed else ".json.cancelled")


def test_requests_are_listed_and_cancelled(run, capsys) -> None:
    assert main(["control", run, "list"]) == 0
    assert capsys.readouterr().out == "no request waits\n"
    directory = ControlDirectory(run)
    first = directory.ask(Request("stop"))
    accepted = directory.ask(Request("set-lr", to=0.1, at_epoch=9, valid_for=60))
    applied_name = directory.ask(Request("set-lr", to=0.2, valid_for=60))
    (directory.path / "\x1b[31m.json").write_text("{")
    RunDirectory(run).add_decision({"kind": "asked", "id": accepted, "reason": "waits"})
    RunDirectory(run).add_decision({"kind": "control", "id": applied_name, "reason": "done"})
    assert main(["control", run, "list"]) == 0
    junk, one, two = sorted(capsys.readouterr().out.splitlines(), key=lambda line: (line[:1] != "\\", line))
    assert junk.startswith("\\x1b[31m.json")
    assert "it will be refused" in junk
    assert one.startswith(first)
    assert one.endswith("`stop`  not taken yet, without a limit")
    assert two.startswith(accepted)
    assert two.endswith("`set-lr --to 0.1 --at-epoch 9`  accepted, and waits for its epoch")
    assert main(["control", run, "cancel", first]) == 0
    assert capsys.readouterr().out == f"cancelled: {first}; no run will do it\n"
    assert main(["control", run, "cancel", first]) == 1
    assert "it was cancelled before, or never asked" in capsys.readouterr().out
    directory.mark_answered([applied_name], applied=True)
    assert main(["control", run, "cancel", applied_name]) == 1
    assert "was answered already, and cannot be cancelled. control: done" in capsys.readouterr().out


def test_what_waits_for_a_run_that_has_ended_is_still_listed(run, capsys) -> None:
    name = ControlDirectory(run).ask(Request("stop"))
    RunDirectory(run).end()
    assert main(["control", run, "list"]) == 0
    assert capsys.readouterr().out.startswith(name)


def test_the_file_is_the_request(run) -> None:
    main(["control", run, "set-lr", "--multiply", "0.5"])
    (path,) = (ControlDirectory(run).path).iterdir()
    assert json.loads(path.read_text()) == {"distlr": 1, "action": "set-lr", "multiply": 0.5, "valid_for": 3600.0}


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_every_command(capsys, shell) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("control", "pause-plateau", "plan", "warmup"):
        assert word in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=10)
