"""Schedules from and to plain dicts, and what holds for every one of them."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import SHAPES, numbers, shares

from distlr import GlobalBatch
from distlr.errors import ConfigurationError, ConfigurationTypeError
from distlr.schedules import Constant, Cosine, GlobalBatchSchedule, OfProgress, Schedule, Warmup, get, scale, to_dict
from distlr.schedules.registry import NAMES, time_arguments
from distlr.schedules.schedule import as_float64, has_warmup

# A shape that has no entry yet is told of by test_catalog.py.
ENTRIES = {shape.cls: shape for shape in SHAPES}
DRAWN = {name: ENTRIES[cls] for name, cls in NAMES.items() if cls in ENTRIES and ENTRIES[cls].arguments is not None}
ARGUMENTS = {name: shape.arguments for name, shape in DRAWN.items() if shape.inside is None}
PLAIN = st.one_of(*(arguments.map(lambda a, n=name: {"name": n, **a}) for name, arguments in ARGUMENTS.items()))


def _spec(name: str) -> st.SearchStrategy:
    """Dicts that `get` accepts under this name, with plain shapes inside where it goes around others."""
    arguments, inside = DRAWN[name].arguments, DRAWN[name].inside
    if inside is None:
        return arguments.map(lambda a: {"name": name, **a})
    inner = PLAIN.filter(lambda spec: not has_warmup(get(spec))) if name == "warmup" else PLAIN
    if inside == "schedule":
        return st.tuples(arguments, inner).map(lambda pair: {"name": name, **pair[0], "schedule": pair[1]})
    return st.tuples(arguments, inner, inner).map(lambda all_: {"name": name, **all_[0], "schedules": list(all_[1:])})


SPECS = {name: _spec(name) for name in DRAWN}
ANY = st.one_of(PLAIN, st.one_of(*(SPECS[name] for name in DRAWN if name not in ARGUMENTS)))
# Not all at a boundary, and some past every length.
TIMES = np.unique(np.concatenate([np.arange(0.0, 60.0, 1.7), np.geomspace(1, 1e6, 40), [2.0**31]]))


@settings(max_examples=150)
@given(ANY)
def test_finite_and_not_negative_and_vectorized_equals_pointwise(spec) -> None:
    at = as_float64(get(spec))
    values = at(tf.constant(TIMES)).numpy()
    assert values.shape == TIMES.shape
    assert np.isfinite(values).all()
    assert (values >= -1e-15).all()
    pointwise = [at(tf.constant(t)).numpy() for t in TIMES[[0, 7, -1]]]
    # Many at once take another path through the processor, whose last bits may differ; near 0 a difference shows them.
    np.testing.assert_allclose(pointwise, values[[0, 7, -1]], rtol=1e-12, atol=1e-14 * values.max())


@settings(max_examples=100)
@given(ANY)
def test_a_round_trip_through_dicts_json_and_keras(spec) -> None:
    schedule = get(spec)
    plain = json.loads(json.dumps(to_dict(schedule)))
    saved = json.loads(json.dumps(keras.saving.serialize_keras_object(schedule)))
    expected = as_float64(schedule)(tf.constant(TIMES)).numpy()
    for again in (get(plain), keras.saving.deserialize_keras_object(saved)):
        assert type(again) is type(schedule)
        np.testing.assert_array_equal(as_float64(again)(tf.constant(TIMES)).numpy(), expected)


@settings(max_examples=60)
@given(ANY, st.floats(1.0, 1000.0), shares)
def test_a_warmup_over_anything_is_continuous_at_its_end(spec, steps, start) -> None:
    inner = get(spec)
    if getattr(inner, "warmup_steps", 0):
        return  # has one of its own: refused
    warm = Warmup(inner, steps, start)
    joint = tf.constant([np.nextafter(steps, 0), steps, 3 * steps], tf.float64)
    without = as_float64(inner)(joint).numpy()
    np.testing.assert_allclose(warm.at(joint).numpy(), without, rtol=1e-9, atol=1e-15)


@settings(max_examples=60)
@given(ANY, numbers(0.0, 100.0))
def test_scaling_commutes_with_evaluation(spec, factor) -> None:
    inner = get(spec)
    scaled = get({"name": "scale", "factor": factor, "schedule": inner})
    expected = factor * as_float64(inner)(tf.constant(TIMES)).numpy()
    # Small rates times a small factor may be subnormal.
    np.testing.assert_allclose(scaled.at(tf.constant(TIMES)).numpy(), expected, rtol=1e-15, atol=1e-300)


@pytest.mark.parametrize("name", ARGUMENTS)
@settings(max_examples=3)
@given(data=st.data())
def test_eager_graph_and_xla_agree_in_float32(name, data) -> None:
    """To the last bit but one: XLA fuses multiplications and additions, and has its own cosine.

    Where Keras' own staircases jump they need not agree (`as_float64`): t = 22.1 over stairs of 1.7.
    """
    schedule = get(data.draw(SPECS[name]))
    at = as_float64(schedule)

    def rates(t):
        return tf.cast(at(t), tf.float32)

    times = TIMES[:40]
    if getattr(schedule, "staircase", False):
        stairs = times / schedule.decay_steps
        times = times[np.abs(stairs - np.round(stairs)) > 1e-9]
    t = tf.constant(times)
    eager = rates(t).numpy()
    np.testing.assert_array_equal(tf.function(rates)(t).numpy(), eager)
    compiled = tf.function(rates, jit_compile=True)(t).numpy()
    np.testing.assert_array_max_ulp(np.maximum(compiled, 1e-30), np.maximum(eager, 1e-30), maxulp=2)


def test_short_words_and_numbers_and_schedules() -> None:
    assert isinstance(get(0.1), Constant)
    inner = Cosine(0.1, 10)
    assert get(inner) is inner
    assert get({"name": "floor", "floor": 0.01, "schedule": inner}).schedule is inner
    assert to_dict(get({"name": "exponential", "initial": 0.1, "steps": 10, "rate": 0.5})) == {
        "name": "exponential",
        "initial_learning_rate": 0.1,
        "decay_steps": 10,
        "decay_rate": 0.5,
        "staircase": False,
    }


def _with_times(plain, change):
    """The same plain dict, with each of its times changed."""
    if isinstance(plain, list):
        return [_with_times(item, change) for item in plain]
    if not isinstance(plain, dict):
        return plain
    times = time_arguments(plain["name"])
    return {
        argument: [change(t) for t in value]
        if argument in times and isinstance(value, list)
        else change(value)
        if argument in times
        else _with_times(value, change)
        for argument, value in plain.items()
    }


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=5)
@given(data=st.data())
def test_the_time_arguments_are_all_its_times(name, data) -> None:
    """Twice as long is the same curve, reached at twice the time: one that was forgotten, or is no time, bends it."""
    plain = to_dict(get(data.draw(SPECS[name])))
    if "exp_range" in json.dumps(plain):
        return  # its gamma is for one base step
    once = as_float64(get(plain))(tf.constant(TIMES)).numpy()
    twice = as_float64(get(_with_times(plain, lambda t: 2 * t)))(tf.constant(2 * TIMES)).numpy()
    names = {name, *(inner["name"] for inner in [plain.get("schedule"), *plain.get("schedules", [])] if inner)}
    declared = {NAMES[each].__name__: time_arguments(each) for each in sorted(names)}
    message = f"Of these time_arguments one is no time, or one is missing: {declared}"
    np.testing.assert_array_equal(twice, once, err_msg=message)


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=5)
@given(data=st.data())
def test_every_time_may_be_a_duration(name, data) -> None:
    one_sample = GlobalBatch(1, base_batch=1)
    plain = to_dict(get(data.draw(SPECS[name])))
    by_duration = _with_times(plain, lambda t: f"{t!r}sp" if t >= 1e-9 else t)
    assert to_dict(get(by_duration, one_sample)) == plain


def test_durations_become_base_steps_of_the_batch() -> None:
    batch = GlobalBatch(8, replicas=4, base_batch=16, samples_per_epoch=1600, duration="10ep")
    assert get({"name": "cosine", "initial": 0.1, "steps": "10ep"}, batch).steps == 1000
    joined = get({"name": "join", "schedules": [0.1, 0.2], "boundaries": ["0.5dur"]}, batch)
    assert joined.boundaries == [500]
    assert get({"name": "one-cycle", "peak": 1, "steps": "1ep", "up": 0.25}, batch).up == 0.25


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ("cosine", "schedule must be a dict"),
        ({}, "schedule.name"),
        ({"name": "cosin"}, "did you mean 'cosine'"),
        ({"name": "cosine", "step": 3}, "schedule.step is no argument of 'cosine'. Fix: did you mean 'steps'"),
        ({"name": "cosine", "initial": 0.1}, "schedule (cosine) cannot be made"),
        ({"name": "cosine", "initial": 0.1, "steps": -1}, "schedule (cosine): `steps`"),
        ({"name": "cosine", "initial": 0.1, "steps": "9ep"}, "schedule.steps is a duration"),
        (
            {"name": "join", "boundaries": [1], "schedules": [0.1, {"name": "floor", "schedule": {"name": "x"}}]},
            "schedule.schedules[1].schedule.name",
        ),
        ({"name": "multi-step", "initial": 0.1, "boundaries": ["1ep"]}, "schedule.boundaries[0] is a duration"),
        ({"name": "warmup", "steps": 3, "schedule": True}, "schedule.schedule must be a dict"),
    ],
)
def test_what_is_rejected_is_named_with_its_path(spec, path) -> None:
    with pytest.raises((ConfigurationError, ConfigurationTypeError)) as info:
        get(spec)
    assert path in str(info.value)


def test_a_class_without_a_name_says_so() -> None:
    with pytest.raises(ConfigurationTypeError, match="OfProgress has no name"):
        to_dict(OfProgress(lambda p: 1 - p, 10))


@pytest.mark.parametrize("name", SPECS)
@settings(max_examples=2)
@given(data=st.data())
def test_every_shape_is_scaled_for_the_batch(name, data) -> None:
    inner = get(data.draw(SPECS[name]))
    batch = GlobalBatch(4, base_batch=2, samples_per_epoch=1000)
    scaled = scale(inner, batch)
    assert isinstance(scaled, GlobalBatchSchedule)
    step = 7
    t = batch.samples_at(step) / 2
    assert float(scaled.at_step(step)) == pytest.approx(2 * float(as_float64(inner)(tf.constant(t, tf.float64))))
    assert isinstance(inner, (Schedule, keras.optimizers.schedules.LearningRateSchedule))
