"""Detects the launcher that started this process, from an environment that is passed in and never changed.

The first of these that is set wins. They are ordered by how surely they describe *this* process:

1. Horovod's own variables. `horovodrun` also runs inside Slurm allocations and on clusters that set
   TF_CONFIG, and those variables then describe something else.
2. Open MPI's. `mpirun` in a Slurm allocation starts its daemons with `srun`, so that every rank also sees
   the Slurm variables of a step of one task a node.
3. PMI's (MPICH, Intel MPI), for the same reason before Slurm's. `srun` with PMI-2 sets some of them too,
   without the local rank: then the Slurm step is read.
4. Slurm's, only inside a step of several tasks. SLURM_NTASKS and SLURM_PROCID alone are also there in
   the shell of `salloc` and in a batch script, which are one process.
5. TF_CONFIG, last: it is set by hand or by a platform for a whole job and outlives what it describes.

`horovodrun` and `mpirun` are detected at size 1 too, since only they set those variables. The variables of
the others linger in interactive shells and on managed platforms; at size 1 they mean nothing.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from distlr._utils.checks import digits
from distlr.errors import ConfigurationError, shown

__all__ = ["LauncherInfo", "detect", "rank_on_host", "tf_config_workers"]

Launcher = Literal["horovodrun", "mpirun", "pmi", "srun", "tf_config"]


@dataclasses.dataclass(frozen=True)
class LauncherInfo:
    """The launcher's description of this process. In an elastic job it is that of the start.

    Attributes:
        launcher: the family of variables that was found.
        rank: this process' number, in 0 to `size - 1`.
        size: number of processes.
        local_rank: number on this host, in 0 to `local_size - 1`.
        local_size: number of processes on this host.

    >>> launch = detect({"HOROVOD_RANK": "5", "HOROVOD_SIZE": "8",
    ...                  "HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "4"})
    >>> launch.launcher, launch.rank, launch.local_rank
    ('horovodrun', 5, 1)
    """

    launcher: Launcher
    rank: int
    size: int
    local_rank: int
    local_size: int


def detect(environ: Mapping[str, str]) -> LauncherInfo | None:
    """Detects which launcher started this process, and the place of the process in the job.

    >>> detect({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2",
    ...         "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"})
    LauncherInfo(launcher='mpirun', rank=1, size=2, local_rank=1, local_size=2)

    Args:
        environ: the environment, such as `os.environ`. It is only read.

    Returns:
        The launch, or None for a process on its own.

    Raises:
        ConfigurationError: a variable that is malformed, missing among its siblings, or out of range.
    """
    if "HOROVOD_RANK" in environ:
        names = ("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE")
        return _from_variables("horovodrun", environ, names)
    if "OMPI_COMM_WORLD_RANK" in environ:
        prefix = "OMPI_COMM_WORLD_"
        names = (f"{prefix}RANK", f"{prefix}SIZE", f"{prefix}LOCAL_RANK", f"{prefix}LOCAL_SIZE")
        return _from_variables("mpirun", environ, names)
    if "PMI_RANK" in environ and _number(environ, "PMI_SIZE") != 1:
        by_srun = "MPI_LOCALRANKID" not in environ and _in_slurm_step(environ)
        if not by_srun:
            return _from_variables("pmi", environ, ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"))
    if _in_slurm_step(environ):
        return _from_slurm(environ)
    return _from_tf_config(environ)


def _from_variables(launcher: Launcher, environ: Mapping[str, str], names: tuple[str, str, str, str]) -> LauncherInfo:
    rank, size, local_rank, local_size = (_number(environ, name) for name in names)
    _check_below(names[0], rank, names[1], size)
    _check_below(names[2], local_rank, names[3], local_size)
    if local_size > size:
        raise ConfigurationError(
            f"{names[3]}={local_size} is more than {names[1]}={size}: there cannot be more processes on one "
            "host than in the job. Fix: unset both, or start the job again with its launcher."
        )
    return LauncherInfo(launcher, rank, size, local_rank, local_size)


def _number(environ: Mapping[str, str], name: str) -> int:
    text = environ.get(name)
    if text is None:
        raise ConfigurationError(
            f"{name} is not set, although other variables of the same launcher are. Fix: set it, or "
            "unset the others to run as a single process."
        )
    number = digits(text.strip())
    if number is None:
        raise ConfigurationError(
            f"{name} must be an integer of at least 0. Received: {name}={shown(text)}. Fix: start the job "
            "with its launcher, or unset the variable to run as a single process."
        )
    return number


def _check_below(name: str, value: int, bound_name: str, bound: int) -> None:
    if value >= bound:
        raise ConfigurationError(
            f"{name} must be below {bound_name}. Received: {name}={value}, {bound_name}={bound}. Fix: "
            "unset what an earlier launch left behind, or start the job again with its launcher."
        )


def _in_slurm_step(environ: Mapping[str, str]) -> bool:
    if not all(name in environ for name in ("SLURM_STEP_ID", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        return False
    return _number(environ, "SLURM_STEP_NUM_TASKS") > 1


def _from_slurm(environ: Mapping[str, str]) -> LauncherInfo:
    rank, size = _number(environ, "SLURM_PROCID"), _number(environ, "SLURM_STEP_NUM_TASKS")
    _check_below("SLURM_PROCID", rank, "SLURM_STEP_NUM_TASKS", size)
    local_rank = _number(environ, "SLURM_LOCALID")
    tasks = _tasks_per_node(environ, size)
    node = _number(environ, "SLURM_NODEID") if len(tasks) > 1 else 0
    name = "SLURM_STEP_TASKS_PER_NODE"
    _check_below("SLURM_NODEID", node, f"the number of nodes in {name}", len(tasks))
    _check_below("SLURM_LOCALID", local_rank, f"this node's tasks in {name}", tasks[node])
    return LauncherInfo("srun", rank, size, local_rank, tasks[node])


def _tasks_per_node(environ: Mapping[str, str], size: int) -> list[int]:
    """Expands Slurm's notation: "2(x3),1" is 2, 2, 2, 1. Each node has a task, so there are at most `size` nodes."""
    name = "SLURM_STEP_TASKS_PER_NODE"
    text = environ.get(name, "")
    counts: list[int] = []
    for item in text.split(","):
        match = re.fullmatch(r"([0-9]+)(?:\(x([0-9]+)\))?", item.strip(), re.ASCII)
        tasks, nodes = (None, None) if match is None else (digits(match[1]), digits(match[2] or "1"))
        if tasks is None or nodes is None or len(counts) + nodes > size:
            raise ConfigurationError(
                f"{name} must be like '4' or '2(x3),1' inside an srun step, for at most {size} nodes. Received: "
                f"{name}={shown(text)}. Fix: start the job with srun, or unset SLURM_STEP_ID to run as a single "
                "process."
            )
        counts += [tasks] * nodes
    return counts


def _from_tf_config(environ: Mapping[str, str]) -> LauncherInfo | None:
    workers = tf_config_workers(environ)
    if workers is None or len(workers[0]) <= 1:
        return None
    addresses, rank = workers
    return LauncherInfo("tf_config", rank, len(addresses), *rank_on_host(addresses, rank))


def rank_on_host(addresses: Sequence[str], rank: int) -> tuple[int, int]:
    """A worker's number among those of its host, and how many these are, from the "host:port" of all.

    >>> rank_on_host(["a:1", "a:2", "b:1"], 1)
    (1, 2)
    """
    hosts = [address.rpartition(":")[0] or address for address in addresses]
    return hosts[:rank].count(hosts[rank]), hosts.count(hosts[rank])


def tf_config_workers(environ: Mapping[str, str]) -> tuple[list[str], int] | None:
    """Reads the workers from TF_CONFIG, a chief first, and this process' place; None for an evaluator or no workers.

    Raises:
        ConfigurationError: it is malformed.
    """
    text = environ.get("TF_CONFIG", "")
    if not text.strip():
        return None
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _bad_tf_config(text, f"it must be JSON ({error})") from error
    cluster = _section(config, "cluster", text)
    workers: list[str] = []
    starts: dict[str, int] = {}
    counts: dict[str, int] = {}
    # TensorFlow counts the chief before the workers; 'master' is the old name of the chief.
    for kind in ("chief", "master", "worker"):
        addresses = cluster.get(kind, [])
        if not isinstance(addresses, list) or not all(isinstance(item, str) for item in addresses):
            raise _bad_tf_config(text, f"cluster.{kind} must be a list of 'host:port'")
        starts[kind], counts[kind] = len(workers), len(addresses)
        workers += addresses
    if not workers:
        return None
    task = _section(config, "task", text)
    role, index = task.get("type"), task.get("index")
    if role == "evaluator":
        return None
    if not isinstance(role, str) or role not in starts:
        raise _bad_tf_config(text, f"task.type must be 'worker' or 'chief', not {role!r}")
    if cluster.get("ps"):
        raise _bad_tf_config(text, "parameter servers update the weights at different times on each worker")
    count = counts[role]
    if isinstance(index, str):
        index = digits(index)
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
        raise _bad_tf_config(text, f"task.index must be an int below the {count} of cluster.{role}")
    return workers, starts[role] + index


def _section(config: object, name: str, text: str) -> dict[str, object]:
    section = config.get(name, {}) if isinstance(config, dict) else None
    if not isinstance(section, dict):
        raise _bad_tf_config(text, f"it must be an object whose {name!r} is an object")
    return section


def _bad_tf_config(text: str, problem: str) -> ConfigurationError:
    example = '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'
    return ConfigurationError(
        f"TF_CONFIG cannot be used: {problem}. Received: TF_CONFIG={shown(text)}. Fix: set it as in "
        f"'{example}', or unset it to run as a single process."
    )
