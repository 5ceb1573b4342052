"""Changes by hand, read back from a run's decisions."""

from __future__ import annotations

import json

import pytest

from distlr.runlog import directory
from distlr.runlog.directory import RunDirectory
from distlr.runlog.manual_changes import Moment, Place, changes_to_repeat, describe_change, read_changes

CHANGE = {"kind": "control", "clock": 8, "moment": 0, "action": "set-lr", "multiplier": 0.5, "by": "ada"}


def read(path, *entries):
    (path / "decisions.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    return read_changes(RunDirectory(path))


def test_they_come_in_the_order_of_their_places(tmp_path) -> None:
    moments = (Moment.BEGIN, Moment.BATCH, Moment.EPOCH_END)
    entries = read(tmp_path, *({**CHANGE, "clock": clock, "moment": moment} for clock in (8, 4) for moment in moments))
    assert [Place.of(entry) for entry in entries] == [(4, 0), (4, 1), (4, 2), (8, 0), (8, 1), (8, 2)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"clock": 8.0},
        {"clock": None},
        {"clock": True},
        {"drawn": "8"},
        {"moment": 3},
        {"moment": "0"},
        {"action": "delete"},
    ],
)
def test_what_is_no_change_is_left_out(tmp_path, wrong, caplog) -> None:
    assert read(tmp_path, CHANGE, {**CHANGE, **wrong}, {"kind": "plateau"}) == [CHANGE]
    assert "1 lines are no changes by hand, and are left out." in caplog.text


@pytest.mark.parametrize("line", [b"\0" * 64, b'{"kind": "contr', b"7", b"\xff", b"[" * 100_000, b'{"clock": 1e999}'])
def test_a_damaged_line_costs_no_other_change_and_is_said_loudly(tmp_path, line, caplog) -> None:
    lines = [json.dumps({**CHANGE, "clock": clock}).encode() for clock in (4, 8)]
    path = tmp_path / "decisions.jsonl"
    path.write_bytes(b"\n".join([lines[0], line, lines[1], b""]))
    assert [entry["clock"] for entry in read_changes(RunDirectory(tmp_path))] == [4, 8]
    assert f"{path} cannot be read in 1 line. A change by hand that stood there is NOT made again. Fix: " in caplog.text
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_half_a_last_line_is_what_a_crash_leaves(tmp_path, caplog) -> None:
    """Its request is marked as done only after the line is whole, and is read once more."""
    (tmp_path / "decisions.jsonl").write_text(json.dumps(CHANGE) + '\n{"kind": "contr')
    assert read_changes(RunDirectory(tmp_path)) == [CHANGE]
    assert caplog.text == ""


def test_decisions_that_cannot_be_read_end_no_training(tmp_path, caplog, monkeypatch) -> None:
    (tmp_path / "decisions.jsonl").write_text("")
    (tmp_path / "decisions.jsonl").chmod(0o644)

    def read_lines(path):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(directory, "read_lines", read_lines)
    assert read_changes(RunDirectory(tmp_path)) == []
    assert "Input/output error" in caplog.text
    assert "none of the changes by hand in it is made again" in caplog.text


def test_a_run_without_decisions_has_none(tmp_path) -> None:
    assert read_changes(RunDirectory(tmp_path)) == []


@pytest.mark.parametrize(
    ("last", "already_made", "again"),
    [((0, 0), 0, "abc"), ((8, 0), 0, "abc"), ((8, 0), 1, "bc"), ((8, 0), 2, "c"), ((8, 1), 0, "c"), ((8, 1), 1, "")],
)
def test_what_is_made_again(last, already_made, again) -> None:
    changes = [{**CHANGE, "by": by, "moment": moment, "id": by} for by, moment in (("a", 0), ("b", 0), ("c", 1))]
    entries = changes_to_repeat(changes, Place(*last), already_made)
    assert [change["by"] for change in entries] == list(again)
    assert all(set(change) == {"clock", "moment", "action", "multiplier", "by"} for change in entries)


def test_places_go_on_with_the_data_where_the_clock_stands_still(tmp_path) -> None:
    """One at an epoch's end, one after the next epoch's first step, which was left out: at one clock."""
    end, first = {**CHANGE, "by": "end", "moment": 1, "drawn": 8}, {**CHANGE, "by": "first", "drawn": 12}
    entries = read(tmp_path, first, end)
    assert [entry["by"] for entry in entries] == ["end", "first"]
    assert [(entry["by"], entry["clock"]) for entry in changes_to_repeat(entries, Place(8, 1), 1)] == [("first", 12)]
    assert changes_to_repeat(entries, Place(12, 0), 1) == []


def test_in_words() -> None:
    assert describe_change(CHANGE) == "ada multiplied the rate by 0.5"
    assert describe_change({**CHANGE, "action": "stop"}) == "ada stopped the training"
