"""Keras' `LearningRateScheduler` under a rule: it sees and gives the rates of the one-GPU script."""

from __future__ import annotations

import logging
from typing import Any

import keras
import numpy as np
import pytest
from restarts import Killed

import distlr
from distlr.callbacks.base_rates import BaseRates

K = keras.callbacks
EPOCHS, FACTOR, BASE = 4, 8.0, 0.1


def _table(epoch: int, lr: float = 0.0) -> float:
    return (0.1, 0.1, 0.05, 0.01)[epoch]


def _applied(
    callbacks: list[Any],
    *,
    rate: Any = BASE,
    epochs: int = EPOCHS,
    base_batch: int = 1,
    with_batch: bool = True,
    model: Any = None,
    **scaling: Any,
) -> tuple[list[float], Any]:
    """The rate that each epoch's one update applies, at 8 samples an update; and the model."""
    job = distlr.init(environ={})
    batch = job.batch(per_replica=8, base_batch=base_batch, samples_per_epoch=8)
    if model is None:
        with job.scope():
            model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
            optimizer = job.optimizer(keras.optimizers.SGD(rate), batch if with_batch else None, **scaling)
            model.compile(optimizer, "mse")
    applied: list[float] = []

    class Look(K.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            applied.append(float(model.optimizer.learning_rate))

    x = np.ones((8, 1), "float32")
    all_callbacks = job.callbacks([*callbacks, Look()])
    model.fit(x, x, batch_size=8, epochs=epochs, verbose=0, shuffle=False, callbacks=all_callbacks)
    return applied, model


# The rates that plain Keras applies on one device, by hand.
FUNCTIONS: dict[str, tuple[Any, list[float]]] = {
    "a table": (_table, [0.1, 0.1, 0.05, 0.01]),
    "of the epoch alone": (lambda epoch: 0.1 * 0.5**epoch, [0.1, 0.05, 0.025, 0.0125]),
    "the same": (lambda epoch, lr: lr, [0.1, 0.1, 0.1, 0.1]),
    "relative": (lambda epoch, lr: lr * 0.5 if epoch else lr, [0.1, 0.05, 0.025, 0.0125]),
    "relative, then absolute": (lambda epoch, lr: lr if epoch < 2 else 0.03, [0.1, 0.1, 0.03, 0.03]),
    "with a floor": (lambda epoch, lr: max(lr * 0.5, 0.02), [0.05, 0.025, 0.02, 0.02]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_one_gpu_would_apply_is_applied_times_the_factor(name) -> None:
    function, expected = FUNCTIONS[name]
    applied, _ = _applied([K.LearningRateScheduler(function)])
    np.testing.assert_allclose(applied, FACTOR * np.array(expected), rtol=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_warmup_goes_on(name) -> None:
    """Two epochs of it, from the base rate: factors 1, 4.5, 8, 8 at the beginnings of the epochs."""
    function, expected = FUNCTIONS[name]
    applied, _ = _applied([K.LearningRateScheduler(function)], warmup="2ep")
    np.testing.assert_allclose(applied, np.array([1.0, 4.5, 8.0, 8.0]) * expected, rtol=1e-6)


def test_a_function_that_changes_nothing_leaves_every_bit() -> None:
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 1000)
    applied, model = _applied([K.LearningRateScheduler(lambda epoch, lr: lr)], rate=schedule, warmup="3ep")
    plain, _ = _applied([], rate=schedule, warmup="3ep")
    assert applied == plain
    assert model.optimizer.multiplier == 1.0


def test_over_two_fits_and_after_a_cut_by_another() -> None:
    """A function relative to the rate that it is given goes on from where the run is."""
    _, model = _applied([K.LearningRateScheduler(_table)])
    assert model.optimizer.base_rate == pytest.approx(0.01)
    model.optimizer.multiply_rate(0.5)
    applied, _ = _applied([K.LearningRateScheduler(lambda epoch, lr: lr)], model=model, epochs=1)
    assert applied == [pytest.approx(FACTOR * 0.005)]


def test_it_says_both_numbers_once(caplog) -> None:
    caplog.set_level(logging.INFO, "distlr")
    _applied([K.LearningRateScheduler(_table)])
    lines = [r.getMessage() for r in caplog.records if "LearningRateScheduler" in r.getMessage()]
    assert lines == ["LearningRateScheduler gives rates for the base batch: 0.1 is applied as 0.8 (x 8, linear)."]
    assert not [r for r in caplog.records if "was set to" in r.getMessage()]


def test_without_a_factor_or_a_batch_nothing_is_scaled_or_logged(caplog) -> None:
    caplog.set_level(logging.INFO, "distlr")
    applied, _ = _applied([K.LearningRateScheduler(_table)], base_batch=8)
    np.testing.assert_allclose(applied, [_table(epoch) for epoch in range(EPOCHS)], rtol=1e-6)
    applied, _ = _applied([K.LearningRateScheduler(_table)], with_batch=False)
    np.testing.assert_allclose(applied, [_table(epoch) for epoch in range(EPOCHS)], rtol=1e-6)
    assert not [r for r in caplog.records if "base batch:" in r.getMessage() or "was set to" in r.getMessage()]


def test_the_function_is_given_back() -> None:
    scheduler = K.LearningRateScheduler(_table)
    _applied([scheduler])
    assert scheduler.schedule is _table

    def fails(epoch: int, lr: float) -> float:
        raise RuntimeError("mine")

    broken = K.LearningRateScheduler(fails)
    with pytest.raises(RuntimeError, match="mine"):
        _applied([broken])
    broken.schedule.function = _table  # an interrupted fit has left it wrapped; the next one wraps it once
    applied, _ = _applied([broken])
    np.testing.assert_allclose(applied, [FACTOR * _table(epoch) for epoch in range(EPOCHS)], rtol=1e-6)


def test_what_is_no_float_is_refused_by_keras() -> None:
    with pytest.raises(ValueError, match="should be a float"):
        _applied([K.LearningRateScheduler(lambda epoch: "0.1")])


# -- assignments, and limits ---------------------------------------------------------------------------------


def test_an_assigned_rate_is_the_one_applied_and_the_first_says_both_numbers(caplog) -> None:
    class Mine(K.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.optimizer.learning_rate = 0.1

    caplog.set_level(logging.INFO, "distlr")
    applied, _ = _applied([Mine()])
    np.testing.assert_allclose(applied, [0.1] * EPOCHS, rtol=1e-6)
    (line,) = [r.getMessage() for r in caplog.records if "was set to" in r.getMessage()]
    assert "set to 0.1:" in line
    assert "0.0125 for the base batch" in line
    assert "rate * 8" in line


@pytest.mark.parametrize("kind", [K.ReduceLROnPlateau, distlr.callbacks.ReduceLROnPlateau])
def test_a_limit_says_both_numbers(caplog, kind) -> None:
    caplog.set_level(logging.INFO, "distlr")
    _applied([kind("loss", min_lr=0.008)], epochs=1)
    (line,) = [r.getMessage() for r in caplog.records if "min_lr" in r.getMessage()]
    assert "min_lr=0.008" in line
    assert "0.001 for the base batch" in line
    assert "min_lr=0.064" in line


def test_it_is_there_only_where_it_is_needed() -> None:
    job = distlr.init(environ={})
    for user_callbacks, needed in (
        ([K.EarlyStopping()], False),
        ([K.ReduceLROnPlateau()], False),
        ([K.ReduceLROnPlateau(min_lr=1e-5)], True),
        ([K.LearningRateScheduler(_table)], True),
    ):
        assert any(isinstance(callback, BaseRates) for callback in job.callbacks(user_callbacks)) is needed


@pytest.mark.parametrize("with_batch", [True, False])
def test_an_epoch_that_is_resumed_is_not_scheduled_once_more(tmp_path, with_batch) -> None:
    """Halved at the beginning of each of four epochs: 0.1 / 16 of the base batch's in the last one."""
    x = np.ones((32, 1), "float32")

    def rate_at_the_end(directory: Any, die_at: int | None) -> float:
        job = distlr.init(environ={})
        batch = job.batch(per_replica=8, base_batch=1, samples_per_epoch=32)
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile(job.optimizer(keras.optimizers.SGD(BASE), batch if with_batch else None), "mse")
        steps = []

        class Die(K.Callback):
            def on_train_batch_end(self, batch, logs=None):
                steps.append(batch)
                if len(steps) == die_at:
                    raise Killed

        scheduler = K.LearningRateScheduler(lambda epoch, lr: lr * 0.5)
        all_callbacks = job.callbacks([scheduler, Die(), distlr.callbacks.Checkpoint(directory, "1ba")])
        data = job.shard((x, x), batch, shuffle=False)
        model.fit(data, epochs=4, verbose=0, shuffle=False, callbacks=all_callbacks)
        return float(model.optimizer.learning_rate)

    expected = BASE / 16 * (FACTOR if with_batch else 1.0)
    assert rate_at_the_end(tmp_path / "whole", None) == pytest.approx(expected)
    with pytest.raises(Killed):
        rate_at_the_end(tmp_path / "killed", 6)
    assert rate_at_the_end(tmp_path / "killed", None) == pytest.approx(expected)
