"""When a checkpoint is due: by hand, at each boundary."""

from __future__ import annotations

import pytest

from distlr import GlobalBatch
from distlr.checkpoint.interval import Interval
from distlr.errors import ConfigurationError

BATCH = GlobalBatch(4, base_batch=4, samples_per_epoch=40)  # ten updates an epoch


def due(interval, steps, epoch=0):
    """The steps at which it is due, where each is seen to."""
    due_steps = []
    for step in range(1, steps + 1):
        if interval.is_due(epoch, step):
            interval.mark_done(epoch, step)
            due_steps.append(step)
    return due_steps


@pytest.mark.parametrize(
    ("every", "options", "expected"),
    [
        ("3ba", {}, [3, 6, 9]),
        ("3ba", {"batch": BATCH}, [3, 6, 9]),
        ("12sp", {"batch": BATCH}, [3, 6, 9]),
        ("10sp", {"batch": BATCH}, [3, 5, 8, 10]),  # each 2.5 updates
        ("1sp", {"batch": BATCH}, list(range(1, 11))),  # never more than once an update
        ("0.5ep", {"batch": BATCH}, [5, 10]),
        ("2ba", {"accumulation": 2}, [4, 8]),
        ("0.5ep", {"batch": BATCH.replace(per_replica=2, accumulation=2), "accumulation": 2}, [10]),
        ("1ep", {"batch": BATCH}, []),
    ],
)
def test_within_an_epoch(every, options, expected) -> None:
    interval = Interval(every)
    interval.begin(0, 0, **options)
    assert due(interval, 10) == expected


@pytest.mark.parametrize(
    ("every", "before", "options", "expected"),
    [
        ("3ba", (4, 0), {}, [2, 5, 8]),  # after updates 6, 9 and 12
        ("3ba", (8, 0), {"accumulation": 2}, [4, 10]),
        ("3ba", (99, 16), {"batch": BATCH}, [2, 5, 8]),  # by the clock: four updates of this batch
        ("3ba", (6, 0), {}, [3, 6, 9]),  # written when it was due
    ],
)
def test_a_run_that_is_continued(every, before, options, expected) -> None:
    interval = Interval(every)
    interval.begin(*before, **options)
    assert due(interval, 10) == expected


def test_whole_epochs_are_due_at_their_ends_alone() -> None:
    interval = Interval("2ep")
    interval.begin(0, 0, epoch=1)
    assert [interval.is_due(epoch, 0) for epoch in (1, 2, 3)] == [False] * 3
    assert [interval.is_due(epoch, 0, at_end=True) for epoch in (1, 2, 3)] == [False, True, True]
    interval.mark_done(3, 0)
    assert [interval.is_due(epoch, 0, at_end=True) for epoch in (3, 4)] == [False, True]


def test_one_that_passed_several_times_is_due_once() -> None:
    interval = Interval("2ba")
    interval.begin(0, 0)
    assert interval.is_due(0, 7)
    interval.mark_done(0, 7)
    assert not interval.is_due(0, 7)
    assert interval.is_due(0, 8)


@pytest.mark.parametrize("every", ["0ep", "0ba", "0.5dur"])
def test_what_is_no_interval(every) -> None:
    with pytest.raises(ConfigurationError, match="`every` must be above 0, in ep, ba or sp"):
        Interval(every)


@pytest.mark.parametrize("every", ["100sp", "0.5ep"])
def test_only_updates_can_be_counted_without_a_batch(every) -> None:
    with pytest.raises(ConfigurationError, match="in updates where there is no batch"):
        Interval(every).begin(0, 0)
