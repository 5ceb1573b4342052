"""One update of a script's model on one replica and on two: whether its loss is one that replicas may add up."""

from __future__ import annotations

import ast
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distlr.errors import DistributionError
from distlr.tools.doctor.finding import Finding, refused
from distlr.tools.doctor.processes import Ended, run, without_launcher

__all__ = ["HOW_TO_WRITE", "LIMIT", "check", "compared", "has_setup"]

LIMIT = 120.0  # seconds; a small model takes twenty on two cores

HOW_TO_WRITE = (
    "In train_step write `loss = job.mean_loss(losses, batch)`, of one loss a sample, or call a Keras loss such as "
    "`keras.losses.MeanSquaredError()(y, prediction)`."
)
"""How a loss is written that is right on any number of replicas."""

_NAME = "one update on two replicas"
_TOLERANCE = 1e-4
_TOLERANCE_OF_NOISE = 0.25


def has_setup(script: Path) -> bool:
    """Whether a script has a function `setup`, as `distlr lr-find` calls it, at its top level."""
    try:
        body = ast.parse(script.read_bytes()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False  # reported elsewhere
    return any(isinstance(node, ast.FunctionDef) and node.name == "setup" for node in body)


def check(script: Path, environ: Mapping[str, str], limit: float = LIMIT) -> Finding:
    """Imports the script in a process of its own, trains its model for a step on one and on two replicas, and compares.

    Args:
        script: a Python file with `setup(job)`.
        environ: the environment of this process.
        limit: seconds after which the process is killed.
    """
    with tempfile.TemporaryDirectory(prefix="distlr-doctor-") as folder:
        out = Path(folder, "found.json")
        words = [sys.executable, "-m", "distlr.tools.doctor.splitting", str(script), str(out), str(round(limit))]
        variables = {**without_launcher(environ), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
        ended = run(words, variables, limit)
        result = json.loads(out.read_text()) if out.is_file() else {}
    return compared(str(script), result, ended)


def compared(script: str, result: Mapping[str, Any], ended: Ended) -> Finding:
    """The verdict of the two updates on the script's loss.

    Args:
        script: its path.
        result: the output of `splitting.py`; {} if there is none.
        ended: how its process ended.
    """
    name = f"{script}: {_NAME}"
    if "refused" in result:
        return refused(name, DistributionError(result["refused"]))
    if "factor" not in result:
        why = f"It could not be made by its setup(job): {result.get('error', ended.how)}"
        return Finding(name, "warning", why[:600], "See `distlr lr-find` for what setup(job) has to return.")
    replicas, factor, noisy = result["replicas"], result["factor"], result["noisy"]
    near = _TOLERANCE_OF_NOISE if noisy else _TOLERANCE
    fits = noisy or result["left"] <= _TOLERANCE
    about = ", as far as the random numbers that it draws let one see" if noisy else ""
    if abs(factor - 1) <= near and fits:
        return Finding(name, "OK", f"It is that on one replica, of the same samples{about}.")
    if abs(factor / replicas - 1) <= near and fits:
        text = (
            f"It is {factor:.3g} times that on one replica, of the same samples{about}: train_step takes the mean of "
            "its losses on each replica, and the gradients of replicas are added up."
        )
        return Finding(name, "error", text, HOW_TO_WRITE)
    if noisy:
        text = f"It draws random numbers, and seems to be {factor:.2g} times that on one replica: nothing can be said."
        return Finding(name, "warning", text, "Leave them out, such as dropout, and ask again.")
    text = (
        f"It is not that on one replica, of the same samples: it is {factor:.3g} times it, and differs by "
        f"{result['left']:.2g} of it besides. A loss that compares a batch's samples with each other does that."
    )
    return Finding(name, "warning", text, HOW_TO_WRITE)
