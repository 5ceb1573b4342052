"""What the benchmarks share: ratios of paired measurements, ranks of this script, and the last line that they print."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["ratio", "result", "shown", "start"]

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
    from distlr.cli.local_workers import run_workers
    from distlr.cli.run import command

    name = {"simulated": "tf"}.get(backend, backend)
    words, variables = command(ranks, name, sys.argv[0], sys.argv[1:])
    environ = {**os.environ, **variables, INSIDE: "yes", "TF_NUM_INTEROP_THREADS": "2"}
    sys.stdout.flush()
    if backend == "multi-worker":
        sys.exit(run_workers(ranks, words, environ))
    os.execvpe(words[0], words, environ)


def result(value: dict[str, Any]) -> None:
    """Prints the measurements as the last line, one JSON object, which `run.py` reads."""
    print(json.dumps(value), flush=True)
