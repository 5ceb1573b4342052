"""`distlr run`: the command that it becomes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distlr.cli import run
from distlr.cli.main import main
from distlr.errors import ConfigurationError, DistributionError
from distlr.startup.local_workers import run_workers


@pytest.fixture
def script(tmp_path) -> str:
    path = tmp_path / "train.py"
    path.write_text("import os, sys\nprint(os.environ.get('DISTLR_SIMULATE'), sys.argv[1:])\n")
    return str(path)


def test_simulated_replicas_are_one_process(script) -> None:
    words, variables = run.build_command(4, "tf", script, ["--epochs", "3"])
    assert words == [sys.executable, script, "--epochs", "3"]
    assert variables == {"DISTLR_SIMULATE": "4"}


def test_ranks_are_started_by_the_interpreters_own_horovodrun(monkeypatch, tmp_path, script) -> None:
    for name in ("python", "horovodrun"):
        (tmp_path / name).touch()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    words, variables = run.build_command(3, "horovod", script, ["-v"])
    launcher = [str(tmp_path / "horovodrun"), "--gloo", "-np", "3", "-H", "localhost:3", "--network-interface", "lo"]
    assert words == [*launcher, str(tmp_path / "python"), script, "-v"]
    assert int(variables["TF_NUM_INTRAOP_THREADS"]) >= 1


def test_workers_are_started_by_the_command_itself(script) -> None:
    words, variables = run.build_command(2, "multi-worker", script, ["-v"])
    assert words == [sys.executable, script, "-v"]
    assert int(variables["TF_NUM_INTRAOP_THREADS"]) >= 1


@pytest.mark.processes
def test_a_worker_that_fails_ends_the_others(capfd, tmp_path) -> None:
    code = """
import json, os, time
rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
os.write(1, f"worker {rank} {os.environ['DISTLR_ENGINE']}\\n".encode())  # at once: three write into one file
if rank == 1:
    raise SystemExit(7)
time.sleep(60)
"""
    start = time.monotonic()
    assert run_workers(3, [sys.executable, "-c", code], os.environ, grace=1) == 7
    assert time.monotonic() - start < 20
    output = capfd.readouterr()
    assert sorted(output.out.split("\n")[:-1]) == [f"worker {rank} multi-worker" for rank in range(3)]
    assert "process rank 1 ended with status 7" in output.err
    assert "the others did not end and are killed" in output.err


@pytest.mark.processes
def test_workers_that_all_end_well_are_a_success() -> None:
    assert run_workers(2, [sys.executable, "-c", "pass"], os.environ) == 0


def test_threads_that_the_user_set_stay(monkeypatch, tmp_path, script) -> None:
    (tmp_path / "horovodrun").touch()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert "OMP_NUM_THREADS" not in run.build_command(2, "horovod", script, [])[1]


def test_without_horovodrun_it_says_how_to_build_it(monkeypatch, tmp_path, script) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DistributionError, match=r"horovodrun is not installed.*build-horovod\.sh.*--backend tf"):
        run.build_command(2, "horovod", script, [])


@pytest.mark.parametrize(("n", "path", "argument"), [(0, "train.py", "-n"), (2, "absent.py", "script")])
def test_bad_arguments(tmp_path, n, path, argument) -> None:
    (tmp_path / "train.py").touch()
    with pytest.raises(ConfigurationError, match=f"`{argument}`"):
        run.build_command(n, "tf", str(tmp_path / path), [])


def test_an_error_is_one_line(capsys) -> None:
    assert main(["run", "-n", "2", "no/such/script.py"]) == 2
    assert capsys.readouterr().err.startswith("distlr: error: `script` must be a file.")


@pytest.mark.processes
def test_it_becomes_the_script_with_its_arguments(script) -> None:
    root = Path(__file__).resolve().parents[2]
    ended = subprocess.run(
        [sys.executable, "-m", "distlr.cli.main", "run", "-n", "2", script, "--backend", "x", "-n", "9"],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ended.stdout.splitlines()[-1] == "2 ['--backend', 'x', '-n', '9']"
