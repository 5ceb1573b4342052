"""The global batch and its clock: exact values, properties and refusals."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distlr.batch.duration import Duration
from distlr.batch.global_batch import GlobalBatch
from distlr.errors import ConfigurationError, ConfigurationTypeError


def batch(size: int, samples: int | None = None, **others: Any) -> GlobalBatch:
    return GlobalBatch(size, base_batch=256, samples_per_epoch=samples, **others)


MNIST = batch(64, 60_000, replicas=8, duration="90ep")


# -- sizes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "size", "ratio", "local_batch", "updates", "steps"),
    [
        ({"per_replica": 256}, 256, 1, 256, 234, 234),
        ({"per_replica": 64, "replicas": 8}, 512, 2, 512, 117, 117),
        ({"per_replica": 64, "replicas": 8, "local_replicas": 1}, 512, 2, 64, 117, 117),
        ({"per_replica": 64, "replicas": 8, "local_replicas": 4}, 512, 2, 256, 117, 117),
        ({"per_replica": 64, "replicas": 8, "accumulation": 4}, 2048, 8, 512, 29, 116),
        ({"per_replica": 32}, 32, 0.125, 32, 1875, 1875),
        ({"per_replica": 100, "replicas": 3}, 300, 300 / 256, 300, 200, 200),
        ({"total": 512, "replicas": 8}, 512, 2, 512, 117, 117),
        ({"total": 512, "replicas": 8, "accumulation": 2}, 512, 2, 256, 117, 234),
        ({"per_replica": 60_000}, 60_000, 60_000 / 256, 60_000, 1, 1),
        ({"per_replica": np.int64(64), "replicas": np.int32(8)}, 512, 2, 512, 117, 117),
    ],
)
def test_sizes(arguments: Any, size: int, ratio: float, local_batch: int, updates: int, steps: int) -> None:
    global_batch = GlobalBatch(**arguments, base_batch=256, samples_per_epoch=60_000)
    values = (
        global_batch.size,
        global_batch.ratio,
        global_batch.local_batch,
        global_batch.updates_per_epoch,
        global_batch.steps_per_epoch,
    )
    assert values == (size, ratio, local_batch, updates, steps)
    assert [type(number) for number in values] == [int, type(ratio), int, int, int]


def test_numbers_are_plain_ints() -> None:
    global_batch = GlobalBatch(
        np.int64(2), replicas=np.int8(4), base_batch=np.uint16(8), samples_per_epoch=np.int64(99)
    )
    numbers = (
        global_batch.per_replica,
        global_batch.replicas,
        global_batch.base_batch,
        global_batch.samples_per_epoch,
        global_batch.local_replicas,
    )
    assert numbers == (2, 4, 8, 99, 4)
    assert {type(number) for number in numbers} == {int}


# (arguments over a good batch, the class of the error, what the message must say)
BAD_BATCHES: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
    ({"base_batch": None}, ConfigurationError, ["`base_batch`", "base_batch=None", "your rate was tuned at"]),
    ({"base_batch": 0}, ConfigurationError, ["`base_batch`", "base_batch=0", "at least 1"]),
    ({"base_batch": 256.0}, ConfigurationTypeError, ["`base_batch`", "base_batch=256.0", "write 256"]),
    ({"base_batch": "256"}, ConfigurationTypeError, ["`base_batch`", "base_batch='256'"]),
    ({"per_replica": None}, ConfigurationError, ["`per_replica`", "`total`", "per_replica=None, total=None"]),
    ({"total": 512}, ConfigurationError, ["Exactly one", "per_replica=64, total=512"]),
    ({"per_replica": 0}, ConfigurationError, ["`per_replica`", "per_replica=0"]),
    ({"per_replica": -64}, ConfigurationError, ["`per_replica`", "per_replica=-64"]),
    ({"per_replica": True}, ConfigurationTypeError, ["`per_replica`", "per_replica=True"]),
    ({"per_replica": 64.5}, ConfigurationTypeError, ["`per_replica`", "per_replica=64.5", "a whole number"]),
    ({"per_replica": float("nan")}, ConfigurationTypeError, ["`per_replica`", "per_replica=nan"]),
    ({"per_replica": float("inf")}, ConfigurationTypeError, ["`per_replica`", "per_replica=inf"]),
    ({"per_replica": np.float64(64)}, ConfigurationTypeError, ["`per_replica`", "64.0", "write 64"]),
    ({"per_replica": np.array([64, 64])}, ConfigurationTypeError, ["`per_replica`", "array([64, 64])"]),
    ({"replicas": 0}, ConfigurationError, ["`replicas`", "replicas=0"]),
    ({"replicas": None}, ConfigurationTypeError, ["`replicas`", "replicas=None"]),
    ({"replicas": 8.0}, ConfigurationTypeError, ["`replicas`", "replicas=8.0", "write 8"]),
    ({"accumulation": 0}, ConfigurationError, ["`accumulation`", "accumulation=0"]),
    ({"accumulation": False}, ConfigurationTypeError, ["`accumulation`", "accumulation=False"]),
    ({"local_replicas": 3}, ConfigurationError, ["`local_replicas`", "local_replicas=3", "replicas=8"]),
    ({"local_replicas": 16}, ConfigurationError, ["`local_replicas`", "local_replicas=16", "replicas=8"]),
    ({"local_replicas": 0}, ConfigurationError, ["`local_replicas`", "local_replicas=0"]),
    ({"local_replicas": 1.0}, ConfigurationTypeError, ["`local_replicas`", "local_replicas=1.0"]),
    ({"per_replica": None, "total": 0}, ConfigurationError, ["`total`", "total=0"]),
    ({"per_replica": None, "total": 512.0}, ConfigurationTypeError, ["`total`", "total=512.0", "write 512"]),
    ({"per_replica": None, "total": 500}, ConfigurationError, ["total=500", "total=496 or total=504"]),
    ({"per_replica": None, "total": 5}, ConfigurationError, ["total=5", "multiple of 8", "write total=8."]),
    (
        {"per_replica": None, "total": 100, "accumulation": 3},
        ConfigurationError,
        ["total=100", "replicas=8 x accumulation=3", "total=96 or total=120"],
    ),
    (
        {"samples_per_epoch": 511},
        ConfigurationError,
        [
            "samples_per_epoch=511",
            "512 samples",
            "per_replica=64 x replicas=8 x accumulation=1",
            "at most 511",
        ],
    ),
    ({"samples_per_epoch": 0}, ConfigurationError, ["`samples_per_epoch`", "samples_per_epoch=0"]),
    ({"samples_per_epoch": 6e4}, ConfigurationTypeError, ["samples_per_epoch=60000.0", "write 60000"]),
    ({"samples_per_epoch": 2**40}, ConfigurationError, [f"samples_per_epoch={2**40}", "2**63"]),
    ({"duration": "90"}, ConfigurationError, ["`duration`", "duration='90'", "write '90ep'"]),
    ({"duration": 90}, ConfigurationTypeError, ["`duration`", "duration=90", "write '90ep'"]),
    ({"duration": "1dur"}, ConfigurationError, ["`duration`", "duration='1dur'", "'90ep'"]),
    ({"duration": "0ep"}, ConfigurationError, ["`duration`", "duration='0ep'", "above 0"]),
    (
        {"duration": "90ep", "samples_per_epoch": None},
        ConfigurationError,
        ["`duration`", "duration='90ep'", "samples_per_epoch=60_000"],
    ),
]


@pytest.mark.parametrize(("changes", "error", "words"), BAD_BATCHES, ids=lambda value: repr(value)[:40])
def test_bad_batches(changes: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    valid = {"per_replica": 64, "replicas": 8, "base_batch": 256, "samples_per_epoch": 60_000}
    assert GlobalBatch(**valid).size == 512  # type: ignore[arg-type]
    with pytest.raises(error) as caught:
        GlobalBatch(**{**valid, **changes})
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_missing_base_batch_is_explained() -> None:
    with pytest.raises(ConfigurationError, match="tuned at"):
        GlobalBatch(64)


@pytest.mark.parametrize(
    ("samples", "size", "last", "expected"),
    [
        # One update an epoch: behind its start none fits any more, so the next one ends the next epoch.
        (2**62 - 1, 2**62 - 1, 2**62 - 2, 2 * (2**62 - 1)),
        (2**62, 2**62, None, None),
        (2**31, 1, 2**31 - 1, 2**31),
        (3_037_000_499, 1, 3_037_000_498, 3_037_000_499),
        (3_037_000_500, 1, None, None),
        (2**32, 1, None, None),
    ],
)
def test_the_edge_of_int64(samples: int, size: int, last: int | None, expected: int | None) -> None:
    if last is None:
        with pytest.raises(ConfigurationError, match=r"2\*\*63"):
            batch(size, samples)
        return
    global_batch = batch(size, samples)
    u = global_batch.updates_per_epoch
    # Int64 fails on any number in between that leaves the type.
    assert global_batch.advance(Int64(last)).value == expected
    assert global_batch.updates_at(Int64(last)).value == (1 if u == 1 else samples - 1)
    assert global_batch.samples_at(Int64(u)).value == samples


# -- the clock ---------------------------------------------------------------------------------------------


class Int64:
    """An int64 that fails on overflow and has nothing but + - * // %: no truth value, no comparison."""

    def __init__(self, value: int) -> None:
        assert -(2**63) <= value < 2**63
        self.value = value

    def _made(self, value: int) -> Int64:
        return Int64(value)

    def __add__(self, other: Any) -> Int64:
        return self._made(self.value + getattr(other, "value", other))

    def __sub__(self, other: Any) -> Int64:
        return self._made(self.value - getattr(other, "value", other))

    def __mul__(self, other: Any) -> Int64:
        return self._made(self.value * getattr(other, "value", other))

    def __floordiv__(self, other: Any) -> Int64:
        return self._made(self.value // getattr(other, "value", other))

    def __mod__(self, other: Any) -> Int64:
        return self._made(self.value % getattr(other, "value", other))

    def __bool__(self) -> bool:
        raise TypeError("a symbolic tensor has no truth value")

    def __eq__(self, other: object) -> bool:
        raise TypeError("a symbolic tensor cannot be compared")

    __hash__ = None  # type: ignore[assignment]


@st.composite
def batches(draw: st.DrawFn, most: int = 3_000) -> GlobalBatch:
    """A batch with an epoch of at most `most` samples."""
    samples = draw(st.integers(1, most))
    return batch(draw(st.integers(1, samples)), samples)


@pytest.mark.parametrize(
    ("size", "samples", "expected"),
    [
        (3, 10, [0, 3, 6, 10, 13, 16, 20]),
        (5, 10, [0, 5, 10, 15, 20]),
        (4, 11, [0, 5, 11, 16, 22]),
        (10, 10, [0, 10, 20]),
        (6, 10, [0, 10, 20]),
        (1, 3, [0, 1, 2, 3, 4]),
        (3, None, [0, 3, 6, 9]),
    ],
)
def test_the_clock(size: int, samples: int | None, expected: list[int]) -> None:
    global_batch = batch(size, samples)
    assert [global_batch.samples_at(n) for n in range(len(expected))] == expected
    assert [global_batch.updates_at(at) for at in expected] == list(range(len(expected)))
    assert [global_batch.advance(at) for at in expected[:-1]] == expected[1:]
    assert [type(global_batch.advance(at)) for at in expected] == [int] * len(expected)


def test_samples_between_two_updates() -> None:
    global_batch = batch(3, 10)
    assert [global_batch.updates_at(n) for n in range(14)] == [0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4]
    assert [batch(3).updates_at(n) for n in range(8)] == [0, 1, 1, 1, 2, 2, 2, 3]


def test_epoch_at() -> None:
    assert [MNIST.epoch_at(n) for n in (0, 59_999, 60_000, 119_999, 120_000)] == [0, 0, 1, 1, 2]
    assert type(MNIST.epoch_at(np.int64(60_000))) is int


def test_the_naive_clock_would_drift() -> None:
    global_batch = batch(512, 1_437)
    assert global_batch.updates_per_epoch * global_batch.size == 1_024
    assert global_batch.samples_at(90 * global_batch.updates_per_epoch) == 90 * 1_437


@given(batches(), st.integers(0, 1_000))
def test_an_epoch_of_ticks_is_exactly_an_epoch(global_batch: GlobalBatch, epoch: int) -> None:
    s, u = global_batch.samples_per_epoch, global_batch.updates_per_epoch
    assert s is not None
    samples = epoch * s
    for _ in range(u):
        assert global_batch.epoch_at(samples) == epoch
        samples = global_batch.advance(samples)
    assert samples == (epoch + 1) * s


@given(batches(10**9), st.integers(0, 10**9))
def test_the_tick_is_the_table_of_samples(global_batch: GlobalBatch, updates: int) -> None:
    at = global_batch.samples_at(updates)
    assert global_batch.samples_at(updates + 1) == global_batch.advance(at)
    assert global_batch.updates_at(at) == updates
    # Not more than one sample off the straight line.
    line = Fraction(updates) * (global_batch.samples_per_epoch or 0) / global_batch.updates_per_epoch
    assert line - 1 < at <= line


@given(st.integers(1, 10**6), st.integers(1, 64), st.integers(1, 8), st.integers(0, 10**9))
def test_the_clock_without_an_epoch(each: int, replicas: int, accumulation: int, updates: int) -> None:
    global_batch = batch(each, replicas=replicas, accumulation=accumulation)
    size = each * replicas * accumulation
    assert global_batch.samples_at(updates) == updates * size
    assert global_batch.advance(updates * size) == (updates + 1) * size
    assert global_batch.updates_at(updates * size) == updates


@given(batches(10**9), st.integers(0, 10**6))
def test_a_tensor_gives_the_numbers_of_an_int(global_batch: GlobalBatch, number: int) -> None:
    for clock in (global_batch.samples_at, global_batch.advance, global_batch.updates_at):
        assert clock(Int64(number)).value == clock(number)


@given(st.data())
def test_a_change_of_the_world_size_in_mid_epoch(data: st.DataObject) -> None:
    s = data.draw(st.integers(1, 2_000), label="S")
    sizes = st.integers(1, s)
    before, after = batch(data.draw(sizes), s), batch(data.draw(sizes), s)
    done = data.draw(st.integers(0, before.updates_per_epoch - 1), label="done")
    epoch = data.draw(st.integers(0, 3), label="epoch")
    samples = before.samples_at(epoch * before.updates_per_epoch + done)
    left = (epoch + 1) * after.updates_per_epoch - after.updates_at(samples)
    # As many updates are left as full batches still fit, on average, and never more than there is data for.
    rest = (epoch + 1) * s - samples
    assert left == rest * after.updates_per_epoch // s
    assert left * after.size <= rest
    for _ in range(left):
        samples = after.advance(samples)
    if left:
        assert samples == (epoch + 1) * s
    else:
        # None fits: the next update is the first of the next epoch.
        assert after.advance(samples) == (epoch + 1) * s + s // after.updates_per_epoch


@given(st.data())
def test_any_number_of_changes_keeps_later_epochs_exact(data: st.DataObject) -> None:
    s = data.draw(st.integers(1, 500), label="S")
    samples = 0
    for _ in range(3):
        global_batch = batch(data.draw(st.integers(1, s)), s)
        for _ in range(data.draw(st.integers(0, 5))):
            advanced = global_batch.advance(samples)
            assert advanced > samples
            samples = advanced
    global_batch = batch(data.draw(st.integers(1, s)), s)
    # Where no update fits in this epoch any more, these are the updates of the next one.
    left = global_batch.updates_per_epoch - global_batch.updates_at(samples) % global_batch.updates_per_epoch
    for _ in range(left):
        samples = global_batch.advance(samples)
    assert samples % s == 0


@pytest.mark.usefixtures("four_cpus")
def test_the_clock_on_tensors() -> None:
    import tensorflow as tf

    global_batch = batch(64, 1_437, replicas=2)
    tick = tf.function(global_batch.advance, input_signature=[tf.TensorSpec([], tf.int64)])
    samples = tf.constant(0, tf.int64)
    for n in range(1, 30):
        samples = tick(samples)
        assert samples.dtype == tf.int64
        assert int(samples) == global_batch.samples_at(n) == int(global_batch.samples_at(tf.constant(n, tf.int64)))
        assert int(global_batch.updates_at(samples)) == n
        assert global_batch.epoch_at(samples) == n // 11
    far = 1_437 * 10**12 + 3
    assert int(tick(tf.constant(far, tf.int64))) == global_batch.advance(far)


# -- conversions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("global_batch", "text", "samples", "updates", "base_steps", "epochs"),
    [
        (MNIST, "5ep", 300_000, 585, 1_171.875, 5),
        (MNIST, "0ep", 0, 0, 0, 0),
        (MNIST, "0.5ep", 30_000, 58.5, 117.1875, 0.5),
        (MNIST, "117ba", 60_000, 117, 234.375, 1),
        (MNIST, "100ba", 6_000_000 / 117, 100, 6_000_000 / 117 / 256, 100 / 117),
        (MNIST, "60000sp", 60_000, 117, 234.375, 1),
        (MNIST, "256sp", 256, 256 * 117 / 60_000, 1, 256 / 60_000),
        (MNIST, "0.1dur", 540_000, 1_053, 2_109.375, 9),
        (MNIST, "1dur", 5_400_000, 10_530, 21_093.75, 90),
        (MNIST, "1/3dur", 1_800_000, 3_510, 7_031.25, 30),
        (MNIST.replace(duration="1170ba"), "0.1dur", 60_000, 117, 234.375, 1),
        (MNIST.replace(duration="120000sp"), "0.5dur", 60_000, 117, 234.375, 1),
        (batch(512), "100ba", 51_200, 100, 200, None),
        (batch(512), "256sp", 256, 0.5, 1, None),
        (batch(512, duration="1000ba"), "0.1dur", 51_200, 100, 200, None),
    ],
)
def test_conversions(
    global_batch: GlobalBatch, text: str, samples: float, updates: float, base_steps: float, epochs: float | None
) -> None:
    expected = [samples, updates, base_steps]
    values = [global_batch.to_samples(text), global_batch.to_updates(text), global_batch.to_base_steps(text)]
    if epochs is not None:
        expected.append(epochs)
        values.append(global_batch.to_epochs(Duration.parse(text)))
    assert values == pytest.approx(expected, rel=1e-15)
    assert [type(number) for number in values] == [type(number) for number in expected]


@given(batches(10**6), st.fractions(0, 1_000, max_denominator=1_000))
def test_conversions_round_trip(global_batch: GlobalBatch, value: Fraction) -> None:
    converters = {"ep": global_batch.to_epochs, "ba": global_batch.to_updates, "sp": global_batch.to_samples}
    for unit, convert in converters.items():
        exact = value.numerator if value.denominator == 1 else float(value)
        assert convert(Duration(value, unit)) == exact
    # A whole number of updates goes through every other unit exactly, and agrees with the clock.
    whole = value.numerator * global_batch.updates_per_epoch
    for unit, convert in converters.items():
        number = convert(Duration(whole, "ba"))
        assert isinstance(number, int)
        assert global_batch.to_updates(Duration(number, unit)) == whole
    assert global_batch.to_samples(Duration(whole, "ba")) == global_batch.samples_at(whole)
    assert global_batch.to_base_steps(Duration(whole, "ba")) * global_batch.base_batch == global_batch.samples_at(whole)


@pytest.mark.parametrize(
    ("method", "text", "words"),
    [
        ("to_samples", "5ep", ["`warmup`", "warmup='5ep'", "samples_per_epoch=60_000"]),
        ("to_updates", "5ep", ["`warmup`", "warmup='5ep'", "samples_per_epoch=60_000"]),
        ("to_base_steps", "5ep", ["`warmup`", "warmup='5ep'", "samples_per_epoch=60_000"]),
        ("to_epochs", "5ba", ["`samples_per_epoch`", "samples_per_epoch=None", "`to_epochs`"]),
        ("to_samples", "0.05dur", ["`warmup`", "warmup='0.05dur'", "duration='90ep'"]),
        ("to_epochs", "0.05dur", ["`warmup`", "warmup='0.05dur'", "duration='90ep'"]),
        ("to_samples", "5", ["`warmup`", "warmup='5'", "'5ep'"]),
    ],
)
def test_conversions_that_lack_something(method: str, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        getattr(batch(512), method)(text, argument="warmup")
    assert [word for word in words if word not in str(caught.value)] == []


def test_conversions_name_their_own_argument_where_none_is_given() -> None:
    with pytest.raises(ConfigurationTypeError, match="duration=5"):
        MNIST.to_samples(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["updates_per_epoch", "steps_per_epoch", "epoch_at"])
def test_what_needs_an_epoch_says_so(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        getattr(batch(512), name)(0)
    message = str(caught.value)
    assert f"`samples_per_epoch` must be given for `{name}`. Received: samples_per_epoch=None." in message


# -- copies ------------------------------------------------------------------------------------------------

COPIES = [
    batch(64),
    MNIST,
    GlobalBatch(total=512, base_batch=256, replicas=8),
    batch(64, 60_000, replicas=8, local_replicas=2, accumulation=3, duration="1/3ep"),
]


@pytest.mark.parametrize("global_batch", COPIES, ids=repr)
def test_round_trips(global_batch: GlobalBatch) -> None:
    copies = [
        GlobalBatch.from_dict(json.loads(json.dumps(global_batch.to_dict()))),
        eval(repr(global_batch), {"GlobalBatch": GlobalBatch}),
        pickle.loads(pickle.dumps(global_batch)),
        copy.deepcopy(global_batch),
        global_batch.replace(),
    ]
    for restored in copies:
        assert restored == global_batch
        assert hash(restored) == hash(global_batch)
        assert restored.to_dict() == global_batch.to_dict()


def test_to_dict_has_what_was_set() -> None:
    assert MNIST.to_dict() == {
        "per_replica": 64,
        "replicas": 8,
        "base_batch": 256,
        "accumulation": 1,
        "samples_per_epoch": 60_000,
        "duration": "90ep",
    }
    assert GlobalBatch(total=8, base_batch=4, local_replicas=1).to_dict() == {
        "total": 8,
        "replicas": 1,
        "base_batch": 4,
        "accumulation": 1,
        "local_replicas": 1,
    }


def test_equality_is_of_the_numbers() -> None:
    assert GlobalBatch(total=512, replicas=8, base_batch=256) == GlobalBatch(64, replicas=8, base_batch=256)
    assert GlobalBatch(64, replicas=8, base_batch=256, local_replicas=8) == batch(64, replicas=8)
    different = [
        batch(64),
        batch(32),
        batch(64, 60_000),
        batch(64, replicas=2),
        batch(64, replicas=2, local_replicas=1),
        batch(64, accumulation=2),
        batch(64, duration="5ba"),
        GlobalBatch(64, base_batch=128),
    ]
    assert len(set(different)) == len(different)
    assert all(one != other for one, other in itertools.combinations(different, 2))


@pytest.mark.parametrize(
    ("global_batch", "changes", "per_replica", "size", "local_batch"),
    [
        (MNIST, {"replicas": 16}, 64, 1024, 1024),
        (MNIST, {"per_replica": 32}, 32, 256, 256),
        (MNIST, {"total": 1024}, 128, 1024, 1024),
        (MNIST, {"total": 1024, "per_replica": None}, 128, 1024, 1024),
        (MNIST, {"local_replicas": 1}, 64, 512, 64),
        (GlobalBatch(total=512, base_batch=256, replicas=8), {"replicas": 16}, 32, 512, 512),
        (GlobalBatch(total=512, base_batch=256, replicas=8), {"accumulation": 2}, 32, 512, 256),
        (GlobalBatch(total=512, base_batch=256, replicas=8), {"per_replica": 32}, 32, 256, 256),
        (batch(64, replicas=8, local_replicas=2), {"replicas": 4}, 64, 256, 128),
        (batch(64, replicas=8, local_replicas=2), {"replicas": 3, "local_replicas": None}, 64, 192, 192),
    ],
)
def test_replace(
    global_batch: GlobalBatch, changes: dict[str, Any], per_replica: int, size: int, local_batch: int
) -> None:
    changed = global_batch.replace(**changes)
    assert (changed.per_replica, changed.size, changed.local_batch) == (per_replica, size, local_batch)
    assert (changed.base_batch, changed.samples_per_epoch) == (global_batch.base_batch, global_batch.samples_per_epoch)


def test_replace_can_take_away() -> None:
    assert MNIST.replace(duration=None, samples_per_epoch=None) == batch(64, replicas=8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"replicass": 4}, ["`replicass`", "replicass=4", "did you mean 'replicas'"]),
        ({"zzz": 4}, ["`zzz`", "zzz=4", "leave it out"]),
        ({"samples_per_epoch": None}, ["`duration`", "duration='90ep'"]),
        ({"total": 500}, ["`total`", "total=500"]),
        ({"total": 512, "per_replica": 64}, ["Exactly one", "per_replica=64, total=512"]),
        ({"base_batch": None}, ["`base_batch`", "base_batch=None"]),
    ],
)
def test_bad_changes(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        MNIST.replace(**changes)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (
            {"per_replica": 64, "base_batch_size": 256},
            ConfigurationError,
            ["`base_batch_size`", "base_batch_size=256", "did you mean 'base_batch'"],
        ),
        ({"per_replica": 64, "size": 64}, ConfigurationError, ["`size`", "size=64", "one of the arguments"]),
        ({"per_replica": 64, 5: 6}, ConfigurationError, ["`5`", "5=6"]),
        ({"per_replica": 64}, ConfigurationError, ["`base_batch`", "base_batch=None"]),
        ([64], ConfigurationTypeError, ["`arguments`", "arguments=[64]", "a mapping"]),
    ],
)
def test_bad_dictionaries(arguments: Any, error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as caught:
        GlobalBatch.from_dict(arguments)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_batch_is_immutable() -> None:
    with pytest.raises(AttributeError):
        MNIST.replicas = 4  # type: ignore[misc]
    with pytest.raises(AttributeError):
        MNIST.ratio = 4  # type: ignore[misc]
    with pytest.raises(AttributeError):
        MNIST.other = 4  # type: ignore[attr-defined]
    assert MNIST.replicas == 8
