"""What the reference script leaves behind: `summary.json` and `learning_rate.png`."""

from __future__ import annotations

import importlib.util
import json
import platform
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import distlr
from distlr.files import write_json

__all__ = ["write"]


def write(run_dir: Path, job: distlr.Job, model: Any, decisions: list[Any], accuracy: float) -> None:
    """Gathers the digests (collective), and writes both files on rank 0, of the epochs before a restart too."""
    optimizer = model.optimizer
    explained = job.explain()
    summary = {
        "backend": job.backend,
        "ranks": job.size,
        "replicas": job.replicas,
        "global_batch": explained["global_batch"],
        "factor": explained["factor"],
        "steps": int(optimizer.iterations.numpy()),
        "final_learning_rate": float(optimizer.learning_rate),
        "learning_rates": [record["learning_rate"] for record in records(run_dir)] if job.is_root else [],
        "decisions": decisions,
        "test_accuracy": accuracy,
        "weights_digests": job.weights_digests(model),
        "rate_digests": job.rate_digests(optimizer),
        "versions": {
            "distlr": distlr.__version__,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "python": platform.python_version(),
        },
    }
    if not job.is_root:
        return
    write_json(run_dir / "summary.json", summary)
    equal = "equal" if len(set(summary["weights_digests"])) == 1 else "NOT EQUAL"
    print(f"test accuracy {accuracy:.2%}, factor {summary['factor']:g}, weights on {job.replicas} replicas {equal}")
    print(f"wrote {run_dir}/summary.json", end="")
    if importlib.util.find_spec("matplotlib") is not None:
        draw(run_dir / "learning_rate.png", optimizer.schedule, records(run_dir), decisions)
        print(f" and {run_dir}/learning_rate.png", end="")
    print()


def records(run_dir: Path) -> list[dict[str, Any]]:
    """What `LearningRateLogger` wrote, an epoch each, of the last run in the directory."""
    lines = (run_dir / distlr.callbacks.LearningRateLogger.FILE).read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    first = max(i for i, record in enumerate(found) if record["epoch"] == 0)
    return found[first:]


def draw(path: Path, schedule: Any, epochs: list[dict[str, Any]], decisions: list[Any]) -> None:
    """The rate against epochs, from the formula, with the cuts marked; faint: without the multiplier."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    batch = schedule.batch
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    without = []
    for epoch, multiplier in enumerate(record["lr_multiplier"] for record in epochs):
        samples = np.linspace(epoch, epoch + 1, 200, endpoint=False) * batch.samples_per_epoch
        full = schedule.at(tf.constant(samples / batch.base_batch)).numpy()
        without.append((samples / batch.samples_per_epoch, full))
        axes.plot(samples / batch.samples_per_epoch, full * multiplier, color="C0", linewidth=2)
    x, y = (np.concatenate(parts) for parts in zip(*without, strict=True))
    axes.plot(x, y, color="C0", alpha=0.25, linewidth=1, label="schedule x factor x warmup")
    for i, decision in enumerate(decisions):
        label = "cut on a plateau" if i == 0 else None
        axes.axvline(decision["epoch"] + 1, color="C3", linestyle="--", linewidth=1, label=label)
    axes.plot([], [], color="C0", linewidth=2, label="the rate that was applied")
    axes.set(xlabel="epoch", ylabel="learning rate", xlim=(0, len(epochs)), ylim=(0, None))
    axes.set_title(
        f"global batch {batch.size} on {batch.replicas} replicas, base batch {batch.base_batch}: factor "
        f"{schedule.factor:g} ({schedule.explain()['rule']})"
    )
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
