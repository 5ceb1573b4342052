"""Helpers of the benchmarks: ratios of pairs, ranks of this script, jobs, memory, and the last line that they print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["ROOT", "lean", "memory", "patience", "ratio", "result", "shown", "start", "written"]

ROOT = Path(__file__).resolve().parent.parent
for _folder in ("launch", "tests/distributed"):  # the reference script and its data; the tests' launchers
    sys.path.append(str(ROOT / _folder))

INSIDE = "DISTLR_BENCHMARK_RANK"


def ratio(over: Any, under: Any) -> dict[str, float]:
    """The ratios of pairs: their median with its 95% interval, `low` to `high` (bootstrap), least and greatest."""
    ratios = np.asarray(over) / np.asarray(under)
    generator = np.random.default_rng(0)
    medians = np.median(generator.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    values = {"min": ratios.min(), "low": low, "median": np.median(ratios), "high": high, "max": ratios.max()}
    return {**{name: round(float(value), 4) for name, value in values.items()}, "pairs": len(ratios)}


def shown(row: Mapping[str, float]) -> str:
    """A ratio for a table on the terminal: low, median, high."""
    return "  ".join(f"{row[name]:.3f}" for name in ("low", "median", "high"))


def start(backend: str, ranks: int) -> None:
    """Becomes the launcher of `ranks` processes of this script, or of its replicas; returns in each of them.

    Args:
        backend: "single", "simulated", "horovod" or "multi-worker".
        ranks: how many.
    """
    if backend == "single" or INSIDE in os.environ:
        return
    from distlr.startup.local_workers import build_command, run_workers

    name = {"simulated": "tf"}.get(backend, backend)
    words, variables = build_command(ranks, name, sys.argv[0], sys.argv[1:])
    environ = {**os.environ, **variables, INSIDE: "yes"}
    if backend != "simulated":  # whose replicas wait for each other in one process, each on a thread
        environ["TF_NUM_INTEROP_THREADS"] = "2"
    sys.stdout.flush()
    if backend == "multi-worker":
        sys.exit(run_workers(ranks, words, environ))
    os.execvpe(words[0], words, environ)


def patience(backend: str) -> float:
    """Seconds that a rank waits for others; a plain optimizer on workers keeps two threads a step for so long."""
    return 30.0 if backend == "multi-worker" else 120.0


def written(words: Callable[[Path], list[str]], limit: float, **variables: str) -> Any:
    """Starts a separate job, and returns the JSON that the job writes into the given file.

    Args:
        words: the command, for the file's path.
        limit: seconds after which it is an error.
        **variables: variables for its environment.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured.json"
        command = words(path)
        environ = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT), **variables}
        done = subprocess.run(command, env=environ, timeout=limit, capture_output=True, text=True, check=False)
        if done.returncode or not path.is_file():
            output = (done.stdout + done.stderr)[-4000:]
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{output}")
        return json.loads(path.read_text())


def memory(kind: str = "Rss") -> float:
    """This process' memory in MB: all that is resident, or "Pss", with its share alone of what others map too."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"/proc/self/smaps_rollup has no {kind}")


def lean(kind: type) -> type:
    """A Keras optimizer that averages its gradients over Horovod's ranks, and does nothing more of distlr's."""
    import horovod.tensorflow as hvd

    class Lean(kind):  # type: ignore[misc]
        def apply(self, grads: Any, trainable_variables: Any = None) -> None:
            averaged = [hvd.allreduce(grad, op=hvd.Average, name=f"{self.name}.{i}") for i, grad in enumerate(grads)]
            super().apply(averaged, trainable_variables)

    return Lean


def result(value: dict[str, Any]) -> None:
    """Prints the measurements as the last line, one JSON object, which `run.py` reads."""
    print(json.dumps(value), flush=True)
