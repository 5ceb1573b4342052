"""`distlr.scale`: the formula by hand, on real steps."""

from __future__ import annotations

import logging
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from distlr import GlobalBatch, scale
from distlr.errors import ConfigurationError, ConfigurationTypeError
from distlr.scaling.rules import linear
from distlr.schedules import Constant, GlobalBatchSchedule, PerEpoch

SHAPES = keras.optimizers.schedules
EXACT = {"rel": 3e-7, "abs": 0.0}  # one rounding to float32


def cosine(t, steps, rate=0.1):
    return rate * 0.5 * (1 + math.cos(math.pi * min(t / steps, 1)))


# 1,003 samples, so that an epoch has a remainder for every batch below.
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize(("replicas", "base"), [(1, 16), (1, 8), (2, 8), (3, 8), (8, 8)])
@pytest.mark.parametrize(("rule", "power"), [("linear", 1), ("sqrt", 0.5), ("none", 0)])
def test_every_real_step_of_a_run(replicas, base, accumulation, rule, power):
    per_replica, samples, epochs = 8, 1003, 4
    batch = GlobalBatch(
        per_replica, replicas=replicas, base_batch=base, accumulation=accumulation, samples_per_epoch=samples
    )
    decay = epochs * samples // base
    schedule = scale(SHAPES.CosineDecay(0.1, decay), batch, rule, warmup="1.5ep")
    updates = samples // (per_replica * replicas * accumulation)
    factor = (per_replica * replicas * accumulation / base) ** power
    start = min(1, 1 / factor)
    for step in range(0, epochs * updates * accumulation, 13):
        epoch, update = divmod(step // accumulation, updates)
        seen = epoch * samples + update * samples // updates
        share = start + (1 - start) * min(seen / (1.5 * samples), 1)
        assert float(schedule(step)) == pytest.approx(cosine(seen / base, decay) * factor * share, rel=1e-6)
    assert float(schedule(epochs * updates * accumulation)) < 1e-5


@pytest.mark.parametrize("accumulation", [1, 4])
def test_on_the_steps_clock_time_is_keras_own(accumulation):
    batch = GlobalBatch(8, replicas=4, base_batch=8, accumulation=accumulation, samples_per_epoch=1003)
    schedule = scale(SHAPES.CosineDecay(0.1, 200), batch, clock="steps", warmup="10ba", warmup_from=0.5)
    for step in (0, 5, 39, 40, 41, 199, 200, 500):
        share = 0.5 + 0.5 * min(step / (10 * accumulation), 1)
        expected = cosine(step, 200) * 4 * accumulation * share
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_a_step_within_an_accumulated_update_has_the_rate_of_its_update():
    batch = GlobalBatch(8, base_batch=8, accumulation=4)
    schedule = scale(SHAPES.PolynomialDecay(0.1, 100, 0.0), batch)
    rates = [float(schedule(step)) for step in range(8)]
    assert rates[:4] == [rates[0]] * 4
    assert rates[4:] == [rates[4]] * 4
    assert rates[4] == pytest.approx(0.4 * (1 - 4 / 100), **EXACT)


BATCH = GlobalBatch(8, replicas=4, base_batch=8, samples_per_epoch=3200, duration="10ep")


@pytest.mark.parametrize(
    ("warmup", "updates"), [("5ep", 500), ("0.5ep", 50), ("100ba", 100), ("1600sp", 50), ("0.05dur", 50)]
)
@pytest.mark.parametrize("clock", ["samples", "steps"])
def test_the_length_of_a_warmup_in_every_unit(warmup, updates, clock):
    schedule = scale(0.1, BATCH, warmup=warmup, clock=clock)
    expected = {0: 0.1, updates // 2: 0.25, updates: 0.4, updates + 1: 0.4}
    assert {step: float(schedule(step)) for step in expected} == pytest.approx(expected, **EXACT)
    assert float(schedule(updates - 1)) < 0.4 * (1 - 1e-6)
    steps = updates * (4 if clock == "samples" else 1)
    assert [schedule.in_warmup(t) for t in (0, steps - 1, steps)] == [True, True, False]


@pytest.mark.parametrize(("warmup_from", "first"), [(None, 0.1), (0, 0.0), (0.5, 0.2), (0.25, 0.1)])
def test_where_a_warmup_starts(warmup_from, first):
    schedule = scale(0.1, BATCH, warmup="1ep", warmup_from=warmup_from)
    assert float(schedule(0)) == pytest.approx(first, **EXACT)
    assert float(schedule(50)) == pytest.approx((first + 0.4) / 2, **EXACT)


@pytest.mark.parametrize(
    ("shape", "half"), [("linear", 0.25), ("exponential", 0.2), ("cosine", 0.25), ("polynomial", 0.175)]
)
def test_the_shape_of_a_warmup(shape, half):
    assert float(scale(0.1, BATCH, warmup="1ep", warmup_shape=shape)(50)) == pytest.approx(half, **EXACT)


@pytest.mark.parametrize(
    ("rule", "factor", "name"),
    [("linear", 4, "linear"), ("sqrt", 2, "sqrt"), ("none", 1, "none"), (lambda k: 1 + (k - 1) / 2, 2.5, "<lambda>")],
)
def test_rules(rule, factor, name):
    schedule = scale(0.1, BATCH, rule)
    assert float(schedule(7)) == pytest.approx(0.1 * factor, **EXACT)
    parts = schedule.explain()
    assert (parts["rule"], parts["factor"], parts["peak_rate"]) == (name, factor, pytest.approx(0.1 * factor))


@pytest.mark.parametrize("rate", [0.1, np.float32(0.1), Constant(0.1), lambda epoch: 0.1])
def test_what_can_be_scaled(rate):
    assert float(scale(rate, BATCH)(3)) == pytest.approx(0.4, **EXACT)


def test_a_function_of_the_epoch_is_called_for_the_whole_run():
    schedule = scale(lambda epoch, lr: lr * 0.5 if epoch == 9 else lr, BATCH, initial_learning_rate=0.1)
    assert [float(schedule(step)) for step in (0, 899, 900, 2000)] == pytest.approx([0.4, 0.4, 0.2, 0.2], **EXACT)


@pytest.mark.parametrize("clock", ["samples", "steps"])
def test_per_epoch_changes_with_the_epoch_on_both_clocks(clock):
    batch = GlobalBatch(8, replicas=4, base_batch=8, accumulation=2, samples_per_epoch=1003)
    schedule = scale(PerEpoch([0.1, 0.2, 0.3]), batch, "none", clock=clock)
    steps = batch.steps_per_epoch
    rates = [float(schedule(step)) for step in (0, steps - 1, steps, 2 * steps - 1, 2 * steps)]
    assert rates == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.3], **EXACT)


@pytest.mark.parametrize(("low", "high"), [(2**24, 2**24 + 1), (2**31, 2**31 + 1)])
def test_steps_beyond_float32_are_distinguished(low, high):
    schedule = scale(PerEpoch([1.0, 2.0], steps_per_epoch=high), GlobalBatch(8, base_batch=8))
    assert [float(schedule(step)) for step in (low, high)] == [1.0, 2.0]


def test_a_warmup_that_does_nothing_says_so(caplog):
    one = GlobalBatch(8, base_batch=8, samples_per_epoch=800)
    for batch, options, why in [
        (one, {}, "full rate (the factor is 1)"),
        (GlobalBatch(4, base_batch=8, samples_per_epoch=800), {}, "full rate (the factor is 0.5)"),
        (BATCH, {"warmup_from": 1}, "full rate (the factor is 4)"),
        (BATCH, {"warmup": "0ep"}, "its length is 0"),
    ]:
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="distlr"):
            schedule = scale(0.1, batch, **{"warmup": "2ep", **options})
        assert [record.getMessage() for record in caplog.records] == [
            f"warmup={options.get('warmup', '2ep')} does nothing: "
            + (why if "length" in why else f"it starts at the {why}")
            + "."
        ]
        assert float(schedule(0)) == pytest.approx(0.1 * batch.ratio, **EXACT)
        assert not schedule.in_warmup(0)


def test_a_warmup_that_does_something_is_silent(caplog):
    with caplog.at_level(logging.INFO, logger="distlr"):
        scale(0.1, BATCH, warmup="2ep")
    assert not caplog.records


@pytest.mark.parametrize(
    "options", [{"warmup_shape": "liner"}, {"warmup": "5"}, {"warmup_from": 1.5}, {"warmup_from": -0.1}]
)
def test_a_mistake_shows_on_one_replica_already(options):
    with pytest.raises(ConfigurationError):
        scale(0.1, GlobalBatch(8, base_batch=8, samples_per_epoch=800), **{"warmup": "2ep", **options})


@pytest.mark.parametrize(("warmup", "fits"), [("9.99ep", True), ("10ep", False), ("1000ba", False), ("1dur", False)])
def test_a_warmup_as_long_as_the_run_is_refused(warmup, fits):
    if fits:
        scale(0.1, BATCH, warmup=warmup)
        return
    with pytest.raises(ConfigurationError, match=rf"shorter than the run of 10ep.*warmup='{warmup}'"):
        scale(0.1, BATCH, warmup=warmup)


def test_scaling_twice_is_refused():
    with pytest.raises(ConfigurationError, match=r"scaled for the global batch already.*multiply the rate by 4 once"):
        scale(scale(0.1, BATCH), BATCH)


def test_an_initial_rate_needs_a_function():
    with pytest.raises(ConfigurationError, match="`initial_learning_rate` must be given with a per-epoch function"):
        scale(0.1, BATCH, initial_learning_rate=0.1)


def test_a_class_is_not_taken_for_a_function_of_the_epoch():
    with pytest.raises(ConfigurationTypeError, match=r"make one: CosineDecay"):
        scale(SHAPES.CosineDecay, BATCH)


def test_the_explanation_of_a_warmup():
    parts = GlobalBatchSchedule(
        SHAPES.CosineDecay(0.1, 100), BATCH, "sqrt", warmup="0.5ep", warmup_shape="cosine"
    ).explain()
    assert parts == {
        "base_rate": pytest.approx(0.1),
        "peak_rate": pytest.approx(0.2),
        "base_batch": 8,
        "global_batch": 32,
        "ratio": 4,
        "rule": "sqrt",
        "factor": 2.0,
        "clock": "samples",
        "warmup": {"duration": "0.5ep", "updates": 50, "epochs": 0.5, "from": 0.5, "shape": "cosine"},
    }


# -- the rule in a file ------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("distlr_tests")
def registered_rule(k):
    return 1 + math.log2(k)


def unregistered_rule(k):
    return k / 2


def reloaded(schedule, replicas=None):
    config = SHAPES.serialize(schedule)
    if replicas:
        config["config"]["batch"]["replicas"] = replicas
    return SHAPES.deserialize(config)


@pytest.mark.parametrize("rule", [registered_rule, unregistered_rule, linear, "sqrt"])
def test_a_rule_comes_back_from_a_file(rule):
    schedule = scale(0.1, BATCH, rule)
    again = reloaded(reloaded(schedule))  # twice: what was loaded can be saved
    assert again.factor == schedule.factor
    assert again.explain() == schedule.explain()
    assert float(again(3)) == float(schedule(3))


def test_a_registered_rule_is_called_again_for_another_number_of_replicas():
    assert reloaded(scale(0.1, BATCH, registered_rule), replicas=8).factor == 4.0
    assert reloaded(scale(0.1, BATCH, linear), replicas=8).factor == 8.0


def test_an_unregistered_rule_is_known_at_its_own_ratio_alone():
    with pytest.raises(ConfigurationError, match=r"'unregistered_rule'.*k=4 alone \(factor 2\).*k=8.*pass `rule=`"):
        reloaded(scale(0.1, BATCH, unregistered_rule), replicas=8)


def test_time_of_the_two_clocks():
    step, samples = tf.constant(3, tf.int64), tf.constant(2**53 - 1, tf.int64)
    assert float(scale(0.1, BATCH).time(step, samples)) == (2**53 - 1) / 8
    assert float(scale(0.1, BATCH, clock="steps").time(step, samples)) == 3.0
