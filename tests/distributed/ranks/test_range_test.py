"""The learning-rate range test on ranks: one curve, one stop, and no trace of it on any of them."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr
from distlr.data.sharding import own_share
from distlr.errors import ConfigurationError, DistributionError
from distlr.optimizer import unwrap_loss_scale

SHORT = {"low": 1e-4, "high": 1.0, "steps": 10}


def build(job, *, adopt=True, accumulation=1, **options):
    """A small model with all kinds of state, other weights on each rank, and the job's data."""
    keras.utils.set_random_seed(job.rank)
    batch = job.batch(
        per_replica=2, base_batch=2, samples_per_epoch=12 * job.size * accumulation, accumulation=accumulation
    )
    accumulates = {"gradient_accumulation_steps": accumulation} if accumulation > 1 else {}
    with job.scope():
        model = keras.Sequential(
            [
                keras.Input((2,)),
                keras.layers.Dense(3),
                keras.layers.BatchNormalization(),
                keras.layers.Dropout(0.3),
                keras.layers.Dense(1),
            ]
        )
        optimizer = keras.optimizers.SGD(0.05, momentum=0.9, clipnorm=1.0, **accumulates)
        model.compile(job.optimizer(optimizer, batch, **options) if adopt else optimizer, "mse", metrics=["mae"])
    x = np.random.default_rng(0).normal(size=(batch.samples_per_epoch, 2)).astype("float32")
    return model, job.shard((x, x.sum(axis=1, keepdims=True)), batch, seed=1)


def everything(model) -> list[str]:
    """The bits of this rank's variables, of the metrics too, and its digests."""
    bits = [variable.numpy().tobytes().hex() for variable in [*model.variables, *model.optimizer.variables]]
    return bits + unwrap_loss_scale(model.optimizer).rate_digests()


def fit(job, model, data, epochs=2):
    return model.fit(data, epochs=epochs, verbose=0, shuffle=False, callbacks=job.callbacks()).history


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_fit_after_it_is_the_fit_without_it(job, same_on_all, accumulation) -> None:
    runs = []
    for search in (False, True):
        model, data = build(job, warmup="1ep", accumulation=accumulation)
        if search:
            result = distlr.find_lr(job, model, data, **SHORT)
            assert len(result.rates) > 5
            assert result.factor == job.size * accumulation
            same_on_all(result.to_json())
        history = fit(job, model, data)
        runs.append((history, everything(model)))
    assert runs[0] == runs[1]
    job.check(model)


def test_everything_is_put_back_on_each_rank(job, same_on_all) -> None:
    model, data = build(job)
    fit(job, model, data, 1)
    model.reset_metrics()
    before = everything(model)
    same_on_all(distlr.find_lr(job, model, data, **SHORT).to_json())
    assert everything(model) == before


def test_ranks_with_other_data_see_one_loss_and_stop_together(job, same_on_all, local_data, simple) -> None:
    """One rank's data alone diverges, and the ranks' data have different lengths."""
    last = job.rank == job.size - 1
    x = np.random.default_rng(job.rank).normal(size=(6 + 2 * job.rank, 2)).astype("float32")
    model = simple()
    result = distlr.find_lr(
        job, model, local_data((x, x[:, :1]), 2), low=1e-30, high=1e-29, steps=9, smoothing=0.0, stop_at=99
    )
    # Every rank's loss at the weights, which do not change, over its own batches.
    losses = [float(np.mean((model(x[i : i + 2]).numpy() - x[i : i + 2, :1]) ** 2)) for i in range(0, len(x), 2)]
    all_ranks = job.communicator.gather_json([losses[i % len(losses)] for i in range(9)], tag="losses")
    np.testing.assert_allclose(result.losses, np.mean(all_ranks, axis=0), rtol=1e-5)
    same_on_all(result.to_json())

    bad = x.copy()
    bad[4:6] = np.nan if last else 1
    result = distlr.find_lr(job, model, local_data((bad, x[:, :1]), 2), low=1e-4, high=1.0, steps=9)
    assert len(same_on_all(result.losses)) == 2
    assert "the loss was nan" in same_on_all(result.stopped)
    assert int(model.optimizer.iterations.numpy()) == 0
    job.check(model)


def test_an_error_on_every_rank_puts_everything_back(job) -> None:
    model, data = build(job)
    fit(job, model, data, 1)
    model.reset_metrics()
    before = everything(model)

    def stop(number, rate, loss):
        if number == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distlr.find_lr(job, model, data, progress=stop, **SHORT)
    assert everything(model) == before
    fit(job, model, data, 1)
    job.check(model)


def test_arguments_that_differ_are_refused_on_every_rank(job, simple, local_data) -> None:
    model, data = simple(), local_data((np.ones((4, 2)), np.ones((4, 1))), 2)
    with pytest.raises(DistributionError, match=r"differ in the range test's arguments: .*\"steps\": 5"):
        distlr.find_lr(job, model, data, steps=5 + job.rank)
    with pytest.raises(DistributionError, match="differ in having a batch: rank 0 with true"):
        distlr.find_lr(job, model, data.take(2 if job.is_root else 0))


def test_a_plain_optimizer_is_averaged_by_the_strategy_or_refused(job, spans, same_on_all) -> None:
    model, data = build(job, adopt=False)
    if not spans:
        with pytest.raises(DistributionError, match="Nothing averages the gradients"):
            distlr.find_lr(job, model, data, **SHORT)
        return
    result = distlr.find_lr(job, model, data, **SHORT)
    assert result.factor == 1
    same_on_all(result.to_json())
    assert model.optimizer.learning_rate.numpy() == np.float32(0.05)


def test_where_the_schedule_is_0_every_rank_raises(job) -> None:
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 3)
    keras.utils.set_random_seed(0)
    with job.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(job.optimizer(keras.optimizers.SGD(schedule)), "mse")
    data = own_share(tf.data.Dataset.from_tensors((np.ones((2, 2), "float32"), np.ones((2, 1), "float32"))))
    with pytest.raises(ConfigurationError, match="schedule is 0 at update 4"):
        distlr.find_lr(job, model, data, steps=9)
    assert int(model.optimizer.iterations.numpy()) == 0
