"""The files of a run: one run at a time, whole lines, nothing lost."""

from __future__ import annotations

import fcntl
import json
import os
import resource

import pytest

from distlr.errors import ConfigurationError
from distlr.runlog.directory import RunDirectory

RUN = {"format": 1, "started": "2026-01-31T12:00:00+00:00"}


def _written(tmp_path, epochs: int = 3) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.begin(RUN)
    for epoch in range(epochs):
        directory.add_epoch({"epoch": epoch})
        directory.add_decision({"kind": "plateau", "epoch": epoch})
    return directory


def test_what_is_written_is_read(tmp_path) -> None:
    run = _written(tmp_path).read()
    assert (run.name, run.run) == ("run", RUN)
    assert [epoch["epoch"] for epoch in run.epochs] == [0, 1, 2]
    assert [decision["epoch"] for decision in run.decisions] == [0, 1, 2]


def test_a_run_that_goes_on_takes_back_what_it_trains_again(tmp_path) -> None:
    directory = _written(tmp_path)
    directory.end()
    directory.resume({**RUN, "started": "later", "host": "b"}, 2, lambda entry: entry["epoch"] < 1)
    run = directory.read()
    assert run.run == {**RUN, "host": "b"}  # the start stays the first one
    assert [epoch["epoch"] for epoch in run.epochs] == [0, 1]
    assert [decision["epoch"] for decision in run.decisions] == [0]


def test_a_new_run_puts_the_old_one_aside(tmp_path) -> None:
    directory = _written(tmp_path)
    directory.begin(RUN)
    directory.begin(RUN)
    assert directory.read().epochs == []
    old = directory.path / "earlier" / "2026-01-31T12-00-00-00-00"
    assert len((old / "epochs.jsonl").read_text().splitlines()) == 3
    assert (old.with_name(f"{old.name}-2") / "run.json").is_file()


def test_a_line_that_a_crash_cut_off_is_left_out_and_mended(tmp_path) -> None:
    directory = _written(tmp_path)
    with open(directory.path / "epochs.jsonl", "a") as file:
        file.write('{"epoch": 3, "los')
    assert len(directory.read().epochs) == 3
    directory.resume(RUN, 3, lambda entry: True)
    directory.add_epoch({"epoch": 3})
    lines = (directory.path / "epochs.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2, 3]


@pytest.mark.parametrize("room", [0, 5])
def test_a_line_for_which_there_is_no_room_leaves_nothing_behind(tmp_path, room) -> None:
    directory = _written(tmp_path)
    before = (directory.path / "epochs.jsonl").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, hard))
    try:
        with pytest.raises(OSError, match=r"bytes of|too large"):
            directory.add_epoch({"epoch": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (directory.path / "epochs.jsonl").read_bytes() == before
    directory.add_epoch({"epoch": 4})
    assert [epoch["epoch"] for epoch in directory.read().epochs] == [0, 1, 2, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not what a run writes"),
        ("", "is not what a run writes"),
        ("[]", "no object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"started": 1e999}', "no finite number"),
        ("\udcff", "is not what a run writes"),
    ],
)
def test_a_run_that_does_not_say_what_it_is(tmp_path, text, message) -> None:
    directory = _written(tmp_path)
    (directory.path / "run.json").write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigurationError, match=message):
        directory.read()


DAMAGE = [
    b"\0" * 64,
    b'{"kind": "contr',
    b"7",
    b"[1]",
    b"null",
    b"\xff",
    b"[" * 100_000,
    b'{"clock": 1e999}',
    b'{"clock": NaN}',
    b'{"clock": ' + b"9" * 5000 + b"}",
    b'{"a": "' + b"a" * 2**23 + b'"}',
    json.dumps({"epoch": 1}).encode("utf-16"),
]


@pytest.mark.parametrize("line", DAMAGE)
@pytest.mark.parametrize("name", ["epochs.jsonl", "decisions.jsonl"])
def test_a_damaged_line_costs_that_line_alone(tmp_path, caplog, name, line) -> None:
    """A reader leaves it out, and a run that goes on, too, which keeps the file as it was."""
    directory = _written(tmp_path)
    path = directory.path / name
    first, second, third = path.read_bytes().splitlines(keepends=True)
    damaged = first + line + b"\n" + second + third
    path.write_bytes(damaged)
    run = directory.read()
    assert run.damage == (f"{name} cannot be read in 1 line.",)
    assert [entry["epoch"] for entry in (run.epochs if name == "epochs.jsonl" else run.decisions)] == [0, 1, 2]
    assert path.read_bytes() == damaged
    directory.resume(RUN, 3, lambda entry: True)
    assert path.read_bytes() == first + second + third
    assert path.with_name(f"{name}.damaged").read_bytes() == damaged
    assert caplog.text.count(f"{path} is not what a run writes in 1 line, which this run leaves out.") == 1
    directory.resume(RUN, 3, lambda entry: True)
    assert directory.read().damage == ()
    assert len(caplog.records) == 1


def test_lines_of_another_program_are_left_out_by_a_run_that_goes_on(tmp_path) -> None:
    directory = _written(tmp_path)
    with open(directory.path / "decisions.jsonl", "a") as file:
        file.write('{"clock": null}\n')
    directory.resume(RUN, 3, lambda entry: entry.get("clock", 0) <= 5)
    assert [entry["epoch"] for entry in directory.decisions()] == [0, 1, 2]
    assert '{"clock": null}' in (directory.path / "decisions.jsonl.damaged").read_text()


def test_a_last_line_that_lacks_its_end_alone_is_read(tmp_path) -> None:
    directory = _written(tmp_path)
    path = directory.path / "epochs.jsonl"
    before = path.read_bytes()
    path.write_bytes(before[:-1])
    assert [epoch["epoch"] for epoch in directory.read().epochs] == [0, 1, 2]
    directory.resume(RUN, 3, lambda entry: True)
    assert path.read_bytes() == before


def test_what_stands_behind_the_zeros_of_a_power_cut_is_read(tmp_path) -> None:
    directory = _written(tmp_path)
    with open(directory.path / "epochs.jsonl", "ab") as file:
        file.write(b"\0" * 512)
    directory.add_epoch({"epoch": 3})
    assert [epoch["epoch"] for epoch in directory.read().epochs] == [0, 1, 2, 3]


@pytest.mark.parametrize("content", [None, "", "{", "[]", "a directory"])
def test_a_run_goes_on_whose_run_json_is_damaged(tmp_path, content, caplog) -> None:
    directory = _written(tmp_path)
    path = directory.path / "run.json"
    path.unlink()
    if content == "a directory":
        path.mkdir()
    elif content is not None:
        path.write_text(content)
    directory.resume(RUN, 3, lambda entry: True)
    assert directory.read().run == RUN
    assert len(directory.read().epochs) == 3
    assert caplog.text.count("When the run started is lost") == (content is not None)
    assert path.with_name("run.json.damaged").exists() == (content is not None)


@pytest.mark.parametrize("name", ["run.json", "epochs.jsonl", "decisions.jsonl"])
def test_a_pipe_is_waited_for_by_nobody(tmp_path, name) -> None:
    directory = _written(tmp_path)
    (directory.path / name).unlink()
    os.mkfifo(directory.path / name)
    with pytest.raises(ConfigurationError, match=r"plain file|run\.json"):
        directory.read()
    if name == "epochs.jsonl":
        with pytest.raises(OSError, match="No such device"):
            directory.add_epoch({"epoch": 3})
    directory.begin(RUN)
    assert directory.read().epochs == []


def test_a_later_run_of_the_process_has_the_directory_for_itself(tmp_path) -> None:
    """Their lines would mix in one file."""
    first, second = RunDirectory(tmp_path), RunDirectory(tmp_path)
    first.begin(RUN)
    first.add_epoch({"epoch": 0, "who": "first"})
    second.begin({**RUN, "who": "second"})
    for write in (first.end, lambda: first.add_epoch({"epoch": 1}), lambda: first.add_decision({})):
        with pytest.raises(ConfigurationError, match=r"files of a later run.*Fix: give each run a run_dir of its own"):
            write()
    second.add_epoch({"epoch": 0, "who": "second"})
    run = first.read()
    assert (run.run, run.epochs) == ({**RUN, "who": "second"}, [{"epoch": 0, "who": "second"}])
    second.release()
    assert not (tmp_path / "run.lock").exists()


def test_another_jobs_directory_is_not_written_to(tmp_path) -> None:
    directory = _written(tmp_path)
    directory.release()
    before = directory.read()
    with open(directory.path / "run.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConfigurationError, match="is in use by another job"):
            directory.acquire(0.0)
    assert directory.read() == before


def test_a_directory_without_a_run(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match=r"a directory with a run\.json"):
        RunDirectory(tmp_path).read()
