"""One real update on two ranks of this machine, by each engine and by Horovod's own optimizer."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distlr.errors import DistributionError
from distlr.startup.local_workers import build_command
from distlr.tools.doctor.finding import Finding, refused
from distlr.tools.doctor.processes import Ended, run, without_launcher

__all__ = ["LIMIT", "averaged", "check", "stock"]

LIMIT = 120.0  # seconds; it takes ten on two cores

_RANKS = 2
_WORKERS = f"""
import os, sys
from distlr.startup.local_workers import run_workers
sys.exit(run_workers({_RANKS}, sys.argv[1:], os.environ, grace=10))
"""
_BY_HAND = {
    "horovod": f"horovodrun --gloo -np {_RANKS} python -m distlr.tools.doctor.averaging horovod DIRECTORY 60",
    "multi-worker": f"distlr run -n {_RANKS} --backend multi-worker SCRIPT",
}


def check(engine: str, environ: Mapping[str, str], *, gpus: int, limit: float = LIMIT) -> list[Finding]:
    """Runs `averaging.py` on two ranks and says whether the gradients were averaged.

    Args:
        engine: "horovod", by horovodrun over gloo; or "multi-worker", by `startup/local_workers.py`.
        environ: the environment of this process.
        gpus: how many TensorFlow sees. With fewer than two the ranks use the CPU: NCCL refuses two ranks on one GPU.
        limit: seconds after which all are killed. Each rank ends itself then, too, whatever process group it is in.
    """
    try:
        results, ended = _launch(engine, environ, gpus, limit)
    except DistributionError as error:  # no horovodrun
        return [refused(f"averaging ({engine})", error)]
    where = "GPUs" if gpus >= _RANKS else "CPU"
    findings = [averaged(engine, where, results, ended)]
    if engine == "horovod" and findings[0].status == "OK":
        findings.append(stock(results))
    return findings


def averaged(engine: str, where: str, results: Sequence[Mapping[str, Any]], ended: Ended) -> Finding:
    """Whether a distlr optimizer's weights after the update are those of the mean gradient, on both ranks.

    Args:
        engine: the engine, as for `check`.
        where: the device that the ranks used.
        results: the output of each rank, by rank.
        ended: how the launch ended.
    """
    name = f"averaging ({engine})"
    errors = [str(each["error"]) for each in results if "error" in each]
    by_hand = f"See what it says: {_BY_HAND[engine]}"
    if errors or len(results) != _RANKS or ended.code != 0:
        why = errors[0][:600] if errors else ended.how
        return Finding(name, "error", f"One update on {_RANKS} ranks of this machine failed: {why}", by_hand)
    weights, expected = [each["distlr"] for each in results], results[0]["averaged"]
    if len(set(weights)) == 1 and abs(weights[0] - expected) < 1e-6:
        text = f"{_RANKS} ranks on this machine's {where}, with different gradients: after one update their weights are"
        return Finding(name, "OK", f"{text} equal, and those of the mean gradient.")
    text = f"The weights after one update are {_listed(weights)}; with the mean gradient they are {expected:g} on both."
    return Finding(name, "error", f"Gradients are not averaged. {text}", by_hand)


def stock(results: Sequence[Mapping[str, Any]]) -> Finding:
    """The result of Horovod's own optimizer for the same update; information for those who come from it."""
    name, expected = "stock Horovod", results[0]["averaged"]
    to_do = (
        "Write `import distlr.horovod as hvd` in place of `import horovod.tensorflow.keras as hvd`, or use "
        "job.optimizer. `distlr doctor --script FILE` finds the lines of a script."
    )
    raised = [each["stock_error"] for each in results if "stock_error" in each]
    if raised:
        return Finding(
            name, "warning", f"hvd.DistributedOptimizer of Horovod itself raises here: {raised[0]}"[:600], to_do
        )
    weights = [each["stock"] for each in results]
    if len(set(weights)) == 1 and abs(weights[0] - expected) < 1e-6:
        return Finding(name, "OK", "hvd.DistributedOptimizer of Horovod itself averages gradients here.")
    text = (
        "Stock Horovod averages nothing here, and raises nothing: after the same update with its own hvd."
        f"DistributedOptimizer the ranks' weights are {_listed(weights)}, where the mean gradient gives {expected:g}."
    )
    return Finding(name, "warning", text, to_do)


def _launch(engine: str, environ: Mapping[str, str], gpus: int, limit: float) -> tuple[list[dict[str, Any]], Ended]:
    with tempfile.TemporaryDirectory(prefix="distlr-doctor-") as folder:
        words, threads = build_command(_RANKS, engine, str(Path(__file__).with_name("averaging.py")), [])
        # As a module: a script's own folder would come first on the path.
        words = [*words[:-1], "-m", "distlr.tools.doctor.averaging", engine, folder, str(round(limit))]
        if engine == "multi-worker":
            words = [sys.executable, "-c", _WORKERS, *words]
        variables = {"TF_CPP_MIN_LOG_LEVEL": "3", **without_launcher(environ), **threads}
        if gpus < _RANKS:
            variables["CUDA_VISIBLE_DEVICES"] = "-1"
        ended = run(words, variables, limit)
        results = [json.loads(file.read_text()) for file in Path(folder).glob("*.json")]
    return sorted(results, key=lambda each: int(each.get("rank", _RANKS))), ended


def _listed(weights: Sequence[float]) -> str:
    return " and ".join(f"{weight:g}" for weight in weights)
