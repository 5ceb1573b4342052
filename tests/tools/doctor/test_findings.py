"""The findings on a machine, as functions of the answers: their statuses and their advice."""

from __future__ import annotations

import os
import sys
import time

import pytest

from distlr.tools.doctor import connections as engines
from distlr.tools.doctor import machine, two_ranks
from distlr.tools.doctor.processes import Ended, run, without_launcher


def exited(text: str, code: int | None = 0) -> Ended:
    return Ended(code, text, "")


@pytest.mark.parametrize(
    ("version", "status"), [((3, 9), "error"), ((3, 10), "OK"), ((3, 13), "OK"), ((3, 14), "warning")]
)
def test_python(version, status) -> None:
    finding = machine.python(version)
    assert finding.status == status
    assert finding.found.startswith("{}.{}".format(*version))
    assert bool(finding.to_do) == (status != "OK")


@pytest.mark.parametrize(
    ("probed", "status", "words", "to_do"),
    [
        ({}, "error", "not installed", "distlr[cpu]"),
        ({"error": "ImportError: libx.so"}, "error", "ImportError: libx.so", "distlr[cpu]"),
        ({"version": "2.15.1", "cuda": True}, "error", "older than distlr's oldest, 2.16", "2.16 to 2.21"),
        ({"version": "2.16.0", "cuda": True}, "OK", "with CUDA", ""),
        ({"version": "2.21.0-rc1", "cuda": False}, "OK", "without CUDA", ""),
        ({"version": "2.22.0", "cuda": False}, "warning", "newer", "tensorflow>=2.16,<2.22"),
        ({"version": "3.0", "cuda": False}, "warning", "newer", "<2.22"),
    ],
)
def test_tensorflow(probed, status, words, to_do) -> None:
    finding = machine.tensorflow(probed)
    assert finding.status == status
    assert words in finding.found
    assert to_do in finding.to_do


@pytest.mark.parametrize(
    ("probed", "status", "words", "to_do"),
    [
        ({}, "error", "not installed", "keras>=3"),
        ({"error": "No module named 'jax'"}, "error", "No module named 'jax'", "KERAS_BACKEND=tensorflow"),
        ({"version": "2.15.0", "backend": "tensorflow"}, "error", "needs Keras 3", "keras>=3"),
        ({"version": "3.15.1", "backend": "torch"}, "error", "on torch", "KERAS_BACKEND=tensorflow"),
        ({"version": "3.0.0", "backend": "tensorflow"}, "OK", "3.0.0", ""),
    ],
)
def test_keras(probed, status, words, to_do) -> None:
    finding = machine.keras(probed)
    assert finding.status == status
    assert words in finding.found
    assert to_do in finding.to_do


@pytest.mark.parametrize(
    ("value", "status"), [(None, "OK"), ("", "OK"), ("0", "OK"), ("False", "OK"), ("1", "warning"), ("true", "warning")]
)
@pytest.mark.parametrize("installed", [False, True])
def test_legacy_keras(value, installed, status) -> None:
    environ = {} if value is None else {"TF_USE_LEGACY_KERAS": value}
    assert machine.legacy_keras(environ, installed).status == status


WITH_CUDA, WITHOUT = {"version": "2.21.0", "cuda": True}, {"version": "2.21.0", "cuda": False}


@pytest.mark.parametrize(
    ("probed", "driver", "hidden", "status", "words"),
    [
        (WITHOUT, 0, None, "OK", "No GPU"),
        ({**WITH_CUDA, "gpus": 1}, 1, None, "OK", "1 GPU"),
        ({**WITH_CUDA, "gpus": 2}, 4, "0,1", "OK", "2 GPUs of the machine's 4 (CUDA_VISIBLE_DEVICES=0,1)"),
        (WITHOUT, 2, None, "warning", "built without CUDA"),
        (WITH_CUDA, 1, None, "warning", "does not find CUDA's libraries"),
        (WITH_CUDA, 1, "-1", "OK", "hidden by CUDA_VISIBLE_DEVICES=-1"),
        (WITH_CUDA, 1, "", "OK", "hidden by CUDA_VISIBLE_DEVICES="),
    ],
)
def test_devices(probed, driver, hidden, status, words) -> None:
    environ = {} if hidden is None else {"CUDA_VISIBLE_DEVICES": hidden}
    finding = machine.devices({"gpus": 0, **probed}, driver, environ)
    assert finding.status == status
    assert words in finding.found


def test_of_the_environment_only_what_launchers_distlr_and_keras_read_is_shown() -> None:
    shown = {
        "HOROVOD_RANK": "0",
        "DISTLR_ENGINE": "mpi",
        "TF_CONFIG": "{}",
        "SLURM_PROCID": "3",
        "KERAS_BACKEND": "jax",
    }
    hidden = {
        "HOME": "no1",
        "AWS_SECRET_ACCESS_KEY": "no2",
        "_HOROVOD_SECRET_KEY": "no3",
        "HOROVOD_TOKEN": "no4",
        "SLURM_JOB_ACCOUNT": "no5",
        "OMPI_MCA_ess_base_jobid": "no6",
    }
    finding = machine.environment({**shown, **hidden})
    assert finding.status == "OK"
    assert all(f"{name}={value}" in finding.found for name, value in shown.items())
    assert "no" not in finding.found
    assert "HOROVOD_TOKEN=(hidden)" in finding.found


@pytest.mark.parametrize(
    ("program", "path", "version", "status", "words"),
    [
        ("srun", None, None, "OK", "needed only for ranks under Slurm"),
        ("srun", "/a/srun", exited("slurm 22.05\n"), "OK", "slurm 22.05, /a/srun"),
        ("mpirun", "/a/mpirun", exited("no", 1), "warning", "ended with status 1: no"),
        ("mpirun", "/a/mpirun", exited("", None), "warning", "did not end in time"),
        ("mpirun", "/a/mpirun", exited("", -11), "warning", "ended by SIGSEGV"),
        ("horovodrun", "/a/horovodrun", exited("0.28.1"), "OK", "0.28.1"),
        (
            "horovodrun",
            "/a/horovodrun",
            exited("0.27.0"),
            "warning",
            "is of Horovod 0.27.0, and this Python imports 0.28.1",
        ),
    ],
)
def test_launchers(program, path, version, status, words) -> None:
    finding = engines.launcher(program, path, version, "0.28.1")
    assert (finding.name, finding.status) == (program, status)
    assert words in finding.found


OPEN_MPI = {"version": "4.1.2", "library": "Open MPI v5.0.11, package: Open MPI user@localhost, ident: 5.0.11"}
MPICH = {"version": "4.1.2", "library": "MPICH Version:      4.2.0\nMPICH Release date: 2024"}
INTEL = {"version": "4.1.2", "library": "Intel(R) MPI Library 2021.9 for Linux* OS"}
OTHER = {"version": "4.1.2", "library": "Mine 1.0"}


@pytest.mark.parametrize(
    ("probed", "mpirun", "status", "words"),
    [
        ({}, None, "OK", "not installed"),
        ({"version": "4.1.2", "error": "libmpi.so.40"}, None, "warning", "libmpi.so.40"),
        (OPEN_MPI, None, "OK", "no mpirun"),
        (OPEN_MPI, exited("bad", 1), "OK", "no mpirun"),
        (OPEN_MPI, exited("mpirun (Open MPI) 5.0.11\n\nReport bugs"), "OK", "of the same"),
        (OPEN_MPI, exited("mpirun (Open MPI) 4.1.4"), "warning", "mpirun is that of Open MPI 4"),
        (OPEN_MPI, exited("HYDRA build details:\n    Version:          4.2.0"), "warning", "mpirun is that of MPICH 4"),
        (MPICH, exited("HYDRA build details:\n    Version:          4.2.1"), "OK", "MPICH Version:      4.2.0; mpirun"),
        (INTEL, exited("Intel(R) MPI Library for Linux* OS, Version 2021.9 Build 20230307"), "OK", "of the same"),
        (OTHER, exited("mpirun (Open MPI) 5.0.11"), "OK", "mpirun says 'mpirun (Open MPI) 5.0.11'"),
    ],
)
def test_mpi(probed, mpirun, status, words) -> None:
    finding = engines.mpi(probed, mpirun)
    assert finding.status == status
    assert words in finding.found


BUILT = {"version": "0.28.1", "gloo": True, "mpi": True, "nccl": False}


@pytest.mark.parametrize(
    ("probed", "gpus", "status", "words"),
    [
        ({}, 0, "OK", "Not installed"),
        (BUILT, 0, "OK", "0.28.1, built with gloo, MPI; it loads with this TensorFlow"),
        (BUILT, 2, "warning", "it has no NCCL"),
        ({**BUILT, "nccl": True}, 2, "OK", "gloo, MPI, NCCL"),
        (
            {"version": "0.28.1", "error": "x.so: undefined symbol: _ZN"},
            0,
            "error",
            "built for another TensorFlow. x.so",
        ),
        ({"version": "0.28.1", "error": "Extension has not been built"}, 0, "error", "built without TensorFlow"),
        ({"version": "0.28.1", "error": "libmpi.so: cannot open shared object"}, 0, "error", "library .* is missing"),
        ({"error": "the process that imports it was ended by SIGSEGV"}, 0, "error", "cannot be loaded. the process"),
    ],
)
def test_horovod(probed, gpus, status, words) -> None:
    finding = engines.horovod(probed, gpus)
    assert finding.status == status
    assert words.split(" .* ")[0] in finding.found
    assert ("docker/build-horovod.sh" in finding.to_do) == (status != "OK")


def test_what_init_would_choose_and_its_errors() -> None:
    finding = engines.chosen({}, 0, {})
    assert (finding.status, finding.found[:18]) == ("OK", "local, 1 replica. ")
    finding = engines.chosen({"DISTLR_ENGINE": "gloo"}, 0, {})
    assert finding.status == "error"
    assert "`engine` must be one of" in finding.found
    finding = engines.chosen({"HOROVOD_RANK": "0"}, 0, {})
    assert (finding.status, finding.to_do[:9]) == ("error", "Set it, o")


@pytest.mark.parametrize(
    ("horovod", "mpi", "engine", "status"),
    [
        (BUILT, {}, "horovod", "OK"),
        ({}, {}, "horovod", "error"),
        ({"error": "undefined symbol"}, {}, "horovod", "error"),
        (BUILT, {}, "mpi", "error"),
        (BUILT, OPEN_MPI, "mpi", "OK"),
        (None, OPEN_MPI, "", "error"),
        ({}, {}, "", "OK"),
    ],
)
def test_an_engine_that_would_be_chosen_and_cannot_be_started_is_an_error(horovod, mpi, engine, status) -> None:
    finding = engines.chosen({"DISTLR_ENGINE": engine}, 0, engines.missing(horovod, mpi))
    assert finding.status == status
    assert bool(finding.to_do) == (status == "error")


def rank(number: int, weight: float, **others: object) -> dict[str, object]:
    return {"rank": number, "averaged": 0.375, "distlr": weight, **others}


AVERAGED = [rank(0, 0.375), rank(1, 0.375)]


@pytest.mark.parametrize(
    ("results", "ended", "status", "words"),
    [
        (AVERAGED, exited(""), "OK", "equal, and those of the mean gradient"),
        (
            [rank(0, 0.875), rank(1, -0.125)],
            exited(""),
            "error",
            "not averaged. The weights after one update are 0.875 and -",
        ),
        ([rank(0, 0.875), rank(1, 0.875)], exited(""), "error", "with the mean gradient they are 0.375 on both"),
        ([rank(0, float("nan")), rank(1, float("nan"))], exited(""), "error", "not averaged"),
        (AVERAGED, exited("", None), "error", "did not end in time"),
        ([], exited("ssh: no", 255), "error", "ended with status 255: ssh: no"),
        ([{"error": "DistributionError: no"}, rank(1, 0.375)], exited("", 1), "error", "failed: DistributionError: no"),
    ],
)
@pytest.mark.parametrize("engine", ["horovod", "multi-worker"])
def test_whether_gradients_are_averaged(engine, results, ended, status, words) -> None:
    finding = two_ranks.averaged(engine, "CPU", results, ended)
    assert (finding.name, finding.status) == (f"averaging ({engine})", status)
    assert words in finding.found
    assert bool(finding.to_do) == (status == "error")


@pytest.mark.parametrize(
    ("first", "second", "status", "words"),
    [
        ({"stock": 0.875}, {"stock": -0.125}, "warning", "averages nothing here, and raises nothing"),
        ({"stock": 0.375}, {"stock": 0.375}, "OK", "averages gradients here"),
        ({"stock": 0.875}, {"stock_error": "AttributeError: ref"}, "warning", "raises here: AttributeError: ref"),
    ],
)
def test_what_stock_horovod_does(first, second, status, words) -> None:
    finding = two_ranks.stock([rank(0, 0.375, **first), rank(1, 0.375, **second)])
    assert (finding.name, finding.status) == ("stock Horovod", status)
    assert words in finding.found
    assert ("import distlr.horovod as hvd" in finding.to_do) == (status == "warning")


def test_without_horovodrun_it_says_how_to_build_it(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    (finding,) = two_ranks.check("horovod", {}, gpus=0)
    assert finding.status == "error"
    assert "docker/build-horovod.sh" in finding.to_do


def test_a_launch_of_its_own_inherits_no_launcher() -> None:
    launchers = ["HOROVOD_RANK", "_HOROVOD_SECRET_KEY", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"]
    environ = dict.fromkeys([*launchers, "TF_CONFIG", "DISTLR_ENGINE", "PATH", "SLURM_CONF", "TF_CONFIGURED"], "1")
    assert without_launcher(environ).keys() == {"PATH", "SLURM_CONF", "TF_CONFIGURED"}


def test_a_command_ends_within_its_limit_with_all_that_it_started(tmp_path) -> None:
    """This holds even if a process that it started keeps its output open."""
    pid = tmp_path / "pid"
    start = time.monotonic()
    ended = run(["sh", "-c", f"sleep 60 & echo $! > {pid}; echo begun; sleep 60"], os.environ, limit=1)
    assert time.monotonic() - start < 10
    assert (ended.code, ended.out) == (None, "begun\n")
    assert is_gone(int(pid.read_text()))


def test_what_cannot_be_started_has_ended(tmp_path) -> None:
    program = tmp_path / "mpirun"
    program.write_bytes(b"\x7fELF for another machine")
    program.chmod(0o755)
    for path, message in ((program, "Exec format error"), (tmp_path / "nothing", "No such file")):
        how = run([str(path)], os.environ, 10).how
        assert how.startswith("ended with status 126: ")
        assert message in how


def test_a_signal_without_a_name_is_reported_too() -> None:
    ended = run([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGRTMIN + 1)"], os.environ, 30)
    assert ended.how == "was ended by SIGRTMIN+1"


def test_what_a_command_leaves_running_is_ended(tmp_path) -> None:
    pid = tmp_path / "pid"
    ended = run(["sh", "-c", f"sleep 60 & echo $! > {pid}; exit 3"], os.environ, limit=30)
    assert ended.code == 3
    assert is_gone(int(pid.read_text()))


def is_gone(pid: int, within: float = 5.0) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True  # nobody has asked for its status
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.01)
    return False


def test_the_last_words_are_not_tensorflows_chatter() -> None:
    chatter = "[1]<stderr>:I0000 00:00:1 1 port.cc:153] oneDNN\nWARNING: All log messages before absl\n"
    assert Ended(1, "", f"RuntimeError: no\n{chatter}").how == "ended with status 1: RuntimeError: no"
    assert Ended(1, "", chatter).how == "ended with status 1"
