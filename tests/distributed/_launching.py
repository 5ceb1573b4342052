"""Starts real launchers, with a hard limit, and leaves none of their processes behind."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence

from distlr.tools.doctor.processes import without_launcher

__all__ = ["ROOT", "Finished", "Killer", "launch", "names_rank", "run"]

Watch = Callable[[Callable[[], dict[int, int]]], None]

ROOT = pathlib.Path(__file__).resolve().parents[2]

_MARK = "DISTLR_TEST_LAUNCH"

LAUNCHERS = {
    "gloo": ["launch/horovodrun.sh", "--gloo", "-np"],
    "horovod-mpi": ["launch/horovodrun.sh", "--mpi", "-np"],
    "mpirun": ["launch/mpirun.sh", "-np"],
    "multi-worker": ["launch/tf_config.sh", "-n"],
}


@dataclasses.dataclass(frozen=True)
class Finished:
    """A launched job that has ended, by itself or by its limit."""

    code: int | None  # None: the limit ended it
    output: str
    seconds: float

    def check(self) -> Finished:
        """Fails the test unless the job ended with 0."""
        assert self.code == 0, f"the job ended with {self.code} after {self.seconds:.0f} s:\n{self.output[-8000:]}"
        return self


def launch(
    launcher: str,
    size: int,
    arguments: Sequence[str],
    *,
    limit: float = 120,
    environ: dict[str, str] | None = None,
    watch: Watch | None = None,
) -> Finished:
    """Runs a script on `size` ranks; see `run`.

    Args:
        launcher: a name in `LAUNCHERS`.
        size: number of ranks.
        arguments: the script and its arguments.
        limit: see `run`; likewise `environ` and `watch`.
    """
    variables = {**_few_threads(size), **(environ or {})}
    return run([*LAUNCHERS[launcher], str(size), *arguments], limit=limit, environ=variables, watch=watch)


def run(
    words: Sequence[str], *, limit: float, environ: dict[str, str] | None = None, watch: Watch | None = None
) -> Finished:
    """Runs a command in the repository's root.

    Args:
        words: the command and its arguments.
        limit: seconds after which everything that was started is killed.
        environ: variables beside those inherited.
        watch: called once with a function that gives this job's processes by rank, while it runs.
    """
    mark = uuid.uuid4().hex
    variables = without_launcher(os.environ)
    variables |= {"PYTHON": sys.executable, "VIRTUAL_ENV": sys.prefix, "TF_CPP_MIN_LOG_LEVEL": "3", _MARK: mark}
    variables |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **(environ or {})}
    start = time.monotonic()
    process = subprocess.Popen(
        list(words),
        cwd=ROOT,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        if watch is not None:
            watch(lambda: _ranks(mark))
        output, _ = process.communicate(timeout=max(1.0, limit - (time.monotonic() - start)))
        code: int | None = process.returncode
    except subprocess.TimeoutExpired:
        _kill(mark)
        output, _ = process.communicate(timeout=30)
        code = None
    finally:
        _kill(mark)
        process.wait(timeout=30)
    return Finished(code, output, time.monotonic() - start)


class Killer:
    """A `watch` that kills one rank once the run is under way.

    Attributes:
        at: when it did, by the monotonic clock; None while it has not.
    """

    def __init__(self, rank: int, under_way: pathlib.Path, limit: float = 90) -> None:
        self.rank, self.under_way, self.limit = rank, under_way, limit
        self.at: float | None = None

    def __call__(self, ranks: Callable[[], dict[int, int]]) -> None:
        deadline = time.monotonic() + self.limit
        while time.monotonic() < deadline:
            pid = ranks().get(self.rank) if self.under_way.is_file() else None
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                self.at = time.monotonic()
                return
            time.sleep(0.05)

    def check(self, finished: Finished, within: float = 60) -> None:
        """Fails the test unless the job ended by itself, soon after, with an error that names the rank."""
        assert self.at is not None, finished.output[-4000:]
        assert finished.code not in (0, None), finished.output[-4000:]
        assert time.monotonic() - self.at < within
        assert names_rank(finished.output, self.rank), finished.output[-4000:]


def names_rank(output: str, rank: int) -> bool:
    """Whether the launcher's last words say that this rank ended, and how."""
    pattern = (
        rf"Process {rank} exit with status code|Process name: \[[^\]]*,{rank}\]|process rank {rank}\b"
        rf"|task {rank}: (Killed|Exited)"
    )
    return re.search(pattern, output) is not None


def _few_threads(size: int) -> dict[str, str]:
    threads = str(max(1, (os.cpu_count() or 1) // size))
    return {"TF_NUM_INTRAOP_THREADS": threads, "TF_NUM_INTEROP_THREADS": "2", "OMP_NUM_THREADS": threads}


def _environments() -> dict[int, dict[str, str]]:
    by_rank: dict[int, dict[str, str]] = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            entries = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue  # it has ended, or is another user's
        by_rank[int(folder.name)] = dict(entry.split("=", 1) for entry in entries if "=" in entry)
    return by_rank


def _ranks(mark: str) -> dict[int, int]:
    """The process number of each rank of a launch that runs the test's Python."""
    ranks: dict[int, int] = {}
    for pid, environ in _environments().items():
        rank = environ.get("HOROVOD_RANK", environ.get("OMPI_COMM_WORLD_RANK", environ.get("SLURM_PROCID")))
        if rank is None and "TF_CONFIG" in environ:
            rank = json.loads(environ["TF_CONFIG"])["task"]["index"]
        if environ.get(_MARK) != mark or rank is None:
            continue
        try:
            program = os.readlink(f"/proc/{pid}/exe")
        except OSError:
            continue
        if "python" in pathlib.Path(program).name:
            ranks[int(rank)] = max(pid, ranks.get(int(rank), 0))  # a shell or a middleman came before
    return ranks


def _kill(mark: str) -> None:
    for _ in range(3):  # what is starting others just now is found the next time
        pids = [pid for pid, environ in _environments().items() if environ.get(_MARK) == mark]
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if not pids:
            return
        time.sleep(0.05)
