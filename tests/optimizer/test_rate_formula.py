"""The formula without an optimizer: its rate at any clock, what changes it, and what a change is refused for."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from distlr.batch.global_batch import GlobalBatch
from distlr.errors import ConfigurationError, ConfigurationTypeError
from distlr.optimizer.rate_formula import RateFormula
from distlr.optimizer.state_variables import StateVariables
from distlr.schedules import Constant, Cosine, GlobalBatchSchedule

BATCH = GlobalBatch(8, replicas=2, base_batch=4)  # k = 4; an update passes 16 samples, which are 4 base steps


def variables() -> StateVariables:
    return StateVariables(tf.distribute.get_strategy(), lambda variable, name: None)


def formula(schedule=None, batch=BATCH, **options) -> RateFormula:
    scaled = GlobalBatchSchedule(schedule or Cosine(0.1, steps=100), batch, **options)
    return RateFormula(scaled.at, scaled, variables(), keras.Variable(0, dtype="int64"))


def cosine(t: float) -> float:
    return 0.1 * 0.5 * (1 + np.cos(np.pi * min(t / 100, 1.0)))


def test_the_rate_is_schedule_times_factor_times_multiplier_at_the_clock():
    rate = formula()
    for update in range(30):
        assert rate.reading().rate == pytest.approx(4 * cosine(4 * update) * 0.5 ** (update >= 10), rel=1e-6)
        assert rate.counts() == (update, 16 * update)
        if update == 9:
            rate.multiply_rate(0.5)
        rate.advance(rate.samples(), None)
        rate.iterations.assign_add(1)


def test_rates_at_clocks_leave_the_multiplier_out():
    rate = formula()
    rate.multiply_rate(0.25)
    expected = [4 * cosine(samples / 4) for samples in (0, 100, 399)]
    np.testing.assert_allclose(rate.rates_at([0, 100, 399]), expected, rtol=1e-12)


def test_an_assigned_rate_keeps_the_shape():
    rate = formula()
    rate.assign(0.05)
    assert rate.multiplier == pytest.approx(0.05 / 0.4)
    assert rate.base_rate == pytest.approx(0.0125)
    rate.set_base_rate(0.05)
    assert (rate.reading().rate, rate.multiplier) == (pytest.approx(0.2), pytest.approx(0.5))


def test_it_is_assigned_in_a_graph():
    rate = formula()
    tf.function(lambda: rate.assign(tf.constant(0.1)), autograph=False)()
    assert rate.multiplier == pytest.approx(0.25)


def test_the_warmup_climbs_from_the_base_rate():
    rate = formula(Constant(0.1), warmup="160sp")  # 10 updates, 40 base steps
    assert rate.in_warmup
    np.testing.assert_allclose(rate.rates_at([0, 80, 160]), [0.1, 0.25, 0.4], rtol=1e-12)


def test_a_climb_is_a_factor_more_for_a_while():
    rate = formula(Constant(0.1))
    rate.climb(0.5, samples=32)
    np.testing.assert_allclose(rate.rates_at([0, 16, 32, 48]), [0.2, 0.3, 0.4, 0.4], rtol=1e-12)
    assert rate.explain()["climb"] == {"from_sample": 0.0, "samples": 32.0, "share": 0.5}


def test_accumulated_steps_move_the_clock_at_the_last_one_alone():
    rate = formula()
    for step in range(4):
        rate.advance(rate.samples(), tf.constant(step % 2 == 1))
    assert rate.samples_seen == 32


def test_the_clock_of_a_plain_checkpoint_is_that_of_the_base_batch():
    rate = formula()
    rate.iterations.assign(25)
    assert rate.reading()[2:4] == (100, 25)
    assert rate.reading().rate == pytest.approx(4 * cosine(25))


def test_without_a_batch_time_is_the_step():
    schedule = Cosine(0.1, steps=100)
    rate = RateFormula(schedule.at, None, variables(), keras.Variable(50, dtype="int64"))
    assert (rate.batch, rate.factor, rate.in_warmup) == (None, 1.0, False)
    assert rate.reading().rate == pytest.approx(cosine(50))
    with pytest.raises(ConfigurationError, match="has no batch"):
        rate.climb(0.5, samples=8)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_what_is_no_rate_is_refused(value):
    rate = formula()
    with pytest.raises(ConfigurationError, match="learning_rate"):
        rate.assign(value)
    assert rate.multiplier == 1.0


def test_a_schedule_is_no_rate_to_assign():
    with pytest.raises(ConfigurationTypeError, match="give a schedule to the optimizer when it is made"):
        formula().assign(Cosine(0.1, steps=10))


def test_where_the_schedule_is_zero_no_rate_can_be_set():
    rate = formula()
    rate.iterations.assign(200)
    with pytest.raises(ConfigurationError, match="the schedule is 0 at this point"):
        rate.set_rate(0.1)
    with pytest.raises(ConfigurationError, match="the schedule is 0 at this point"):
        rate.set_base_rate(0.1)
