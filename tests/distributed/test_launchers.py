"""Whole jobs under the real launchers: the reference script, a rank that dies, the drop-in for Horovod."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

TRAIN = ["launch/train.py", "--data", "digits", "--epochs", "12", "--patience", "3"]
GLOBAL_BATCH = 48  # two ranks of 24, three of 16


def summary_of(run_dir) -> dict:
    return json.loads((run_dir / "summary.json").read_text())


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> dict:
    """The reference script on two simulated replicas, with the same global batch and seed."""
    run_dir = tmp_path_factory.mktemp("simulated")
    subprocess.run(
        [sys.executable, *TRAIN, "--per-replica", str(GLOBAL_BATCH // 2), "--run-dir", str(run_dir)],
        env={**os.environ, "DISTLR_SIMULATE": "2"},
        check=True,
        timeout=200,
        capture_output=True,
    )
    return summary_of(run_dir)


@pytest.mark.parametrize(("launcher", "size"), [("gloo", 2), ("horovod-mpi", 2), ("mpirun", 3), ("multi-worker", 2)])
def test_the_reference_script(launching, simulated, tmp_path, launcher, size) -> None:
    options = ["--per-replica", str(GLOBAL_BATCH // size), "--run-dir", str(tmp_path)]
    finished = launching.launch(launcher, size, [*TRAIN, *options], limit=200).check()
    summary = summary_of(tmp_path)
    backend = "multi-worker" if launcher == "multi-worker" else "horovod"
    assert (summary["backend"], summary["ranks"], summary["replicas"]) == (backend, size, size)
    assert (summary["global_batch"], summary["factor"], summary["steps"]) == (GLOBAL_BATCH, 3, simulated["steps"])
    assert len(summary["weights_digests"]) == len(summary["rate_digests"]) == size
    assert len(set(summary["weights_digests"])) == len(set(summary["rate_digests"])) == 1
    assert abs(summary["test_accuracy"] - simulated["test_accuracy"]) <= 0.01 + 1e-9
    assert summary["test_accuracy"] > 0.95
    if not summary["decisions"] and not simulated["decisions"]:
        assert summary["learning_rates"] == simulated["learning_rates"]
    assert finished.output.count("[distlr] SGD: rate 0.05 x 3 (linear) = 0.15") == 1  # rank 0's line
    assert (tmp_path / "report.png").stat().st_size > 0


def test_distlr_run_starts_the_ranks(launching, tmp_path) -> None:
    options = ["--epochs", "1", "--warmup", "0ep", "--run-dir", str(tmp_path)]
    command = [sys.executable, "-m", "distlr.cli.main", "run", "-n", "2", "--backend", "horovod"]
    launching.run([*command, "launch/train.py", *options], limit=120).check()
    assert (summary_of(tmp_path)["backend"], summary_of(tmp_path)["ranks"]) == ("horovod", 2)


def test_three_backends_train_the_same(launching, tmp_path) -> None:
    """Two replicas of one process, of Horovod and of a multi-worker strategy: each rate's bits, and the weights."""
    script = "tests/distributed/scripts/twenty_steps.py"
    results = {}
    for backend in ("simulated", "gloo", "multi-worker"):
        path = tmp_path / f"{backend}.json"
        if backend == "simulated":
            command = [sys.executable, script, str(path)]
            launching.run(command, limit=100, environ={"DISTLR_SIMULATE": "2"}).check()
        else:
            launching.launch(backend, 2, [script, str(path)], limit=100).check()
        results[backend] = json.loads(path.read_text())
    expected = results["simulated"]
    assert (expected["steps"], expected["samples"]) == (20, 20 * 8)
    for backend, result in results.items():
        assert result["replicas"] == 2
        assert set(result["rate_digests"]) == set(expected["rate_digests"]), backend
        assert len(set(result["rate_digests"])) == 1
        for a, b in zip(expected["weights"], result["weights"], strict=True):
            error = np.linalg.norm(np.array(a) - np.array(b)) / np.linalg.norm(a)
            assert error < 1e-5, backend


@pytest.fixture(scope="module")
def kill_and_resume(launching, load_helper):
    """The benchmark of that name, which looks for what it shares beside itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(launching.ROOT / "benchmarks")
        yield load_helper(launching.ROOT / "benchmarks" / "kill_and_resume.py")


def test_a_killed_run_continues_bit_for_bit(kill_and_resume, capsys) -> None:
    """Killed at a random moment; over gloo at chosen ones, in `test_kills.py`."""
    result = kill_and_resume.main(["--launcher", "multi-worker", "--trials", "1", "--seed", "1"])
    assert (result["trials"], result["identical"]) == (1, 1), capsys.readouterr().err[-8000:]


@pytest.fixture
def elastic(launching, tmp_path):
    """Runs the resumable script on Horovod's elastic mode; the hosts' names are ranks of this machine."""
    hosts = tmp_path / "hosts"
    discovery = tmp_path / "discovery.sh"
    discovery.write_text(f"#!/bin/sh\ncat {hosts}\n")
    discovery.chmod(0o755)

    def run(attempt, names, epochs, watch=None):
        hosts.write_text("".join(f"{name}:1\n" for name in names))
        words = ["launch/horovodrun.sh", "--gloo", "-np", str(len(names)), "--min-np", "1", "--max-np", "2"]
        words += ["--network-interface", "lo", "--host-discovery-script", str(discovery)]
        words += ["tests/distributed/scripts/resumable.py", str(tmp_path), attempt, str(epochs)]
        return launching.run(words, limit=150, environ={"TF_NUM_INTRAOP_THREADS": "1"}, watch=watch)

    run.hosts = hosts
    return run


def test_an_elastic_job_goes_on_without_a_rank_that_is_lost(elastic, tmp_path) -> None:
    """It is lost while the other waits for it in a collective; at any other moment is the benchmark's."""
    finished = elastic("lost", ["localhost", "127.0.0.1"], 10).check()
    assert "The ranks of generation 1 are no more" in finished.output
    assert "Written on 2 replicas (batch 8, factor 2), now 1 (batch 4, factor 1, from the base)" in finished.output
    assert json.loads((tmp_path / "lost.json").read_text())["replicas"] == 1


def test_a_rank_joins_an_elastic_job(elastic, tmp_path) -> None:
    def add(ranks):
        deadline = time.monotonic() + 90
        while not (tmp_path / "checkpoints" / "step-000000000040.safetensors").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        elastic.hosts.write_text("localhost:1\n127.0.0.1:1\n")

    finished = elastic("run", ["localhost"], 35, add).check()
    assert ": other ranks join." in finished.output, finished.output[-4000:]
    assert "Written on 1 replica (batch 4, factor 1), now 2 (batch 8, factor 2, from the base)" in finished.output
    assert json.loads((tmp_path / "run.json").read_text())["replicas"] == 2
    steps = (tmp_path / "run-1.txt").read_text().splitlines()
    assert (tmp_path / "run-0.txt").read_text().splitlines()[-len(steps) :] == steps
    assert int(steps[-1].split()[0]) == 35 * 330


def test_an_error_of_the_scripts_own_ends_an_elastic_job(elastic) -> None:
    finished = elastic("fails", ["localhost", "127.0.0.1"], 20)
    assert finished.code not in (0, None), finished.output[-4000:]
    assert "ValueError: a mistake of the script's own" in finished.output
    assert finished.seconds < 60


def test_two_ranks_become_three(launching, tmp_path) -> None:
    """Killed on two ranks of Horovod, continued on three over MPI: the clock, in samples, goes on to the same end."""
    script = "tests/distributed/scripts/resumable.py"
    killer = launching.Killer(1, tmp_path / "checkpoints" / "step-000000000040.safetensors")
    launching.launch("gloo", 2, [script, str(tmp_path), "two"], limit=100, watch=killer)
    assert killer.at is not None
    finished = launching.launch("mpirun", 3, [script, str(tmp_path), "three"], limit=100).check()
    assert "Written on 2 replicas (batch 8, factor 2), now 3 (batch 12, factor 3, from the base)" in finished.output
    two, three = ((tmp_path / f"{name}-0.txt").read_text().splitlines() for name in ("two", "three"))
    clock = [int(line.split()[0]) for line in three]
    assert clock == sorted(set(clock))
    assert 41 * 8 <= clock[0] <= int(two[-1].split()[0]) + 2 * 12
    assert clock[-1] == 6 * 330
    for rank in (1, 2):
        assert (tmp_path / f"three-{rank}.txt").read_text().splitlines() == three


def test_workers_that_do_not_meet_end_with_a_reason(launching) -> None:
    """A worker of the list that never starts: the other one ends, and says which."""
    workers = "localhost:45871,localhost:45872"
    command = ["launch/tf_config.sh", "--workers", workers, "--index", "0", "tests/distributed/scripts/connects.py"]
    finished = launching.run(command, limit=60)
    assert finished.code not in (0, None)
    assert "[rank 0] The workers could not connect: rank 1 did not come" in finished.output
    assert "localhost:45872" in finished.output


def test_control_over_mpi(launching) -> None:
    """Any communicator of mpi4py; and a collective that one rank skips ends on the others, and with them the job."""
    finished = launching.launch("mpirun", 3, ["tests/distributed/scripts/mpi_communicators.py"], limit=60)
    assert finished.output.count("] all right") == 3, finished.output
    assert "waited 2 s in barrier 'without rank 1' for the other ranks of 3" in finished.output
    assert finished.code not in (0, None)
    assert finished.seconds < 30


def test_the_drop_in_for_horovods_keras_api(launching, tmp_path) -> None:
    launching.launch("gloo", 2, ["tests/distributed/scripts/horovod_script.py", str(tmp_path)], limit=200).check()
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["val_accuracy"] > 0.95
    assert result["sums"][0] == result["sums"][1]  # the ranks' weights
    # At the epochs' ends: up to 0.06 over three epochs from 0.03, then 0.06, and 0.006 from the 8th on.
    expected = [0.04, 0.05, 0.06, 0.06, 0.06, 0.06, 0.06, 0.06, 0.006, 0.006, 0.006, 0.006]
    assert result["lr"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("launcher", ["gloo", "horovod-mpi", "mpirun", "multi-worker"])
def test_a_rank_that_is_killed_ends_the_job(launching, tmp_path, launcher) -> None:
    """In mid-epoch: the job ends non-zero within a minute and says who died, and nothing is half-written."""
    killer = launching.Killer(1, tmp_path / "epochs.jsonl")
    options = ["--epochs", "500", "--per-replica", "8", "--run-dir", str(tmp_path)]
    script = ["launch/train.py", *options]
    finished = launching.launch(launcher, 2, script, limit=200, watch=killer)
    lines = (tmp_path / "epochs.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(len(lines)))
    assert not (tmp_path / "summary.json").exists()
    killer.check(finished)
    if launcher == "multi-worker":  # the others' launchers end the rank that is left at once
        assert re.search(r"\[rank 0\] .* ended because rank 1 of 2 ended", finished.output), finished.output[-4000:]


def test_a_worker_that_has_finished_before_the_others_ends_none_of_them(launching, tmp_path) -> None:
    finished = launching.launch("multi-worker", 2, ["tests/distributed/scripts/ends_first.py", str(tmp_path)]).check()
    assert "[rank 0] all done" in finished.output


def test_a_worker_that_hangs_ends_the_updates_of_the_others(launching) -> None:
    """No collective in an update has a bound of TensorFlow's: distlr's own ends it."""
    finished = launching.launch("multi-worker", 2, ["tests/distributed/scripts/uneven_loop.py", "asleep"], limit=100)
    assert finished.code not in (0, None), finished.output[-4000:]
    assert finished.seconds < 60
    assert "An update has waited for the other workers for 6 s" in finished.output, finished.output[-4000:]
    assert "[rank 0] ended with DeadlineExceededError" in finished.output, finished.output[-4000:]


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        # At distlr's next collective, at once: no watchdog is needed.
        ("uneven", "ended with DistributionError: The ranks' data ended at different batches before barrier 'done'"),
        # In a collective of the user's own, of which distlr knows nothing: the engine's watchdog.
        ("elsewhere", "ended with"),
        # Rank 1 waits for the other's data to end for as long as for any collective.
        ("much longer", "ended with"),
    ],
)
@pytest.mark.parametrize("launcher", ["gloo", "mpirun"])
def test_ranks_with_different_numbers_of_batches_end_in_a_loop_of_ones_own(launching, launcher, mode, message) -> None:
    finished = launching.launch(launcher, 2, ["tests/distributed/scripts/uneven_loop.py", mode], limit=120)
    assert finished.code not in (0, None), finished.output[-4000:]
    assert finished.seconds < 60
    for rank in (0, 1):
        assert f"[rank {rank}] {message}" in finished.output, finished.output[-4000:]
    if mode == "much longer":
        assert "If the others still trained, the ranks' data end at different batches" in finished.output
