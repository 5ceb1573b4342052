"""Writes the reference script's files beside the run's own: `summary.json`, and the report as page and picture."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import distlr
from distlr._utils.atomic_files import write_json
from distlr.runlog.directory import RunDirectory
from distlr.tools.report import draw, write_report

__all__ = ["write"]


def write(run_dir: Path, job: distlr.Job, model: Any, accuracy: float) -> None:
    """Gathers the digests (collective), and writes the files on rank 0, of the epochs before a restart too."""
    digests = {"weights_digests": job.weights_digests(model), "rate_digests": job.rate_digests(model.optimizer)}
    if not job.is_root:
        return
    run = RunDirectory(run_dir).read()
    explained = job.explain()
    summary = {
        **{name: explained[name] for name in ("backend", "ranks", "replicas", "global_batch", "factor")},
        "steps": int(model.optimizer.iterations.numpy()),
        "final_learning_rate": explained["learning_rate"],
        "learning_rates": [epoch["learning_rate"] for epoch in run.epochs],
        "decisions": [decision for decision in run.decisions if decision["kind"] == "plateau"],
        "test_accuracy": accuracy,
        **digests,
        "versions": run.run["versions"],
    }
    write_json(run_dir / "summary.json", summary)
    equal = "equal" if len(set(digests["weights_digests"])) == 1 else "NOT EQUAL"
    print(f"test accuracy {accuracy:.2%}, factor {summary['factor']:g}, weights on {job.replicas} replicas {equal}")
    files = [run_dir / "summary.json", run_dir / "report.html"]
    write_report(files[-1], [run])
    if importlib.util.find_spec("matplotlib") is not None:
        files.append(run_dir / "report.png")
        draw(files[-1], [run])
    print(f"wrote {', '.join(map(str, files))}")
