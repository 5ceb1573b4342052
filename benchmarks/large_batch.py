#!/usr/bin/env python3
"""Accuracy at a large batch, with and without what distlr scales beside the rate: Fashion-MNIST, a small CNN.

    python benchmarks/large_batch.py --quick [--seeds 1]

One device trains the whole global batch. SGD with momentum 0.9, a cosine over 10 epochs, base batch 64 at 0.025, batch
normalization with momentum 0.99; at k = 32 linear scaling with 3 epochs of warmup. Prints a line an arm; the last line
is a JSON object: `large_batch`, a list of {arm, k, seed, accuracy}.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "launch"))

import datasets
import keras

import distlr

BASE_BATCH, BASE_RATE, EPOCHS = 64, 0.025, 10
ARMS: dict[str, dict[str, Any]] = {
    "base": {"k": 1, "averages": False, "warmup": None, "rule": "linear"},
    "rate alone": {"k": 32, "averages": False, "warmup": "3ep", "rule": "linear"},
    "rate and moving averages": {"k": 32, "averages": True, "warmup": "3ep", "rule": "linear"},
}
MORE: dict[str, dict[str, Any]] = {
    "nothing": {"k": 32, "averages": False, "warmup": None, "rule": "none"},
    "rate without warmup": {"k": 32, "averages": False, "warmup": None, "rule": "linear"},
}


def build_model() -> keras.Model:
    """Two strided convolutions and a hidden layer: enough to fit the data in the few hundred steps of k = 32."""
    layers: list[Any] = []
    for inner in (
        keras.layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False),
        keras.layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False),
        keras.layers.Dense(256, use_bias=False),
    ):
        flat = [keras.layers.Flatten()] if isinstance(inner, keras.layers.Dense) else []
        layers += [*flat, inner, keras.layers.BatchNormalization(momentum=0.99), keras.layers.ReLU()]
    return keras.Sequential([keras.Input((28, 28, 1)), *layers, keras.layers.Dense(10)])


def train(arm: dict[str, Any], data: Any, seed: int) -> float:
    """The test accuracy after the last epoch."""
    (train_set, test_set), samples = data, len(data[0][0])
    keras.utils.set_random_seed(seed)
    job = distlr.init()
    batch = job.batch(BASE_BATCH * arm["k"], base_batch=BASE_BATCH, samples_per_epoch=samples, duration=f"{EPOCHS}ep")
    model = build_model()
    if arm["averages"]:
        job.scale_moving_averages(model, batch)
    rate = keras.optimizers.schedules.CosineDecay(BASE_RATE, EPOCHS * samples // BASE_BATCH)
    plain = keras.optimizers.SGD(rate, momentum=0.9)
    model.compile(
        job.optimizer(plain, batch, rule=arm["rule"], warmup=arm["warmup"]),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
    )
    model.fit(
        job.shard(train_set, batch, seed=seed), epochs=EPOCHS, verbose=0, shuffle=False, callbacks=job.callbacks()
    )
    return job.evaluate(model, job.shard(test_set, batch, training=False))["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the three arms that show the moving averages' part")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    data = datasets.load("fashion_mnist")
    rows = []
    for seed in range(options.seeds):
        for name, arm in (ARMS if options.quick else {**ARMS, **MORE}).items():
            start = time.perf_counter()
            accuracy = train(arm, data, seed)
            rows.append({"arm": name, "k": arm["k"], "seed": seed, "accuracy": round(accuracy, 4)})
            print(
                f"{name:<26} k={arm['k']:<3} seed {seed}  {accuracy:.2%}  {time.perf_counter() - start:.0f} s",
                flush=True,
            )
    print(json.dumps({"large_batch": rows}))


if __name__ == "__main__":
    main()
