"""The picture of the large batches: test accuracy against k, by arm."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from distlr._utils.figures import picture

__all__ = ["draw"]

# By arm: colour, line, and how it is called.
_ARMS = {
    "distlr": ("#1f6f54", "-", "linear, warmup, moving averages (distlr)"),
    "warmup": ("#c47f17", "--", "linear, warmup"),
    "linear": ("#b3413a", "--", "linear alone"),
    "nothing": ("#777777", ":", "nothing scaled"),
    "sqrt adam": ("#3b6fb6", "-.", "Adam: sqrt, warmup, moving averages"),
}


def draw(path: Path, models: dict[str, Any]) -> None:
    """Writes the PNG: mean over the seeds, bars from the least to the greatest; k = 1 is the base batch.

    Args:
        path: the file.
        models: accuracy by model, arm, k and seed, as in `results.json`.
    """
    with picture(path, rows=len(models), size=(8, 3.4 * len(models))) as axes:
        for axis, (model, arms) in zip(axes, models.items(), strict=True):
            for arm, (colour, line, label) in _ARMS.items():
                start = arms.get("base adam" if arm == "sqrt adam" else "base", {})
                by_k = {int(k): list(seeds.values()) for k, seeds in {**start, **arms.get(arm, {})}.items()}
                ks = sorted(by_k)
                means = [100 * statistics.mean(by_k[k]) for k in ks]
                below = [mean - 100 * min(by_k[k]) for k, mean in zip(ks, means, strict=True)]
                above = [100 * max(by_k[k]) - mean for k, mean in zip(ks, means, strict=True)]
                axis.errorbar(
                    ks, means, [below, above], color=colour, ls=line, marker="o", ms=4, capsize=3, label=label
                )
            axis.set_xscale("log", base=2)
            axis.set_xticks([1, 8, 32, 64], ["1", "8", "32", "64"])
            axis.set_ylim(80, 93.5)  # one scale, so that the models can be compared
            axis.set_title(model, loc="left", fontsize=10)
            axis.set_ylabel("test accuracy, %")
        axes[0].legend(frameon=False, fontsize=8, loc="lower left")
        axes[-1].set_xlabel("k: global batch / base batch of 32, at equal epochs")
