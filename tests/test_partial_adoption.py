"""Half of distlr: each part alone gives the right rate, or an error before the first step."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr
from distlr.callbacks import ReduceLROnPlateau
from distlr.errors import ConfigurationError, DistributionError

pytestmark = pytest.mark.replicas

EPOCH, SIZE, BASE = 9, 4, 2  # two updates an epoch, one sample left over, k = 2
DECAY = 12


def _rate(kind: str) -> Any:
    return 0.1 if kind == "float" else keras.optimizers.schedules.CosineDecay(0.1, DECAY)


def _rate_at(kind: str) -> Any:
    return lambda t: 0.1 if kind == "float" else 0.05 * (1 + math.cos(math.pi * min(t, DECAY) / DECAY))


def _fit(bench: Any, batch: Any, callbacks: Any, epochs: int = 2) -> list[float]:
    bench.compile()
    bench.train(batch, epochs, callbacks)
    return bench.rates()


def _made(rate_bench: ModuleType, replicas: int, rate: Any = 0.1) -> tuple[Any, Any]:
    bench = rate_bench.Bench(replicas, rate)
    return bench, bench.batch(SIZE // replicas, BASE, samples_per_epoch=EPOCH)


@pytest.mark.parametrize("kind", ["float", "schedule"])
@pytest.mark.parametrize("replicas", [1, 4])
@pytest.mark.parametrize("part", ["scale", "optimizer", "callbacks", "all"])
def test_each_part_alone_is_right_or_refused(rate_bench, part, replicas, kind) -> None:
    rate = _rate(kind)
    if part == "scale":
        rate = distlr.scale(
            rate, distlr.GlobalBatch(total=SIZE, base_batch=BASE, samples_per_epoch=EPOCH), warmup="1ep"
        )
    bench, batch = _made(rate_bench, replicas, rate)
    plateau = ReduceLROnPlateau("val_loss", factor=0.5, patience=1)
    callbacks = bench.job.callbacks([rate_bench.Overwrite([1.0, 1.0, 1.0]), plateau])
    cut = [1.0, 1.0, 1.0, 1.0, 0.5, 0.5]
    expected = rate_bench.by_hand(_rate_at(kind), updates=6, batch=SIZE, base=BASE, epoch=EPOCH, warmup=EPOCH)
    if part in ("scale", "optimizer"):
        if part == "optimizer":
            bench.adopt(batch, warmup="1ep")
        found, expected = _fit(bench, batch, ()), expected[:4]
    elif part == "all":
        bench.adopt(batch, warmup="1ep")
        found = _fit(bench, batch, callbacks, epochs=3)
        expected = [rate * m for rate, m in zip(expected, cut, strict=True)]
    elif kind == "schedule":  # callbacks alone, and Keras cannot cut a schedule
        with rate_bench.refused(ConfigurationError, r"is a schedule.*Fix: optimizer = job\.optimizer"):
            _fit(bench, batch, callbacks, epochs=3)
        assert bench.log.traces == 0
        return
    else:
        found = _fit(bench, batch, callbacks, epochs=3)
        expected = [0.1 * m for m in cut]  # not scaled: nothing asked for it
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


def test_callbacks_alone_without_a_decider_leave_a_schedule_alone(rate_bench) -> None:
    bench, batch = _made(rate_bench, 1, _rate("schedule"))
    found = _fit(bench, batch, bench.job.callbacks())
    np.testing.assert_allclose(found, [_rate_at("schedule")(n) for n in range(4)], rtol=1e-6)


# -- the scope -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("adopted", "bound"), [(True, True), (True, False), (False, True)])
def test_a_model_built_outside_the_scope(rate_bench, adopted, bound) -> None:
    bench, batch = _made(rate_bench, 4)
    if adopted:
        bench.adopt(batch)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with bench.job.scope():
        model.compile(bench.optimizer, "mse")
    bench.model = model
    train = bench.job.shard(rate_bench.samples(EPOCH), batch)
    with rate_bench.refused(DistributionError, r"Fix: build.*inside `with job\.scope\(\):`"):
        bench.fit(train, 1, bench.job.callbacks() if bound else ())
    assert np.isnan(bench.log.all()).all()


def test_an_optimizer_made_outside_the_scope(rate_bench) -> None:
    bench, batch = _made(rate_bench, 4)
    bench.optimizer = rate_bench.RecordingSGD(0.1, bench.log)
    with pytest.raises(DistributionError, match=r"inside `with job\.scope\(\):`"):
        bench.adopt(batch)
    with pytest.raises(DistributionError, match=r"inside `with job\.scope\(\):`"):
        bench.job.optimizer(bench.optimizer, batch)
    with rate_bench.refused(
        DistributionError, r"made under .*the model under CpuMirrored.*inside `with job\.scope\(\):`"
    ):
        _fit(bench, batch, bench.job.callbacks())
    assert bench.log.traces == 0


# -- steps that do not fit -------------------------------------------------------------------------------

MISFIT = r"fit runs {} .*steps an epoch and the batch says 2.*Fix: feed the model with job\.shard"


@pytest.mark.parametrize(("replicas", "size", "steps"), [(1, 8, 1), (1, 2, 4), (4, 8, 1)])
def test_known_steps_that_do_not_fit_are_refused_before_the_first_step(rate_bench, replicas, size, steps) -> None:
    bench, batch = _made(rate_bench, replicas)
    bench.adopt(batch)
    bench.compile()
    data = tf.data.Dataset.from_tensor_slices(rate_bench.samples(EPOCH)).batch(size, drop_remainder=True)
    with rate_bench.refused(ConfigurationError, MISFIT.format(steps).replace(" .*", " ")):
        bench.fit(data, 1, bench.job.callbacks())
    assert bench.log.traces == 0


def _generator(rate_bench: ModuleType, batches: int) -> tf.data.Dataset:
    """Batches of four, of which Keras cannot know the number."""
    x, y = rate_bench.samples(4 * batches)
    specs = (tf.TensorSpec((4, 2), tf.float32), tf.TensorSpec((4, 1), tf.float32))
    pairs = [(x[4 * i : 4 * i + 4], y[4 * i : 4 * i + 4]) for i in range(batches)]
    return tf.data.Dataset.from_generator(lambda: iter(pairs), output_signature=specs)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize(("batches", "applied"), [(1, 1), (100, 99)])
def test_unknown_steps_that_do_not_fit_are_refused_in_the_first_epoch(rate_bench, batches, applied) -> None:
    bench, batch = _made(rate_bench, 1)
    bench.adopt(batch)
    bench.compile()
    with rate_bench.refused(ConfigurationError, r"fit runs \d+ .*the batch says 2.*Fix: "):
        bench.fit(_generator(rate_bench, batches), 3, bench.job.callbacks())
    assert len(bench.rates()) <= applied


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_unknown_steps_that_fit_are_let_through(rate_bench) -> None:
    bench, batch = _made(rate_bench, 1)
    bench.adopt(batch)
    bench.compile()
    bench.fit(_generator(rate_bench, 2), 3, bench.job.callbacks())
    np.testing.assert_allclose(bench.rates(), [0.2] * 6, rtol=1e-6)
    # Keras runs one more step, which finds no data. Its own `iterations` counts that; the clock must not.
    assert bench.optimizer.samples_seen == 3 * EPOCH


# -- scaling twice ---------------------------------------------------------------------------------------


def test_scale_and_job_optimizer_scale_twice(rate_bench) -> None:
    batch = distlr.GlobalBatch(SIZE, base_batch=BASE)
    bench, batch = _made(rate_bench, 1, distlr.scale(0.1, batch))
    with pytest.raises(ConfigurationError, match=r"scale[sd]? .*Fix: "):
        bench.adopt(batch)


def test_scale_twice(rate_bench) -> None:
    batch = distlr.GlobalBatch(SIZE, base_batch=BASE)
    with pytest.raises(ConfigurationError, match=r"Fix: "):
        distlr.scale(distlr.scale(0.1, batch), batch)


@pytest.mark.parametrize("scaled", [True, False])
def test_job_optimizer_twice(rate_bench, scaled) -> None:
    bench, batch = _made(rate_bench, 1)
    bench.adopt(batch if scaled else None)
    with pytest.raises(ConfigurationError, match=r"twice.*Fix: call job\.optimizer once"):
        bench.adopt(batch)


def test_scale_and_job_optimizer_without_a_batch_scale_once(rate_bench) -> None:
    """The scaled schedule goes on counting real steps; the optimizer adds the multiplier."""
    batch = distlr.GlobalBatch(SIZE, base_batch=BASE, samples_per_epoch=EPOCH)
    bench = rate_bench.Bench(1, distlr.scale(_rate("schedule"), batch, warmup="1ep"))
    optimizer = bench.adopt()
    bench.step(2)
    optimizer.multiply_rate(0.5)
    expected = rate_bench.by_hand(_rate_at("schedule"), updates=4, batch=SIZE, base=BASE, epoch=EPOCH, warmup=EPOCH)
    np.testing.assert_allclose(bench.step(2), [*expected[:2], expected[2] / 2, expected[3] / 2], rtol=1e-6)


# -- a launcher ------------------------------------------------------------------------------------------

LAUNCHERS = {
    "horovodrun": {"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2", "HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "2"},
    "mpirun": {
        "OMPI_COMM_WORLD_RANK": "1",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    },
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_plateau_on_its_own_under_a_launcher_is_refused(rate_bench, monkeypatch, launcher) -> None:
    bench, batch = _made(rate_bench, 1)
    bench.adopt(batch)
    for name, value in LAUNCHERS[launcher].items():
        monkeypatch.setenv(name, value)
    with rate_bench.refused(DistributionError, rf"\[rank 1\].*{launcher}.*Fix: .*job\.callbacks"):
        _fit(bench, batch, [ReduceLROnPlateau("loss")])
    assert bench.log.traces == 0


def test_a_plateau_on_its_own_in_a_single_process_works(rate_bench) -> None:
    bench, batch = _made(rate_bench, 1)
    bench.adopt(batch)
    stalled = rate_bench.Overwrite([1.0, 1.0, 1.0])
    found = _fit(bench, batch, [stalled, ReduceLROnPlateau("val_loss", factor=0.5, patience=1)], 3)
    np.testing.assert_allclose(found, [0.2] * 4 + [0.1] * 2, rtol=1e-6)
