"""The front door: `distlr.init()` finds out where the script runs and makes the job."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from distlr._numbers import positive_real
from distlr.communicators import Launch, connect, detect
from distlr.errors import ConfigurationError, ConfigurationTypeError, DistributionError, received
from distlr.job import Job
from distlr.strategies import local_gpus, pin_gpu, simulated

__all__ = ["SIMULATE", "init"]

SIMULATE = "DISTLR_SIMULATE"
"""The environment variable that asks for simulated replicas."""


def init(
    engine: str | None = None,
    *,
    strategy: tf.distribute.Strategy | None = None,
    simulate: int | None = None,
    timeout: float = 600.0,
    environ: Mapping[str, str] | None = None,
) -> Job:
    """Finds out where the script runs and makes the job. Call it before any other TensorFlow operation.

    In this order: the `engine` or the `strategy` given; Horovod, where a launcher (`horovodrun`, `mpirun`, `srun`)
    started several processes; `simulate`, or `DISTLR_SIMULATE` in the environment; all GPUs of this
    machine; one device.

    Args:
        engine: "horovod": one replica a process, on the GPU of its local rank; or "mpi": mpi4py, for control alone.
        strategy: a `tf.distribute` strategy of your own.
        simulate: the number of simulated replicas: parts of the one GPU, or of the CPU.
        timeout: seconds that a rank waits for others before the job ends with an error (of the engine's
            collectives; Horovod's own variable HOROVOD_STALL_SHUTDOWN_TIME_SECONDS goes before it).
        environ: the environment to read; `os.environ` by default.

    Raises:
        ConfigurationError: an unknown engine, two of `engine`, `strategy` and `simulate`, or a number of replicas
            that is no positive integer.
        DistributionError: a launcher started several processes and no engine connects all of them, or replicas are to
            be simulated inside a launcher, or TensorFlow has started already.
    """
    timeout = positive_real("timeout", timeout, "write timeout=600 for ten minutes")
    environ = os.environ if environ is None else environ
    if strategy is not None and not isinstance(strategy, tf.distribute.Strategy):
        hint = "make it, such as strategy=tf.distribute.MirroredStrategy()"
        raise ConfigurationTypeError(received("strategy", strategy, "a tf.distribute strategy", hint))
    replicas = _asked_replicas(simulate, environ)
    if strategy is not None and simulate is not None:
        raise ConfigurationError(
            f"One of `strategy` and `simulate` can be given. Received: strategy={type(strategy).__name__} and "
            f"simulate={simulate}. To mend it: leave one of them out; a simulation makes its own strategy."
        )
    if engine is not None and (strategy is not None or simulate is not None):
        other = "strategy" if strategy is not None else "simulate"
        hint = "leave one of them out: with an engine each process is one replica, on one device"
        raise ConfigurationError(received(other, strategy or simulate, f"left out beside engine={engine!r}", hint))
    launch = detect(environ)
    launched = launch is not None and (launch.size > 1 or launch.launcher == "horovodrun")
    if engine is not None or launched:
        _check_launch(launch, strategy, replicas if engine is None else None)
        return _connected(engine or "horovod", launch, timeout)
    if strategy is not None:
        return Job(strategy, "tf.distribute")
    if replicas is not None:
        return Job(simulated(replicas), "simulated")
    return Job(local_gpus() or tf.distribute.get_strategy(), "local")


def _check_launch(launch: Launch | None, strategy: Any, replicas: int | None) -> None:
    """Refuses what would be a training of its own in each process of a launcher."""
    if launch is None or (strategy is None and replicas is None and launch.launcher != "tf_config"):
        return
    what = f"simulate {replicas} replicas in each" if replicas else "train with a strategy of its own"
    if launch.launcher == "tf_config":
        what = "train without the others"
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
