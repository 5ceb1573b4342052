"""A run that was interrupted goes on bit for bit as the one that was not."""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import logging
import os
import pickle
import shutil
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from identical_ranks import job_on
from restarts import Killed, locked_by_another_job, logs_by_epoch

import distlr
from distlr.callbacks import Checkpoint
from distlr.checkpoint.store import CheckpointDirectory, read_checkpoint
from distlr.communicators import SingleCommunicator
from distlr.errors import ConfigurationError, DistlrError, NonFiniteError, StateError
from distlr.testing import run_ranks

pytestmark = pytest.mark.replicas

K = keras.callbacks
SAMPLES, EPOCHS = 70, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(SAMPLES, 6)).astype("float32")
Y = (X.sum(axis=1, keepdims=True) > 0).astype("float32")


class Watch(K.Callback):
    """Notes samples and rate after each step, by all of the rate's bits; ends the run after some steps."""

    def __init__(self, die_after: int | None = None) -> None:
        super().__init__()
        self.seen: list[tuple[int, str]] = []
        self.die_after = die_after

    def on_train_batch_end(self, batch, logs=None):
        optimizer = self.model.optimizer
        self.seen.append((optimizer.samples_seen, float(optimizer.learning_rate).hex()))
        if len(self.seen) == self.die_after:
            raise Killed


class Run:
    """One process of a job: everything is made anew."""

    def __init__(
        self,
        directory,
        *,
        simulate=1,
        ranks=1,
        per_replica=4,
        die_after=None,
        stream=False,
        accumulation=1,
        remainder="drop",
        schedule=None,
        dropout=True,
        plateau=True,
        more=(),
        **options,
    ):
        keras.utils.set_random_seed(3)
        self.job = job = job_on(ranks, simulate if simulate > 1 else None)
        batch = job.batch(per_replica=per_replica, base_batch=4, samples_per_epoch=SAMPLES, accumulation=accumulation)
        with job.scope():
            inner = [keras.layers.Dense(5), keras.layers.BatchNormalization(momentum=0.8)]
            inner += [keras.layers.Dropout(0.3)] if dropout else []
            self.model = keras.Sequential([keras.Input((6,)), *inner, keras.layers.Dense(1, "sigmoid")])
            rate = schedule or keras.optimizers.schedules.CosineDecay(0.05, 100)
            accumulate = {"gradient_accumulation_steps": accumulation} if accumulation > 1 else {}
            plain = keras.optimizers.SGD(rate, momentum=0.9, **accumulate)
            self.model.compile(
                job.optimizer(plain, batch, warmup="1.5ep"), "binary_crossentropy", weighted_metrics=["accuracy"]
            )
        data = tf.data.Dataset.from_tensor_slices((X, Y)) if stream else (X, Y)
        self.watch = Watch(die_after)
        callbacks = [*more, self.watch, Checkpoint(directory, **{"every": "7ba", **options})]
        if plateau:
            callbacks.append(distlr.callbacks.ReduceLROnPlateau("val_loss", patience=1, factor=0.5, min_delta=0.3))
        self.logs: dict = {}
        with contextlib.suppress(Killed):
            history = self.model.fit(
                job.shard(data, batch, remainder=remainder),
                epochs=EPOCHS,
                steps_per_epoch=batch.steps_per_epoch if remainder == "carry" else None,
                validation_data=job.shard((X[:16], Y[:16]), batch, training=False),
                callbacks=job.callbacks(callbacks),
                shuffle=False,
                verbose=0,
            )
            self.logs = logs_by_epoch(history)

    @property
    def weights(self):
        return [np.asarray(v.numpy()) for v in [*self.model.weights, *self.model.optimizer.variables]]


def resumed_at(run: Run, whole: Run) -> int:
    """How many steps of the whole run the resumed one did not repeat."""
    return len(whole.watch.seen) - len(run.watch.seen)


def assert_continues(run: Run, whole: Run, exact: bool = True) -> None:
    assert run.watch.seen == whole.watch.seen[resumed_at(run, whole) :]
    for actual, expected in zip(run.weights, whole.weights, strict=True):
        np.testing.assert_array_equal(actual, expected)
    for epoch, logs in run.logs.items():
        for name, value in logs.items():
            expected = whole.logs[epoch][name]
            assert value == (expected if exact else pytest.approx(expected, rel=1e-5)), (epoch, name)


OPTIONS = {
    "arrays": {},
    "stream": {"stream": True},
    "carried": {"remainder": "carry"},
    "carried stream": {"remainder": "carry", "stream": True},
    "accumulated": {"accumulation": 2, "per_replica": 2, "every": "3ba"},
    "whole epochs": {"every": "1ep"},
    "half epochs": {"every": "0.5ep"},
    "samples": {"every": "30sp"},
}


@pytest.mark.parametrize(  # for the fast lane one is enough
    "options", [pytest.param(o, id=n, marks=[pytest.mark.replicas] * (n != "arrays")) for n, o in OPTIONS.items()]
)
def test_it_continues_bit_for_bit(tmp_path, options) -> None:
    """In the warmup, in the middle of an epoch, of a plateau's patience, at an epoch's end: killed again and again."""
    whole = Run(tmp_path / "whole", **options)
    assert len(whole.watch.seen) >= EPOCHS * 17
    assert len({rate for _, rate in whole.watch.seen}) > 30
    for i, die_after in enumerate((26, 33, 9)):  # each from the last checkpoint of the one before
        run = Run(tmp_path / "broken", die_after=die_after, **options)
        assert len(run.watch.seen) == die_after, i
    last = Run(tmp_path / "broken", **options)
    assert 0 < len(last.watch.seen) < len(whole.watch.seen)
    assert_continues(last, whole)
    assert whole.model.optimizer.multiplier < 1  # the plateau has cut


@pytest.mark.replicas
def test_it_continues_on_simulated_replicas(four_cpus, tmp_path) -> None:
    options = {"simulate": 2, "per_replica": 4, "every": "3ba"}  # four would take three times as long
    whole = Run(tmp_path / "whole", **options)
    Run(tmp_path / "broken", die_after=13, **options)
    last = Run(tmp_path / "broken", **options)
    assert resumed_at(last, whole) == 12
    assert_continues(last, whole, exact=False)


def test_it_continues_on_several_ranks(tmp_path) -> None:
    """Rank 0's view, with the others' part in the file."""
    options = {"ranks": 2, "every": "3ba"}
    whole = Run(tmp_path / "whole", **options)
    Run(tmp_path / "broken", die_after=13, **options)
    arrays, _ = read_checkpoint(max((tmp_path / "broken").glob("step-*")))
    assert {name.split("/")[1] for name in arrays if name.startswith("rank/")} == {"0", "1"}
    last = Run(tmp_path / "broken", **options)
    assert resumed_at(last, whole) == 12
    assert_continues(last, whole)


def test_no_sample_is_trained_twice_or_left_out_within_the_epoch(tmp_path) -> None:
    """The inputs themselves, of the epoch that was interrupted."""
    numbers = np.arange(SAMPLES, dtype="float32")[:, None]
    seen: list[float] = []

    class Seeing(keras.Sequential):
        def train_step(self, data):
            tf.py_function(lambda value: seen.extend(value.numpy().ravel().tolist()), [data[0]], [])
            return super().train_step(data)

    def run(die_after):
        job = distlr.init(environ={})
        batch = job.batch(per_replica=5, base_batch=5, samples_per_epoch=SAMPLES)
        model = Seeing([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile(job.optimizer(keras.optimizers.SGD(0.0), batch), "mse")
        seen.clear()
        callbacks = job.callbacks([Watch(die_after), Checkpoint(tmp_path, "2ba")])
        data = job.shard((numbers, numbers), batch)
        with contextlib.suppress(Killed):
            model.fit(data, epochs=1, callbacks=callbacks, verbose=0, shuffle=False)
        return list(seen)

    first = run(9)[: 8 * 5]  # the last checkpoint is of 8 steps
    rest = run(None)
    assert sorted(first + rest) == list(range(SAMPLES))
    assert first + rest != list(range(SAMPLES))


@pytest.mark.parametrize("remainder", ["drop", "carry"])
def test_each_fit_has_an_order_of_its_own(remainder) -> None:
    """A script that calls `fit` again and again, always from the first epoch."""
    job = distlr.init(environ={})
    batch = job.batch(per_replica=7, base_batch=7, samples_per_epoch=SAMPLES)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(job.optimizer(keras.optimizers.SGD(0.0), batch), "mse")
    numbers = np.arange(SAMPLES, dtype="float32")[:, None]
    data = job.shard((numbers, numbers), batch, seed=1, remainder=remainder)
    seen: list[list[float]] = []
    data = data.map(
        lambda x, y: (tf.py_function(lambda v: (seen[-1].extend(v.numpy().ravel()), v)[1], [x], x.dtype), y)
    )
    data = data.map(lambda x, y: (tf.ensure_shape(x, [7, 1]), y))
    steps = batch.steps_per_epoch if remainder == "carry" else None
    for _ in range(3):
        seen.append([])
        fit = {"steps_per_epoch": steps, "callbacks": job.callbacks(), "verbose": 0, "shuffle": False}
        model.fit(data, epochs=1, **fit)
    orders = [tuple(order[:SAMPLES]) for order in seen]
    assert len(set(orders)) == 3
    assert all(sorted(order) == list(range(SAMPLES)) for order in orders)


# -- another number of replicas --------------------------------------------------------------------------


SIZES = (1, 2, 3, 4)
CHANGING = {"plateau": False, "dropout": False}


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """A run from the start on each number of ranks: the rate by the clock."""
    return {m: Run(tmp_path_factory.mktemp("whole"), ranks=m, every="9ep", **CHANGING).watch.seen for m in SIZES}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A checkpoint of each number of ranks after 1.4 epochs, in the warmup."""
    directories = {n: tmp_path_factory.mktemp("broken") for n in SIZES}
    for n, directory in directories.items():
        Run(directory, ranks=n, die_after=-(-25 // n), every=f"{24 // n}ba", **CHANGING)
    return directories


@pytest.mark.replicas
@pytest.mark.xdist_group("n to m")  # by themselves half of their lane
@pytest.mark.parametrize(("n", "m"), list(itertools.permutations(SIZES, 2)))
def test_the_rate_by_epoch_is_that_of_a_run_on_m_from_the_start(wholes, broken, tmp_path, caplog, n, m) -> None:
    """Compared where both runs' clocks stand at one place: from the next update on both are on the grid of m."""
    shutil.copytree(broken[n], tmp_path / "run")
    caplog.clear()
    with caplog.at_level(logging.INFO, "distlr"):
        last = Run(tmp_path / "run", ranks=m, every="9ep", **CHANGING)
    rate_at = dict(wholes[m])
    compared = [(samples, rate) for samples, rate in last.watch.seen if samples in rate_at]
    assert len(compared) >= len(last.watch.seen) - 1 > 0
    assert [rate_at[samples] for samples, _ in compared] == [rate for _, rate in compared]
    assert last.watch.seen[-1] == wholes[m][-1]
    (line,) = (record.getMessage() for record in caplog.records if "Continuing" in record.getMessage())
    assert "epoch 2, after" in line
    assert (
        f"Written on {n} replica{'s' * (n > 1)} (batch {4 * n}, factor {n}), now {m} (batch {4 * m}, factor {m}" in line
    )
    assert "warmup" in line


def test_after_a_change_the_rate_climbs_if_rewarm_is_given(tmp_path, caplog) -> None:
    options = {"plateau": False, "schedule": 0.1}
    Run(tmp_path / "run", die_after=44, every="2ep", **options)  # two epochs and a half, after the warmup
    with caplog.at_level(logging.INFO, "distlr"):
        first = Run(tmp_path / "run", ranks=4, rewarm="1ep", every="1ba", die_after=2, **options)
    (line,) = (record.getMessage() for record in caplog.records if "Continuing" in record.getMessage())
    assert "at the rate 0.1, " in line
    assert "the rate climbs from its old value over 1ep" in line
    assert first.job.explain()["climb"] == {"from_sample": 140.0, "samples": 70.0, "share": 0.25}
    rates = [float.fromhex(rate) for _, rate in first.watch.seen]
    assert first.model.optimizer.samples_seen == 2 * SAMPLES + 35
    share = 35 / SAMPLES
    assert rates[-1] == pytest.approx(0.1 * 4 * (0.25 + 0.75 * share), rel=1e-6)
    again = Run(tmp_path / "run", ranks=4, every="1ba", **options)  # in the middle of the climb
    rates = [float.fromhex(rate) for _, rate in again.watch.seen]
    share = (again.watch.seen[0][0] - 2 * SAMPLES) / SAMPLES
    assert rates[0] == pytest.approx(0.1 * 4 * (0.25 + 0.75 * share), rel=1e-6)
    assert rates[-1] == pytest.approx(0.4, rel=1e-6)


# -- what is refused -------------------------------------------------------------------------------------


def test_another_formula_is_refused_with_the_difference_or_accepted(tmp_path, caplog) -> None:
    Run(tmp_path, die_after=30)
    other = keras.optimizers.schedules.CosineDecay(0.05, 120)
    with pytest.raises(
        StateError, match=r"learning_rate\.config.decay_steps: 100 in the checkpoint, 120 in the script"
    ):
        Run(tmp_path, schedule=other)
    run = Run(tmp_path, schedule=other, accept=True)
    assert "The script's formula is used: " in caplog.text
    assert len(run.watch.seen) == EPOCHS * 17 - 28


def test_what_cannot_be_right_is_refused_before_the_first_step(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="`every` must be above 0, in ep, ba or sp"):
        Checkpoint(tmp_path, "0ep")
    with pytest.raises(ConfigurationError, match="`signals` must be some of 'SIGTERM', 'SIGUSR1'"):
        Checkpoint(tmp_path, signals=["SIGKILL"])
    Run(tmp_path, die_after=20)
    with pytest.raises(ConfigurationError, match="`resume` must be True where"):
        Run(tmp_path, resume=False)
    job = distlr.init(environ={})
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    with pytest.raises(ConfigurationError, match="which the plain Keras optimizer"):
        model.fit(X, Y, callbacks=job.callbacks([Checkpoint(tmp_path / "other")]), verbose=0)
    model.compile(job.optimizer(keras.optimizers.SGD(0.1)), "mse")
    with pytest.raises(ConfigurationError, match=r"with data from job\.shard"):
        model.fit(X, Y, callbacks=job.callbacks([Checkpoint(tmp_path / "other", "5ba")]), verbose=0)
    with pytest.raises(ConfigurationError, match="does not know the job's data"):
        model.fit(X, Y, callbacks=[Checkpoint(tmp_path / "other")], verbose=0)
    with pytest.raises(ConfigurationError, match=r"write distlr\.callbacks\.Checkpoint\('b', every='10ba'\)"):
        job.callbacks([K.BackupAndRestore("b", save_freq=10)])
    assert not (tmp_path / "other").exists()


def test_a_second_fit_needs_a_directory_of_its_own(tmp_path) -> None:
    run = Run(tmp_path)
    checkpoint = Checkpoint(tmp_path)
    data = run.job.shard((X, Y), run.model.optimizer.distlr.batch)
    run.model.fit(data, epochs=EPOCHS, callbacks=run.job.callbacks([checkpoint]), verbose=0, shuffle=False)
    with pytest.raises(ConfigurationError, match="give each fit a Checkpoint with a directory of its own"):
        run.model.fit(data, epochs=1, callbacks=run.job.callbacks([checkpoint]), verbose=0, shuffle=False)


def test_a_run_that_is_complete_trains_no_more(tmp_path) -> None:
    whole = Run(tmp_path)
    again = Run(tmp_path)
    assert again.watch.seen == []
    assert not (tmp_path / "checkpoints.lock").exists()
    for actual, expected in zip(again.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected)


# -- files -----------------------------------------------------------------------------------------------


def test_the_newest_are_kept_and_what_cannot_be_read_is_passed_over(tmp_path, caplog) -> None:
    Run(tmp_path, die_after=30, every="3ba", keep=2)
    names = sorted(path.name for path in tmp_path.glob("step-*"))
    assert names == ["step-000000000027.safetensors", "step-000000000030.safetensors"][-2:] or names == [
        "step-000000000024.safetensors",
        "step-000000000027.safetensors",
    ]
    damaged = bytearray((tmp_path / names[-1]).read_bytes())
    damaged[len(damaged) // 2] ^= 8
    (tmp_path / names[-1]).write_bytes(damaged)
    (tmp_path / f".{names[-1]}.abc.safetensors").write_bytes(b"half")
    run = Run(tmp_path, every="3ba", die_after=1)
    assert f"{names[-1]} is damaged: its checksum is" in caplog.text
    assert (tmp_path / f"{names[-1]}.damaged").read_bytes() == damaged
    step = int(names[0].split("-")[1].split(".")[0])
    assert run.watch.seen[0][0] == run.model.optimizer.distlr.batch.samples_at(step + 1)
    assert not list(tmp_path.glob(".*"))


def test_what_is_in_a_file(tmp_path) -> None:
    run = Run(tmp_path)
    arrays, note = read_checkpoint(max(tmp_path.glob("step-*")))
    for i, weight in enumerate(run.model.get_weights()):
        np.testing.assert_array_equal(arrays[f"weight/{i}"], weight)
    assert arrays["optimizer/inner/distlr_samples_seen"].shape == ()
    assert note["samples_seen"] == EPOCHS * SAMPLES
    assert note["formula"]["scaling.warmup"] == "1.5ep"


def test_another_model_is_refused_and_nothing_is_changed(tmp_path) -> None:
    Run(tmp_path, dropout=False)
    job = distlr.init(environ={})
    batch = job.batch(per_replica=4, base_batch=4, samples_per_epoch=SAMPLES)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(7)])
    before = model.get_weights()
    model.compile(job.optimizer(keras.optimizers.SGD(0.1), batch), "mse")
    callbacks = job.callbacks([Checkpoint(tmp_path, accept=True)])
    with pytest.raises(StateError, match=r"has the shape \(6, 5\) for 'sequential.*/kernel', and the model \(6, 7\)"):
        model.fit(job.shard((X, Y), batch), callbacks=callbacks, verbose=0, shuffle=False)
    for actual, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_whatever_rank_0_cannot_continue_from_is_an_error_of_all_and_nobody_waits(tmp_path, monkeypatch) -> None:
    def fail(directory):
        raise MemoryError("4 GiB")

    def rank(comm):
        callback = Checkpoint(tmp_path)
        callback.bind(comm)
        with pytest.raises((MemoryError, DistlrError)) as info:
            callback._continue()
        return info.value

    monkeypatch.setattr(CheckpointDirectory, "readable", fail)
    errors = run_ranks(rank, 2, timeout=5.0)
    assert [type(error) for error in errors] == [MemoryError, StateError]
    assert str(errors[1]) == "[rank 1] Rank 0 could not continue: MemoryError: 4 GiB"


def test_a_directory_that_another_job_uses_is_refused_on_every_rank(tmp_path) -> None:
    """Before the ranks that wait for rank 0 give up."""
    step = tmp_path / ".step-000000000001.safetensors.0123"
    step.touch()

    def rank(comm):
        callback = Checkpoint(tmp_path)
        callback.bind(comm)
        with pytest.raises(ConfigurationError) as info:
            callback._continue()
        return str(info.value)

    with locked_by_another_job(tmp_path, "checkpoints.lock") as message:
        errors = run_ranks(rank, 2, timeout=1.0)
    assert errors[0].startswith(message)
    assert errors[1].startswith(f"[rank 1] Rank 0 could not continue: {message}")
    assert step.exists()


def test_the_next_fit_of_the_process_need_not_wait(tmp_path) -> None:
    """An error has ended the first, and its objects are there still; in an elastic job that is a generation."""
    callbacks = [Checkpoint(tmp_path) for _ in range(3)]
    for callback in callbacks:
        callback.bind(SingleCommunicator())
        callback._continue()
        assert (tmp_path / "checkpoints.lock").exists()
    del callback, callbacks
    gc.collect()
    assert not (tmp_path / "checkpoints.lock").exists()


class Loaded:
    """An object that makes Python run code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_hostile_file_is_passed_over(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    deep = b"[" * 100_000
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    run = {"__metadata__": {"format": "1", "run": json.dumps({"epoch": -1})}}
    hostile = [
        b"",
        pickle.dumps(Loaded()),
        len(deep).to_bytes(8, "little") + deep,
        (2**63).to_bytes(8, "little") + b"{}",
        len(header).to_bytes(8, "little") + header,
        len(json.dumps(run)).to_bytes(8, "little") + json.dumps(run).encode(),
    ]
    for content in hostile[:-1]:
        (tmp_path / "step-000000000001.safetensors").write_bytes(content)
        with pytest.raises(StateError, match="is no checkpoint of distlr"):
            read_checkpoint(tmp_path / "step-000000000001.safetensors")
    (tmp_path / "step-000000000001.safetensors").write_bytes(hostile[-1])
    with pytest.raises(StateError, match="does not say where the run stood"):
        Run(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_weights_that_are_not_finite_are_not_written(tmp_path, caplog) -> None:
    with pytest.raises(NonFiniteError, match="loss is nan"):
        Run(tmp_path, schedule=1e30, every="1ep", plateau=False)
    Run(tmp_path, schedule=1e30, every="1ep", plateau=False, more=[K.TerminateOnNaN()])
    assert "The weights are not finite, so no checkpoint is written" in caplog.text
    assert not list(tmp_path.glob("*"))


# -- signals ---------------------------------------------------------------------------------------------


class Signal(K.Callback):
    def __init__(self, number: int, after: int) -> None:
        super().__init__()
        self.number, self.after, self.steps = number, after, 0

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        if self.steps == self.after:
            os.kill(os.getpid(), self.number)


def test_data_of_ones_own_is_never_continued_in_the_middle_of_an_epoch(tmp_path) -> None:
    """At SIGTERM the process ends; the epoch is trained anew, from the checkpoint at its start."""

    def run(directory, *more):
        keras.utils.set_random_seed(0)
        job = distlr.init(environ={})
        batch = job.batch(per_replica=5, base_batch=5, samples_per_epoch=SAMPLES)
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
        model.compile(job.optimizer(keras.optimizers.SGD(0.1, momentum=0.9), batch), "mse")
        data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(5)
        callbacks = job.callbacks([*more, Checkpoint(directory)])
        model.fit(data, epochs=3, callbacks=callbacks, verbose=0, shuffle=False)
        return model

    whole = run(tmp_path / "whole")
    with pytest.raises(SystemExit):
        run(tmp_path / "broken", Signal(signal.SIGTERM, 20))
    assert [path.name for path in (tmp_path / "broken").glob("step-*")] == ["step-000000000014.safetensors"]
    continued = run(tmp_path / "broken")
    assert continued.optimizer.samples_seen == whole.optimizer.samples_seen == 3 * SAMPLES
    for actual, expected in zip(continued.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(("number", "ends"), [(signal.SIGTERM, True), (signal.SIGUSR1, False)])
def test_a_signal_writes_a_checkpoint(tmp_path, number, ends) -> None:
    before = signal.SIG_DFL
    signal.signal(number, before)  # a training of another test, which an error ended, has left its own
    job = distlr.init(environ={})
    batch = job.batch(per_replica=5, base_batch=5, samples_per_epoch=SAMPLES)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile(job.optimizer(keras.optimizers.SGD(0.1), batch), "mse")
    callbacks = job.callbacks([Signal(number, 20), Checkpoint(tmp_path, "9ep")])
    fit = {"epochs": 2, "callbacks": callbacks, "verbose": 0, "shuffle": False}
    if ends:
        with pytest.raises(SystemExit) as ended:
            model.fit(job.shard((X, Y), batch), **fit)
        assert ended.value.code == 128 + 15
    else:
        model.fit(job.shard((X, Y), batch), **fit)
    names = sorted(path.name for path in tmp_path.glob("step-*"))
    assert names == ["step-000000000020.safetensors", *([] if ends else ["step-000000000028.safetensors"])]
    assert signal.getsignal(number) == before
