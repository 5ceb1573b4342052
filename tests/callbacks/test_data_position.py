"""The place in the data is not the clock: steps that are left out move the one on and not the other."""

from __future__ import annotations

import contextlib
import logging

import keras
import numpy as np
import pytest
from restarts import Killed

import distlr
from distlr.callbacks import Checkpoint, NonFiniteGuard
from distlr.checkpoint.store import CheckpointDirectory, read_checkpoint, write_checkpoint
from distlr.runlog.directory import RunDirectory

pytestmark = pytest.mark.replicas

SAMPLES = 64
RNG = np.random.default_rng(0)
X = RNG.normal(size=(SAMPLES, 4)).astype("float32")
Y = X.sum(axis=1, keepdims=True)


class Watch(keras.callbacks.Callback):
    def __init__(self, die_after: int = 0) -> None:
        super().__init__()
        self.die_after, self.steps = die_after, []
        self.seen: list[tuple[int, int]] = []  # epoch, clock

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        self.seen.append((self.epoch, optimizer.samples_seen))
        if len(self.seen) == self.die_after:
            raise Killed

    @property
    def lengths(self) -> list[int]:
        epochs = [epoch for epoch, _ in self.seen]
        return [epochs.count(epoch) for epoch in sorted(set(epochs))]


def run(
    directory,
    *,
    per_replica=8,
    bad=(),
    scale=False,
    samples=SAMPLES,
    accumulation=1,
    die_after=0,
    epochs=2,
    every="1ba",
    run_dir=None,
    simulate=None,
    **fit,
):
    keras.utils.set_random_seed(0)
    job = distlr.init(environ={}, simulate=simulate)
    batch = job.batch(per_replica=per_replica, base_batch=8, samples_per_epoch=samples, accumulation=accumulation)
    accumulate = {"gradient_accumulation_steps": accumulation} if accumulation > 1 else {}
    with job.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        optimizer = keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.05, 16), momentum=0.9, **accumulate)
        if scale:
            optimizer = keras.optimizers.LossScaleOptimizer(
                optimizer, initial_scale=2.0**127, dynamic_growth_steps=10**6
            )
        model.compile(job.optimizer(optimizer, batch), "mse")
    x = X.copy()
    x[list(bad)] = np.nan
    watch = Watch(die_after)
    callback_list = [Checkpoint(directory, every, keep=100)] if directory is not None else []
    callback_list += [NonFiniteGuard("skip", limit=100)] if bad else []
    data = job.shard((x, Y), batch, shuffle=False)
    options = {"epochs": epochs, "shuffle": False, "verbose": 0, **fit}
    with contextlib.suppress(Killed):
        model.fit(data, callbacks=job.callbacks([watch, *callback_list], run_dir=run_dir), **options)
    return model, watch


@pytest.mark.parametrize(
    ("kind", "clock"), [({"bad": (3, 12, 60)}, 80), pytest.param({"scale": True}, 0, marks=pytest.mark.replicas)]
)
def test_a_run_that_lost_steps_goes_on_where_it_stood(tmp_path, caplog, kind, clock) -> None:
    """Three of eight steps of each epoch: the clock is at 2 * 5 * 8 samples at the end, the data at 2 * 64."""
    whole, seen = run(tmp_path / "whole", **kind)
    assert seen.lengths == [8, 8]
    assert not clock or seen.seen[-1] == (1, clock)
    if clock:
        assert (
            "Epoch 1: 3 of 8 updates left out, for gradients that were not finite; the clock moved on by 40 samples, "
        )
        line = "the data by 64. Until now the schedule is behind the data by 0.375 epochs; epochs keep their length."
        assert line in caplog.text
        assert "behind the data by 0.75 epochs" in caplog.text
    run(tmp_path / "cut", **kind, die_after=13)
    last, rest = run(tmp_path / "cut", **kind)
    assert rest.seen == seen.seen[12:]
    for actual, expected in zip(last.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_each_checkpoint_has_a_number_of_its_own(tmp_path) -> None:
    """This holds even if the first steps all overflow, and Keras' count of updates does not change."""
    _, seen = run(tmp_path, scale=True, epochs=1)
    assert seen.seen[0] == (0, 0)
    assert [int(path.stem[5:]) for path in CheckpointDirectory(tmp_path, 1).files()] == [8, 7, 6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize(("first", "then", "left"), [(8, 16, 2), pytest.param(16, 8, 4, marks=pytest.mark.replicas)])
@pytest.mark.parametrize("samples", [None, pytest.param(SAMPLES, marks=pytest.mark.replicas)])
def test_an_epoch_keeps_its_samples_on_another_number_of_replicas(tmp_path, first, then, left, samples) -> None:
    """Half of 64 samples, or 32 of 64, are behind: 2 steps of 16 are left, or 4 of 8; a step of 8 was left out."""
    run(tmp_path, per_replica=first, samples=samples, bad=(3,), die_after=32 // first + 1, every=f"{32 // first}ba")
    _, rest = run(tmp_path, per_replica=then, samples=samples, bad=(3,))
    assert rest.lengths == [left, SAMPLES // then]
    clock = 32 - first  # goes on from where it stood, where an epoch has a grid from its first place that is not before
    assert rest.seen[0][1] == (clock if samples is None else -(-clock // then) * then) + then


def test_a_checkpoint_of_before_is_continued(tmp_path) -> None:
    """Which has no counter of the data's own: what was drawn is in the offset."""
    whole, _ = run(tmp_path / "whole", bad=(3, 12))
    run(tmp_path / "cut", bad=(3, 12), die_after=6, every="5ba")
    (path,) = CheckpointDirectory(tmp_path / "cut", 1).files()
    arrays, note = read_checkpoint(path)
    for name in ("began", "place", "updates", "accumulation"):
        note.pop(name)
    write_checkpoint(path, arrays, note)
    last, rest = run(tmp_path / "cut", bad=(3, 12))
    assert rest.lengths == [3, 8]
    for actual, expected in zip(last.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.replicas
def test_another_number_of_steps_an_update_begins_an_update(tmp_path) -> None:
    """Four steps of two to the update are two updates; three more steps make the third."""
    run(tmp_path, per_replica=4, accumulation=2, die_after=5, every="2ba", epochs=1)
    model, rest = run(tmp_path, per_replica=4, accumulation=3, epochs=1)
    clocks = [clock for _, clock in rest.seen]
    assert clocks[0] == clocks[1] == 16 < clocks[2]
    assert int(model.optimizer.iterations) == 2 + len(clocks) // 3


@pytest.mark.replicas
def test_an_epoch_that_ends_within_an_update_is_continued_on_replicas(four_cpus, tmp_path) -> None:
    """One of eight steps is left out, two to the update: each replica has a sum of its own at the epoch's end."""
    options = {"simulate": 2, "per_replica": 4, "accumulation": 2, "bad": (3,), "every": "1ep"}
    whole, seen = run(None, **options)
    assert [seen.seen[step] for step in (7, 8, 9)] == [(0, 48), (1, 48), (1, 64)]
    run(tmp_path, **options, die_after=10)
    last, rest = run(tmp_path, **options)
    assert rest.seen == seen.seen[8:]
    for actual, expected in zip(last.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_decisions_are_withdrawn_by_the_data_and_not_by_the_clock(tmp_path) -> None:
    """The steps 2, 3 and 4 are left out, and the checkpoint is of the second: the clock stands where it stood."""
    bad = (8, 16, 24)
    options = {"bad": bad, "epochs": 1, "every": "2ba"}
    run(tmp_path / "cut", **options, die_after=3, run_dir=tmp_path / "run")
    run(tmp_path / "cut", **options, run_dir=tmp_path / "run")
    decisions = RunDirectory(tmp_path / "run").read().decisions
    assert [(entry["clock"], entry["drawn"]) for entry in decisions if entry["kind"] == "bad-numbers"] == [
        (8, 16),
        (8, 24),
        (8, 32),
    ]
    assert [entry["reason"] for entry in decisions if entry["kind"] == "left-out"] == [
        "2 of 6 updates left out, for gradients that were not finite; the clock moved on by 32 samples, the data by 48"
    ]


def test_a_second_fit_knows_why_the_clock_is_behind(tmp_path, caplog) -> None:
    model, _ = run(None, bad=(3,), epochs=1)
    job = distlr.init(environ={})
    data = job.shard((X, Y), model.optimizer.distlr.batch, shuffle=False)
    with caplog.at_level(logging.WARNING, "distlr"):
        model.fit(data, callbacks=job.callbacks(), shuffle=False, verbose=0)
    assert "The clock stands at" not in caplog.text
    model.optimizer.distlr.formula.samples_behind = 0  # as if an epoch had been interrupted
    model.fit(data, callbacks=job.callbacks(), shuffle=False, verbose=0)
    assert "The clock stands at 0.875 of an epoch, and fit begins a whole one" in caplog.text


def test_a_fit_that_begins_later_with_a_clock_at_0_says_so(caplog) -> None:
    model, _ = run(None, initial_epoch=1)
    assert "fit begins epoch 2 (initial_epoch=1), and the optimizer's clock stands at 0" in caplog.text
    caplog.clear()
    job = distlr.init(environ={})
    data = job.shard((X, Y), model.optimizer.distlr.batch, shuffle=False)
    fit = {"initial_epoch": 1, "epochs": 2, "callbacks": job.callbacks(), "shuffle": False, "verbose": 0}
    model.fit(data, **fit)  # the clock is where an epoch begins
    model.compile(job.optimizer(keras.optimizers.SGD(0.1), model.optimizer.distlr.batch), "mse")
    model.fit(data, **fit)  # a rate that never changes
    assert "clock stands" not in caplog.text


def test_a_notebook_s_cell_that_is_run_once_more_goes_on_with_the_data_of_before(tmp_path) -> None:
    """The data that it makes anew has another seed; the run goes on with the order, and at the place, it had."""

    def train(job, directory, die_after=0, seed=0):
        keras.utils.set_random_seed(seed)
        batch = job.batch(per_replica=8, base_batch=8, samples_per_epoch=SAMPLES)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile(job.optimizer(keras.optimizers.SGD(0.05, momentum=0.9), batch), "mse")
        callbacks = job.callbacks([Watch(die_after), Checkpoint(directory, "1ba")])
        model.fit(job.shard((X, Y), batch), epochs=3, callbacks=callbacks, verbose=0, shuffle=False)
        return model.get_weights()

    whole = train(distlr.init(environ={}), tmp_path / "whole")
    job = distlr.init(environ={})
    with pytest.raises(Killed):
        train(job, tmp_path / "killed", die_after=5)
    for resumed, expected in zip(train(job, tmp_path / "killed", seed=1), whole, strict=True):
        np.testing.assert_array_equal(resumed, expected)
