"""Starts the engine that connects the ranks, and checks that it sees as many as the launcher started."""

from __future__ import annotations

import importlib

from distlr._utils.checks import one_of
from distlr.communicators.communicator import Communicator
from distlr.errors import DistributionError
from distlr.startup.launcher import LauncherInfo

__all__ = ["connect"]

# By engine: the module in this package and its communicator, which is made with the timeout and nothing else.
_CONNECTED = {"horovod": ("horovod.communicator", "HorovodCommunicator"), "mpi": ("mpi", "MpiCommunicator")}

_HOW = {
    "horovodrun": "start the script with horovodrun, and let it write no HOROVOD_ variables of its own",
    "mpirun": "start the script with the mpirun of the MPI library that the engine was built with",
    "pmi": "start the script with the launcher of the MPI library that the engine was built with",
    "srun": "start the script with `srun --mpi=pmix` (`srun --mpi=list` says what there is), or use mpirun in the job",
    "tf_config": "unset TF_CONFIG, or start the script with horovodrun",
}


def connect(engine: str, launch: LauncherInfo | None, timeout: float = 600.0) -> Communicator:
    """Starts an engine and checks it against the launcher.

    Args:
        engine: "horovod" or "mpi"; a strategy of several workers brings its communicator.
        launch: the result of `detect`.
        timeout: seconds that a rank waits for the others.

    Raises:
        ConfigurationError: the engine is unknown.
        DistributionError: it cannot be loaded, or sees another number of ranks than the launcher started; then
            each of them would train alone.

    >>> connect("nccl", None)
    Traceback (most recent call last):
        ...
    distlr.errors.ConfigurationError: `engine` must be one of 'horovod', 'mpi'. Received: engine='nccl'.
    """
    one_of("engine", engine, _CONNECTED)
    communicator = _start(engine, launch, timeout)
    if launch is not None and communicator.size != launch.size:
        raise DistributionError(
            f"[rank {launch.rank}] {launch.launcher} started {launch.size} processes and {engine} sees "
            f"{communicator.size}, so there would be {launch.size // max(communicator.size, 1)} separate trainings. "
            f"Fix: {_HOW[launch.launcher]}."
        )
    return communicator


def _start(engine: str, launch: LauncherInfo | None, timeout: float) -> Communicator:
    try:
        module, name = _CONNECTED[engine]
        communicator: Communicator = getattr(importlib.import_module(f"distlr.communicators.{module}"), name)(
            timeout=timeout
        )
        return communicator
    except DistributionError as error:
        if launch is None or launch.size == 1:
            raise
        raise DistributionError(
            f"[rank {launch.rank}] {launch.launcher} started {launch.size} processes, and without an engine that "
            f"connects them there would be {launch.size} separate trainings. {error}"
        ) from error
