"""This process among Horovod's ranks, and the job that `init` made."""

from __future__ import annotations

from distlr.communicators.horovod.communicator import stop
from distlr.errors import ConfigurationError, DistributionError, received
from distlr.job import Job
from distlr.start import init as start

__all__ = [
    "check_root",
    "current_job",
    "init",
    "is_initialized",
    "local_rank",
    "local_size",
    "rank",
    "shutdown",
    "size",
]

_job: Job | None = None


def init() -> None:
    """Starts Horovod, gives this process its GPU, and remembers the job. Call it first.

    Raises:
        DistributionError: Horovod cannot be loaded, or sees fewer ranks than the launcher started.

    >>> import distlr.horovod as hvd
    >>> hvd.init()
    >>> hvd.is_initialized()
    True
    """
    global _job
    if _job is None:
        _job = start("horovod")


def shutdown() -> None:
    """Ends Horovod's part of this process.

    Over MPI a process cannot start Horovod again afterwards: MPI aborts it.

    >>> import distlr.horovod as hvd
    >>> hvd.init()
    >>> hvd.shutdown()
    >>> hvd.is_initialized()
    False
    """
    global _job
    _job = None
    stop()


def is_initialized() -> bool:
    """Whether `init` was called.

    >>> import distlr.horovod as hvd
    >>> hvd.init()
    >>> hvd.is_initialized()
    True
    """
    return _job is not None


def rank() -> int:
    """This process' number, from 0.

    Raises:
        DistributionError: `init` was not called.

    >>> import distlr.horovod as hvd
    >>> hvd.init()
    >>> hvd.rank()  # on one rank
    0
    """
    return current_job().rank


def size() -> int:
    """Number of processes.

    Raises:
        DistributionError: `init` was not called.

    >>> import distlr.horovod as hvd
    >>> hvd.init()
    >>> hvd.size()  # on one rank
    1
    """
    return current_job().size


def local_rank() -> int:
    """This process' number on its host.

    Raises:
        DistributionError: `init` was not called.

    >>> import distlr.horovod as hvd
    >>> hvd.init()
    >>> hvd.local_rank()  # on one rank
    0
    """
    return current_job().communicator.local_rank


def local_size() -> int:
    """Number of processes on this host.

    Raises:
        DistributionError: `init` was not called.

    >>> import distlr.horovod as hvd
    >>> hvd.init()
    >>> hvd.local_size()  # on one rank
    1
    """
    return current_job().communicator.local_size


def current_job() -> Job:
    """The job that `init` made."""
    if _job is None:
        raise DistributionError("Horovod was not started. Fix: call hvd.init() first.")
    return _job


def check_root(root_rank: int) -> None:
    """Refuses any root but rank 0."""
    if root_rank != 0:
        hint = "write 0: rank 0 decides, saves and restores in distlr"
        raise ConfigurationError(received("root_rank", root_rank, "0", hint))
