"""The learning-rate range test: what it applies and sees, and that it leaves no trace."""

from __future__ import annotations

import logging
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr
from distlr.errors import ConfigurationError, ConfigurationTypeError, DistributionError
from distlr.optimizer import unwrap_loss_scale
from distlr.strategies.mirrored import mirrored

pytestmark = pytest.mark.replicas

# -- the test ------------------------------------------------------------------------------------------------


def job_of(replicas: int):
    strategy = mirrored([f"CPU:{i}" for i in range(replicas)]) if replicas > 1 else None
    return distlr.init(strategy=strategy, environ={})


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.replicas)], ids=["single", "replicas"])
def job(request, four_cpus):
    return job_of(request.param)


SAMPLES = 40


def build(job, optimizer=None, *, adopt=True, dropout=0.3, **options):
    """A small model with all kinds of state, from the same weights each time, and its data, of five batches of 8."""
    keras.utils.set_random_seed(3)
    batch = job.batch(per_replica=8 // job.replicas, base_batch=4, samples_per_epoch=SAMPLES)
    with job.scope():
        model = keras.Sequential(
            [
                keras.Input((2,)),
                keras.layers.Dense(4, kernel_regularizer="l2"),
                keras.layers.BatchNormalization(),
                keras.layers.Dropout(dropout),
                keras.layers.Dense(1),
            ]
        )
        optimizer = keras.optimizers.SGD(0.05, momentum=0.9, clipnorm=1.0) if optimizer is None else optimizer()
        if adopt:
            optimizer = job.optimizer(optimizer, batch, **options)
        model.compile(optimizer, "mse", weighted_metrics=["mae"])
    x = np.random.default_rng(0).normal(size=(SAMPLES, 2)).astype("float32")
    return model, job.shard((x, x.sum(axis=1, keepdims=True)), batch, seed=1)


def everything(job, model) -> dict[str, list]:
    """The bits of each variable on each replica, and the digests; not of metrics."""
    bits = {}
    metrics = {id(v) for metric in model.metrics for v in metric.variables}
    for i, variable in enumerate([*model.variables, *model.optimizer.variables]):
        if id(variable) not in metrics:
            copies = job.strategy.experimental_local_results(variable.value)
            bits[str(i)] = [copy.numpy().tobytes() for copy in copies]
    if hasattr(unwrap_loss_scale(model.optimizer), "rate_digests"):
        bits["digests"] = unwrap_loss_scale(model.optimizer).rate_digests()
    return bits


def fit(job, model, data, epochs=2):
    return model.fit(data, epochs=epochs, verbose=0, shuffle=False, callbacks=job.callbacks()).history


SHORT = {"low": 1e-4, "high": 10.0, "steps": 12}


@pytest.mark.parametrize("before", [0, 1], ids=["fresh", "after a fit"])
def test_a_fit_after_it_is_the_fit_without_it(job, before) -> None:
    runs = []
    for search in (False, True):
        model, data = build(job, warmup="1ep")
        if before:
            fit(job, model, data, before)
            unwrap_loss_scale(model.optimizer).multiply_rate(0.5)
        if search:
            result = distlr.find_lr(job, model, data, **SHORT)
            assert len(result.rates) > 8
            assert all(float(np.max(np.abs(v.numpy()))) == 0.0 for metric in model.metrics for v in metric.variables)
        history = fit(job, model, data)
        runs.append((history, everything(job, model)))
    assert runs[0] == runs[1]


def test_everything_is_put_back(job) -> None:
    model, data = build(job, lambda: keras.optimizers.Adam(0.01, use_ema=True))
    fit(job, model, data, 1)
    unwrap_loss_scale(model.optimizer).distlr.state("plateau/loss/min", [1.0, 2.0])
    before = everything(job, model)
    distlr.find_lr(job, model, data, **SHORT)
    assert everything(job, model) == before


def test_everything_is_put_back_after_an_interrupt(job) -> None:
    model, data = build(job)
    fit(job, model, data, 1)
    before, place = everything(job, model), job._positions[-1]._variable.numpy().tolist()
    seen = []

    def progress(number, rate, loss):
        seen.append((number, rate))
        if number == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distlr.find_lr(job, model, data, progress=progress, **SHORT)
    assert [number for number, _ in seen] == list(range(1, 8))
    assert everything(job, model) == before
    assert job._positions[-1]._variable.numpy().tolist() == place


def test_the_data_is_where_it_was_for_a_loop_of_ones_own(job) -> None:
    """Each iteration is the next epoch there, in another order."""
    model, data = build(job)

    def order():
        return np.concatenate([x.numpy() for x, _ in data])

    first = order()
    expected = [order(), order()]
    model, data = build(job)
    np.testing.assert_array_equal(order(), first)
    distlr.find_lr(job, model, data, **SHORT)
    np.testing.assert_array_equal([order(), order()], expected)


@pytest.mark.parametrize(
    ("replicas", "kind", "accumulation"),
    [
        (1, "number", 1),
        (1, "schedule", 2),
        (1, "no batch", 1),
        (1, "climb", 1),
        (1, "plain", 2),
        (2, "schedule", 1),
        (2, "number", 2),
        (2, "plain", 1),
    ],
)
def test_the_rates_that_are_applied(rate_bench, caplog, replicas, kind, accumulation) -> None:
    options = {"gradient_accumulation_steps": accumulation} if accumulation > 1 else {}
    rate = keras.optimizers.schedules.CosineDecay(0.1, 30, alpha=0.01) if kind == "schedule" else 0.1
    bench = rate_bench.Bench(replicas, rate, **options)
    batch = bench.batch(
        8 // replicas // accumulation, base_batch=4, accumulation=accumulation, samples_per_epoch=SAMPLES
    )
    scaling = {"rule": "sqrt", "warmup": "2ep"} if kind in ("number", "schedule") else {}
    if kind != "plain":
        bench.adopt(None if kind == "no batch" else batch, **scaling)
    if kind == "climb":
        bench.optimizer.distlr.formula.climb(0.25, 60)
    before = np.float32(bench.optimizer.learning_rate.numpy())
    bench.compile()
    data = bench.job.shard(rate_bench.samples(SAMPLES), batch, seed=0)
    with caplog.at_level(logging.INFO, logger="distlr"):
        result = distlr.find_lr(bench.job, bench.model, data, low=1e-4, high=1.0, steps=14)
        assert "during warmup" not in caplog.text
    assert bench.rates() == result.rates  # of updates alone, equal on all replicas, each once
    assert result.factor == pytest.approx(math.sqrt(2) if scaling else 2.0 if kind == "climb" else 1.0)
    assert bench.log.traces <= 3 * replicas
    assert bench.optimizer.learning_rate.numpy() == before


def test_the_loss_is_each_steps_own(job) -> None:
    """At rates that change nothing it is the loss of the batch, and not the mean of those so far."""
    model, data = build(job, dropout=0.0)
    batches = [(x.numpy(), y.numpy()) for x, y in data]
    job._positions[-1]._set(1, 0, 0)
    result = distlr.find_lr(job, model, data, low=1e-30, high=1e-29, steps=8, smoothing=0.0, stop_at=99)
    expected = []
    for x, y in batches:
        parts = zip(np.split(x, job.replicas), np.split(y, job.replicas), strict=True)
        values = [float(model.compute_loss(a, b, model(a, training=True), training=True)) for a, b in parts]
        expected.append(np.mean(values))
    # The data is read again from the start after five batches.
    np.testing.assert_allclose(result.losses, [*expected, *expected[:3]], rtol=1e-5)
    assert result.smoothed == result.losses


def test_an_update_that_was_begun_is_ended_first(rate_bench) -> None:
    bench = rate_bench.Bench(1, 0.1, gradient_accumulation_steps=3)
    batch = bench.batch(4, base_batch=4, accumulation=3, samples_per_epoch=48)
    bench.adopt(batch)
    bench.compile()
    data = bench.job.shard(rate_bench.samples(48), batch, seed=0)
    bench.fit(data.take(2))
    result = distlr.find_lr(bench.job, bench.model, data, low=1e-4, high=1.0, steps=5)
    assert bench.rates() == result.rates


def test_several_steps_an_execution_are_still_one_rate_each(rate_bench) -> None:
    bench = rate_bench.Bench(1, 0.1)
    batch = bench.batch(8, base_batch=4, samples_per_epoch=SAMPLES)
    bench.adopt(batch)
    bench.compile(steps_per_execution=3)
    result = distlr.find_lr(
        bench.job, bench.model, bench.job.shard(rate_bench.samples(SAMPLES), batch), low=1e-4, steps=7
    )
    assert bench.rates() == result.rates
    assert bench.model.steps_per_execution == 3


def test_loss_scaling(job) -> None:
    """Its first steps overflow, are left out, and halve the scale."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model, data = build(job, lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05), 2.0**40))
    finally:
        keras.config.set_dtype_policy(policy)
    fit(job, model, data, 1)
    before, scale, seen = everything(job, model), model.optimizer.dynamic_scale, []
    result = distlr.find_lr(job, model, data, progress=lambda *_: seen.append(float(scale.numpy())), **SHORT)
    assert everything(job, model) == before
    assert seen[0] < 2.0**35
    assert len(result.rates) >= 3


def test_divergence_ends_it(job) -> None:
    model, data = build(job, lambda: keras.optimizers.SGD(0.1, momentum=0.9))
    result = distlr.find_lr(job, model, data, low=1e-4, high=1e6, steps=40)
    assert "loss" in result.stopped
    assert len(result.rates) < 40
    assert 1e-4 < result.suggestion < 10
    assert result.factor == 2


def test_the_data_may_be_of_unknown_length_and_no_shards(job) -> None:
    model, _ = build(job)
    x = np.ones((24, 2), "float32")
    data = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).filter(lambda x, y: True).batch(8)
    result = distlr.find_lr(job, model, data, low=1e-4, high=1e-2, steps=10)
    assert len(result.rates) == 10
    assert int(model.optimizer.iterations.numpy()) == 0


def test_a_model_that_is_not_built(job) -> None:
    keras.utils.set_random_seed(0)
    with job.scope():
        model = keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(1)])
        model.compile(job.optimizer(keras.optimizers.SGD(0.1)), "mse", metrics=["mae"])
    x = np.random.default_rng(0).normal(size=(16, 2)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(8)
    result = distlr.find_lr(job, model, data, low=1e-4, high=1e-2, steps=3)
    assert model.built
    assert len(result.rates) == 3


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 0.0}, "`low` must be a finite number above 0"),
        ({"low": 1e-50}, "`low` must be at least"),
        ({"low": 1.0, "high": 0.5}, "`high` must be above low=1"),
        ({"high": 1e39}, "`high` must be above low"),
        ({"high": math.inf}, "`high` must be a finite number"),
        ({"steps": 2}, "`steps` must be at least 3"),
        ({"low": 1.0, "high": 1.0000005}, "`steps` must be so few"),
        ({"smoothing": 1.0}, r"`smoothing` must be in \[0, 1\)"),
        ({"smoothing": math.nan}, "`smoothing` must be in"),
        ({"stop_at": 1.0}, "`stop_at` must be above 1"),
        ({"stop_at": math.nan}, "`stop_at` must be above 1"),
    ],
)
def test_arguments_that_cannot_be(options, message) -> None:
    job = job_of(1)
    model, data = build(job)
    with pytest.raises(ConfigurationError, match=message):
        distlr.find_lr(job, model, data, **options)
    assert not model.optimizer.built  # nothing was begun


def test_objects_that_cannot_be() -> None:
    job = job_of(1)
    model, data = build(job)
    with pytest.raises(ConfigurationTypeError, match="`job` must be a Job"):
        distlr.find_lr(job.strategy, model, data)
    with pytest.raises(ConfigurationTypeError, match="`model` must be a Keras model"):
        distlr.find_lr(job, model.optimizer, data)
    with pytest.raises(ConfigurationTypeError, match=r"`data` must be a tf.data.Dataset of batches.*data='ndarray'"):
        distlr.find_lr(job, model, np.ones(3))
    with pytest.raises(ConfigurationError, match="`data` must be at least one batch"):
        distlr.find_lr(job, model, data.filter(lambda x, y: False))
    with pytest.raises(ConfigurationError, match="`model` must be compiled"):
        distlr.find_lr(job, keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]), data)
    plain, data = build(job, lambda: keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 9)), adopt=False)
    with pytest.raises(ConfigurationError, match="`learning_rate` must be a float where"):
        distlr.find_lr(job, plain, data)


def test_what_fit_refuses_is_refused(four_cpus) -> None:
    model, data = build(job_of(1))
    with pytest.raises(DistributionError, match="model was built under"):
        distlr.find_lr(job_of(2), model, data)


@pytest.mark.parametrize("case", ["from the start", "later"])
def test_where_the_schedule_is_0(case) -> None:
    job = job_of(1)
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 3 * 2)
    options = {"warmup": "1ep", "warmup_from": 0.0} if case == "from the start" else {}
    model, data = build(job, lambda: keras.optimizers.SGD(schedule), **options)
    with job.scope():
        model.optimizer.build(model.trainable_variables)
    before = everything(job, model)
    number = 1 if case == "from the start" else 4
    with pytest.raises(ConfigurationError, match=f"schedule is 0 at update {number} .*a number for its rate"):
        distlr.find_lr(job, model, data, steps=10)
    assert everything(job, model) == before


def test_a_train_step_of_ones_own_gives_a_loss() -> None:
    class Model(keras.Sequential):
        def train_step(self, data):
            logs = super().train_step(data)
            return {"total": logs["loss"]}

    job = job_of(1)
    keras.utils.set_random_seed(0)
    model = Model([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(job.optimizer(keras.optimizers.SGD(0.1)), "mse")
    data = tf.data.Dataset.from_tensors((np.ones((4, 2)), np.ones((4, 1))))
    with pytest.raises(ConfigurationError, match="with a 'loss'"):
        distlr.find_lr(job, model, data)


def test_the_rate_of_a_schedule_that_is_scaled_already() -> None:
    job = job_of(1)
    batch = job.batch(per_replica=8, base_batch=4, samples_per_epoch=SAMPLES)
    with job.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(job.optimizer(keras.optimizers.SGD(distlr.scale(0.1, batch))), "mse")
    data = job.shard((np.ones((SAMPLES, 2)), np.ones((SAMPLES, 1))), batch, seed=0)
    assert distlr.find_lr(job, model, data, low=1e-4, high=1e-2, steps=3).factor == 2
