"""Turns the output of the benchmarks into the shape of `results.json`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

__all__ = ["shaped"]

Rows = list[dict[str, Any]]


def shaped(name: str, runs: Rows) -> dict[str, Any]:
    """Combines the output of the runs of a benchmark into one object."""
    return _SHAPES[name](runs)


def _step(runs: Rows) -> dict[str, Any]:
    by_backend: dict[str, Any] = {}
    for run in runs:
        for row in run["rows"]:
            by_backend.setdefault(run["backend"], {}).setdefault(row["model"], {})[row["arm"]] = row
    return by_backend


def _exchange(runs: Rows) -> dict[str, Any]:
    return {run["backend"]: run["rows"] for run in runs}


def _epoch_end(runs: Rows) -> dict[str, Any]:
    rows = [row for run in runs for row in run["rows"]]
    ours = [row for row in rows if (row["ranks"], row["metrics"], row["arm"]) == (4, 20, "distlr")]
    summary: dict[str, Any] = {"rows": rows}
    if ours:
        summary |= {"ratio_20_metrics_4_ranks": ours[0]["ratio"], "collectives": ours[0]["collectives"]}
    return summary


def _control_plane(runs: Rows) -> dict[str, Any]:
    rows = [row for run in runs for row in run["rows"]]
    return {
        "seconds": {str(row["ranks"]): row["seconds"] for row in rows},
        "rows": rows,
        "predicted": runs[-1]["predicted"],
    }


def _memory(runs: Rows) -> dict[str, Any]:
    return {run["backend"]: {key: value for key, value in run.items() if key != "backend"} for run in runs}


def _large_batch(runs: Rows, value: str = "accuracy") -> dict[str, Any]:
    by_model: dict[str, Any] = {}
    for run in runs:
        if value in run:
            arms = by_model.setdefault(run["model"], {})
            arms.setdefault(run["arm"], {}).setdefault(str(run["k"]), {})[str(run["seed"])] = run[value]
    return by_model


_SHAPES: dict[str, Callable[[Rows], dict[str, Any]]] = {
    "step": _step,
    "exchange": _exchange,
    "epoch_end": _epoch_end,
    "control_plane": _control_plane,
    "memory": _memory,
    "large_batch": _large_batch,
    "large_batch_training": functools.partial(_large_batch, value="train_accuracy"),
}
