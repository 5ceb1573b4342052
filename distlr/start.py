"""The front door: `distlr.init()` finds out where the script runs and makes the job."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from distlr._numbers import positive_real
from distlr.communicators import Launch, connect, detect
from distlr.communicators.detect import place_on_host, tf_config_workers
from distlr.communicators.engines import ENGINES
from distlr.communicators.rendezvous import check_addresses, meet
from distlr.communicators.strategy import StrategyCommunicator
from distlr.errors import ConfigurationError, ConfigurationTypeError, DistributionError, received
from distlr.job import Job
from distlr.strategies import (
    addresses_of,
    check_strategy,
    local_gpus,
    mend,
    multi_worker,
    pin_gpu,
    simulated,
    slurm_workers,
)

__all__ = ["ENGINE", "SIMULATE", "init"]

SIMULATE = "DISTLR_SIMULATE"
"""The environment variable that asks for simulated replicas."""

ENGINE = "DISTLR_ENGINE"
"""The environment variable that names the engine where the script does not."""

_MULTI_WORKER = "multi-worker"


def init(
    engine: str | None = None,
    *,
    strategy: tf.distribute.Strategy | None = None,
    simulate: int | None = None,
    workers: Sequence[str] | None = None,
    timeout: float = 600.0,
    environ: Mapping[str, str] | None = None,
) -> Job:
    """Finds out where the script runs and makes the job. Call it before any other TensorFlow operation.

    In this order: the `engine` (or `DISTLR_ENGINE` in the environment), the `strategy` or the `workers` given; Horovod,
    where a launcher (`horovodrun`, `mpirun`, `srun`) started several processes; a multi-worker strategy, where
    TF_CONFIG names several workers; `simulate`, or `DISTLR_SIMULATE` in the environment; all GPUs of this machine; one
    device.

    Args:
        engine: "horovod": one replica a process, on the GPU of its local rank; "multi-worker": a
            `MultiWorkerMirroredStrategy` that Keras 3 can train with, of the workers that TF_CONFIG or Slurm name; or
            "mpi": mpi4py, for control alone.
        strategy: a `tf.distribute` strategy of your own.
        simulate: the number of simulated replicas: parts of the one GPU, or of the CPU.
        workers: "host:port" of each worker of a multi-worker strategy, the same list on all. The launcher, or
            the one entry with this machine's name, tells which of them a process is.
        timeout: seconds that a rank waits for others before the job ends with an error (at the start, and in the
            engine's collectives; Horovod's own variable HOROVOD_STALL_SHUTDOWN_TIME_SECONDS goes before it).
        environ: the environment to read; `os.environ` by default.

    Raises:
        ConfigurationError: an unknown engine, two of `engine`, `strategy`, `simulate` and `workers`, a list of workers
            that cannot be, or a number of replicas that is no positive integer.
        DistributionError: a launcher started several processes and no engine connects all of them, or replicas are to
            be simulated inside a launcher, or a worker did not come, or TensorFlow has started already.
    """
    timeout = positive_real("timeout", timeout, "write timeout=600 for ten minutes")
    environ = os.environ if environ is None else environ
    _check_arguments(engine, strategy, simulate, workers)
    replicas = _asked_replicas(simulate, environ)
    launch = detect(environ)
    if strategy is not None:
        addresses, rank = addresses_of(strategy)
        if len(addresses) > 1:
            return _spanning(mend(strategy), addresses, rank, timeout)
    simulating = replicas if engine is None else None
    engine = engine or (None if strategy is not None else environ.get(ENGINE) or None)
    if engine is not None and engine not in ENGINES:
        raise ConfigurationError(received("engine", engine, f"one of {', '.join(map(repr, ENGINES))}"))
    by_tf_config = launch is not None and launch.launcher == "tf_config"
    if workers is not None or engine == _MULTI_WORKER or (by_tf_config and engine is None):
        _check_launch(launch, strategy, simulating)
        return _workers(launch, workers, timeout, environ)
    launched = launch is not None and (launch.size > 1 or launch.launcher == "horovodrun")
    if engine is not None or launched:
        _check_launch(launch, strategy, simulating)
        return _connected(engine or "horovod", launch, timeout)
    if strategy is not None:
        return Job(strategy, "tf.distribute")
    if replicas is not None:
        return Job(simulated(replicas), "simulated")
    return Job(local_gpus() or tf.distribute.get_strategy(), "local")


def _check_arguments(engine: str | None, strategy: Any, simulate: int | None, workers: Sequence[str] | None) -> None:
    """Refuses a strategy that is none, and two answers to the same question."""
    if strategy is not None and not isinstance(strategy, tf.distribute.Strategy):
        hint = "make it, such as strategy=tf.distribute.MirroredStrategy()"
        raise ConfigurationTypeError(received("strategy", strategy, "a tf.distribute strategy", hint))
    if strategy is not None:
        check_strategy(strategy)
    if strategy is not None and simulate is not None:
        raise ConfigurationError(
            f"One of `strategy` and `simulate` can be given. Received: strategy={type(strategy).__name__} and "
            f"simulate={simulate}. To mend it: leave one of them out; a simulation makes its own strategy."
        )
    if engine is not None and (strategy is not None or simulate is not None):
        other = "strategy" if strategy is not None else "simulate"
        hint = "leave one of them out: with an engine each process is one replica, on one device"
        raise ConfigurationError(received(other, strategy or simulate, f"left out beside engine={engine!r}", hint))
    if workers is not None and (engine not in (None, _MULTI_WORKER) or strategy is not None or simulate is not None):
        hint = "leave the others out: the list of workers makes a strategy"
        raise ConfigurationError(received("workers", workers, "alone, or beside engine='multi-worker'", hint))


def _check_launch(launch: Launch | None, strategy: Any, replicas: int | None) -> None:
    """Refuses what would be a training of its own in each process of a launcher."""
    if launch is None or (strategy is None and replicas is None):
        return
    what = f"simulate {replicas} replicas in each" if replicas else "train with a strategy of its own"
    raise DistributionError(
        f"[rank {launch.rank}] {launch.launcher} started {launch.size} processes, and each would {what}: "
        f"{launch.size} separate trainings. To mend it: start the script without a launcher, or leave `strategy`, "
        f"`simulate` and {SIMULATE} out under horovodrun, mpirun or srun."
    )


def _connected(engine: str, launch: Launch | None, timeout: float) -> Job:
    communicator = connect(engine, launch, timeout)
    if engine == "horovod":
        pin_gpu(communicator.local_rank, communicator.local_size)
    return Job(tf.distribute.get_strategy(), engine, communicator)


def _workers(launch: Launch | None, workers: Sequence[str] | None, timeout: float, environ: Mapping[str, str]) -> Job:
    """A multi-worker strategy of the workers that the caller, TF_CONFIG or Slurm names."""
    if workers is not None:
        addresses = check_addresses(workers)
        rank = _own_place(addresses, launch)
    elif (named := tf_config_workers(environ)) is not None:  # also where srun starts the processes
        addresses, rank = check_addresses(named[0]), named[1]
    elif launch is not None and launch.launcher == "srun":
        addresses, rank = slurm_workers(launch.size), launch.rank
    else:
        raise DistributionError(
            "A multi-worker strategy needs to know its workers, and neither TF_CONFIG nor Slurm names them. To mend "
            'it: start the script with launch/tf_config.sh -n 2, or write distlr.init(workers=["host1:12345", ...]).'
        )
    local_rank, local_size = place_on_host(addresses, rank)
    if local_size > 1:  # alone on its host a worker has all of the host's GPUs
        pin_gpu(local_rank, local_size)
    meet(addresses, rank, timeout)
    return _spanning(multi_worker(addresses, rank, timeout), addresses, rank, timeout)


def _own_place(addresses: list[str], launch: Launch | None) -> int:
    if launch is not None and launch.size == len(addresses):
        return launch.rank
    if launch is not None:
        raise DistributionError(
            f"[rank {launch.rank}] {launch.launcher} started {launch.size} processes and `workers` has "
            f"{len(addresses)}. To mend it: give as many addresses as processes."
        )
    names = {socket.gethostname(), socket.getfqdn()}
    own = [i for i, address in enumerate(addresses) if address.rpartition(":")[0] in names]
    if len(addresses) == 1:
        return 0
    if len(own) != 1:
        raise DistributionError(
            f"Which worker is this process? {len(own)} of {addresses} have the name of this machine, {sorted(names)}. "
            "To mend it: start the processes with srun or launch/tf_config.sh, or name each host once."
        )
    return own[0]


def _spanning(strategy: tf.distribute.Strategy, addresses: list[str], rank: int, timeout: float) -> Job:
    return Job(strategy, _MULTI_WORKER, StrategyCommunicator(strategy, addresses, rank, timeout))


def _asked_replicas(simulate: int | None, environ: Mapping[str, str]) -> int | None:
    name, value = ("simulate", simulate) if simulate is not None else (SIMULATE, environ.get(SIMULATE) or None)
    if value is None:
        return None
    try:
        replicas = int(value)
    except (TypeError, ValueError):
        replicas = 0
    if isinstance(value, (bool, float)) or not 1 <= replicas <= 1024:
        hint = f"write {name}=4 to train on four simulated replicas, or leave it out"
        raise ConfigurationError(received(name, value, "a number of replicas from 1 to 1024", hint))
    return replicas
