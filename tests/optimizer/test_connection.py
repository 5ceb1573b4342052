"""An optimizer that was saved by another job: all that depends on the job is of the job that it trains in."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr
from distlr import GlobalBatch
from distlr.communicators.topology import Topology
from distlr.errors import ConfigurationError, DistributionError
from distlr.optimizer import Reduction, adopt, connect

FOUR = GlobalBatch(8, replicas=4, base_batch=8)
RANKS = {"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2", "HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "2"}


def adam(**options):
    return keras.optimizers.AdamW(0.001, weight_decay=0.01, beta_1=0.9, beta_2=0.99, epsilon=1e-6, **options)


def copied(optimizer):
    return type(optimizer).from_config(optimizer.get_config())


def step(optimizer, steps=1):
    variable = keras.Variable([0.0])
    for _ in range(steps):
        optimizer.apply([tf.constant([1.0])], [variable])
    return float(variable.numpy()[0])


def test_factor_and_clock_are_those_of_where_it_trains(caplog) -> None:
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 100)
    saved = adopt(keras.optimizers.SGD(schedule), FOUR)
    loaded = copied(saved)
    assert loaded.distlr.batch == GlobalBatch(8, base_batch=8)
    assert (loaded.explain()["factor"], float(loaded.learning_rate)) == (1.0, np.float32(0.1))
    assert "saved for 4 replicas, here 1 replica: batch 32 -> 8, factor 4 -> 1." in caplog.text
    plain = keras.optimizers.SGD(schedule)  # on one device, at the base batch
    assert step(loaded, 20) == pytest.approx(step(plain, 20), rel=1e-5)
    assert loaded.samples_seen == 20 * 8


def test_what_else_is_scaled_is_scaled_from_the_base() -> None:
    line = keras.optimizers.schedules.PolynomialDecay(0.01, 10, 0.0)
    saved = adopt(
        adam(use_ema=True, ema_momentum=0.9),
        GlobalBatch(16, replicas=4, base_batch=16),
        scaling={"rule": "sqrt"},
        scale=["betas", "weight_decay", "ema"],
        weight_decay_schedule=line,
    )
    assert (saved.beta_1, saved.weight_decay, saved.ema_momentum) == pytest.approx((0.6, 0.02, 0.9**4))
    loaded = copied(saved)
    found = (loaded.beta_1, loaded.beta_2, loaded.epsilon, loaded.weight_decay, loaded.ema_momentum)
    assert found == pytest.approx((0.9, 0.99, 1e-6, 0.01, 0.9), rel=1e-12)
    assert loaded.distlr.hyperparameters.schedule_factor("weight_decay") == pytest.approx(1.0)
    connect(loaded, Topology(4, 1), None, is_root=True)  # and the way back
    found = (loaded.beta_1, loaded.beta_2, loaded.epsilon, loaded.weight_decay, loaded.ema_momentum)
    assert found == pytest.approx((0.6, 0.96, 5e-7, 0.02, 0.9**4), rel=1e-12)
    assert loaded.distlr.hyperparameters.schedule_factor("weight_decay") == pytest.approx(2.0)


def test_a_copy_in_the_same_job_is_the_same(caplog) -> None:
    saved = adopt(keras.optimizers.SGD(0.1), GlobalBatch(8, base_batch=4), reduction=Reduction(sums=True, factor=2.0))
    again = copied(saved)
    assert again.get_config() == saved.get_config()
    assert again.distlr.gradients.reduction == Reduction(sums=True, factor=2.0)
    assert "saved for" not in caplog.text


def test_a_total_stays_and_what_does_not_divide_is_refused_before_the_first_step(monkeypatch) -> None:
    saved = adopt(keras.optimizers.SGD(0.1), GlobalBatch(total=32, replicas=4, base_batch=8))
    assert copied(saved).distlr.batch == GlobalBatch(32, base_batch=8)
    monkeypatch.setenv("HOROVOD_RANK", "0")
    for name, value in (("SIZE", "3"), ("LOCAL_RANK", "0"), ("LOCAL_SIZE", "3")):
        monkeypatch.setenv(f"HOROVOD_{name}", value)
    loaded = copied(saved)  # to be used, perhaps, and not trained
    with pytest.raises(ConfigurationError, match=r"saved on 4 replicas.*cannot train on 3 replicas.*total"):
        step(loaded)
    with pytest.raises(ConfigurationError, match="cannot train on 3 replicas"):
        connect(loaded, Topology(3, 1), None, is_root=True)


def test_a_rule_that_is_known_for_one_number_alone_is_refused_for_another() -> None:
    saved = adopt(keras.optimizers.SGD(0.1), FOUR, scaling={"rule": lambda k: k**0.75})
    config = saved.get_config()
    with pytest.raises(ConfigurationError, match="known at k=4 alone"):
        step(type(saved).from_config(config))


@pytest.mark.parametrize("in_graph", [False, True])
def test_one_of_several_ranks_takes_no_step_before_a_job_connects_it(monkeypatch, in_graph) -> None:
    for name, value in RANKS.items():
        monkeypatch.setenv(name, value)
    loaded = copied(adopt(keras.optimizers.SGD(1.0), FOUR))
    assert loaded.distlr.batch.replicas == 2  # its rate reads right already
    variable = keras.Variable([0.0])
    loaded.build([variable])

    def apply(gradient):
        loaded.apply([gradient], [variable])

    apply = tf.function(apply, autograph=False) if in_graph else apply
    with pytest.raises(DistributionError, match=r"\[rank 1\].*average nothing over the 2 ranks.*job\.broadcast\("):
        apply(tf.constant([1.0]))
    assert (float(variable.numpy()[0]), int(loaded.iterations)) == (0.0, 0)

    class Mean:
        """The mean with a rank whose gradient is 2."""

        terms = ""

        def average(self, gradients, names):
            return [(gradient + 2.0) / 2.0 for gradient in gradients]

    connect(loaded, Topology(2, 1), lambda compression: Mean(), is_root=False)
    loaded.distlr.gradients.has_rank_zero_state = True
    apply(tf.constant([1.0]))
    assert float(variable.numpy()[0]) == -2 * 1.5  # at the factor of two replicas


def test_what_averages_by_itself_needs_no_job(monkeypatch) -> None:
    for name, value in RANKS.items():
        monkeypatch.setenv(name, value)
    saved = adopt(keras.optimizers.SGD(1.0), FOUR, reduction=Reduction(exchange=False))
    loaded = copied(saved)
    assert step(loaded) == -2.0
    connect(loaded, Topology(2, 1), lambda compression: pytest.fail("exchanged"), is_root=True)


def test_an_optimizer_of_one_job_is_not_taken_by_another() -> None:
    optimizer = adopt(keras.optimizers.SGD(0.1), FOUR)
    with pytest.raises(DistributionError, match=r"of a job of 4 replicas.*this job has 2 replicas.*Fix: make"):
        connect(optimizer, Topology(2, 1), None, is_root=True)


def test_an_optimizer_that_was_loaded_is_not_adopted_once_more() -> None:
    job = distlr.init(environ={})
    loaded = copied(adopt(keras.optimizers.SGD(0.1), FOUR))
    with pytest.raises(ConfigurationError, match=r"came with a saved model.*Fix: leave it.*distlr\.strip\(model\)"):
        job.optimizer(loaded)


def test_a_model_of_four_replicas_goes_on_in_a_job_of_one(tmp_path, caplog) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(adopt(keras.optimizers.SGD(0.01), FOUR), "mse")
    model.save(tmp_path / "m.keras")
    job = distlr.init(environ={})
    with job.scope():
        loaded = keras.models.load_model(tmp_path / "m.keras")
    batch = job.batch(per_replica=8, base_batch=8)
    x = np.ones((32, 2), "float32")
    loaded.fit(job.shard((x, x[:, :1]), batch, seed=0), verbose=0, shuffle=False, callbacks=job.callbacks())
    assert loaded.optimizer.samples_seen == 32
    assert job.explain()["factor"] == 1.0
    assert "SGD: rate 0.01 x 1 (linear) = 0.01; batch 8 x 1 = 8 on 1 replica" in caplog.text


def test_the_sum_of_backward_passes_is_in_the_config() -> None:
    saved = adopt(keras.optimizers.SGD(1.0, gradient_accumulation_steps=2), reduction=Reduction(factor=2.0))
    loaded, variable = copied(saved), keras.Variable([0.0])
    for gradient in (1.0, 2.0):
        loaded.apply([tf.constant([gradient])], [variable])
    assert float(variable.numpy()[0]) == -3.0


def test_a_sum_over_ranks_is_the_mean_times_their_number() -> None:
    sparse = tf.IndexedSlices(tf.constant([[1.0]]), tf.constant([3]), tf.constant([5, 1]))
    dense, none, rows = Reduction(sums=True, factor=2.0).applied([tf.constant([1.0]), None, sparse], ranks=3)
    assert (dense.numpy().tolist(), none, rows.values.numpy().tolist()) == ([6.0], None, [[6.0]])
    assert Reduction().applied([sparse], ranks=3) == [sparse]


def test_a_config_of_an_earlier_version_is_the_mean() -> None:
    config = adopt(keras.optimizers.SGD(0.1)).get_config()
    assert config.pop("reduction") == {}
    assert adopt(keras.optimizers.SGD(0.1)).from_config(config).distlr.gradients.reduction == Reduction()


def test_a_schedule_that_was_scaled_for_another_number_is_said(caplog) -> None:
    job = distlr.init(environ={})
    for rate in (distlr.scale(0.1, FOUR), distlr.scale(0.1, GlobalBatch(total=32, replicas=4, base_batch=8))):
        plain = keras.optimizers.SGD.from_config(keras.optimizers.SGD(rate).get_config())
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(plain, "mse")
        job.audit().set_model(model)
    assert caplog.text.count("is scaled for 4 replicas: for the batch of 32, by 4. Here are 1 replica.") == 1
