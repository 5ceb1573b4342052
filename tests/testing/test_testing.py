"""The helpers of distlr for users' own tests."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import keras
import numpy as np
import pytest

import distlr
from distlr import GlobalBatch, scale
from distlr.errors import CollectiveTimeoutError, ConfigurationError, ConfigurationTypeError
from distlr.testing import assert_rates, run_ranks

ROOT = Path(__file__).resolve().parents[2]
SHAPES = keras.optimizers.schedules
BATCH = GlobalBatch(64, replicas=4, base_batch=64, samples_per_epoch=6400, duration="10ep")


# -- ranks as threads --------------------------------------------------------------------------------------


def test_run_ranks_gives_every_ranks_result_in_order():
    assert run_ranks(lambda comm: (comm.rank, comm.size, comm.allreduce(comm.rank, tag="sum").item()), 3) == [
        (0, 3, 3),
        (1, 3, 3),
        (2, 3, 3),
    ]


def test_a_missing_collective_times_out_and_is_named():
    done = threading.Event()

    def fn(comm):
        if comm.rank == 1:
            done.wait(10)
            return
        try:
            comm.allreduce(1.0, tag="validation metrics")
        finally:
            done.set()

    with pytest.raises(CollectiveTimeoutError, match=r"rank 1 did not arrive.*allreduce 'validation metrics'") as info:
        run_ranks(fn, 3, timeout=0.2)
    assert "within 0.2 s" in str(info.value)


def pytest_in(folder, *arguments):
    """Runs pytest in a process of its own, in which the plugin is found as where distlr is installed."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "distlr.testing.plugin", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.processes
def test_the_fixture_runs_ranks_and_fails_a_test_that_leaves_one_running(tmp_path):
    (tmp_path / "test_users.py").write_text(
        textwrap.dedent(
            """
            import sys
            import threading

            import pytest


            def test_the_ranks_agree(distlr_ranks):
                assert distlr_ranks(lambda comm: comm.allreduce(comm.rank, tag="sum").item(), 3) == [3, 3, 3]
                assert not {"tensorflow", "keras"} & set(sys.modules), "the plugin is not light"


            def test_a_rank_is_left_behind(distlr_ranks):
                def fn(comm):
                    if comm.rank == 1:
                        threading.Event().wait()
                with pytest.raises(RuntimeError, match="had not ended"):
                    distlr_ranks(fn, 2, timeout=0.1, limit=0.2)
            """
        )
    )
    ended = pytest_in(tmp_path, "-q", "-W", "error")
    assert "2 passed, 1 error" in ended.stdout, ended.stdout + ended.stderr
    assert "The test left ranks running: distlr-rank-1." in ended.stdout
    assert ended.returncode == 1
    assert "distlr_ranks" in pytest_in(tmp_path, "--fixtures").stdout


def test_pytest_finds_the_plugin_where_distlr_is_installed():
    try:
        importlib.metadata.distribution("distlr")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("distlr is not installed here, only importable")
    (plugin,) = importlib.metadata.entry_points(group="pytest11", name="distlr")
    assert plugin.load().distlr_ranks is not None


def test_the_module_is_light():
    code = "import sys, distlr.testing; print(sorted({'pytest', 'keras', 'tensorflow'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True, timeout=60) == "[]\n"


# -- rates -------------------------------------------------------------------------------------------------


def test_a_scaled_schedule():
    schedule = scale(0.1, BATCH, warmup="5ep")
    assert_rates(
        schedule,
        BATCH,
        {
            "0ep": 0.1,
            "2.5ep": 0.25,
            "5ep": 0.4,
            "10ep": 0.4,
            "50ba": 0.22,
            "100ba": 0.34,
            "3200sp": 0.13,
            "0.1dur": 0.16,
        },
    )


@pytest.mark.parametrize("clock", ["samples", "steps"])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_it_agrees_with_what_keras_asks_for_at_every_update(clock, accumulation):
    """With an epoch that its updates do not divide, and steps within an update."""
    batch = GlobalBatch(7, replicas=3, base_batch=5, accumulation=accumulation, samples_per_epoch=1003)
    schedule = scale(SHAPES.CosineDecay(0.1, 900), batch, warmup="1ep", clock=clock)
    expected = {f"{update}ba": float(schedule(update * accumulation)) for update in range(0, 60, 7)}
    assert_rates(schedule, batch, expected, rtol=2e-7)


def test_a_plain_schedule_is_asked_in_base_steps():
    schedule = SHAPES.PiecewiseConstantDecay([250], [0.1, 0.01])
    assert_rates(schedule, BATCH, {"2.5ep": 0.1, "63ba": 0.01, "16001sp": 0.01})


@pytest.mark.parametrize("clock", ["samples", "steps"])
def test_an_optimizer_with_its_multiplier_and_untouched(clock):
    job = distlr.init(environ={})
    batch = job.batch(64, base_batch=16, samples_per_epoch=1003, duration="9ep")
    optimizer = job.optimizer(
        keras.optimizers.SGD(SHAPES.PolynomialDecay(0.1, 600, 0.01), momentum=0.9), batch, warmup="2ep", clock=clock
    )
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer, loss="mse")
    model.fit(np.ones((128, 2)), np.ones((128, 1)), batch_size=64, verbose=0)
    optimizer.multiply_rate(0.5)
    before = [np.copy(variable.numpy()) for variable in [*optimizer.variables, *model.weights]]
    updates = 1003 // 64

    def by_hand(update):
        t = (update // updates * 1003 + update % updates * 1003 // updates) / 16 if clock == "samples" else update
        share = (
            0.25 + 0.75 * min(update / (2 * updates), 1) if clock == "steps" else 0.25 + 0.75 * min(t * 16 / 2006, 1)
        )
        return (0.09 * (1 - min(t / 600, 1)) + 0.01) * 4 * share * 0.5

    assert_rates(optimizer, batch, {f"{update}ba": by_hand(update) for update in (0, 2, 10, 29, 30, 31, 100)})
    for value, variable in zip(before, [*optimizer.variables, *model.weights], strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    # And it is what the optimizer will apply next.
    assert_rates(optimizer, batch, {"2ba": float(optimizer.learning_rate)})


def test_an_optimizer_inside_loss_scaling():
    job = distlr.init(environ={})
    batch = job.batch(64, base_batch=16)
    optimizer = job.optimizer(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)), batch)
    assert_rates(optimizer, batch, {"0ba": 0.4, "1000ba": 0.4})


def test_an_optimizer_without_a_batch_counts_keras_steps():
    job = distlr.init(environ={})
    optimizer = job.optimizer(keras.optimizers.SGD(SHAPES.PolynomialDecay(0.1, 100, 0.0)))
    assert_rates(optimizer, job.batch(64, base_batch=16, accumulation=2), {"0ba": 0.1, "25ba": 0.05, "50ba": 0.0})


def test_a_failure_is_a_table():
    schedule = scale(SHAPES.PolynomialDecay(0.1, 1000, 0.0), BATCH)
    with pytest.raises(AssertionError) as info:
        assert_rates(schedule, BATCH, {"0ep": 0.4, "5ep": 0.1, "10ep": 0.4, "9ep": 0})
    assert str(info.value) == textwrap.dedent(
        """\
        The rate is another one at 3 of 4 durations (rtol=1e-06):
          duration  expected  found  ratio
          0ep       0.4       0.4    1
          5ep       0.1       0.2    2      <--
          10ep      0.4       0      0      <--
          9ep       0         0.04   -      <--"""
    )


@pytest.mark.parametrize(("off", "rtol", "passes"), [(0.9e-6, 1e-6, True), (1.1e-6, 1e-6, False), (1e-3, 1e-2, True)])
def test_the_tolerance_is_relative(off, rtol, passes):
    for sign in (1, -1):
        expected = {"0ep": 0.4 * (1 + sign * off)}
        if passes:
            assert_rates(scale(0.1, BATCH), BATCH, expected, rtol=rtol)
        else:
            with pytest.raises(AssertionError, match="1 of 1"):
                assert_rates(scale(0.1, BATCH), BATCH, expected, rtol=rtol)


def test_an_expected_zero_must_be_zero():
    assert_rates(scale(SHAPES.PolynomialDecay(0.1, 1000, 0.0), BATCH), BATCH, {"10ep": 0})
    with pytest.raises(AssertionError):
        assert_rates(scale(1e-9, BATCH), BATCH, {"10ep": 0})


def test_another_batch_than_the_targets_is_refused():
    with pytest.raises(ConfigurationError, match=r"`batch` must be that of the target.*replicas=4.*replicas=2"):
        assert_rates(scale(0.1, BATCH), BATCH.replace(replicas=2), {"0ep": 0.1})


def test_a_plain_optimizer_is_refused():
    with pytest.raises(ConfigurationTypeError, match=r"`target`.*pass its schedule, or adopt it"):
        assert_rates(keras.optimizers.SGD(0.1), BATCH, {"0ep": 0.1})
