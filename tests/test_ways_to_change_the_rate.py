"""The four ways in which people change the rate, on four replicas: each epoch's applied rate, worked out by hand."""

from __future__ import annotations

import logging
import math
from types import ModuleType, SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

import distlr
import distlr.optimizer
from distlr.callbacks import ReduceLROnPlateau
from distlr.errors import (
    ConfigurationError,
    ConfigurationTypeError,
    DistlrError,
    DistributionError,
    NonFiniteMetricError,
    StateError,
)

pytestmark = pytest.mark.replicas

Cosine = keras.optimizers.schedules.CosineDecay


def _bench(rate_bench: ModuleType, rate: Any, epoch: int = 9, base: int = 1, **scaling: Any) -> Any:
    """Four replicas with 4 samples an update, k = 4 / base, adopted."""
    bench = rate_bench.Bench(4, rate)
    bench.size = bench.batch(1, base, samples_per_epoch=epoch)
    bench.adopt(bench.size, **scaling)
    return bench


def _fit(bench: Any, epochs: int, *callbacks: Any) -> np.ndarray:
    """A real fit; the applied rates, an epoch a row."""
    bench.compile()
    bench.train(bench.size, epochs, bench.job.callbacks(callbacks))
    assert bench.log.traces == 4
    return np.array(bench.rates()).reshape(epochs, bench.size.updates_per_epoch)


def _at(bench: Any, seen: int) -> float:
    """The rate that an update applies when so many samples have been seen."""
    bench.optimizer.distlr.variables.samples_seen.assign(seen)
    return bench.step()[-1]


def _shown_to(callback: Any, bench: Any) -> Any:
    callback.set_model(SimpleNamespace(optimizer=bench.optimizer))
    return callback


# -- 1: a schedule of Keras ------------------------------------------------------------------------------


def test_exponential_decay_over_ninety_epochs(rate_bench) -> None:
    bench = _bench(rate_bench, keras.optimizers.schedules.ExponentialDecay(0.01, 10_000, 0.96), epoch=60_001)
    for epoch in range(90):
        expected = pytest.approx(0.04 * 0.96 ** (epoch * 60_001 / 10_000), rel=1e-6)
        bench.optimizer.distlr.variables.samples_seen.assign(epoch * 60_001)
        assert float(bench.optimizer.learning_rate) == expected
        if epoch % 22 == 1:
            assert bench.step()[-1] == expected


def test_exponential_decay_in_fit(rate_bench) -> None:
    decay = keras.optimizers.schedules.ExponentialDecay(0.01, decay_steps=10_000, decay_rate=0.96)
    bench = _bench(rate_bench, decay, warmup="1ep")
    found = _fit(bench, 3)
    expected = rate_bench.by_hand(lambda t: 0.01 * 0.96 ** (t / 10_000), updates=6, batch=4, base=1, epoch=9, warmup=9)
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-6)


# -- 2: a function of the epoch --------------------------------------------------------------------------


def _steps_of(first: int, second: int) -> tuple[Any, Any]:
    """The same steps from the current rate, and from the base rate."""

    def from_current(epoch: int, lr: float) -> float:
        return lr * 0.1 if epoch in (first, second) else lr

    def from_base(epoch: int, lr: float) -> float:
        return lr * (1.0 if epoch < first else 0.1 if epoch < second else 0.01)

    return from_current, from_base


@pytest.mark.parametrize("lr", ["current", "base"])
def test_per_epoch_steps_at_50_and_80(rate_bench, lr) -> None:
    function = _steps_of(50, 80)[lr == "base"]
    epoch, updates = 4 * 25 + 3, 25
    bench = _bench(rate_bench, distlr.schedules.PerEpoch(function, 0.1, epochs=90, lr=lr), epoch)
    for number, expected in [(0, 0.4), (49, 0.4), (50, 0.04), (79, 0.04), (80, 0.004), (89, 0.004), (99, 0.004)]:
        first, last = number * epoch, number * epoch + (updates - 1) * epoch // updates
        np.testing.assert_allclose([_at(bench, first), _at(bench, last)], expected, rtol=1e-6)


def test_per_epoch_in_fit(rate_bench) -> None:
    schedule = distlr.schedules.PerEpoch(_steps_of(1, 3)[0], 0.1, epochs=4)
    found = _fit(_bench(rate_bench, schedule, epoch=10), 4)
    np.testing.assert_allclose(found, np.repeat([[0.4], [0.04], [0.04], [0.004]], 2, axis=1), rtol=1e-6)


def test_the_stock_scheduler_steps_at_50_and_80(rate_bench) -> None:
    bench = _bench(rate_bench, 0.1)
    scheduler = _shown_to(keras.callbacks.LearningRateScheduler(_steps_of(50, 80)[0]), bench)
    for epoch, expected in enumerate([0.4] * 50 + [0.04] * 30 + [0.004] * 10):
        scheduler.on_epoch_begin(epoch)
        assert float(bench.optimizer.learning_rate) == pytest.approx(expected, rel=1e-6)
        if epoch in (0, 49, 50, 79, 80, 89):
            assert bench.step()[-1] == pytest.approx(expected, rel=1e-6)


def test_the_stock_scheduler_in_fit(rate_bench) -> None:
    bench = _bench(rate_bench, 0.1)
    found = _fit(bench, 4, keras.callbacks.LearningRateScheduler(_steps_of(1, 3)[0]))
    np.testing.assert_allclose(found, np.repeat([[0.4], [0.04], [0.04], [0.004]], 2, axis=1), rtol=1e-6)


def test_the_stock_scheduler_over_a_schedule_sets_the_rate_now_and_keeps_the_shape(rate_bench) -> None:
    bench = _bench(rate_bench, Cosine(0.1, 36), epoch=8)
    scheduler = _shown_to(keras.callbacks.LearningRateScheduler(lambda epoch: 0.05), bench)
    for epoch in range(3):
        scheduler.on_epoch_begin(epoch)
        bench.step(2)
    shape = [1 + math.cos(math.pi * t / 36) for t in range(0, 24, 4)]
    expected = [0.05 * shape[n] / shape[n - n % 2] for n in range(6)]
    np.testing.assert_allclose(bench.rates(), expected, rtol=1e-6)


def test_a_function_that_compounds_warns_before_training_and_names_the_epoch() -> None:
    with pytest.warns(UserWarning, match=r"reaches a rate of 1e-13 in epoch 11 .*compounds every epoch.*lr=.base."):
        distlr.schedules.PerEpoch(lambda epoch, lr: lr * 0.1, 0.1, epochs=30)
    rates = distlr.schedules.PerEpoch(lambda epoch, lr: lr * 0.1, 0.1, epochs=30, lr="base").rates
    np.testing.assert_allclose(rates, 0.01)


# -- 3: a plateau ----------------------------------------------------------------------------------------

PLATEAU = {"monitor": "val_loss", "factor": 0.1, "patience": 5, "min_lr": 0.0001}
LOSSES = [3.0, 2.0, 1.0] + [1.0] * 22  # cuts at the ends of epochs 7, 12 and 17; the floor stops that of 22


def _plateau_by_hand(full: Any) -> list[float]:
    """The rate of each of the epochs of one update, where `full(epoch)` is the rate without a cut."""
    multiplier, rates = 1.0, []
    for epoch in range(len(LOSSES)):
        rates.append(full(epoch) * multiplier)
        if epoch in (7, 12, 17, 22):
            rate = full(epoch + 1) * multiplier
            if rate > 0.0001 * (1 + 1e-6):
                multiplier *= max(rate * 0.1, 0.0001) / rate
    return rates


@pytest.mark.parametrize("kind", [ReduceLROnPlateau, keras.callbacks.ReduceLROnPlateau], ids=["distlr", "stock"])
@pytest.mark.parametrize("rate", ["float", "schedule"])
def test_plateau_at_every_epoch_down_to_its_floor(rate_bench, kind, rate) -> None:
    bench = _bench(rate_bench, 0.05 if rate == "float" else Cosine(0.05, 400), epoch=4)
    plateau = kind(**PLATEAU)
    bench.job.callbacks([plateau])
    _shown_to(plateau, bench).on_train_begin()
    for epoch, loss in enumerate(LOSSES):
        bench.step()
        plateau.on_epoch_end(epoch, {"val_loss": loss})
    if rate == "float":
        expected = [0.2] * 8 + [0.02] * 5 + [0.002] * 5 + [0.0002] * 5 + [0.0001] * 2
        assert _plateau_by_hand(lambda epoch: 0.2) == pytest.approx(expected, rel=1e-12)
    else:
        expected = _plateau_by_hand(lambda epoch: 0.1 * (1 + math.cos(math.pi * 4 * epoch / 400)))
    np.testing.assert_allclose(bench.rates(), expected, rtol=1e-6)


def test_plateau_in_fit_on_top_of_a_schedule(rate_bench) -> None:
    bench = _bench(rate_bench, Cosine(0.1, 45), epoch=9)
    stalled = rate_bench.Overwrite([1.0] * 4)
    found = _fit(bench, 4, stalled, ReduceLROnPlateau(**{**PLATEAU, "patience": 2, "min_lr": 0.02}))
    full = rate_bench.by_hand(lambda t: 0.05 * (1 + math.cos(math.pi * t / 45)), updates=8, batch=4, base=1, epoch=9)
    assert full[6] * 0.1 < 0.02  # the cut after epoch 2 stops at the floor
    expected = [*full[:6], *(rate * 0.02 / full[6] for rate in full[6:])]
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-6)


# -- 4: by hand ------------------------------------------------------------------------------------------


def _set(optimizer: Any, how: str, rate: float) -> None:
    if how == "property":
        optimizer.learning_rate = rate
    else:
        optimizer.learning_rate.assign(rate)


@pytest.mark.parametrize("how", ["property", "assign"])
def test_by_hand_over_a_float(rate_bench, how) -> None:
    bench = _bench(rate_bench, 0.1)
    bench.step()
    _set(bench.optimizer, how, 0.03)
    bench.step(2)
    _set(bench.optimizer, how, 0.0)
    bench.step()
    _set(bench.optimizer, how, 0.2)
    bench.step()
    np.testing.assert_allclose(bench.rates(), [0.4, 0.03, 0.03, 0.0, 0.2], rtol=1e-6)


def test_by_hand_over_a_schedule_in_fit(rate_bench) -> None:
    """In mid-epoch: the next update has the rate, and the cosine goes on from there."""
    bench = _bench(rate_bench, Cosine(0.1, 100), epoch=14)

    def change(batch: int, logs: Any = None) -> None:
        if bench.optimizer.iterations.numpy() == 2:
            bench.model.optimizer.learning_rate = 0.03
        if bench.optimizer.iterations.numpy() == 4:
            bench.model.optimizer.learning_rate.assign(0.5)

    found = _fit(bench, 2, keras.callbacks.LambdaCallback(on_train_batch_end=change))
    full = rate_bench.by_hand(lambda t: 0.05 * (1 + math.cos(math.pi * t / 100)), updates=6, batch=4, base=1, epoch=14)
    expected = [*full[:2], 0.03, 0.03 * full[3] / full[2], 0.5, 0.5 * full[5] / full[4]]
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-6)


def test_by_hand_during_warmup_is_announced_and_climbs_on(rate_bench, caplog) -> None:
    bench = _bench(rate_bench, 0.1, epoch=8, warmup="2ep")
    bench.step(2)
    with caplog.at_level(logging.INFO, "distlr"):
        bench.optimizer.learning_rate = 0.05
    assert "set to 0.05 during warmup" in caplog.text
    bench.step(3)
    climb = [0.25, 0.4375, 0.625, 0.8125, 1.0]
    expected = [0.4 * w for w in climb[:2]] + [0.05 * w / climb[2] for w in climb[2:]]
    np.testing.assert_allclose(bench.rates(), expected, rtol=1e-6)
    caplog.clear()
    with caplog.at_level(logging.INFO, "distlr"):
        bench.optimizer.learning_rate = 0.05
    assert "warmup" not in caplog.text


@pytest.mark.parametrize("how", ["property", "assign"])
def test_by_hand_where_the_schedule_is_0_is_an_error(rate_bench, how) -> None:
    bench = _bench(rate_bench, Cosine(0.1, 8), epoch=8)
    bench.step(2)
    with pytest.raises(ConfigurationError, match=r"cannot be set to 0\.05 now: the schedule is 0.*Fix: .*alpha"):
        _set(bench.optimizer, how, 0.05)
    assert bench.optimizer.multiplier == 1.0
    assert bench.step() == pytest.approx([0.4, 0.2, 0.0], rel=1e-6)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "0.1", True, None, [0.1, 0.2]])
def test_what_is_no_rate_is_refused_and_changes_nothing(rate_bench, value) -> None:
    bench = rate_bench.Bench(1)
    optimizer = bench.adopt()
    for how in ("property", "assign"):
        with pytest.raises((ConfigurationError, ConfigurationTypeError), match=r"learning_rate.* must be"):
            _set(optimizer, how, value)
    assert optimizer.multiplier == 1.0


# -- a plateau without fit, and across ranks -------------------------------------------------------------


def test_plateau_without_fit(rate_bench) -> None:
    bench = _bench(rate_bench, 0.1)
    plateau = distlr.Plateau(bench.optimizer, "val_loss", factor=0.5, patience=1, communicator=bench.job.communicator)
    for loss in (1.0, 1.0, 0.5, 0.5):
        bench.step()
        plateau.step(loss)
    assert bench.step() == pytest.approx([0.4, 0.4, 0.2, 0.2, 0.1], rel=1e-6)
    assert [(cut["epoch"], cut["learning_rate"]) for cut in plateau.decisions] == [
        (1, pytest.approx(0.2)),
        (3, pytest.approx(0.1)),
    ]


def _on_ranks(metrics: list[list[float | None]], **arguments: Any) -> list[list[float]]:
    """Ranks as threads, each with an optimizer and a row of metrics; the rates after each step, by rank."""

    def rank(comm: Any) -> list[float]:
        optimizer = distlr.optimizer.adopt(keras.optimizers.SGD(0.1))
        plateau = distlr.Plateau(optimizer, "val_loss", factor=0.5, patience=1, communicator=comm, **arguments)
        rates = []
        for value in metrics[comm.rank]:
            plateau.step(value)
            rates.append(float(optimizer.learning_rate))
        assert [cut["epoch"] for cut in plateau.decisions] == [1, 3]
        return rates

    return distlr.communicators.run_ranks(rank, len(metrics), timeout=5)


def test_every_rank_applies_rank_0s_decision() -> None:
    improving = [5.0, 4.0, 3.0, 2.0, 1.0]
    ranks = _on_ranks([[1.0, 1.0, 0.5, 0.5, 0.1], improving, [None, math.nan, 1.0, None, math.inf]])
    assert ranks == [pytest.approx([0.1, 0.05, 0.05, 0.025, 0.025], rel=1e-6)] * 3


def test_a_rank_0_without_the_metric_changes_nothing_anywhere() -> None:
    ranks = _on_ranks([[1.0, 1.0, None, 1.0, None], [1.0] * 5, [1.0] * 5])
    assert ranks == [pytest.approx([0.1, 0.05, 0.05, 0.025, 0.025], rel=1e-6)] * 3


@pytest.mark.parametrize(
    ("value", "kinds"),
    [
        (math.nan, [NonFiniteMetricError] * 3),
        ("low", [ConfigurationTypeError, DistributionError, DistributionError]),
    ],
    ids=["nan", "no number"],
)
def test_what_rank_0_cannot_decide_on_raises_on_every_rank(value, kinds) -> None:
    def rank(comm: Any) -> Exception | None:
        optimizer = distlr.optimizer.adopt(keras.optimizers.SGD(0.1))
        plateau = distlr.Plateau(optimizer, "val_loss", communicator=comm)
        try:
            plateau.step(value if comm.rank == 0 else 1.0)
        except DistlrError as error:
            assert optimizer.multiplier == 1.0
            return error
        return None

    errors = distlr.communicators.run_ranks(rank, 3, timeout=5)
    assert [type(error) for error in errors] == kinds
    assert all(f"[rank {number}]" in str(error) for number, error in enumerate(errors) if number)


def test_a_state_that_rank_0_cannot_read_raises_on_every_rank() -> None:
    """It would leave the others waiting for a decision."""

    def rank(comm: Any) -> Exception | None:
        optimizer = distlr.optimizer.adopt(keras.optimizers.SGD(0.1))
        plateau = distlr.Plateau(optimizer, "val_loss", communicator=comm)
        optimizer.distlr.state("plateau/val_loss/min", [0.0, 0.0, 0.0]).assign([math.nan, 0.0, 0.0])
        try:
            plateau.step(1.0)
        except DistlrError as error:
            return error
        return None

    errors = distlr.communicators.run_ranks(rank, 3, timeout=5)
    assert [type(error) for error in errors] == [StateError, DistributionError, DistributionError]


# -- a callback in place of a rate -----------------------------------------------------------------------

WRITE = r"ReduceLROnPlateau.*Fix:.*job\.callbacks"


@pytest.mark.parametrize("kind", [ReduceLROnPlateau, keras.callbacks.ReduceLROnPlateau], ids=["distlr", "stock"])
@pytest.mark.parametrize("where", ["scale", "assigned", "optimizer"])
def test_a_callback_in_place_of_a_rate_is_told_what_to_write(rate_bench, kind, where) -> None:
    bench = rate_bench.Bench(1)
    batch = bench.batch(4, 4)
    give = {
        "scale": lambda callback: distlr.scale(callback, batch),
        "assigned": lambda callback: setattr(bench.adopt(batch), "learning_rate", callback),
        "optimizer": lambda callback: bench.job.optimizer(callback, batch),
    }[where]
    with pytest.raises(ConfigurationTypeError, match=WRITE):
        give(kind())


def test_a_callback_of_distlr_as_learning_rate_of_an_optimizer(rate_bench) -> None:
    bench = rate_bench.Bench(1, ReduceLROnPlateau())
    with pytest.raises(ConfigurationTypeError, match=WRITE):
        bench.adopt()
    with pytest.raises(ConfigurationTypeError, match=WRITE):
        bench.step()
