"""Where an epoch's steps stand in it, by hand, on the number of replicas that began it and on another one."""

from __future__ import annotations

import dataclasses

import pytest

from distlr import GlobalBatch
from distlr.checkpoint.run_state import RunState
from distlr.data.position import EpochSteps
from distlr.errors import StateError

STATE = RunState(
    epoch=1,
    steps=8,
    iterations=20,
    samples_seen=320,
    positions=[[0, 1, 128]],
    formula={},
    ranks=1,
    replicas=1,
    global_batch=16,
    factor=1.0,
    versions={},
    began=256,
    place=128,
    updates=24,
    accumulation=1,
)


@pytest.mark.parametrize(
    ("steps", "places"),
    [
        (EpochSteps(4, 4, 17), [0, 4, 8, 12, 17]),  # 17 samples, four steps of four: the last one ends the epoch
        (EpochSteps(4, 4), [0, 4, 8, 12, 16]),
        (EpochSteps(2, 6, 16, accumulation=3), [0, 2, 5, 8, 10, 13, 16]),  # two updates of six
    ],
)
def test_a_place_and_its_step(steps, places) -> None:
    assert [steps.place(step) for step in range(len(places))] == places
    assert [steps.done(place) for place in places] == list(range(len(places)))
    assert [steps.left(step) for step in range(len(places))] == list(range(len(places) - 1, -1, -1))


def test_they_are_the_batchs_clock_within_an_epoch() -> None:
    batch = GlobalBatch(3, replicas=2, base_batch=3, accumulation=2, samples_per_epoch=100)
    steps = EpochSteps.of(batch, per_step=1, steps=None, accumulation=2)
    assert steps.steps == batch.steps_per_epoch == 16
    assert [steps.place(2 * update) for update in range(9)] == [batch.samples_at(update) for update in range(9)]


@pytest.mark.parametrize(
    ("per_replica", "samples", "accumulation", "done", "of"),
    [
        (16, 256, 1, 8, 16),  # 128 of 256 samples are behind, whatever the clock shows
        (32, 256, 1, 4, 8),
        (8, 256, 1, 16, 32),
        (16, 256, 2, 8, 16),
        (24, 256, 2, 6, 10),  # 128 samples are 5.3 steps: the next one begins an update
        (32, None, 1, 4, 8),
        (8, None, 1, 16, 32),
        (48, None, 1, 3, 5),
    ],
)
@pytest.mark.parametrize("written", ["now", "before"])
def test_what_is_left_on_another_number_of_replicas(per_replica, samples, accumulation, done, of, written) -> None:
    """In files that say the place, and in those of before, which say what was drawn."""
    state = STATE
    current = dataclasses.replace(STATE, global_batch=per_replica * accumulation, accumulation=accumulation)
    if written == "before":
        state = dataclasses.replace(STATE, began=None, place=None, updates=None, accumulation=None)
    batch = GlobalBatch(per_replica, base_batch=16, samples_per_epoch=samples, accumulation=accumulation)
    steps = EpochSteps.of(batch, per_step=1, steps=256 // batch.size * accumulation, accumulation=accumulation)
    assert state.steps_done(current, steps, endless=False) == done
    assert steps.left(done) == of - done
    assert RunState.from_json(state.to_json()) == state


def test_a_file_of_before_whose_offsets_are_of_the_fit_goes_by_the_clock() -> None:
    old = dataclasses.replace(STATE, began=None, place=None, updates=None, accumulation=None, samples_seen=256 + 128)
    steps = EpochSteps(16, 16, 256)
    assert old.steps_done(old, steps, endless=True) == 8
    assert old.epoch_began(8, steps) == 256
    with pytest.raises(StateError, match="number of steps is not known"):
        old.steps_done(old, EpochSteps(16, None), endless=False)


def test_a_place_that_no_run_writes_is_refused() -> None:
    with pytest.raises(StateError, match="does not say where the run stood"):
        RunState.from_json({**STATE.to_json(), "place": -1})
