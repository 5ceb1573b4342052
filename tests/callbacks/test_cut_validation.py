"""A SIGTERM in a long validation: the process leaves in time, and the run goes on with that validation, bit for bit."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from identical_ranks import job_on
from restarts import Killed, logs_by_epoch

import distlr
from distlr.callbacks import Checkpoint, cut_validation
from distlr.checkpoint.preemption import Signals
from distlr.checkpoint.run_state import RunState
from distlr.checkpoint.store import CheckpointDirectory

K = keras.callbacks
SAMPLES, EPOCHS, VALIDATION, CUT_IN = 32, 4, 48, 1
RNG = np.random.default_rng(0)
X = RNG.normal(size=(VALIDATION, 6)).astype("float32")
Y = (X.sum(axis=1, keepdims=True) > 0).astype("float32")
GRACE, BATCH_SECONDS = 0.2, 0.05


class Noise(keras.layers.Layer):
    """Draws in a validation, too, as the sampling of a VAE does."""

    def __init__(self) -> None:
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(7)

    def call(self, inputs):
        return inputs + 0.1 * keras.random.normal(keras.ops.shape(inputs), seed=self.seed_generator)


class Watch(K.Callback):
    """Notes which epochs each hook was called for; lets a validation last, and asks the process to leave in it."""

    distlr_state = ()

    def __init__(self, cut_in: int | None, seconds: float = BATCH_SECONDS) -> None:
        super().__init__()
        self.cut_in, self.seconds = cut_in, seconds
        self.epoch, self.signalled_at = -1, 0.0
        self.train_begun: list[int] = []
        self.trained: list[int] = []
        self.ended: list[int] = []

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        self.train_begun.append(self.epoch)

    def on_train_batch_end(self, batch, logs=None):
        self.trained.append(self.epoch)

    def on_test_batch_end(self, batch, logs=None):
        if self.epoch == self.cut_in:
            if batch == 1:
                self.signalled_at = time.monotonic()
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(self.seconds)

    def on_epoch_end(self, epoch, logs=None):
        self.ended.append(epoch)


class Run:
    """One process of a job, in which everything is made anew."""

    def __init__(
        self,
        directory,
        *,
        cut_in=None,
        seconds=BATCH_SECONDS,
        simulate=None,
        ranks=1,
        own_data=False,
        validates=True,
        epochs=EPOCHS,
        per_replica=4,
        verbose=0,
        run_dir=None,
        more=(),
        bad_metric=False,
        known_length=True,
    ):
        keras.utils.set_random_seed(3)
        job = job_on(ranks, simulate)
        batch = job.batch(per_replica=per_replica, base_batch=4, samples_per_epoch=SAMPLES)
        with job.scope():
            layers = [keras.layers.Dense(5), keras.layers.BatchNormalization(momentum=0.8), keras.layers.Dropout(0.3)]
            self.model = keras.Sequential([keras.Input((6,)), *layers, Noise(), keras.layers.Dense(1, "sigmoid")])
            rate = keras.optimizers.schedules.CosineDecay(0.05, 100)
            optimizer = job.optimizer(keras.optimizers.SGD(rate, momentum=0.9), batch, warmup="1.5ep")
            metrics = [keras.metrics.MeanMetricWrapper(_one_nan if bad_metric else _zero, name="odd")]
            self.model.compile(
                optimizer, "binary_crossentropy", weighted_metrics=["accuracy", *(metrics if ranks == 1 else [])]
            )
        self.watch = Watch(cut_in, seconds)
        self.stop = K.EarlyStopping("val_loss", patience=3, min_delta=0.02)
        plateau = distlr.callbacks.ReduceLROnPlateau("val_loss", patience=1, factor=0.5, min_delta=0.3)
        deciders = [self.stop, plateau] if validates else []
        callbacks = [*more, self.watch, *deciders, Checkpoint(directory, every="1ep")]
        data = (X[:SAMPLES], Y[:SAMPLES])
        train = job.shard(data, batch, seed=1)
        if own_data:
            train = tf.data.Dataset.from_tensor_slices(data).batch(batch.local_batch, drop_remainder=True)
        if not known_length:
            train = train.filter(lambda x, y: True)
        self.left, self.seconds, self.logs = None, None, {}
        before = signal.getsignal(signal.SIGTERM)
        try:
            history = self.model.fit(
                train,
                epochs=epochs,
                validation_data=job.shard((X, Y), batch, training=False) if validates else None,
                callbacks=job.callbacks(callbacks, run_dir=run_dir),
                shuffle=False,
                verbose=verbose,
            )
            self.logs = logs_by_epoch(history)
        except SystemExit as error:
            self.left, self.seconds = error.code, time.monotonic() - self.watch.signalled_at
        finally:
            signal.signal(signal.SIGTERM, before)

    @property
    def state(self):
        variables = [*self.model.variables, *self.model.optimizer.variables]
        return [np.asarray(v.numpy()) for v in variables] + [self.stop.best, self.stop.wait, self.stop.stopped_epoch]


def _zero(y_true, y_pred):
    return 0.0 * y_pred


def _one_nan(y_true, y_pred):
    return tf.where(tf.range(tf.shape(y_pred)[0]) == 0, np.nan, 0.0)


@pytest.fixture(autouse=True)
def short_grace(monkeypatch):
    monkeypatch.setattr(cut_validation, "GRACE", GRACE)


def newest(directory) -> RunState:
    return RunState.from_json(next(CheckpointDirectory(directory, 1).readable())[2])


def assert_is_the_end_of(whole: Run, rest: Run) -> None:
    assert rest.logs == {epoch: whole.logs[epoch] for epoch in range(CUT_IN, EPOCHS)}
    assert [list(logs) for logs in rest.logs.values()] == [list(whole.logs[epoch]) for epoch in rest.logs]
    for actual, expected in zip(rest.state, whole.state, strict=True):
        np.testing.assert_array_equal(actual, expected)


# -- the cut ---------------------------------------------------------------------------------------------


def test_the_process_leaves_in_time_and_before_anything_is_decided(tmp_path, caplog) -> None:
    with caplog.at_level(logging.INFO, "distlr"):
        run = Run(tmp_path / "run", cut_in=CUT_IN)
    whole_validation = VALIDATION / 4 * BATCH_SECONDS
    assert run.left == 143
    assert GRACE < run.seconds < whole_validation
    assert run.watch.ended == [0]  # no callback behind has seen the part
    assert run.stop.wait == 0
    assert run.model.optimizer.multiplier == 1
    assert "Epoch 2: its validation was cut" in caplog.text
    state = newest(tmp_path / "run")
    assert (state.epoch, state.steps, state.to_validate) == (CUT_IN, 8, ["accuracy", "loss", "odd"])
    assert type(run.model.test_function).__name__ != "_WatchedStep"


def test_a_short_validation_is_not_cut(tmp_path) -> None:
    run = Run(tmp_path / "run", cut_in=CUT_IN, seconds=GRACE / 100)
    assert (run.left, run.watch.ended) == (143, [0, 1])
    state = newest(tmp_path / "run")
    assert (state.epoch, state.steps, state.to_validate) == (CUT_IN + 1, 0, None)


@pytest.mark.replicas
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_what_keras_would_count_wrongly_is_not_cut(tmp_path) -> None:
    """Data of unknown length: of an epoch without a step Keras would take it that all have none."""
    run = Run(tmp_path / "run", cut_in=CUT_IN, known_length=False)
    assert (run.left, run.watch.ended) == (143, [0, 1])


def test_a_signal_is_known_from_when_it_came() -> None:
    signals = Signals(["SIGTERM"])
    before = signal.getsignal(signal.SIGTERM)
    signals.listen()
    try:
        assert signals.leaving_for is None
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert 0.01 <= signals.leaving_for < 5
    finally:
        signal.signal(signal.SIGTERM, before)


# -- the run goes on -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("whole"))


@pytest.mark.replicas
def test_it_goes_on_with_the_validation_bit_for_bit(tmp_path, whole, capsys) -> None:
    """Cut twice; the rate is cut by the plateau at the end of the epoch whose validation was."""
    assert whole.logs[CUT_IN + 1]["lr_multiplier"] == 0.5
    assert Run(tmp_path / "run", cut_in=CUT_IN).left == 143
    again = Run(tmp_path / "run", cut_in=CUT_IN)
    assert (again.left, again.watch.trained) == (143, [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rest = Run(tmp_path / "run", verbose=1)
    assert_is_the_end_of(whole, rest)
    assert rest.watch.train_begun == rest.watch.trained == [2] * 8 + [3] * 8
    assert "get_metrics_result" not in vars(rest.model)
    assert "val_loss" in capsys.readouterr().out
    ended = Run(tmp_path / "run")
    assert ended.logs == {}


@pytest.mark.replicas
@pytest.mark.parametrize("options", [{"simulate": 2}, {"ranks": 2}, {"own_data": True}], ids=lambda o: next(iter(o)))
def test_it_goes_on_on_replicas_on_ranks_and_with_data_of_ones_own(four_cpus, tmp_path, options) -> None:
    whole = Run(tmp_path / "whole", **options)
    assert Run(tmp_path / "run", cut_in=CUT_IN, **options).left == 143
    assert_is_the_end_of(whole, Run(tmp_path / "run", **options))


@pytest.mark.replicas
def test_on_another_number_of_replicas_it_validates_first_as_well(four_cpus, tmp_path) -> None:
    assert Run(tmp_path / "run", cut_in=CUT_IN).left == 143
    rest = Run(tmp_path / "run", simulate=2)
    assert rest.watch.trained == [2] * 4 + [3] * 4
    assert sorted(rest.logs) == [1, 2, 3]
    assert rest.logs[CUT_IN]["val_loss"] > 0
    assert rest.model.optimizer.samples_seen == EPOCHS * SAMPLES
    assert newest(tmp_path / "run").began == EPOCHS * SAMPLES


@pytest.mark.replicas
def test_the_last_epochs_end_is_written(tmp_path) -> None:
    options = {"epochs": CUT_IN + 1}
    assert Run(tmp_path / "run", cut_in=CUT_IN, **options).left == 143
    rest = Run(tmp_path / "run", **options)
    assert sorted(rest.logs) == [CUT_IN]
    state = newest(tmp_path / "run")
    assert (state.epoch, state.steps, state.to_validate) == (CUT_IN + 1, 0, None)


@pytest.mark.replicas
def test_without_a_validation_the_epoch_ends_at_once(tmp_path, whole) -> None:
    assert Run(tmp_path / "run", cut_in=CUT_IN).left == 143
    rest = Run(tmp_path / "run", validates=False)
    expected = {name: value for name, value in whole.logs[CUT_IN].items() if not name.startswith("val_")}
    assert rest.logs[CUT_IN] == expected


@pytest.mark.replicas
def test_a_number_that_is_not_finite_is_decided_on_when_the_run_goes_on(tmp_path) -> None:
    with pytest.raises(distlr.errors.NonFiniteError, match="odd is nan"):
        Run(tmp_path / "whole", bad_metric=True)
    bad = {"bad_metric": True, "more": [distlr.callbacks.NonFiniteGuard(ignore=["odd", "val_odd"])]}
    assert Run(tmp_path / "run", cut_in=CUT_IN, **bad).left == 143
    with pytest.raises(distlr.errors.NonFiniteError, match="At the end of epoch 2 odd is nan"):
        Run(tmp_path / "run", bad_metric=True)


@pytest.mark.replicas
def test_what_was_decided_before_another_kill_is_decided_once(tmp_path) -> None:
    """The epoch's end of a run that went on is in the decisions, and in no checkpoint."""

    class Kill(K.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise Killed

    def decided() -> list[int]:
        lines = (tmp_path / "log" / "decisions.jsonl").read_text().splitlines()
        return [line["epoch"] for line in map(json.loads, lines) if line["kind"] == "plateau"]

    options = {"run_dir": tmp_path / "log"}
    assert Run(tmp_path / "run", cut_in=CUT_IN, **options).left == 143
    assert not (tmp_path / "log" / "decisions.jsonl").exists() or decided() == []
    original = Checkpoint.on_epoch_end
    try:
        Checkpoint.on_epoch_end = Kill.on_epoch_end
        with pytest.raises(Killed):
            Run(tmp_path / "run", **options)
    finally:
        Checkpoint.on_epoch_end = original
    assert decided() == [CUT_IN]
    Run(tmp_path / "run", **options)
    assert decided()[:2] == [CUT_IN, CUT_IN + 1]
