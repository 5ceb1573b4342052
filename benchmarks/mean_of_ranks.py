#!/usr/bin/env python3
"""Compares the mean of the ranks' metrics with the metric of all samples, on the cases that distlr is tested with.

    python benchmarks/mean_of_ranks.py

Two ranks' validation shards are scored by one fixed model. "mean of ranks" is the arithmetic of
`hvd.callbacks.MetricAverageCallback`, one allreduce a metric; a rank that has no value stays away from it, which hangs.
The last line is a JSON object: by case and metric, [all samples, mean of ranks].
"""

from __future__ import annotations

import math
import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from _common import result

from distlr.communicators.bundles import Bundle, exchange_bundles, reduce_over
from distlr.sync.metrics import read_states, results
from distlr.testing import run_ranks

NAMES = ("loss", "accuracy", "auc", "precision")
CASES = {"100 and 10 samples": (100, 10), "10 and no samples": (10, 0), "10 samples, 10 with a NaN": (10, 10)}


def shard(rank: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the predictions of a model of middling quality, which are worse on rank 1."""
    generator = np.random.default_rng(rank)
    labels = (generator.random((samples, 1)) < 0.4).astype("float32")
    noise = generator.normal(0, 0.8 + rank, (samples, 1))
    return labels, (1 / (1 + np.exp(-(2 * labels - 1 + noise)))).astype("float32")


def scored(labels: np.ndarray, predictions: np.ndarray) -> list[Any]:
    """The metrics' objects after an evaluation."""
    loss = keras.metrics.BinaryCrossentropy(name="loss")
    others = [keras.metrics.BinaryAccuracy(name="accuracy"), keras.metrics.AUC(name="auc"), keras.metrics.Precision()]
    metrics = [loss, *others]
    if len(labels):
        for metric in metrics:
            # AUC refuses a NaN outright: it is asked about the other samples.
            use = ~np.isnan(predictions[:, 0]) if metric is not loss else slice(None)
            metric.update_state(labels[use], predictions[use])
    return metrics


def values(metrics: list[Any]) -> dict[str, float]:
    return {name: float(metric.result()) for name, metric in zip(NAMES, metrics, strict=True)}


def compare(sizes: tuple[int, int], with_nan: bool) -> dict[str, list[float]]:
    def rank(comm: Any) -> tuple[dict[str, float], dict[str, float]]:
        labels, predictions = shard(comm.rank, sizes[comm.rank])
        if with_nan and comm.rank == 1:
            predictions[0] = math.nan
        metrics = scored(labels, predictions)
        states = read_states(metrics)
        combined = reduce_over(exchange_bundles(comm, Bundle(states.arrays), tag="metrics"))
        return results(metrics, combined, lambda: values(metrics)), values(metrics)

    all_ranks = run_ranks(rank, 2)
    means = {name: float(np.mean([local_means[name] for _, local_means in all_ranks])) for name in NAMES}
    if 0 in sizes:
        means = dict.fromkeys(NAMES, math.inf)  # the empty rank stays away
    return {name: [all_ranks[0][0][name], means[name]] for name in NAMES}


def main() -> None:
    tf.config.set_visible_devices([], "GPU")
    table = {case: compare(sizes, "NaN" in case) for case, sizes in CASES.items()}
    print(f"{'case':<28}" + "".join(f"{name:>26}" for name in NAMES))
    for case, row in table.items():
        cells = [f"{a:.4f} / " + ("hangs" if math.isinf(b) else f"{b:.4f}") for a, b in row.values()]
        print(f"{case:<28}" + "".join(f"{cell:>26}" for cell in cells))
    result(
        {
            case: {n: [str(x) if not math.isfinite(x) else round(x, 6) for x in pair] for n, pair in row.items()}
            for case, row in table.items()
        }
    )


if __name__ == "__main__":
    main()
