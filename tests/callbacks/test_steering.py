"""Changes by hand: at the same step on every rank, once, also after a restart; and what changes nothing."""

from __future__ import annotations

import pathlib

import keras
import numpy as np
import pytest

from distlr.callbacks import Checkpoint, ReduceLROnPlateau, Steering
from distlr.control import ControlDirectory, Request
from distlr.run_directory import RunDirectory

PER_EPOCH = 8


@pytest.fixture(scope="session")
def hostile(load_helper):
    return load_helper(pathlib.Path(__file__).parents[1] / "_hostile.py")


class Ask(keras.callbacks.Callback):
    """Asks for something after the given number of batches of the run."""

    def __init__(self, run_dir, requests, fail_at=None) -> None:
        super().__init__()
        self.directory, self.requests, self.fail_at, self.count = ControlDirectory(run_dir), requests, fail_at, 0

    def on_train_batch_end(self, batch, logs=None):
        self.count += 1
        if self.count in self.requests:
            self.directory.ask(self.requests[self.count])
        if self.count == self.fail_at:
            raise KeyboardInterrupt


def _fit(recording, tmp_path, requests, *, replicas=1, epochs=4, every=2, plateau=None, checkpoint=None, fail_at=None):
    keras.utils.set_random_seed(0)
    bench = recording.Bench(replicas)
    batch = bench.batch(2 // replicas, 2, samples_per_epoch=2 * PER_EPOCH)
    bench.adopt(batch)
    bench.compile()
    own = [] if plateau is None else [plateau]
    if checkpoint is not None:
        own.append(Checkpoint(tmp_path / "checkpoints", every=checkpoint))
    callbacks = bench.job.callbacks(own, run_dir=tmp_path)
    for callback in callbacks:
        if isinstance(callback, Steering):
            callback.every = every
    # Asked for before the job's callbacks see the batch.
    callbacks.insert(0, Ask(tmp_path, requests, fail_at))
    data = bench.job.shard(recording.samples(2 * PER_EPOCH), batch, seed=0)
    bench.fit(data, epochs, callbacks)
    return bench, RunDirectory(tmp_path).read()


def _control(run) -> list[tuple[str, int, float | None]]:
    return [(d["action"], d["samples_seen"] // 2, d["multiplier"]) for d in run.decisions if d["kind"] == "control"]


@pytest.mark.parametrize("replicas", [1, 2])
def test_the_rate_is_multiplied_and_set(recording, tmp_path, replicas) -> None:
    requests = {3: Request("set-lr", multiply=0.5), 11: Request("set-lr", to=0.2)}
    bench, run = _fit(recording, tmp_path, requests, replicas=replicas)
    # Looked for after every second batch: found after the 4th and the 12th.
    np.testing.assert_allclose(bench.rates(), [0.1] * 4 + [0.05] * 8 + [0.2] * 20, rtol=1e-6)
    assert _control(run) == [("set-lr", 4, 0.5), ("set-lr", 12, pytest.approx(4))]
    assert "multiplied the rate by 0.5: the rate goes from 0.1 to 0.05" in run.decisions[0]["reason"]
    assert run.decisions[0]["by"]
    assert bench.log.traces == replicas  # nothing is traced anew


def test_at_an_epoch(recording, tmp_path) -> None:
    bench, run = _fit(recording, tmp_path, {3: Request("set-lr", to=0.01, at_epoch=3)})
    np.testing.assert_allclose(bench.rates(), [0.1] * 16 + [0.01] * 16, rtol=1e-6)
    assert [d["kind"] for d in run.decisions] == ["asked", "control"]
    assert run.decisions[1]["at"] == 2.0


def test_stop(recording, tmp_path) -> None:
    bench, run = _fit(recording, tmp_path, {9: Request("stop")})
    assert len(bench.rates()) == 10
    assert _control(run) == [("stop", 10, None)]
    assert run.epochs[-1]["epoch"] == 1


def test_stop_before_an_epoch(recording, tmp_path) -> None:
    bench, run = _fit(recording, tmp_path, {1: Request("stop", at_epoch=3)})
    assert len(bench.rates()) == 16
    assert len(run.epochs) == 2


def test_plateaus_pause_and_go_on(recording, tmp_path) -> None:
    plateau = ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9)
    requests = {1: Request("pause-plateau"), 25: Request("resume-plateau")}
    bench, run = _fit(recording, tmp_path, requests, plateau=plateau)
    np.testing.assert_allclose(bench.rates(), [0.1] * 32, rtol=1e-6)
    assert [d["action"] for d in run.decisions if d["kind"] == "control"] == ["pause-plateau", "resume-plateau"]
    assert bench.optimizer.steered == (False, 2)


def test_without_a_plateau_there_is_nothing_to_pause(recording, tmp_path) -> None:
    _, run = _fit(recording, tmp_path, {1: Request("pause-plateau")}, epochs=1)
    assert run.decisions[0]["kind"] == "refused"
    assert "ReduceLROnPlateau" in run.decisions[0]["reason"]


def test_what_lay_there_before_the_run_is_refused(recording, tmp_path) -> None:
    ControlDirectory(tmp_path).ask(Request("set-lr", multiply=0.5))
    bench, run = _fit(recording, tmp_path, {}, epochs=1)
    np.testing.assert_allclose(bench.rates(), 0.1, rtol=1e-6)
    assert "before the run began" in run.decisions[0]["reason"]


def test_hostile_files_change_nothing(recording, tmp_path, hostile, caplog) -> None:
    written: list[str] = []

    class Write(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if not written:
                written.extend(hostile.write(tmp_path / "control", tmp_path / "elsewhere"))

    bench = recording.Bench(1)
    batch = bench.batch(2, 2, samples_per_epoch=2 * PER_EPOCH)
    bench.adopt(batch)
    bench.compile()
    callbacks = bench.job.callbacks([Write()], run_dir=tmp_path)
    with caplog.at_level("WARNING", "distlr"):
        bench.fit(bench.job.shard(recording.samples(2 * PER_EPOCH), batch), 3, callbacks)
    np.testing.assert_allclose(bench.rates(), 0.1, rtol=1e-6)
    refused = RunDirectory(tmp_path).read().decisions
    assert [entry["kind"] for entry in refused] == ["refused"] * len(written)
    warnings = [record.getMessage() for record in caplog.records if "is refused" in record.getMessage()]
    assert len(warnings) == len(written)
    assert all("\x1b" not in warning and "\n" not in warning for warning in warnings)
    assert not [path for path in (tmp_path / "control").iterdir() if not path.name.endswith(".refused")]


def test_a_restart_makes_the_changes_again_at_the_same_places(recording, tmp_path) -> None:
    """Killed in the third epoch: the last checkpoint is of the second's end, the second change came after it."""
    requests = {3: Request("set-lr", multiply=0.5), 19: Request("set-lr", multiply=0.1)}
    whole, _ = _fit(recording, tmp_path / "whole", requests, checkpoint="1ep")
    with pytest.raises(KeyboardInterrupt):
        _fit(recording, tmp_path / "cut", requests, checkpoint="1ep", fail_at=22)
    again, run = _fit(recording, tmp_path / "cut", {}, checkpoint="1ep")
    np.testing.assert_array_equal(again.rates(), whole.rates()[16:])
    assert _control(run) == [("set-lr", 4, 0.5), ("set-lr", 20, 0.1)]
    assert again.optimizer.steered == (False, 2)
    for mine, other in zip(again.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_a_request_that_waits_outlives_a_restart(recording, tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _fit(recording, tmp_path, {3: Request("set-lr", multiply=0.5, at_epoch=4)}, checkpoint="1ep", fail_at=18)
    again, _ = _fit(recording, tmp_path, {}, checkpoint="1ep")
    np.testing.assert_allclose(again.rates(), [0.1] * 8 + [0.05] * 8, rtol=1e-6)


def test_a_request_that_was_done_and_not_marked_is_not_done_twice(recording, tmp_path) -> None:
    """The crash came between the decision's line and the renaming of its file."""
    with pytest.raises(KeyboardInterrupt):
        _fit(recording, tmp_path, {3: Request("set-lr", multiply=0.5)}, checkpoint="1ep", fail_at=10)
    (marked,) = (tmp_path / "control").glob("*.applied")
    marked.rename(marked.with_suffix(""))
    again, run = _fit(recording, tmp_path, {}, checkpoint="1ep")
    np.testing.assert_allclose(again.rates(), 0.05, rtol=1e-6)
    assert len(_control(run)) == 1
