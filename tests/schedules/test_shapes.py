"""Constant, PerEpoch and Warmup: exact values at every boundary."""

from __future__ import annotations

import math
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from distlr import GlobalBatch, scale
from distlr.errors import ConfigurationError, ConfigurationTypeError
from distlr.schedules import Constant, PerEpoch, Warmup
from distlr.schedules.per_epoch import SMALLEST_USEFUL_RATE

SHAPES = keras.optimizers.schedules


def at(schedule, t):
    return float(schedule.at(tf.constant(t, tf.float64)))


@pytest.mark.parametrize("t", [0, 0.5, 1, 2**24 + 1, 2**31, 2**53])
def test_constant(t):
    assert at(Constant(0.1), t) == 0.1
    assert float(Constant(0.1)(t)) == float(np.float32(0.1))


def test_constant_takes_any_shape_of_time():
    assert Constant(0.5).at(tf.zeros((2, 3), tf.float64)).numpy().tolist() == [[0.5] * 3] * 2


STEPS = PerEpoch([0.8, 0.4, 0.0, 0.1], steps_per_epoch=10)
FRACTIONAL = PerEpoch([1.0, 2.0, 3.0, 4.0], steps_per_epoch=10 / 3)


@pytest.mark.parametrize(
    ("schedule", "t", "rate"),
    [
        (STEPS, 0, 0.8),
        (STEPS, 9, 0.8),
        (STEPS, 9.999, 0.8),
        (STEPS, 10, 0.4),
        (STEPS, 11, 0.4),
        (STEPS, 20, 0.0),
        (STEPS, 29, 0.0),
        (STEPS, 30, 0.1),
        (STEPS, 39, 0.1),
        (STEPS, 40, 0.1),
        (STEPS, 2**31, 0.1),
        (FRACTIONAL, 3.3, 1.0),
        (FRACTIONAL, 10 / 3, 2.0),
        (FRACTIONAL, 3 * 10 / 3 - 1e-6, 3.0),
        (FRACTIONAL, 10, 4.0),
    ],
)
def test_per_epoch(schedule, t, rate):
    assert at(schedule, t) == rate


@pytest.mark.parametrize("shift", [0, 1])
def test_per_epoch_finds_epochs_behind_2_to_the_24(shift):
    epochs = PerEpoch([1.0] * 4096 + [2.0], steps_per_epoch=4096)
    assert at(epochs, 2**24 - 1 + shift) == 1.0 + shift


def test_every_epoch_of_a_long_run_begins_at_its_own_first_sample():
    """The time is samples / base_batch, rounded: no epoch may begin a sample early or late."""
    samples, base, count = 60_000, 7, 300
    epochs = PerEpoch([float(i) for i in range(count)], steps_per_epoch=samples / base)
    starts = np.arange(count) * samples
    assert epochs.at(tf.constant(starts / base, tf.float64)).numpy().tolist() == list(range(count))
    assert epochs.at(tf.constant((starts[1:] - 1) / base, tf.float64)).numpy().tolist() == list(range(count - 1))


def test_the_function_is_called_once_an_epoch_and_never_again():
    calls = []

    def rate(epoch):
        calls.append(epoch)
        return 0.1 / (epoch + 1)

    schedule = PerEpoch(rate, epochs=3, steps_per_epoch=2)
    at(schedule, 3)
    tf.function(schedule)(4)
    assert calls == [0, 1, 2]


def halve(epoch, lr):
    return lr * (0.5 if epoch in (2, 3) else 1.0)


@pytest.mark.parametrize(("lr", "rates"), [("current", [0.8, 0.8, 0.4, 0.2, 0.2]), ("base", [0.8, 0.8, 0.4, 0.4, 0.8])])
def test_the_function_receives_the_current_or_the_base_rate(lr, rates):
    assert PerEpoch(halve, 0.8, epochs=5, lr=lr).rates == pytest.approx(rates)


def test_the_50_and_80_schedule_of_a_90_epoch_run():
    def scheduler(epoch, lr):
        return lr * 0.1 if epoch in (50, 80) else lr

    schedule = PerEpoch(scheduler, 0.1, epochs=90, steps_per_epoch=7)
    expected = [0.1] * 50 + [0.01] * 30 + [0.001] * 10
    for epoch, rate in enumerate(expected):
        for t in (7 * epoch, 7 * epoch + 6):
            assert at(schedule, t) == pytest.approx(rate, rel=1e-14)


def test_a_rate_that_shrinks_to_nothing_is_announced_with_its_epoch():
    with pytest.warns(UserWarning, match=r"rate of 1e-13 in epoch 12 .*1e-30 at its lowest.*lr=\"base\"") as record:
        PerEpoch(lambda epoch, lr: lr * 0.1, 1.0, epochs=30)
    assert len(record) == 1
    assert record[0].filename == __file__


def test_no_announcement_for_zero_or_for_ordinary_rates():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PerEpoch(lambda epoch: 0.0, epochs=3)
        PerEpoch(lambda epoch: SMALLEST_USEFUL_RATE, epochs=3)


def test_per_epoch_does_not_guess_the_length_of_an_epoch():
    with pytest.raises(ConfigurationError, match=r"steps_per_epoch.*samples_per_epoch"):
        PerEpoch([0.1])(0)
    with pytest.raises(ConfigurationError, match=r"`samples_per_epoch` must be given with a rate by epochs"):
        scale(PerEpoch([0.1]), GlobalBatch(4, base_batch=4))


# -- warmup ------------------------------------------------------------------------------------------------

S = 0.25
BY_HAND = {
    "linear": lambda p: S + (1 - S) * p,
    "exponential": lambda p: S ** (1 - p),
    "cosine": lambda p: S + (1 - S) * (1 - math.cos(math.pi * p)) / 2,
    "polynomial": lambda p: S + (1 - S) * p**3,
}


@pytest.mark.parametrize("shape", BY_HAND)
@pytest.mark.parametrize("t", [0, 1, 3.5, 5, 9, 10, 11, 2**31])
def test_warmup(shape, t):
    warm = Warmup(Constant(0.8), steps=10, start=S, shape=shape, power=3.0)
    assert at(warm, t) == pytest.approx(0.8 * BY_HAND[shape](min(t / 10, 1)), rel=1e-14)
    if t >= 10:
        assert at(warm, t) == 0.8


@pytest.mark.parametrize("shape", BY_HAND)
def test_warmup_climbs_without_a_step_back(shape):
    rates = Warmup(Constant(1.0), 50, 0.01, shape).at(tf.range(60, dtype=tf.float64)).numpy()
    assert (np.diff(rates[:51]) > 0).all()
    assert (rates[50:] == 1).all()
    assert rates[0] == pytest.approx(0.01, rel=1e-14)


def test_warmup_overlaps_the_schedules_own_time():
    inner = SHAPES.ExponentialDecay(1.0, 10, 0.5)
    warm = Warmup(inner, 4, 0.5)
    assert [at(warm, t) for t in (0, 2, 4, 10)] == pytest.approx([0.5, 0.75 * 0.5**0.2, 0.5**0.4, 0.5], rel=1e-14)


def test_warmup_from_zero_and_of_a_fraction_of_a_step():
    assert [at(Warmup(Constant(1.0), 2.5), t) for t in (0, 1, 2, 3)] == pytest.approx([0, 0.4, 0.8, 1])


def test_two_warmups_are_refused():
    climbing = SHAPES.CosineDecay(0.0, 100, warmup_target=0.3, warmup_steps=10)
    batch = GlobalBatch(4, base_batch=4)
    for make in (
        lambda: Warmup(climbing, 5),
        lambda: Warmup(Warmup(Constant(0.1), 5), 5),
        lambda: scale(climbing, batch, warmup="5ba"),
        lambda: scale(Warmup(Constant(0.1), 5), batch, warmup="5ba"),
    ):
        with pytest.raises(ConfigurationError, match="warmup of its own already"):
            make()
    assert float(scale(climbing, batch)(5)) == pytest.approx(0.15)


def test_a_warmup_over_what_is_scaled_already_is_refused():
    """It would count real steps as base steps."""
    with pytest.raises(ConfigurationError, match="scale last"):
        Warmup(scale(0.1, GlobalBatch(4, base_batch=2)), 5)


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.array(0.5)])
def test_numbers_of_numpy_are_numbers(value):
    assert Constant(value).learning_rate == 0.5
    assert PerEpoch([value]).rates == [0.5]
    assert Warmup(Constant(1.0), value, value).start == 0.5


def test_a_list_already_says_how_many_epochs():
    with pytest.raises(ConfigurationError, match=r"`epochs` must be left out with a list.*epochs=3"):
        PerEpoch([0.1], epochs=3)


def test_a_number_of_epochs_is_an_integer():
    with pytest.raises(ConfigurationTypeError, match=r"epochs=90\.0.*write 90"):
        PerEpoch(lambda epoch: 0.1, epochs=90.0)
