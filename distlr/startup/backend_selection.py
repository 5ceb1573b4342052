"""Chooses the backend for `distlr.init()`, with the reason. Nothing is started, and TensorFlow is not imported.

`init` acts on it, and `distlr doctor` shows it.
"""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Mapping, Sequence
from typing import Protocol

from distlr._utils.checks import digits, integer, one_of
from distlr.errors import ConfigurationError, DistributionError, received
from distlr.startup.launcher import LauncherInfo, detect, rank_on_host, tf_config_workers
from distlr.startup.rendezvous import check_addresses

__all__ = ["ENGINE", "ENGINES", "SIMULATE", "BackendSelection", "choose_backend"]

SIMULATE = "DISTLR_SIMULATE"
"""The environment variable that asks for simulated replicas."""

ENGINE = "DISTLR_ENGINE"
"""The environment variable that names the engine where the script does not."""

_MULTI_WORKER = "multi-worker"

ENGINES = ("horovod", "mpi", _MULTI_WORKER)
"""The values of `distlr.init(engine)`."""


class _ClusterSpec(Protocol):
    def as_dict(self) -> Mapping[str, list[str]]: ...


class _ClusterResolver(Protocol):
    task_type: str
    task_id: int | None

    def cluster_spec(self) -> _ClusterSpec: ...


class Strategy(Protocol):
    """The part of a `tf.distribute.Strategy` that the choice depends on."""

    num_replicas_in_sync: int
    cluster_resolver: _ClusterResolver | None


@dataclasses.dataclass(frozen=True)
class BackendSelection:
    """The backend of a job, and the reason for it.

    Attributes:
        backend: as `Job.backend`.
        reason: why, in a sentence for a person.
        launch: the launcher's description of this process; None for a process on its own.
        replicas: copies of the model in the whole job, if each host has as many GPUs as `choose_backend` was given.
        addresses: "host:port" of each worker of a multi-worker strategy; none where TensorFlow reads them from Slurm.
        rank: this worker's place among them.
    """

    backend: str
    reason: str
    launch: LauncherInfo | None
    replicas: int
    addresses: tuple[str, ...] = ()
    rank: int = 0


def choose_backend(
    engine: str | None = None,
    *,
    strategy: Strategy | None = None,
    simulate: int | None = None,
    workers: Sequence[str] | None = None,
    environ: Mapping[str, str],
    gpus: int = 0,
) -> BackendSelection:
    """Chooses as `distlr.init` does; see there for the order, the arguments and the errors.

    >>> choose_backend(environ={"DISTLR_SIMULATE": "4"}).backend
    'simulated'

    Args:
        engine, strategy, simulate, workers: see `distlr.init`.
        environ: the environment. It is only read.
        gpus: the number of GPUs of this machine. It changes `replicas` and `reason` alone. `init` counts them after
            the choice, because counting starts TensorFlow.
    """
    _check_together(engine, strategy, simulate, workers)
    replicas = _requested_replicas(simulate, environ)
    launch = detect(environ)
    if strategy is not None:
        addresses, rank = _addresses_of(strategy)
        total = int(strategy.num_replicas_in_sync)
        if len(addresses) > 1:
            reason = f"The `strategy` given spans {len(addresses)} workers, and this process is worker {rank}."
            return BackendSelection(_MULTI_WORKER, reason, launch, total, tuple(addresses), rank)
    simulating = replicas if engine is None else None
    engine_reason = "`engine` asks for it" if engine is not None else f"{ENGINE} asks for it"
    engine = engine or (None if strategy is not None else environ.get(ENGINE) or None)
    if engine is not None:
        one_of("engine", engine, ENGINES)
    by_tf_config = launch is not None and launch.launcher == "tf_config"
    if workers is not None or engine == _MULTI_WORKER or (by_tf_config and engine is None):
        _check_launch(launch, strategy, simulating)
        return _select_multi_worker(launch, workers, environ, gpus)
    launched = launch is not None and (launch.size > 1 or launch.launcher == "horovodrun")
    if engine is not None or launched:
        _check_launch(launch, strategy, simulating)
        parts = [engine_reason] if engine is not None else []
        parts += ["no launcher started this process" if launch is None else _describe_launch(launch)]
        size = 1 if launch is None else launch.size
        return BackendSelection(engine or "horovod", f"{', and '.join(parts)}.", launch, size)
    if strategy is not None:
        return BackendSelection("tf.distribute", "A `strategy` of your own was given.", launch, total)
    if replicas is not None:
        who = "`simulate`" if simulate is not None else SIMULATE
        return BackendSelection("simulated", f"{who} asks for {replicas} simulated replicas.", launch, replicas)
    where = {0: "no GPU: one replica, on the CPU", 1: "one GPU: one replica, on it"}.get(
        gpus, f"{gpus} GPUs: one replica on each"
    )
    return BackendSelection(
        "local", f"No launcher started several processes, and this machine has {where}.", launch, max(1, gpus)
    )


def _addresses_of(strategy: Strategy) -> tuple[list[str], int]:
    """The addresses of a strategy's workers, a chief first, and this worker's place among them."""
    resolver = strategy.cluster_resolver
    if resolver is None:
        return [], 0
    cluster = resolver.cluster_spec().as_dict()
    addresses: list[str] = []
    starts: dict[str, int] = {}
    for kind in ("chief", "worker"):
        starts[kind] = len(addresses)
        addresses += cluster.get(kind, [])
    return addresses, starts.get(resolver.task_type, 0) + (resolver.task_id or 0) if addresses else 0


def _check_together(engine: str | None, strategy: object, simulate: int | None, workers: Sequence[str] | None) -> None:
    """Refuses arguments that exclude each other."""
    if strategy is not None and simulate is not None:
        raise ConfigurationError(
            f"One of `strategy` and `simulate` can be given. Received: strategy={type(strategy).__name__} and "
            f"simulate={simulate}. Fix: leave one of them out; a simulation makes its own strategy."
        )
    if engine is not None and (strategy is not None or simulate is not None):
        other = "strategy" if strategy is not None else "simulate"
        hint = "leave one of them out: with an engine each process is one replica, on one device"
        raise ConfigurationError(received(other, strategy or simulate, f"left out beside engine={engine!r}", hint))
    if workers is not None and (engine not in (None, _MULTI_WORKER) or strategy is not None or simulate is not None):
        hint = "leave the others out: the list of workers makes a strategy"
        raise ConfigurationError(received("workers", workers, "alone, or beside engine='multi-worker'", hint))


def _check_launch(launch: LauncherInfo | None, strategy: object, replicas: int | None) -> None:
    """Refuses a choice with which each process of a launcher would train on its own."""
    if launch is None or (strategy is None and replicas is None):
        return
    what = f"simulate {replicas} replicas in each" if replicas else "train with a strategy of its own"
    raise DistributionError(
        f"[rank {launch.rank}] {launch.launcher} started {launch.size} processes, and each would {what}: "
        f"{launch.size} separate trainings. Fix: start the script without a launcher, or leave `strategy`, "
        f"`simulate` and {SIMULATE} out under horovodrun, mpirun or srun."
    )


def _select_multi_worker(
    launch: LauncherInfo | None, workers: Sequence[str] | None, environ: Mapping[str, str], gpus: int
) -> BackendSelection:
    """Selects a multi-worker strategy over the workers that the caller, TF_CONFIG or Slurm names."""
    if workers is not None:
        addresses = check_addresses(workers)
        rank, source = _own_rank(addresses, launch), "`workers`"
    elif (by_tf_config := tf_config_workers(environ)) is not None:  # also where srun starts the processes
        addresses, rank, source = check_addresses(by_tf_config[0]), by_tf_config[1], "TF_CONFIG"
    elif launch is not None and launch.launcher == "srun":
        replicas_each = max(1, gpus) if launch.local_size == 1 else 1
        reason = f"A multi-worker strategy is asked for, and {_describe_launch(launch)}."
        return BackendSelection(_MULTI_WORKER, reason, launch, launch.size * replicas_each, (), launch.rank)
    else:
        raise DistributionError(
            "A multi-worker strategy needs to know its workers, and neither TF_CONFIG nor Slurm names them. "
            'Fix: start the script with launch/tf_config.sh -n 2, or write distlr.init(workers=["host1:12345", ...]).'
        )
    # Alone on its host a worker has all of the host's GPUs.
    replicas_each = max(1, gpus) if rank_on_host(addresses, rank)[1] == 1 else 1
    reason = f"{source} names {len(addresses)} workers, and this process is worker {rank}."
    return BackendSelection(_MULTI_WORKER, reason, launch, len(addresses) * replicas_each, tuple(addresses), rank)


def _own_rank(addresses: list[str], launch: LauncherInfo | None) -> int:
    if launch is not None and launch.size == len(addresses):
        return launch.rank
    if launch is not None:
        raise DistributionError(
            f"[rank {launch.rank}] {launch.launcher} started {launch.size} processes and `workers` has "
            f"{len(addresses)}. Fix: give as many addresses as processes."
        )
    names = {socket.gethostname(), socket.getfqdn()}
    places = [i for i, address in enumerate(addresses) if address.rpartition(":")[0] in names]
    if len(addresses) == 1:
        return 0
    if len(places) != 1:
        raise DistributionError(
            f"Which worker is this process? {len(places)} of {addresses} have the name of this machine, "
            f"{sorted(names)}. Fix: start the processes with srun or launch/tf_config.sh, or name each host once."
        )
    return places[0]


def _requested_replicas(simulate: int | None, environ: Mapping[str, str]) -> int | None:
    name, value = ("simulate", simulate) if simulate is not None else (SIMULATE, environ.get(SIMULATE) or None)
    if value is None:
        return None
    replicas = (digits(value.strip()) if isinstance(value, str) else integer(value)) or 0
    if not 1 <= replicas <= 1024:
        hint = f"write {name}=4 to train on four simulated replicas, or leave it out"
        raise ConfigurationError(received(name, value, "a number of replicas from 1 to 1024", hint))
    return replicas


def _describe_launch(launch: LauncherInfo) -> str:
    started = "TF_CONFIG names" if launch.launcher == "tf_config" else f"{launch.launcher} started"
    processes = f"{launch.size} process{'es' if launch.size > 1 else ''}"
    return f"{started} {processes}, of which this is rank {launch.rank}"
