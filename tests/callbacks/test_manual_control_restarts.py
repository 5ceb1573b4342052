"""Changes by hand over restarts: each is made at its place, once, whatever was interrupted when."""

from __future__ import annotations

import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from distlr.callbacks import Checkpoint, ManualControl, ReduceLROnPlateau
from distlr.optimizer import read_manual_control, write_manual_control
from distlr.runlog.control_requests import ControlDirectory, Request
from distlr.runlog.directory import RunDirectory

pytestmark = pytest.mark.replicas

PER_EPOCH = 8


class Script(keras.callbacks.Callback):
    """Asks for something, or dies, after the given updates of the optimizer."""

    def __init__(self, run_dir, requests, dies_at=None) -> None:
        super().__init__()
        self.directory, self.requests, self.dies_at = ControlDirectory(run_dir), dict(requests), dies_at

    def on_train_batch_end(self, batch, logs=None):
        update = int(self.model.optimizer.iterations.numpy())
        if update in self.requests:
            self.directory.ask(self.requests.pop(update))
        if update == self.dies_at:
            raise KeyboardInterrupt


def run(
    rate_bench, tmp_path, requests=(), *, dies_at=None, epochs=4, every="1ep", plateau=None, batch=True, run_dir=None
):
    """A fit that continues the newest checkpoint; None where it died."""
    run_dir = tmp_path / "run" if run_dir is None else run_dir
    keras.utils.set_random_seed(0)
    bench = rate_bench.Bench(1)
    batch_of_bench = bench.batch(2, 2, samples_per_epoch=2 * PER_EPOCH)
    bench.adopt(batch_of_bench if batch else None)
    bench.compile()
    callback_list = [] if plateau is None else [plateau]
    callback_list.append(Checkpoint(tmp_path / "checkpoints", every=every, keep=10))
    callbacks = bench.job.callbacks(callback_list, run_dir=run_dir)
    for callback in callbacks:
        if isinstance(callback, ManualControl):
            callback.every = 2
    callbacks.insert(0, Script(run_dir, requests, dies_at))
    data = bench.job.shard(rate_bench.samples(2 * PER_EPOCH), batch_of_bench, seed=0)
    if dies_at is not None:
        with pytest.raises(KeyboardInterrupt):
            bench.fit(data, epochs, callbacks)
        return None
    bench.fit(data, epochs, callbacks)
    return bench


def control(tmp_path, run_dir=None) -> list[tuple[str, int, float | None]]:
    decisions = RunDirectory(run_dir or tmp_path / "run").read().decisions
    return [(d["action"], d["clock"] // 2, d["multiplier"]) for d in decisions if d["kind"] == "control"]


HALF, TENTH = Request("set-lr", multiply=0.5), Request("set-lr", multiply=0.1)


def test_a_restart_makes_the_changes_again_at_the_same_places(rate_bench, tmp_path) -> None:
    """Killed in the third epoch: the last checkpoint is of the second's end, the second change came after it."""
    requests = {3: HALF, 19: TENTH}
    whole = run(rate_bench, tmp_path / "whole", requests)
    run(rate_bench, tmp_path / "cut", requests, dies_at=22)
    again = run(rate_bench, tmp_path / "cut")
    np.testing.assert_array_equal(again.rates(), whole.rates()[16:])
    assert control(tmp_path / "cut") == [("set-lr", 4, 0.5), ("set-lr", 20, 0.1)]
    for actual, other in zip(again.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, other)
    kinds = [d["kind"] for d in RunDirectory(tmp_path / "cut" / "run").read().decisions]
    assert kinds == ["control", "control", "resume"]


def test_a_change_that_comes_before_one_that_still_waits_to_be_made_again(rate_bench, tmp_path) -> None:
    run(rate_bench, tmp_path, {13: HALF}, dies_at=15)  # made after the 14th, from a checkpoint of the 8th
    run(
        rate_bench, tmp_path, {9: TENTH}, every="4ba", dies_at=13
    )  # made after the 10th; the checkpoint of the 12th has it
    again = run(rate_bench, tmp_path)
    np.testing.assert_allclose(again.rates(), [0.01] * 2 + [0.005] * 18, rtol=1e-6)


def test_a_new_directory_for_a_run_that_goes_on(rate_bench, tmp_path) -> None:
    run(rate_bench, tmp_path, {3: HALF}, dies_at=9)
    other = tmp_path / "other"
    run(rate_bench, tmp_path, {9: TENTH}, dies_at=15, run_dir=other)
    again = run(rate_bench, tmp_path, run_dir=other)
    np.testing.assert_allclose(again.rates(), [0.05] * 2 + [0.005] * 22, rtol=1e-6)


def test_without_a_batch_places_are_updates(rate_bench, tmp_path) -> None:
    run(rate_bench, tmp_path, {13: HALF}, batch=False, dies_at=15)
    again = run(rate_bench, tmp_path, batch=False)
    np.testing.assert_allclose(again.rates(), [0.1] * 6 + [0.05] * 18, rtol=1e-6)


def test_a_new_optimizer_in_the_same_directory_has_its_own_changes(rate_bench, tmp_path) -> None:
    run(rate_bench, tmp_path / "a", {3: HALF}, epochs=2)
    bench = rate_bench.Bench(1)
    batch = bench.batch(2, 2, samples_per_epoch=2 * PER_EPOCH)
    bench.adopt(batch)
    bench.compile()
    callbacks = bench.job.callbacks(run_dir=tmp_path / "a" / "run")
    bench.fit(bench.job.shard(rate_bench.samples(2 * PER_EPOCH), batch), 4, callbacks, initial_epoch=2)
    np.testing.assert_allclose(bench.rates(), 0.1, rtol=1e-6)


def test_a_pause_between_epochs_comes_after_the_cut_of_that_epoch_again(rate_bench, tmp_path) -> None:
    def plateau():
        return ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9)

    pause = {1: Request("pause-plateau", at_epoch=3)}
    whole = run(rate_bench, tmp_path / "whole", pause, plateau=plateau())
    run(rate_bench, tmp_path / "cut", pause, plateau=plateau(), dies_at=18)
    for file in (tmp_path / "cut" / "checkpoints").glob("*16.safetensors"):
        file.unlink()  # so that it goes on from the first epoch's end
    again = run(rate_bench, tmp_path / "cut", plateau=plateau())
    np.testing.assert_array_equal(again.rates(), whole.rates()[8:])
    assert whole.rates()[-1] == pytest.approx(0.05)


def test_a_request_that_waits_outlives_a_restart(rate_bench, tmp_path) -> None:
    run(rate_bench, tmp_path, {3: Request("set-lr", multiply=0.5, at_epoch=4)}, dies_at=18)
    again = run(rate_bench, tmp_path)
    np.testing.assert_allclose(again.rates(), [0.1] * 8 + [0.05] * 8, rtol=1e-6)


def test_a_request_that_was_done_and_not_marked_is_not_done_twice(rate_bench, tmp_path) -> None:
    """The crash came between the decision's line and the renaming of its file."""
    run(rate_bench, tmp_path, {3: HALF}, dies_at=10)
    (marked,) = (tmp_path / "run" / "control").glob("*.applied")
    marked.rename(marked.with_suffix(""))
    again = run(rate_bench, tmp_path)
    np.testing.assert_allclose(again.rates(), 0.05, rtol=1e-6)
    assert len(control(tmp_path)) == 1


def _make_old(tmp_path, seconds: int) -> None:
    """Makes the waiting requests so many seconds old."""
    directory = ControlDirectory(tmp_path / "run")
    when = directory.file_time() - seconds * 10**9
    for pending in directory.waiting():
        os.utime(directory.path / pending.name, ns=(when, when))


@pytest.mark.parametrize(("seconds", "kind", "rate"), [(50, "control", 0.05), (70, "refused", 0.1)])
def test_what_nobody_answered_is_done_by_the_next_run_within_its_time_limit(
    rate_bench, tmp_path, seconds, kind, rate
) -> None:
    run(rate_bench, tmp_path, dies_at=18)
    ControlDirectory(tmp_path / "run").ask(Request("set-lr", multiply=0.5, valid_for=60))
    _make_old(tmp_path, seconds)
    again = run(rate_bench, tmp_path)
    np.testing.assert_allclose(again.rates(), rate, rtol=1e-6)
    assert [d["kind"] for d in RunDirectory(tmp_path / "run").read().decisions] == ["resume", kind]


def test_what_was_accepted_for_its_epoch_has_no_time_limit_any_more(rate_bench, tmp_path) -> None:
    run(rate_bench, tmp_path, {3: Request("set-lr", multiply=0.5, at_epoch=4, valid_for=60)}, dies_at=18)
    _make_old(tmp_path, 10_000)
    again = run(rate_bench, tmp_path)
    np.testing.assert_allclose(again.rates(), [0.1] * 8 + [0.05] * 8, rtol=1e-6)
    assert [d["kind"] for d in RunDirectory(tmp_path / "run").read().decisions] == ["asked", "resume", "control"]


@pytest.mark.parametrize("done", [True, False])
def test_a_run_that_died_with_a_request_in_hand(rate_bench, tmp_path, done) -> None:
    """It is done once, whether or not the line of its decision was written."""
    run(rate_bench, tmp_path, {3: HALF}, dies_at=10)
    (marked,) = (tmp_path / "run" / "control").glob("*.applied")
    marked.rename(marked.with_suffix(".taken"))
    if not done:
        (tmp_path / "run" / "decisions.jsonl").unlink()
        for file in (tmp_path / "checkpoints").glob("*.safetensors"):
            file.unlink()
        run(rate_bench, tmp_path, dies_at=10, run_dir=tmp_path / "other")  # a checkpoint without the change
    again = run(rate_bench, tmp_path)
    np.testing.assert_allclose(again.rates(), 0.05, rtol=1e-6)
    assert len(control(tmp_path)) == 1
    assert [path.name for path in (tmp_path / "run" / "control").iterdir()] == [marked.name]


def test_a_name_of_ones_own_may_be_used_again_by_a_run_that_goes_on(rate_bench, tmp_path) -> None:
    run(rate_bench, tmp_path, {3: HALF}, dies_at=10)
    path = tmp_path / "run" / "decisions.jsonl"
    (marked,) = (tmp_path / "run" / "control").glob("*.applied")
    path.write_text(path.read_text().replace(marked.stem, "mine.json"))
    marked.rename(marked.with_name("mine.json.applied"))
    (marked.with_name("mine.json")).write_text('{"distlr": 1, "action": "set-lr", "multiply": 0.1}')
    again = run(rate_bench, tmp_path)
    np.testing.assert_allclose(again.rates(), 0.005, rtol=1e-6)


def test_state_of_a_tensorflow_checkpoint_is_kept(rate_bench, tmp_path) -> None:
    bench = run(rate_bench, tmp_path, {3: HALF}, epochs=1)
    path = tf.train.Checkpoint(optimizer=bench.optimizer).write(str(tmp_path / "tf"))
    other = rate_bench.Bench(1)
    other.adopt(other.batch(2, 2, samples_per_epoch=2 * PER_EPOCH))
    other.compile()
    other.optimizer.build(other.model.trainable_variables)
    tf.train.Checkpoint(optimizer=other.optimizer).restore(path)
    write_manual_control(other.optimizer.distlr.variables)
    changes, expected = (read_manual_control(run.optimizer.distlr.variables) for run in (other, bench))
    assert changes == expected != (0, 0, 0, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"multiplier": 1e40},
        {"multiplier": None},
        {"multiplier": "2"},
        {"action": "faster"},
        {"clock": "soon"},
        {"by": None},
    ],
)
def test_a_line_that_no_run_wrote_is_not_made_again(rate_bench, tmp_path, change, caplog) -> None:
    run(rate_bench, tmp_path, {11: HALF}, dies_at=14)
    path = tmp_path / "run" / "decisions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[-1] |= change
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = run(rate_bench, tmp_path)
    np.testing.assert_allclose(again.rates(), 0.1, rtol=1e-6)
    assert "lines are no changes by hand" in caplog.text


def test_a_damaged_record_costs_neither_the_training_nor_the_other_changes(rate_bench, tmp_path, caplog) -> None:
    run(rate_bench, tmp_path, {11: HALF}, dies_at=14)
    path = tmp_path / "run" / "decisions.jsonl"
    before = path.read_bytes()
    path.write_bytes(b'{"kind": "contr\n' + b"\0" * 64 + b"\n\xff\n" + before)
    again = run(rate_bench, tmp_path)
    np.testing.assert_allclose(again.rates()[-1], 0.05, rtol=1e-6)
    assert caplog.text.count("A change by hand that stood there is NOT made again") == 1
    assert path.with_name("decisions.jsonl.damaged").read_bytes().endswith(before)


def test_decisions_that_others_may_write_are_not_made_again(rate_bench, tmp_path, caplog) -> None:
    run(rate_bench, tmp_path, {11: HALF}, dies_at=14)
    path = tmp_path / "run" / "decisions.jsonl"
    assert path.stat().st_mode & 0o022 == 0
    path.chmod(0o664)
    again = run(rate_bench, tmp_path)
    np.testing.assert_allclose(again.rates(), 0.1, rtol=1e-6)
    assert "none of the changes by hand in it is made again" in caplog.text
