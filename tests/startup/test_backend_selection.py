"""What `distlr.init()` chooses in each environment: `init` does it, and `distlr doctor` says it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import distlr
from distlr.communicators import SingleCommunicator
from distlr.errors import ConfigurationError, DistributionError
from distlr.startup.backend_selection import ENGINE, SIMULATE, choose_backend


def launched(
    prefix: str, rank: int, size: int, local: tuple[str, str] = ("LOCAL_RANK", "LOCAL_SIZE")
) -> dict[str, str]:
    values = {"RANK": rank, "SIZE": size, local[0]: rank, local[1]: size}
    return {f"{prefix}{name}": str(value) for name, value in values.items()}


def tf_config(*workers: str, index: int = 0) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})}


OPEN_MPI = launched("OMPI_COMM_WORLD_", 1, 2)
HOROVODRUN = launched("HOROVOD_", 1, 2)
SRUN = {
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}
WORKERS = ["host1:12345", "host2:12345"]

# options, environment, backend, replicas, words of the reason
ROWS = [
    ({}, {}, "local", 1, "no GPU: one replica, on the CPU"),
    ({"gpus": 1}, {}, "local", 1, "one GPU: one replica, on it"),
    ({"gpus": 4}, {}, "local", 4, "4 GPUs: one replica on each"),
    ({}, {SIMULATE: ""}, "local", 1, "No launcher"),
    ({}, {SIMULATE: "3"}, "simulated", 3, "DISTLR_SIMULATE asks for 3"),
    ({"simulate": 2, "gpus": 1}, {SIMULATE: "3"}, "simulated", 2, "`simulate` asks for 2"),
    ({}, launched("OMPI_COMM_WORLD_", 0, 1), "local", 1, "No launcher started several"),
    ({}, launched("HOROVOD_", 0, 1), "horovod", 1, "horovodrun started 1 process, of which this is rank 0"),
    ({"gpus": 4}, OPEN_MPI, "horovod", 2, "mpirun started 2 processes, of which this is rank 1"),
    ({}, HOROVODRUN, "horovod", 2, "horovodrun started 2 processes"),
    ({}, SRUN, "horovod", 2, "srun started 2 processes"),
    ({}, {**OPEN_MPI, **tf_config(*WORKERS)}, "horovod", 2, "mpirun started 2"),
    ({"engine": "horovod"}, {}, "horovod", 1, "`engine` asks for it, and no launcher"),
    ({}, {ENGINE: "horovod", SIMULATE: ""}, "horovod", 1, "DISTLR_ENGINE asks for it, and no launcher"),
    ({"engine": "mpi"}, OPEN_MPI, "mpi", 2, "`engine` asks for it, and mpirun started 2"),
    ({"engine": "mpi"}, {ENGINE: "horovod"}, "mpi", 1, "`engine` asks"),
    ({}, tf_config(*WORKERS, index=1), "multi-worker", 2, "TF_CONFIG names 2 workers, and this process is worker 1"),
    ({"gpus": 4}, tf_config(*WORKERS), "multi-worker", 8, "TF_CONFIG names 2"),
    ({"gpus": 4}, tf_config("host1:1", "host1:2"), "multi-worker", 2, "TF_CONFIG names 2"),
    ({}, {**OPEN_MPI, **tf_config(*WORKERS), ENGINE: "multi-worker"}, "multi-worker", 2, "TF_CONFIG names 2"),
    ({"engine": "multi-worker"}, SRUN, "multi-worker", 2, "asked for, and srun started 2"),
    ({"workers": WORKERS}, OPEN_MPI, "multi-worker", 2, "`workers` names 2 workers, and this process is worker 1"),
    ({"workers": ["host1:1"]}, {}, "multi-worker", 1, "`workers` names 1 workers"),
]


@pytest.mark.parametrize(("options", "environ", "backend", "replicas", "reason"), ROWS)
def test_what_is_chosen_and_why(options, environ, backend, replicas, reason) -> None:
    choice = choose_backend(**options, environ=environ)
    assert (choice.backend, choice.replicas) == (backend, replicas)
    assert reason in choice.reason
    assert choice.reason.endswith(".")


def test_the_workers_and_this_process_place_among_them() -> None:
    choice = choose_backend(environ=tf_config(*WORKERS, index=1))
    assert (choice.addresses, choice.rank) == (tuple(WORKERS), 1)
    choice = choose_backend("multi-worker", environ=SRUN)  # TensorFlow reads them from Slurm
    assert (choice.addresses, choice.rank, choice.launch.size) == ((), 1, 2)


@pytest.mark.parametrize(
    ("options", "environ", "error", "text"),
    [
        ({}, {ENGINE: "gloo"}, ConfigurationError, "`engine` must be one of"),
        ({}, {SIMULATE: "many"}, ConfigurationError, "DISTLR_SIMULATE"),
        ({}, {SIMULATE: "1_0"}, ConfigurationError, "DISTLR_SIMULATE='1_0'"),
        ({}, {SIMULATE: "\u0664"}, ConfigurationError, "DISTLR_SIMULATE"),
        ({}, {SIMULATE: "9" * 5000}, ConfigurationError, "DISTLR_SIMULATE"),
        ({"simulate": "1_0"}, {}, ConfigurationError, "simulate='1_0'"),
        ({}, {**OPEN_MPI, SIMULATE: "4"}, DistributionError, "simulate 4 replicas in each: 2 separate trainings"),
        ({}, {ENGINE: "multi-worker"}, DistributionError, "neither TF_CONFIG nor Slurm"),
        ({}, {"TF_CONFIG": "{"}, ConfigurationError, "TF_CONFIG cannot be used"),
        ({}, {"HOROVOD_RANK": "0"}, ConfigurationError, "HOROVOD_SIZE is not set"),
        ({"engine": "mpi", "simulate": 2}, {}, ConfigurationError, "leave one of them out"),
        ({"workers": WORKERS, "simulate": 2}, {}, ConfigurationError, "leave the others out"),
    ],
)
def test_what_cannot_be_is_refused(options, environ, error, text) -> None:
    with pytest.raises(error, match=text):
        choose_backend(**options, environ=environ)


@pytest.mark.parametrize(
    ("options", "environ"),
    [(options, environ) for options, environ, backend, *_ in ROWS if backend in ("local", "simulated") and not options],
)
def test_init_does_what_is_chosen(four_cpus, options, environ) -> None:
    job, choice = distlr.init(**options, environ=environ), choose_backend(**options, environ=environ)
    assert (job.backend, job.replicas) == (choice.backend, choice.replicas)


@pytest.mark.parametrize("environ", [OPEN_MPI, HOROVODRUN, SRUN, {ENGINE: "mpi"}, {ENGINE: "horovod"}])
def test_init_starts_the_engine_that_is_chosen(monkeypatch, environ) -> None:
    started = []

    def connect(engine, launch, timeout):
        started.append((engine, launch))
        return SingleCommunicator()

    monkeypatch.setattr("distlr.start.connect", connect)
    choice = choose_backend(environ=environ)
    assert distlr.init(environ=environ).backend == choice.backend
    assert started == [(choice.backend, choice.launch)]


def test_a_strategy_of_ones_own(four_cpus) -> None:
    strategy = distlr.init(simulate=3, environ={}).strategy
    choice = choose_backend(strategy=strategy, environ={SIMULATE: "2", ENGINE: "horovod"})
    assert (choice.backend, choice.replicas) == ("tf.distribute", 3)
    assert distlr.init(strategy=strategy, environ={SIMULATE: "2", ENGINE: "horovod"}).backend == choice.backend


@pytest.mark.processes
def test_choosing_starts_no_tensorflow() -> None:
    code = "import sys; from distlr.startup.backend_selection import choose_backend; choose_backend(environ={}); "
    code += "print('tensorflow' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "False\n"
