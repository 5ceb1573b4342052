"""Changes by hand: at the same step on every rank, once; and what changes nothing."""

from __future__ import annotations

import os
import pathlib
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from distlr.callbacks import ManualControl, ReduceLROnPlateau
from distlr.communicators import run_ranks
from distlr.errors import DistlrError
from distlr.optimizer import read_manual_control
from distlr.runlog.control_requests import ControlDirectory, Request
from distlr.runlog.directory import RunDirectory

PER_EPOCH = 8


@pytest.fixture(scope="session")
def hostile(load_helper):
    return load_helper(pathlib.Path(__file__).parents[1] / "_hostile_requests.py")


class Ask(keras.callbacks.Callback):
    """Asks for something after the given number of batches of the run."""

    def __init__(self, run_dir, requests) -> None:
        super().__init__()
        self.directory, self.requests, self.count = ControlDirectory(run_dir), requests, 0

    def on_train_batch_end(self, batch, logs=None):
        self.count += 1
        if self.count in self.requests:
            self.directory.ask(self.requests[self.count])


def _fit(rate_bench, tmp_path, requests, *, replicas=1, epochs=4, every=2, plateau=None, more=(), accumulation=None):
    keras.utils.set_random_seed(0)
    options = {} if accumulation is None else {"gradient_accumulation_steps": accumulation}
    bench = rate_bench.Bench(replicas, **options)
    batch = bench.batch(2 // replicas, 2, samples_per_epoch=2 * PER_EPOCH, accumulation=accumulation or 1)
    bench.adopt(batch)
    bench.compile()
    callback_list = [*more, *([] if plateau is None else [plateau])]
    callbacks = bench.job.callbacks(callback_list, run_dir=tmp_path)
    for callback in callbacks:
        if isinstance(callback, ManualControl):
            callback.every = every
    # Asked for before the job's callbacks see the batch.
    callbacks.insert(0, Ask(tmp_path, requests))
    bench.data = bench.job.shard(rate_bench.samples(2 * PER_EPOCH), batch, seed=0)
    bench.fit(bench.data, epochs, callbacks)
    return bench, RunDirectory(tmp_path).read()


def _control(run) -> list[tuple[str, int, float | None]]:
    return [(d["action"], d["samples_seen"] // 2, d["multiplier"]) for d in run.decisions if d["kind"] == "control"]


@pytest.mark.parametrize("replicas", [1, 2])
def test_the_rate_is_multiplied_and_set(rate_bench, tmp_path, replicas) -> None:
    requests = {3: Request("set-lr", multiply=0.5), 11: Request("set-lr", to=0.2)}
    bench, run = _fit(rate_bench, tmp_path, requests, replicas=replicas)
    # Looked for after every second batch: found after the 4th and the 12th.
    np.testing.assert_allclose(bench.rates(), [0.1] * 4 + [0.05] * 8 + [0.2] * 20, rtol=1e-6)
    assert _control(run) == [("set-lr", 4, 0.5), ("set-lr", 12, pytest.approx(4))]
    assert "multiplied the rate by 0.5: the rate goes from 0.1 to 0.05" in run.decisions[0]["reason"]
    assert run.decisions[0]["by"]
    assert bench.log.traces == replicas  # nothing is traced anew


def test_at_an_epoch(rate_bench, tmp_path) -> None:
    bench, run = _fit(rate_bench, tmp_path, {3: Request("set-lr", to=0.01, at_epoch=3)})
    np.testing.assert_allclose(bench.rates(), [0.1] * 16 + [0.01] * 16, rtol=1e-6)
    assert [d["kind"] for d in run.decisions] == ["asked", "control"]
    assert run.decisions[1]["at"] == 2.0


def test_stop(rate_bench, tmp_path) -> None:
    bench, run = _fit(rate_bench, tmp_path, {9: Request("stop")})
    assert len(bench.rates()) == 10
    assert _control(run) == [("stop", 10, None)]
    assert run.epochs[-1]["epoch"] == 1


def test_stop_before_an_epoch(rate_bench, tmp_path) -> None:
    bench, run = _fit(rate_bench, tmp_path, {1: Request("stop", at_epoch=3)})
    assert len(bench.rates()) == 16
    assert len(run.epochs) == 2


def test_plateaus_pause_and_go_on(rate_bench, tmp_path) -> None:
    plateau = ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9)
    requests = {1: Request("pause-plateau"), 25: Request("resume-plateau")}
    bench, run = _fit(rate_bench, tmp_path, requests, plateau=plateau)
    np.testing.assert_allclose(bench.rates(), [0.1] * 32, rtol=1e-6)
    assert [d["action"] for d in run.decisions if d["kind"] == "control"] == ["pause-plateau", "resume-plateau"]
    assert not read_manual_control(bench.optimizer.distlr.variables).paused


def test_without_a_plateau_there_is_nothing_to_pause(rate_bench, tmp_path) -> None:
    _, run = _fit(rate_bench, tmp_path, {1: Request("pause-plateau")}, epochs=1)
    assert run.decisions[0]["kind"] == "refused"
    assert "ReduceLROnPlateau" in run.decisions[0]["reason"]


def test_what_lay_there_before_the_run_is_refused(rate_bench, tmp_path) -> None:
    ControlDirectory(tmp_path).ask(Request("set-lr", multiply=0.5))
    bench, run = _fit(rate_bench, tmp_path, {}, epochs=1)
    np.testing.assert_allclose(bench.rates(), 0.1, rtol=1e-6)
    assert "before the run began" in run.decisions[0]["reason"]


def test_what_a_run_finds_late_and_lay_there_before_it_is_refused_as_well(rate_bench, tmp_path, monkeypatch) -> None:
    """A thousand other files lie before it, more than are read as the run begins."""
    monkeypatch.setattr("distlr.callbacks.manual_control._LOOKS", 0)
    ControlDirectory(tmp_path).ask(Request("set-lr", multiply=0.5))
    bench, run = _fit(rate_bench, tmp_path, {}, epochs=1)
    np.testing.assert_allclose(bench.rates(), 0.1, rtol=1e-6)
    assert [d["reason"] for d in run.decisions] == ["It was there before the run began."]


class AskLate(keras.callbacks.Callback):
    """Asks for half the rate, as somebody did so many seconds ago."""

    def __init__(self, run_dir, seconds) -> None:
        super().__init__()
        self.directory, self.seconds = ControlDirectory(run_dir), seconds

    def on_train_batch_end(self, batch, logs=None):
        if batch:
            return
        name = self.directory.ask(Request("set-lr", multiply=0.5, valid_for=60))
        when = self.directory.file_time() - self.seconds * 10**9
        os.utime(self.directory.path / name, ns=(when, when))


@pytest.mark.parametrize(("seconds", "kind"), [(50, "control"), (70, "refused")])
def test_a_request_is_done_within_its_time_limit(rate_bench, tmp_path, seconds, kind) -> None:
    bench, run = _fit(rate_bench, tmp_path, {}, epochs=1, more=[AskLate(tmp_path, seconds)])
    assert [d["kind"] for d in run.decisions] == [kind]
    assert bench.rates()[-1] == pytest.approx(0.1 if kind == "refused" else 0.05)
    assert kind == "control" or "It was valid for 60 s" in run.decisions[0]["reason"]


def test_what_waits_for_its_epoch_can_be_cancelled(rate_bench, tmp_path) -> None:
    class Cancel(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            directory = ControlDirectory(tmp_path)
            if epoch == 1:
                first, _ = directory.waiting()
                assert directory.cancel(first.name)

    two = {1: Request("set-lr", to=0.01, at_epoch=3), 2: Request("set-lr", to=0.02, at_epoch=3)}
    bench, run = _fit(rate_bench, tmp_path, two, more=[Cancel()])
    np.testing.assert_allclose(bench.rates(), [0.1] * 16 + [0.02] * 16, rtol=1e-6)
    assert [d["kind"] for d in run.decisions] == ["asked", "asked", "refused", "control"]
    assert run.decisions[2]["reason"] == "It was cancelled."


def test_refused_files_cost_bounded_text(rate_bench, tmp_path, caplog, monkeypatch) -> None:
    monkeypatch.setattr("distlr.callbacks.manual_control._MOST_WARNINGS", 3)

    class Write(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            for i in range(10 if batch == 1 else 0):
                (tmp_path / "control" / (f"{i}" + "\x1b" * 249 + ".json")).touch()

    with caplog.at_level("WARNING", "distlr"):
        _, run = _fit(rate_bench, tmp_path, {}, more=[Write()], epochs=1)
    warnings = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert len(warnings) == 4
    assert all(len(text) < 300 and "\x1b" not in text for text in warnings)
    assert len(run.decisions) == 10
    assert all(len(entry["id"]) < 130 for entry in run.decisions)
    assert len(list((tmp_path / "control").glob("*.refused"))) == 10


def test_hostile_files_change_nothing(rate_bench, tmp_path, hostile, caplog) -> None:
    written: list[str] = []

    class Write(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if not written:
                written.extend(hostile.write(tmp_path / "control", tmp_path / "elsewhere"))

    bench = rate_bench.Bench(1)
    batch = bench.batch(2, 2, samples_per_epoch=2 * PER_EPOCH)
    bench.adopt(batch)
    bench.compile()
    callbacks = bench.job.callbacks([Write()], run_dir=tmp_path)
    with caplog.at_level("WARNING", "distlr"):
        bench.fit(bench.job.shard(rate_bench.samples(2 * PER_EPOCH), batch), 3, callbacks)
    np.testing.assert_allclose(bench.rates(), 0.1, rtol=1e-6)
    refused = RunDirectory(tmp_path).read().decisions
    assert [entry["kind"] for entry in refused] == ["refused"] * len(written)
    warnings = [record.getMessage() for record in caplog.records if "is refused" in record.getMessage()]
    assert len(warnings) == len(written)
    assert all("\x1b" not in warning and "\n" not in warning for warning in warnings)
    assert not [path for path in (tmp_path / "control").iterdir() if not path.name.endswith(".refused")]


def test_changes_of_one_look_build_on_each_other(rate_bench, tmp_path) -> None:
    """The correction of a request counts from the corrected rate, and two small steps are one large one."""
    directory = ControlDirectory(tmp_path)

    class AskTwice(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2 and not names:
                for value in (0.01, 0.02):
                    names.append(directory.ask(Request("set-lr", to=value)))
                names.append(directory.ask(Request("set-lr", multiply=0.02)))

    names: list[str] = []
    bench, run = _fit(rate_bench, tmp_path, {}, more=[AskTwice()], epochs=1)
    np.testing.assert_allclose(bench.rates()[4:], 0.0004, rtol=1e-6)
    assert [d["learning_rate"] for d in run.decisions] == pytest.approx([0.01, 0.02, 0.0004])


def test_looks_wait_for_the_update_that_steps_accumulate_over(rate_bench, tmp_path) -> None:
    _, run = _fit(rate_bench, tmp_path, {1: Request("stop")}, accumulation=4, every=2)
    assert [d["clock"] for d in run.decisions] == [8]  # found after the 2nd step, done after the 4th


def test_what_nobody_answered_is_refused_at_the_end(rate_bench, tmp_path) -> None:
    requests = {1: Request("set-lr", to=0.2, at_epoch=9), 8: Request("stop")}
    _, run = _fit(rate_bench, tmp_path, requests, epochs=1, every=100)
    assert [(d["kind"], d["reason"]) for d in run.decisions][-1] == ("refused", "The run has ended.")
    assert not list((tmp_path / "control").glob("*.json"))


def test_a_stop_does_not_begin_the_next_epoch(rate_bench, tmp_path) -> None:
    """The stopped epoch goes on after a restart, at its own rate."""
    requests = {1: Request("set-lr", to=0.01, at_epoch=2), 3: Request("stop")}
    bench, run = _fit(rate_bench, tmp_path, requests)
    assert [d["kind"] for d in run.decisions] == ["asked", "control", "refused"]
    np.testing.assert_allclose(bench.optimizer.learning_rate, 0.1, rtol=1e-6)


def test_a_new_run_does_not_inherit_a_pause(rate_bench, tmp_path) -> None:
    plateau = ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9)
    bench, _ = _fit(rate_bench, tmp_path / "a", {1: Request("pause-plateau")}, plateau=plateau, epochs=1)
    assert read_manual_control(bench.optimizer.distlr.variables).paused
    bench.fit(bench.data, 1, bench.job.callbacks([plateau], run_dir=tmp_path / "b"))
    assert not read_manual_control(bench.optimizer.distlr.variables).paused


def test_many_answered_requests_hide_no_new_one(tmp_path) -> None:
    directory = ControlDirectory(tmp_path)
    directory.make()
    for i in range(1200):
        (tmp_path / "control" / f"{i:05d}.json.applied").touch()
    name = directory.ask(Request("stop"))
    assert [pending.name for pending in directory.look()] == [name]


def test_what_rank_0_cannot_do_is_an_error_on_every_rank_and_nobody_waits(rate_bench, tmp_path) -> None:
    (tmp_path / "control").touch()  # where the directory of the requests should be
    reducer = SimpleNamespace(signals=SimpleNamespace(clear=lambda signal: None))

    def rank(comm):
        bench = rate_bench.Bench(1)
        bench.adopt(bench.batch(2, 2, samples_per_epoch=8))
        bench.compile()
        bench.optimizer.distlr.gradients.reducer = reducer
        steering = ManualControl(tmp_path)
        steering.bind(comm)
        steering.set_model(bench.model)
        bench.optimizer.iterations.assign(4)
        steering.on_train_begin()
        try:
            steering.on_epoch_begin(1)
        except (DistlrError, OSError) as error:
            return type(error).__name__

    assert run_ranks(rank, 2, timeout=20) == ["FileExistsError", "DistributionError"]
