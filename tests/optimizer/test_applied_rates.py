"""The rate that Keras applied, at every step, against the formula worked out by hand."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest

from distlr.callbacks import ReduceLROnPlateau
from distlr.errors import ConfigurationError

pytestmark = pytest.mark.replicas

BASE_RATE, CUT, SIZE, EPOCHS = 0.1, 0.3, 24, 3


def _expected(rate_bench: ModuleType, base: int, epoch: int) -> np.ndarray:
    """Warmup over the first epoch, a cosine over all, and a cut after the second: float64, without distlr."""
    updates, decay_steps = EPOCHS * (epoch // SIZE), EPOCHS * epoch // base

    def rate_at(t: float) -> float:
        return BASE_RATE * 0.5 * (1 + math.cos(math.pi * min(t, decay_steps) / decay_steps))

    rates = rate_bench.by_hand(rate_at, updates=updates, batch=SIZE, base=base, epoch=epoch, warmup=epoch)
    return np.array(rates) * np.where(np.arange(updates) < updates * 2 // 3, 1.0, CUT)


def _train(
    rate_bench: ModuleType,
    replicas: int,
    base: int,
    left_over: int,
    accumulation: int = 1,
    updates: int = 4,
    **options: Any,
) -> Any:
    """Trains with warmup, cosine, batch normalization and a cut; checks every applied rate, the clock and the digests.

    An epoch has `updates` updates of 24 samples and some samples left over.
    """
    epoch = SIZE * updates + left_over
    schedule = keras.optimizers.schedules.CosineDecay(BASE_RATE, EPOCHS * epoch // base)
    steps = None if accumulation == 1 else accumulation
    bench = rate_bench.Bench(replicas, schedule, gradient_accumulation_steps=steps)
    batch = bench.batch(SIZE // replicas // accumulation, base, accumulation=accumulation, samples_per_epoch=epoch)
    assert batch.ratio == SIZE / base
    optimizer = bench.adopt(batch, warmup="1ep")
    bench.compile(normalized=True, **options)
    clock: list[int] = []
    plateau = ReduceLROnPlateau("val_loss", factor=CUT, patience=1)
    stalled = rate_bench.Overwrite([1.0] * EPOCHS)
    at_end = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: clock.append(optimizer.samples_seen))
    callbacks = bench.job.callbacks([stalled, plateau, at_end])
    if left_over == 3:  # dropped
        bench.fit(bench.job.shard(rate_bench.samples(epoch), batch), EPOCHS, callbacks)
    else:  # carried over
        bench.train(batch, EPOCHS, callbacks)

    assert [cut["epoch"] for cut in plateau.decisions] == [1]  # at the end the cosine is 0: nothing to cut
    assert clock == [epoch, 2 * epoch, 3 * epoch]
    np.testing.assert_allclose(bench.rates(), _expected(rate_bench, base, epoch), rtol=1e-6, atol=0)
    once = 2 if accumulation > 1 and replicas == 1 else 1  # Keras itself traces twice where it accumulates
    assert bench.log.traces == replicas * once, "the train function was traced again"
    weights, rates = bench.job.weights_digests(bench.model), bench.job.rate_digests(optimizer)
    assert len(weights) == len(rates) == replicas
    assert len(set(weights)) == len(set(rates)) == 1
    return bench


@pytest.mark.parametrize(("base", "left_over"), [(48, 1), (24, 2), (12, 3), (8, 1), (6, 2), (3, 3)])
@pytest.mark.parametrize("replicas", [1, 4])
def test_every_applied_rate_is_the_formula(rate_bench, replicas, base, left_over) -> None:
    """k = 0.5, 1, 2, 3, 4 and 8."""
    _train(rate_bench, replicas, base, left_over)


@pytest.mark.parametrize(("replicas", "accumulation"), [(1, 4), (4, 2)])
def test_with_accumulation_rates_are_applied_at_updates_only(rate_bench, replicas, accumulation) -> None:
    bench = _train(rate_bench, replicas, 6, 3, accumulation=accumulation)
    for rates in bench.log.all()[:replicas]:
        applied = np.flatnonzero(~np.isnan(rates))
        np.testing.assert_array_equal(applied, np.arange(1, EPOCHS * 4 + 1) * accumulation - 1)


def test_between_two_updates_the_clock_and_the_rate_stand_still(rate_bench) -> None:
    bench = rate_bench.Bench(1, gradient_accumulation_steps=4)
    optimizer = bench.adopt(bench.batch(2, 4, accumulation=4, samples_per_epoch=33), warmup="3ep")
    seen, rates = [], []
    for _ in range(9):
        seen.append(optimizer.samples_seen)
        rates.append(float(optimizer.learning_rate))
        bench.step()
    assert seen == [0, 0, 0, 0, 8, 8, 8, 8, 16]
    expected = [BASE_RATE * 2 * (0.5 + 0.5 * n / 99) for n in seen]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    np.testing.assert_allclose(bench.rates(), [expected[0], expected[4]], rtol=1e-6)


@pytest.mark.parametrize("options", [{"steps_per_execution": 10}, {"jit_compile": True}], ids=lambda o: next(iter(o)))
def test_every_applied_rate_with(rate_bench, options) -> None:
    _train(rate_bench, 1, 6, 1, updates=10, **options)


def test_a_second_fit_and_a_changed_rate_go_on_without_a_trace(rate_bench) -> None:
    bench = rate_bench.Bench(1)
    batch = bench.batch(4, 2, samples_per_epoch=9)
    optimizer = bench.adopt(batch, warmup="4ep")
    bench.compile()
    train = bench.job.shard(rate_bench.samples(9), batch)
    bench.fit(train)
    optimizer.learning_rate = float(optimizer.learning_rate) * 0.5
    bench.fit(train)
    rates = rate_bench.by_hand(lambda t: 0.1, updates=4, batch=4, base=2, epoch=9, warmup=36)
    np.testing.assert_allclose(bench.rates(), [*rates[:2], *(rate * 0.5 for rate in rates[2:])], rtol=1e-6)
    assert bench.log.traces == 1


class LooksAtNumbers(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that no graph can hold."""

    def __call__(self, step):
        return 0.1 / (1.0 + float(step))


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_a_reading_is_what_the_next_update_applies(rate_bench, run_eagerly) -> None:
    schedule = LooksAtNumbers() if run_eagerly else keras.optimizers.schedules.CosineDecay(0.1, 50)
    bench = rate_bench.Bench(1, schedule)
    batch = bench.batch(4, 2, samples_per_epoch=12)
    optimizer = bench.adopt(batch, warmup="20sp")
    optimizer.distlr.formula.climb(1.0, samples=1)  # nothing, but the graph has it
    bench.compile(run_eagerly=run_eagerly)
    readings = [optimizer.distlr.formula.reading()]
    read = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda *_, **__: readings.append(optimizer.distlr.formula.reading())
    )
    train = bench.job.shard(rate_bench.samples(12), batch)
    bench.fit(train, 2, [read])
    optimizer.multiply_rate(0.5)
    optimizer.distlr.formula.climb(0.25, samples=100)
    readings[-1] = optimizer.distlr.formula.reading()
    bench.fit(train, 1, [read])
    np.testing.assert_array_equal([reading.rate for reading in readings[:-1]], bench.rates())
    assert [reading.samples_seen for reading in readings] == list(range(0, 40, 4))
    assert [reading.iterations for reading in readings] == list(range(10))
    assert [reading.in_warmup for reading in readings] == [True] * 5 + [False] * 5
    assert [reading.multiplier for reading in readings] == [1.0] * 6 + [0.5] * 4
    assert readings[6].rate < 0.2 * readings[5].rate  # the cut, and the climb


def test_a_climb_that_a_graph_would_not_have_is_refused(rate_bench) -> None:
    bench = rate_bench.Bench(1)
    batch = bench.batch(4, 2, samples_per_epoch=4)
    optimizer = bench.adopt(batch)
    bench.compile()
    bench.fit(bench.job.shard(rate_bench.samples(4), batch))
    with pytest.raises(ConfigurationError, match="in a graph already, which was made without a climb"):
        optimizer.distlr.formula.climb(0.25, samples=100)
    assert optimizer.distlr.formula.reading().rate == pytest.approx(0.2)


# -- the proofs can fail ---------------------------------------------------------------------------------


def test_the_digests_differ_when_one_rate_on_one_replica_differed(rate_bench) -> None:
    bench = rate_bench.Bench(4)
    optimizer = bench.adopt(bench.batch(1, 1))
    bench.step(2)
    assert len(set(bench.job.rate_digests(optimizer))) == 1
    third = bench.job.strategy.experimental_local_results(optimizer.distlr.variables.multiplier.value)[2]
    third.assign(0.5)
    bench.step_unchecked()
    third.assign(1.0)
    bench.step_unchecked()
    digests = bench.job.rate_digests(optimizer)
    assert digests[0] == digests[1] == digests[3] != digests[2]
    np.testing.assert_allclose(bench.log.all()[:, 2], [0.4, 0.4, 0.2, 0.4], rtol=1e-6)
    with pytest.raises(AssertionError, match="a replica applied another rate"):
        bench.rates()


def test_the_digest_depends_on_every_rate_and_their_order(rate_bench) -> None:
    digests = set()
    for rates in (
        [0.1, 0.2, 0.3],
        [0.1, 0.3, 0.2],
        [0.1, 0.2, np.nextafter(np.float32(0.3), np.float32(1))],
        [0.1, 0.2],
    ):
        bench = rate_bench.Bench(1)
        optimizer = bench.adopt()
        for rate in rates:
            optimizer.learning_rate = rate
            bench.step()
        digests.update(bench.job.rate_digests(optimizer))
    assert len(digests) == 4


def test_the_recorder_sees_two_rates_in_a_step(rate_bench) -> None:
    log = rate_bench.RateLog()
    log.write("CPU:0", 1, 0.25)
    assert log.of(1).tolist() == [0.25]
    log.write("CPU:0", 1, 0.5)
    assert log.of(1).tolist() == [math.inf]
    log.write("CPU:3", 2, 0.1)
    with pytest.raises(AssertionError):
        log.of(1)


# -- what plain Keras cannot do on mirrored CPUs ---------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"jit_compile": True}, "jit_compile=True cannot work on 4 replicas"),
        ({"steps_per_execution": 2}, "steps_per_execution=2 cannot work on 4 mirrored CPUs"),
    ],
    ids=["jit_compile", "steps_per_execution"],
)
def test_refused_on_mirrored_cpus(rate_bench, options, why) -> None:
    bench = rate_bench.Bench(4)
    batch = bench.batch(2, 4, samples_per_epoch=16)
    bench.adopt(batch)
    bench.compile(**options)
    with rate_bench.refused(ConfigurationError, f"{why}.*Fix: leave {next(iter(options))} out"):
        bench.fit(bench.job.shard(rate_bench.samples(16), batch), 1, bench.job.callbacks())
    assert bench.log.traces == 0
