"""The front door: `distlr.init()` finds out where the script runs and makes the job."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence

import tensorflow as tf

from distlr._utils.checks import positive_real
from distlr._utils.console_log import show_log_where_none_is_configured
from distlr.communicators import connect
from distlr.communicators.multi_worker.communicator import StrategyCommunicator
from distlr.communicators.presence import watch_connections
from distlr.errors import ConfigurationTypeError, received
from distlr.job import Job
from distlr.startup.backend_selection import ENGINE, ENGINES, SIMULATE, BackendSelection, choose_backend
from distlr.startup.launcher import rank_on_host
from distlr.startup.rendezvous import connected_workers, is_on_this_machine
from distlr.startup.signed_messages import SECRET
from distlr.strategies import (
    adapt_for_keras,
    check_strategy,
    connect_workers,
    local_gpus,
    pin_gpu,
    simulated,
    slurm_workers,
)

__all__ = ["ENGINE", "SIMULATE", "init"]

_log = logging.getLogger("distlr")


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

    >>> job = init(environ={})
    >>> job.backend, job.rank, job.size, job.replicas
    ('local', 0, 1, 1)

    Args:
        engine: "horovod": one replica a process, on the GPU of its local rank; "multi-worker": a
            `MultiWorkerMirroredStrategy` that Keras 3 can train with, of the workers that TF_CONFIG or Slurm name; or
            "mpi": mpi4py, for control alone.
        strategy: a `tf.distribute` strategy of your own.
        simulate: the number of simulated replicas: parts of the one GPU, or of the CPU.
        workers: "host:port" of each worker of a multi-worker strategy, the same list on all. The launcher, or
            the one entry with this machine's name, tells which of them a process is.
        timeout: seconds that a rank waits for others before the job ends with an error (at the start, and in the
            engine's collectives; Horovod's own variable HOROVOD_STALL_SHUTDOWN_TIME_SECONDS has precedence).
        environ: the environment to read; `os.environ` by default.

    Its lines go to the log `distlr`; where the application has configured no logging, to the console as well. Elsewhere
    `logging.getLogger("distlr").setLevel(logging.INFO)` shows them.

    Raises:
        ConfigurationError: an unknown engine, two of `engine`, `strategy`, `simulate` and `workers`, a list of workers
            that cannot be, or a number of replicas that is no positive integer.
        DistributionError: a launcher started several processes and no engine connects all of them, or replicas are to
            be simulated inside a launcher, or a worker did not come, or TensorFlow has started already.
    """
    show_log_where_none_is_configured()
    timeout = positive_real("timeout", timeout, "write timeout=600 for ten minutes")
    if strategy is not None:
        _check_is_strategy(strategy)
    environ = os.environ if environ is None else environ
    choice = choose_backend(engine, strategy=strategy, simulate=simulate, workers=workers, environ=environ)
    if choice.backend == "multi-worker":
        return _multi_worker_job(choice, strategy, timeout, environ.get(SECRET, ""))
    if choice.backend in ENGINES:
        return _engine_job(choice, timeout)
    if strategy is not None:
        job_strategy = strategy
    elif choice.backend == "simulated":
        job_strategy = simulated(choice.replicas)
    else:
        job_strategy = local_gpus() or tf.distribute.get_strategy()
    return Job(job_strategy, choice.backend)


def _check_is_strategy(strategy: tf.distribute.Strategy) -> None:
    if not isinstance(strategy, tf.distribute.Strategy):
        hint = "make it, such as strategy=tf.distribute.MirroredStrategy()"
        raise ConfigurationTypeError(received("strategy", strategy, "a tf.distribute strategy", hint))
    check_strategy(strategy)


def _engine_job(choice: BackendSelection, timeout: float) -> Job:
    communicator = connect(choice.backend, choice.launch, timeout)
    if choice.backend == "horovod":
        pin_gpu(communicator.local_rank, communicator.local_size)
    return Job(tf.distribute.get_strategy(), choice.backend, communicator)


def _multi_worker_job(
    choice: BackendSelection, strategy: tf.distribute.Strategy | None, timeout: float, secret: str
) -> Job:
    """A job on a multi-worker strategy: the one given, or a new one, once all of its workers are connected."""
    addresses, rank = list(choice.addresses), choice.rank
    connections: dict[int, socket.socket] = {}  # of the workers; a user's strategy has its own
    if strategy is not None:
        job_strategy = adapt_for_keras(strategy)
    else:
        if not addresses and choice.launch is not None:
            addresses = slurm_workers(choice.launch.size)
        local_rank, local_size = rank_on_host(addresses, rank)
        if local_size > 1:  # alone on its host a worker has all of the host's GPUs
            pin_gpu(local_rank, local_size)
        if not secret and rank == 0 and not is_on_this_machine(addresses):
            _log.warning(
                "The workers meet without a secret, so whoever can reach %s can keep them from it. Fix: set %s to the "
                "same random text on all workers, as this project's launchers do.",
                addresses[0],
                SECRET,
            )
        with connected_workers(addresses, rank, timeout, secret) as connections:
            job_strategy = connect_workers(addresses, rank, timeout)
    job_strategy.communicator = StrategyCommunicator(job_strategy, addresses, rank, timeout)
    watch_connections(connections, job_strategy.communicator.end_without)
    return Job(job_strategy, choice.backend, job_strategy.communicator)
