"""The files of a run: one run at a time, whole lines, nothing lost."""

from __future__ import annotations

import json
import resource

import pytest

from distlr.errors import ConfigurationError
from distlr.run_directory import RunDirectory

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
    directory.go_on({**RUN, "started": "later", "host": "b"}, 2, lambda entry: entry["epoch"] < 1)
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
    directory.go_on(RUN, 3, lambda entry: True)
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
    ("name", "text", "said"),
    [
        ("run.json", "{", "is not what a run writes"),
        ("run.json", "[]", "no object"),
        ("epochs.jsonl", "1\n", "a line is no object"),
        ("epochs.jsonl", "[" * 100_000 + "\n", "is not what a run writes"),
        ("decisions.jsonl", "\udcff\n", "cannot be read"),
    ],
)
def test_what_no_run_has_written(tmp_path, name, text, said) -> None:
    directory = _written(tmp_path)
    (directory.path / name).write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigurationError, match=said):
        directory.read()


def test_a_directory_without_a_run(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match=r"a directory with a run\.json"):
        RunDirectory(tmp_path).read()
