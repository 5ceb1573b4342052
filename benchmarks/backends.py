#!/usr/bin/env python3
"""The cost of a step on two replicas: simulated in one process, on Horovod's ranks, on a multi-worker strategy.

Each arm is a job of its own, started anew each round, in an order drawn anew; it trains the reference script's model on
random images, and rank 0 takes the wall time of a `fit` after one that traced. The ratios are to the simulated
replicas of the same round, as median with a 95% interval; `control` is the simulated replicas once more.

    python benchmarks/backends.py [--rounds 8] [--steps 200]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _common import ratio, result, shown, written

REPLICAS, PER_REPLICA = 2, 32
ARMS = {"simulated": "tf", "control": "tf", "horovod": "horovod", "multi-worker": "multi-worker"}
LIMIT = 180  # seconds a job


def train(path: Path, steps: int) -> None:
    """One rank of one arm: writes the milliseconds a step."""
    import keras
    from train import build_model

    import distlr

    job = distlr.init(timeout=60)
    keras.utils.set_random_seed(0)
    samples = steps * REPLICAS * PER_REPLICA
    images, labels = np.random.rand(samples, 8, 8, 1).astype("float32"), np.random.randint(0, 10, samples)
    batch = job.batch(PER_REPLICA, base_batch=16, samples_per_epoch=samples)
    with job.scope():
        model = build_model((8, 8, 1), 10)
        optimizer = job.optimizer(keras.optimizers.SGD(0.01, momentum=0.9), batch, warmup="1ep")
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    job.scale_moving_averages(model, batch)
    data = job.shard((images, labels), batch, shuffle=False)
    callbacks: Any = job.callbacks()
    model.fit(data, verbose=0, shuffle=False, callbacks=callbacks)
    start = time.perf_counter()
    model.fit(data, verbose=0, shuffle=False, callbacks=callbacks)
    if job.is_root:
        path.write_text(json.dumps(1e3 * (time.perf_counter() - start) / steps))


def measure(arm: str, steps: int) -> float:
    words = [sys.executable, "-m", "distlr.cli.main", "run", "-n", str(REPLICAS), "--backend", ARMS[arm], __file__]
    return float(written(lambda path: [*words, "--worker", str(path), "--steps", str(steps)], LIMIT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        train(options.worker, options.steps)
        return
    random.seed(0)
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(options.rounds):
        for arm in random.sample(list(ARMS), len(ARMS)):
            times[arm].append(measure(arm, options.steps))
    print(f"{'backend':<16}{'ms a step':>10}   ratio: low median high")
    ratios = {}
    for arm, seconds in times.items():
        row = ratio(seconds, times["simulated"])
        cells = shown(row) if arm != "simulated" else ""
        print(f"{arm:<16}{np.median(seconds):>10.2f}   {cells}")
        if arm != "simulated":
            ratios[arm] = row
    result(ratios)


if __name__ == "__main__":
    main()
