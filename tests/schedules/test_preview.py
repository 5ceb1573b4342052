"""The plan of a run: the formula's own numbers, where something happens, and what is probably a mistake."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import distlr
from distlr import schedules
from distlr.batch.global_batch import GlobalBatch
from distlr.errors import ConfigurationError
from distlr.schedules.preview import plan

K = keras.optimizers.schedules
SAMPLES, BASE, EPOCHS = 25_600, 256, 40
RUN = EPOCHS * SAMPLES // BASE  # in base steps


def batch(replicas=1, per_replica=256, **options):
    return GlobalBatch(per_replica, replicas=replicas, base_batch=BASE, samples_per_epoch=SAMPLES, **options)


def one(schedule, replicas=1, **options):
    (curve,) = plan(schedule, [batch(replicas)], **{"epochs": EPOCHS, **options})
    return curve


@pytest.mark.parametrize("replicas", [1, 4])
def test_the_curve_is_the_formula(replicas) -> None:
    curve = one(schedules.Cosine(0.1, RUN), replicas, warmup="5ep")
    assert (curve.epochs[0], curve.epochs[-1]) == (0, EPOCHS)
    for epoch in (0.0, 2.5, 5.0, 20.0, 39.0):
        full = 0.1 * replicas * 0.5 * (1 + np.cos(np.pi * epoch / EPOCHS))
        climb = 1.0 if epoch >= 5 else 1 / replicas + (1 - 1 / replicas) * epoch / 5
        assert curve.rate_at(epoch) == pytest.approx(full * climb, rel=1e-9)
        assert curve.rate_at(epoch) == pytest.approx(np.interp(epoch, curve.epochs, curve.rates), rel=1e-3)
    assert [mark.what for mark in curve.marks] == (["the warmup ends"] if replicas > 1 else [])
    assert curve.warnings == []


def test_boundaries_and_restarts_are_marked_to_the_step() -> None:
    curve = one(schedules.MultiStep(0.1, [RUN // 4, RUN // 2], gamma=0.5))
    assert [mark.what for mark in curve.marks] == ["the rate falls in one step"] * 2
    assert [mark.epoch for mark in curve.marks] == pytest.approx([10, 20], abs=1e-3)
    curve = one(schedules.CosineRestarts(0.1, RUN // 4))
    rises = [mark for mark in curve.marks if mark.what == "the rate rises in one step"]
    assert rises[0].epoch == pytest.approx(10, abs=1e-3)


@pytest.mark.parametrize(
    ("schedule", "options", "text"),
    [
        (K.ExponentialDecay(0.1, 10, 0.01), {}, "under 1e-12 from epoch"),
        (schedules.Cosine(0.1, RUN), {"replicas": 4, "warmup": "21ep"}, "more than half of the run of 40 epochs"),
        (schedules.Cosine(0.1, RUN // 2), {}, "has reached its end, 0, at epoch 19.98 of 40"),
        (schedules.Cosine(0.1, RUN * 2), {}, "still falls after the run: 0.05 at its end"),
        (schedules.Constant(0.1), {"replicas": 33}, "k = 33 is beyond what is known to work with the linear rule, 32"),
        (K.CosineDecay(0.1, RUN // 8), {"replicas": 8}, "in steps of the batch of 2048"),
    ],
)
def test_what_is_probably_a_mistake(schedule, options, text) -> None:
    warnings = one(schedule, **options).warnings
    assert any(text in warning for warning in warnings), warnings


def stopping(step):
    return schedules.Join([schedules.Constant(0.1), schedules.Constant(0.0)], [step])


CLIMBING = K.CosineDecay(0.0, RUN, warmup_target=0.1, warmup_steps=RUN // 8)


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (CLIMBING, None),  # at 0 for one point
        (schedules.Cosine(0.1, RUN), None),
        (schedules.Shift(CLIMBING, RUN // 4), "from epoch 0 to 10: "),
        (stopping(RUN // 4), "from epoch 10 on: "),
        (schedules.Repeat(stopping(50), 100), "from epoch 0.5 to 0.98, and in 39 stretches more: "),
    ],
)
def test_where_nothing_is_learned(schedule, text) -> None:
    warnings = [warning for warning in one(schedule).warnings if "under 1e-12" in warning]
    assert len(warnings) == (text is not None), warnings
    assert text is None or text in warnings[0]


def test_the_length_of_the_run() -> None:
    (curve,) = plan(0.1, [batch(duration="7ep")])
    assert curve.epochs[-1] == 7
    with pytest.raises(ConfigurationError, match="`epochs` must be given, or the batch's duration"):
        plan(0.1, [batch()])
    with pytest.raises(ConfigurationError, match="`samples_per_epoch` must be given"):
        plan(0.1, [GlobalBatch(4, base_batch=4)], epochs=3)
    with pytest.raises(ConfigurationError, match="`epochs` must be above 0"):
        plan(0.1, [batch()], epochs=0)


@pytest.mark.parametrize(("decay", "clock", "count"), [(4, None, 0), (1, None, 1), (1, "steps", 0)])
def test_a_run_says_that_its_schedule_is_in_steps_of_the_global_batch(caplog, decay, clock, count) -> None:
    """16 samples in batches of 4 at a base of 1: an epoch is 4 steps, or 16 base steps."""
    job = distlr.init(environ={})
    size = job.batch(per_replica=4, base_batch=1, samples_per_epoch=16)
    with job.scope():
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        schedule = K.CosineDecay(0.001, 2 * 4 * decay)
        model.compile(job.optimizer(keras.optimizers.SGD(schedule), size, clock=clock), "mse")
    x = np.ones((16, 1), "float32")
    model.fit(job.shard((x, x), size, seed=0), epochs=2, verbose=0, shuffle=False, callbacks=job.callbacks())
    assert caplog.text.count("decay_steps=8 is the run in steps of the batch of 4") == count
