"""The Slurm script, for real, on the one node that `.ci/slurm` makes of this machine."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]

TRAIN = ["launch/train.py", "--data", "digits", "--epochs", "3"]


def batch(launching, tmp_path, script, *, limit: float = 120, watch=None, **environ: str):
    """Submits the script of `launch/` with two tasks and waits for it; its output comes with what ended."""
    output = tmp_path / "job.out"
    # `--overcommit`: there may be fewer cores than tasks.
    options = [
        "--wait",
        "--ntasks=2",
        "--overcommit",
        "--cpus-per-task=1",
        f"--output={output}",
        f"--time={limit // 60 + 1:.0f}",
    ]
    finished = launching.run(
        ["sbatch", *options, "launch/slurm.sbatch", *script], limit=limit, environ=environ, watch=watch
    )
    text = output.read_text() if output.exists() else ""
    return launching.Finished(finished.code, finished.output + text, finished.seconds)


@pytest.mark.parametrize("engine", ["horovod", "multi-worker"])
def test_the_reference_script(launching, tmp_path, engine) -> None:
    batch(launching, tmp_path, [*TRAIN, "--run-dir", str(tmp_path)], DISTLR_ENGINE=engine).check()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["backend"], summary["ranks"], summary["factor"]) == (engine, 2, 2)
    assert len(set(summary["weights_digests"])) == len(set(summary["rate_digests"])) == 1
    assert len(summary["weights_digests"]) == 2
    assert summary["test_accuracy"] > 0.9


def test_tasks_with_a_world_of_their_own_are_refused(launching, tmp_path) -> None:
    """Without PMIx each task's MPI has one rank: as shipped, n separate trainings that all end with 0."""
    finished = batch(launching, tmp_path, [*TRAIN, "--run-dir", str(tmp_path)], DISTLR_SRUN_MPI="none")
    assert finished.code not in (0, None), finished.output
    assert "srun started 2 processes and horovod sees 1, so there would be 2 separate trainings" in finished.output
    assert "srun --mpi=pmix" in finished.output
    assert not (tmp_path / "summary.json").exists()


def test_a_task_that_is_killed_ends_the_job(launching, tmp_path) -> None:
    killer = launching.Killer(1, tmp_path / "epochs.jsonl")
    script = ["launch/train.py", "--epochs", "500", "--per-replica", "8", "--run-dir", str(tmp_path)]
    finished = batch(launching, tmp_path, script, limit=200, watch=killer)
    killer.check(finished)


def test_a_batch_script_outside_a_step_is_one_process(tmp_path) -> None:
    """SLURM_NTASKS is 2 in the batch script itself, which is a single process."""
    code = "import os; from distlr.communicators import detect; print(os.environ['SLURM_NTASKS'], detect(os.environ))"
    script = tmp_path / "one.sbatch"
    script.write_text(f'#!/bin/bash\n{sys.executable} -c "{code}"\n')
    output = tmp_path / "one.out"
    command = ["sbatch", "--wait", "--ntasks=2", "--overcommit", f"--output={output}", str(script)]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    assert output.read_text().split() == ["2", "None"]
