"""The front door: where the job runs, what it says about itself, and a loop without `fit`."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr
from distlr.callbacks import (
    CheckMetrics,
    DataPositionSync,
    LearningRateLogger,
    NonFiniteGuard,
    PreflightCheck,
    SyncStatistics,
)
from distlr.communicators import SingleCommunicator, ThreadCommunicator
from distlr.errors import ConfigurationError, DistributionError
from distlr.job import Job
from distlr.start import ENGINE, SIMULATE
from distlr.strategies import simulated
from distlr.testing import run_ranks

ROOT = Path(__file__).resolve().parents[1]
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


@pytest.fixture(scope="module")
def mirrored(four_cpus):
    return simulated(len(four_cpus))


@pytest.fixture(scope="module")
def four(mirrored):
    return distlr.init(strategy=mirrored, environ={})


# -- where it runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "environ", "backend", "replicas"),
    [
        ({}, {}, "local", 1),
        ({}, {SIMULATE: ""}, "local", 1),
        ({}, {SIMULATE: "2"}, "simulated", 2),
        ({"simulate": 3}, {}, "simulated", 3),
        ({"simulate": 3}, {SIMULATE: "2"}, "simulated", 3),
        ({"simulate": 1}, {SIMULATE: "2"}, "simulated", 1),
    ],
)
def test_the_simulation_asked_for_comes_before_the_environment(four_cpus, options, environ, backend, replicas):
    job = distlr.init(**options, environ=environ)
    assert (job.backend, job.replicas, job.local_replicas, job.size, job.rank) == (backend, replicas, replicas, 1, 0)
    assert job.is_root


def test_a_strategy_comes_before_the_environment(mirrored):
    job = distlr.init(strategy=mirrored, environ={SIMULATE: "2"})
    assert (job.backend, job.replicas) == ("tf.distribute", 4)
    assert job.strategy is mirrored


def test_the_environment_is_that_of_the_process_unless_another_is_given(four_cpus, monkeypatch):
    monkeypatch.setenv(SIMULATE, "2")
    assert distlr.init().replicas == 2
    assert distlr.init(environ={}).replicas == 1


TWO_WORKERS = json.dumps(
    {"cluster": {"worker": ["localhost:1", "localhost:45901"]}, "task": {"type": "worker", "index": 1}}
)


@pytest.mark.parametrize(
    ("environ", "options", "each"),
    [
        (
            OPEN_MPI,
            {},
            "mpirun .* without an engine that connects them .*Horovod cannot be loaded.*docker/build-horovod",
        ),
        ({**OPEN_MPI, SIMULATE: "4"}, {}, "mpirun .*simulate 4 replicas in each"),
        (OPEN_MPI, {"simulate": 4}, "mpirun .*simulate 4 replicas in each"),
        ({"TF_CONFIG": TWO_WORKERS}, {"simulate": 4}, "tf_config .*simulate 4 replicas in each"),
    ],
)
def test_several_processes_without_an_engine_are_refused(monkeypatch, environ, options, each):
    monkeypatch.setitem(sys.modules, "horovod.tensorflow", None)  # as where it is not installed
    with pytest.raises(DistributionError, match=rf"\[rank 1\] {each}") as info:
        distlr.init(environ=environ, **options)
    assert "2 separate trainings" in str(info.value)


@pytest.mark.parametrize(
    ("environ", "options", "error", "message"),
    [
        ({ENGINE: "gloo"}, {}, ConfigurationError, "`engine`.*'horovod', 'mpi', 'multi-worker'"),
        ({ENGINE: "multi-worker"}, {}, DistributionError, "neither TF_CONFIG nor Slurm names them.*tf_config.sh"),
        ({}, {"workers": ["a:1", "a:1"]}, ConfigurationError, "stands twice"),
        ({}, {"workers": ["a:1", "b:1"]}, DistributionError, "Which worker is this process"),
        ({}, {"workers": ["a:1"], "engine": "horovod"}, ConfigurationError, "`workers` must be alone"),
        ({}, {"workers": ["a:1"], "simulate": 2}, ConfigurationError, "`workers` must be alone"),
        (OPEN_MPI, {"workers": ["a:1"]}, DistributionError, "started 2 processes and `workers` has 1"),
    ],
)
def test_workers_that_cannot_be_known_are_refused(environ, options, error, message):
    with pytest.raises(error, match=message):
        distlr.init(**options, environ=environ)


def test_workers_that_do_not_come_are_an_error_within_the_time():
    with pytest.raises(DistributionError, match=r"\[rank 1\] The workers could not connect: rank 0 cannot be reached"):
        distlr.init(environ={"TF_CONFIG": TWO_WORKERS}, timeout=0.5)


def test_a_strategy_in_several_processes_is_refused(mirrored):
    with pytest.raises(DistributionError, match="each would train with a strategy of its own: 2 separate"):
        distlr.init(strategy=mirrored, environ=OPEN_MPI)


def test_an_engine_that_sees_other_ranks_than_the_launcher_started_is_refused(monkeypatch):
    """This is the case under `srun --mpi=none`, which starts separate jobs of one rank that all end with 0."""
    monkeypatch.setattr("distlr.communicators.engines._start", lambda *_: SingleCommunicator())
    with pytest.raises(DistributionError, match=r"mpirun started 2 processes and horovod sees 1.*2 separate trainings"):
        distlr.init(environ=OPEN_MPI)


def test_a_launcher_that_started_one_process_is_no_launcher(four_cpus):
    one = {name: str(int(name.endswith("SIZE"))) for name in OPEN_MPI}
    assert distlr.init(environ=one).backend == "local"
    assert distlr.init(environ={**one, SIMULATE: "2"}).replicas == 2


def test_a_simulation_that_comes_too_late_says_so(four_cpus):
    with pytest.raises(DistributionError, match=r"8 logical CPUs, and TensorFlow has started with 4\. Fix: "):
        distlr.init(simulate=8, environ={})


@pytest.mark.processes
def test_a_simulation_of_a_fresh_process_has_its_devices():
    code = """
import distlr, tensorflow as tf
job = distlr.init()
per_replica = job.run(tf.function(lambda: tf.distribute.get_replica_context().replica_id_in_sync_group))
print(job.backend, job.replicas, [int(value) for value in job.strategy.experimental_local_results(per_replica)])
"""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, SIMULATE: "3", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ended.stdout.splitlines()[-1] == "simulated 3 [0, 1, 2]"


def test_a_second_job_in_the_process_does_not_meet_the_first_ones_collectives(four_cpus):
    """A notebook's cell may be run again: plain MirroredStrategy fails, 'Shape mismatch in the collective'."""

    def total(length):
        job = distlr.init(simulate=2, environ={})
        step = tf.function(lambda: tf.distribute.get_replica_context().all_reduce("SUM", tf.ones(length)))
        return job.strategy.experimental_local_results(tf.function(lambda: job.run(step))())[0].numpy().tolist()

    assert [total(3), total(5), total(4)] == [[2.0] * 3, [2.0] * 5, [2.0] * 4]


# -- what it says ------------------------------------------------------------------------------------------


def test_the_start_line_and_the_explanation(caplog):
    job = distlr.init(environ={})
    batch = job.batch(64, base_batch=16, samples_per_epoch=6400, duration="90ep")
    with caplog.at_level(logging.INFO, logger="distlr"):
        job.optimizer(keras.optimizers.SGD(0.1), batch, warmup="5ep", rule="sqrt")
    assert [record.getMessage() for record in caplog.records] == [
        "SGD: rate 0.1 x 2 (sqrt) = 0.2; batch 16 x 4 = 64 on 1 replica (local); warmup over 5 epochs = 500 updates "
        "from x0.5; the schedule counts in samples (base steps)."
    ]
    parts = json.loads(json.dumps(job.explain(), allow_nan=False))
    expected = {"backend": "local", "ranks": 1, "replicas": 1, "rule": "sqrt", "factor": 2.0, "ratio": 4}
    assert {name: parts[name] for name in expected} == expected
    assert parts["learning_rate"] == pytest.approx(0.1)
    assert parts["peak_rate"] == pytest.approx(0.2)
    assert parts["warmup"]["updates"] == 500


def test_the_start_line_without_a_batch(caplog):
    job = distlr.init(environ={})
    assert job.explain() == {"backend": "local", "ranks": 1, "replicas": 1}
    with caplog.at_level(logging.INFO, logger="distlr"):
        job.optimizer(keras.optimizers.Adam())
    assert "Adam: the rate is not scaled (no batch was given)" in caplog.text
    json.dumps(job.explain(), allow_nan=False)


@pytest.mark.parametrize("options", [{}, {"warmup": "2ep"}, {"rule": lambda k: k**0.3}, {"clock": "steps"}])
@pytest.mark.parametrize("samples", [None, 1003])
def test_every_explanation_is_json(options, samples):
    if samples is None and "warmup" in options:
        options = {"warmup": "20ba"}
    job = distlr.init(environ={})
    batch = job.batch(24, base_batch=16, samples_per_epoch=samples)
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 900)
    job.optimizer(keras.optimizers.SGD(schedule), batch, **options)
    explained = json.loads(json.dumps(job.explain(), allow_nan=False))
    assert (explained["optimizer"], explained["global_batch"], explained["ratio"]) == ("SGD", 24, 1.5)


def test_the_start_line_is_that_of_rank_0(caplog, monkeypatch):
    monkeypatch.setattr(ThreadCommunicator, "exchanges_gradients", True)
    monkeypatch.setattr(ThreadCommunicator, "gradients", lambda *_: None)

    def fn(comm):
        job = Job(tf.distribute.get_strategy(), "threads", comm)
        assert job.is_root == (comm.rank == 0)
        assert (job.rank, job.size, job.replicas) == (comm.rank, 3, 3)
        batch = job.batch(8, base_batch=8, samples_per_epoch=240)
        assert (batch.replicas, batch.local_replicas, batch.ratio) == (3, 1, 3)
        job.optimizer(keras.optimizers.SGD(0.1), batch)

    with caplog.at_level(logging.INFO, logger="distlr"):
        run_ranks(fn, 3)
    assert len(caplog.records) == 1
    assert "on 3 replicas" in caplog.text


def test_an_engine_that_averages_nothing_takes_no_optimizer():
    """The communicator over MPI, and threads, are for control alone."""

    def fn(comm):
        with pytest.raises(DistributionError, match=r"Nothing would average the gradients of 2 ranks: the mpi"):
            Job(tf.distribute.get_strategy(), "mpi", comm).optimizer(keras.optimizers.SGD(0.1))
        return True

    assert run_ranks(fn, 2) == [True, True]


# -- ranks -------------------------------------------------------------------------------------------------


def test_broadcast_gives_every_rank_rank_0s_weights_and_optimizer():
    def build(rank):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.BatchNormalization()])
        optimizer = keras.optimizers.SGD(0.1 * (rank + 1), momentum=0.9)
        optimizer.build(model.trainable_variables)
        for number, variable in enumerate([*model.weights, *optimizer.variables]):
            variable.assign(tf.fill(variable.shape, tf.cast(10 * rank + number, variable.dtype)))
        return model, optimizer

    built = [build(rank) for rank in range(3)]
    expected = [np.copy(variable.numpy()) for variable in [*built[0][0].weights, *built[0][1].variables]]

    def fn(comm):
        model, optimizer = built[comm.rank]
        Job(tf.distribute.get_strategy(), "threads", comm).broadcast(model, optimizer)

    run_ranks(fn, 3)
    for model, optimizer in built:
        for value, variable in zip(expected, [*model.weights, *optimizer.variables], strict=True):
            np.testing.assert_array_equal(variable.numpy(), value)
    assert int(built[2][1].iterations.numpy()) == int(expected[6])


def test_the_digests_of_ranks_that_drifted_apart_differ():
    models = [keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]) for _ in range(3)]
    for model in models:
        model.set_weights([np.ones((2, 1)), np.zeros(1)])
    models[2].layers[-1].bias.assign([1e-7])

    def fn(comm):
        return Job(tf.distribute.get_strategy(), "threads", comm).weights_digests(models[comm.rank])

    digests = run_ranks(fn, 3)
    assert digests[0] == digests[1] == digests[2]
    assert digests[0][0] == digests[0][1] != digests[0][2]


# -- callbacks, evaluate, result ---------------------------------------------------------------------------


def test_callbacks_adds_the_audit_and_the_logger_and_orders_all(four):
    class Own(keras.callbacks.Callback):
        pass

    plateau, saver, other = distlr.callbacks.ReduceLROnPlateau(), keras.callbacks.BackupAndRestore("unused"), Own()
    single = distlr.init(environ={}).callbacks([saver, other, plateau])
    assert [type(callback) for callback in single[:4]] == [
        PreflightCheck,
        DataPositionSync,
        LearningRateLogger,
        NonFiniteGuard,
    ]
    assert single[4:] == [other, plateau, saver]
    assert [type(callback) for callback in four.callbacks()] == [
        PreflightCheck,
        DataPositionSync,
        SyncStatistics,
        CheckMetrics,
        LearningRateLogger,
        NonFiniteGuard,
    ]
    logger = LearningRateLogger()
    assert [callback for callback in single if isinstance(callback, LearningRateLogger)] != [logger]
    assert four.callbacks([logger]).count(logger) == 1
    assert sum(isinstance(callback, LearningRateLogger) for callback in four.callbacks([logger])) == 1


def test_callbacks_know_the_jobs_ranks():
    def fn(comm):
        job = Job(tf.distribute.get_strategy(), "threads", comm)
        return [callback.communicator is comm for callback in job.callbacks([distlr.callbacks.ReduceLROnPlateau()])]

    for known in run_ranks(fn, 2):
        assert len(known) == 9
        assert all(known)


def test_result_reads_metrics_by_name(four):
    with four.scope():
        mean, accuracy = keras.metrics.Mean("loss"), keras.metrics.BinaryAccuracy(name="accuracy")

    @tf.function
    def step():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        mean.update_state(tf.cast(replica, tf.float32), sample_weight=tf.cast(replica, tf.float32))
        accuracy.update_state([1.0, 1.0], [1.0, tf.cast(replica > 1, tf.float32)])

    four.run(step)
    # Replicas 0 to 3, each weighted by itself: (0 + 1 + 4 + 9) / 6.
    assert four.result([mean, accuracy]) == pytest.approx({"loss": 14 / 6, "accuracy": 6 / 8})


def test_result_of_a_metric_of_several_values_is_an_array():
    f1 = keras.metrics.F1Score(average=None, threshold=0.5, name="f1")
    f1.update_state([[1.0, 0.0], [0.0, 1.0]], [[0.9, 0.9], [0.1, 0.9]])
    result = distlr.init(environ={}).result([f1, keras.metrics.Mean(name="mean")])
    np.testing.assert_allclose(result["f1"], [1.0, 2 / 3], rtol=1e-6)
    assert result["mean"] == 0.0


# -- a loop of one's own -----------------------------------------------------------------------------------


def linear_model():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="tanh"), keras.layers.Dense(1)])
    random = np.random.default_rng(0)
    model.set_weights([random.normal(size=weight.shape) for weight in model.weights])
    return model


def train(job, per_replica, steps=5):
    """Five steps of SGD with momentum and warmup in a loop of one's own; the samples in order."""
    random = np.random.default_rng(1)
    x, y = random.normal(size=(steps * 32, 3)).astype("float32"), random.normal(size=(steps * 32, 1)).astype("float32")
    batch = job.batch(per_replica, base_batch=8, samples_per_epoch=len(x))
    with job.scope():
        model = linear_model()
        plain = keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.05, 40), momentum=0.9)
        optimizer = job.optimizer(plain, batch, warmup="3ba")
        optimizer.build(model.trainable_variables)
        seen = keras.metrics.Mean("loss")

    def step(x, y):
        with tf.GradientTape() as tape:
            losses = keras.ops.square(model(x, training=True) - y)[:, 0]
            loss = job.mean_loss(losses, batch)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        seen.update_state(losses)

    @tf.function
    def run(x, y):
        job.run(step, x, y)

    rates = []
    for samples in job.distribute(job.shard((x, y), batch, shuffle=False)):
        rates.append(float(optimizer.learning_rate))
        run(*samples)
    return model, optimizer, rates, job.result([seen])


@pytest.mark.replicas
def test_a_loop_of_ones_own_on_four_replicas_is_the_big_batch_on_one_device(four):
    model, optimizer, rates, result = train(four, 8)
    single, single_optimizer, expected_rates, expected = train(distlr.init(environ={}), 32)
    assert len(rates) == 5
    assert rates == expected_rates
    assert len(set(rates)) == 5
    for weight, other in zip(model.get_weights(), single.get_weights(), strict=True):
        np.testing.assert_allclose(weight, other, atol=1e-5, rtol=0)
    moved = [np.abs(a - b).max() for a, b in zip(model.get_weights(), linear_model().get_weights(), strict=True)]
    assert min(moved) > 0.01
    assert optimizer.samples_seen == single_optimizer.samples_seen == 160
    assert result == pytest.approx(expected, rel=1e-5)
    assert len(set(four.weights_digests(model))) == 1
    assert len(four.rate_digests(optimizer)) == 4
    assert len(set(four.rate_digests(optimizer))) == 1


def test_evaluate_gives_the_value_of_all_data(four):
    x, y = np.random.default_rng(2).normal(size=(2, 37, 3)).astype("float32")
    y = y[:, :1]
    with four.scope():
        model = linear_model()
        model.compile(loss="mse", weighted_metrics=["mae"], jit_compile=False)
    error = model.predict(x, verbose=0) - y
    result = four.evaluate(model, four.shard((x, y), four.batch(4, base_batch=4), training=False))
    assert result == pytest.approx({"loss": np.mean(error**2), "mae": np.mean(np.abs(error))}, rel=1e-5)


def test_an_optimizer_outside_the_scope_is_refused(four):
    with pytest.raises(
        DistributionError, match=r"`optimizer` must be adopted.*_DefaultDistributionStrategy.*inside `with job\.scope"
    ):
        four.optimizer(keras.optimizers.SGD(0.1))
