"""What the benchmarks share: ratios of paired measurements, ranks of this script, and the last line that they print."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np

__all__ = ["interval", "result", "start"]

_INSIDE = "DISTLR_BENCHMARK_RANK"


def interval(over: np.ndarray, under: np.ndarray) -> list[float]:
    """Low, median and high: the median of the pairs' ratios and its 95% interval (bootstrap)."""
    ratios = over / under
    generator = np.random.default_rng(0)
    medians = np.median(generator.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return [round(float(value), 4) for value in (low, np.median(ratios), high)]


def start(backend: str, ranks: int) -> None:
    """Becomes the launcher of `ranks` processes of this script, or of its replicas; returns in each of them.

    Args:
        backend: "single", "simulated", "horovod" or "multi-worker".
        ranks: how many.
    """
    if backend == "single" or _INSIDE in os.environ:
        return
    from distlr.cli.local_workers import run_workers
    from distlr.cli.run import command

    name = {"simulated": "tf"}.get(backend, backend)
    words, variables = command(ranks, name, sys.argv[0], sys.argv[1:])
    environ = {**os.environ, **variables, _INSIDE: "yes", "TF_NUM_INTEROP_THREADS": "2"}
    sys.stdout.flush()
    if backend == "multi-worker":
        sys.exit(run_workers(ranks, words, environ))
    os.execvpe(words[0], words, environ)


def result(value: dict[str, Any]) -> None:
    """Prints the measurements as the last line, one JSON object, which `run.py` reads."""
    print(json.dumps(value), flush=True)
