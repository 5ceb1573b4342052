"""Changes by hand, read back from a run's decisions."""

from __future__ import annotations

import json

import pytest

from distlr.changes import Moment, Place, again_from, in_words, read_changes
from distlr.run_directory import RunDirectory

CHANGE = {"kind": "control", "clock": 8, "moment": 0, "action": "set-lr", "multiplier": 0.5, "by": "ada"}


def read(path, *entries):
    (path / "decisions.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    return read_changes(RunDirectory(path))


def test_they_come_in_the_order_of_their_places(tmp_path) -> None:
    moments = (Moment.BEGIN, Moment.BATCH, Moment.EPOCH_END)
    found = read(tmp_path, *({**CHANGE, "clock": clock, "moment": moment} for clock in (8, 4) for moment in moments))
    assert [Place.of(entry) for entry in found] == [(4, 0), (4, 1), (4, 2), (8, 0), (8, 1), (8, 2)]


@pytest.mark.parametrize(
    "wrong", [{"clock": 8.0}, {"clock": None}, {"clock": True}, {"moment": 3}, {"moment": "0"}, {"action": "delete"}]
)
def test_what_is_no_change_is_left_out(tmp_path, wrong, caplog) -> None:
    assert read(tmp_path, CHANGE, {**CHANGE, **wrong}, {"kind": "plateau"}) == [CHANGE]
    assert "1 lines are no changes by hand, and are left out." in caplog.text


def test_a_run_without_decisions_has_none(tmp_path) -> None:
    assert read_changes(RunDirectory(tmp_path)) == []


@pytest.mark.parametrize(
    ("last", "made", "again"),
    [((0, 0), 0, "abc"), ((8, 0), 0, "abc"), ((8, 0), 1, "bc"), ((8, 0), 2, "c"), ((8, 1), 0, "c"), ((8, 1), 1, "")],
)
def test_what_is_made_again(last, made, again) -> None:
    changes = [{**CHANGE, "by": by, "moment": moment, "id": by} for by, moment in (("a", 0), ("b", 0), ("c", 1))]
    found = again_from(changes, Place(*last), made)
    assert [change["by"] for change in found] == list(again)
    assert all(set(change) == {"clock", "moment", "action", "multiplier", "by"} for change in found)


def test_in_words() -> None:
    assert in_words(CHANGE) == "ada multiplied the rate by 0.5"
    assert in_words({**CHANGE, "action": "stop"}) == "ada stopped the training"
