#!/usr/bin/env python3
"""What a training step costs with distlr, beside the same model with a constant rate on plain Keras.

All arms run in this one process, in turns, in an order drawn anew each round. Each is paired with a run of the
constant arm right beside it, and the table gives the median of the pairs' ratios with a 95% interval of that
median (bootstrap). `control` is the constant arm against itself: what it shows is noise. CPU time is the
process', wall time beside it. A run is one `fit` of one epoch, less a `fit` of a few steps of the same arm right
after it: what a `fit` and an epoch's end cost once, whatever their length, is no step's time; `ms a fit` shows it.

    python benchmarks/step_overhead.py [--rounds 20] [--steps 400]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "launch"))

import keras
import numpy as np
import tensorflow as tf
from _ratios import interval
from train import build_model

import distlr

Arm = Callable[[], None]
BATCH = 64
SHAPES = {"cnn": (8, 8, 1), "mlp": (32,)}
SHORT = 4  # steps of the short fit
ARMS = ("constant", "control", "keras_schedule", "full_stack", "checkpoint", "set_from_python")
EVERY = "100ba"  # a checkpoint in the arm of that name
BESIDE = {"checkpoint": "full_stack"}  # what an arm is compared with, where that is not the constant rate


class SetFromPython(keras.callbacks.Callback):
    """Sets the rate at every batch, as Horovod's callbacks and a `LearningRateScheduler` by batch do."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.model.optimizer.learning_rate = 0.01 * (1 + batch) / (2 + batch)


def mlp() -> keras.Model:
    """30 dense layers: 60 variables."""
    model = keras.Sequential([keras.Input(SHAPES["mlp"])])
    for _ in range(29):
        model.add(keras.layers.Dense(32, activation="relu"))
    model.add(keras.layers.Dense(10))
    return model


def optimizer(name: str, rate: Any) -> Any:
    return keras.optimizers.SGD(rate, momentum=0.9) if name == "sgd" else keras.optimizers.AdamW(rate)


def make_arm(arm: str, model_name: str, optimizer_name: str, steps: int) -> Arm:
    """One arm: a function that trains for `steps` steps, an epoch of them."""
    keras.utils.set_random_seed(0)
    job = distlr.init()
    samples = steps * BATCH
    images = np.random.rand(samples, *SHAPES[model_name]).astype("float32")
    labels = np.random.randint(0, 10, samples)
    model = build_model(SHAPES["cnn"], 10) if model_name == "cnn" else mlp()
    batch = job.batch(BATCH, base_batch=16, samples_per_epoch=samples)
    cosine = keras.optimizers.schedules.CosineDecay(0.01, 10**6)
    callbacks: list[Any] = []
    if arm in ("full_stack", "checkpoint"):
        chosen = job.optimizer(optimizer(optimizer_name, cosine), batch, warmup="100ep")
        callbacks = [distlr.callbacks.ReduceLROnPlateau("loss", patience=10**6)]
        if arm == "full_stack":
            callbacks = job.callbacks(callbacks)
    else:
        chosen = optimizer(optimizer_name, cosine if arm == "keras_schedule" else 0.01)
        if arm == "set_from_python":
            callbacks = [SetFromPython()]
    model.compile(chosen, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = job.shard((images, labels), batch, shuffle=False).cache()
    if arm != "checkpoint":
        return lambda: model.fit(data, verbose=0, shuffle=False, callbacks=callbacks) and None

    def run() -> None:
        with tempfile.TemporaryDirectory() as directory:
            checkpoint = distlr.callbacks.Checkpoint(directory, EVERY)
            model.fit(data, verbose=0, shuffle=False, callbacks=job.callbacks([*callbacks, checkpoint]))

    return run


def seconds(arm: Arm) -> np.ndarray:
    """What one run took: CPU and wall."""
    cpu, wall = time.process_time(), time.perf_counter()
    arm()
    return np.array([time.process_time() - cpu, time.perf_counter() - wall])


def measure(arms: dict[str, tuple[Arm, Arm]], rounds: int) -> dict[str, dict[str, np.ndarray]]:
    """By arm and clock, one a round: the pairs (seconds of the arm, seconds of the arm that it is compared with).

    `short` holds the seconds of the short fits likewise.
    """
    for both in arms.values():
        for arm in (*both, *both):
            arm()  # traces
    pairs: dict[str, dict[str, list[Any]]] = {
        name: {"cpu": [], "wall": [], "short": []} for name in arms if name != "constant"
    }
    order = list(pairs)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            beside = BESIDE.get(name, "constant")
            pair = [name, beside]
            random.shuffle(pair)
            taken = {}
            for arm in pair:
                long, short = arms[arm]
                whole, once = seconds(long), seconds(short)
                taken[arm] = {"cpu": (whole - once)[0], "wall": (whole - once)[1], "short": once[0]}
            for clock, values in pairs[name].items():
                values.append((taken[name][clock], taken[beside][clock]))
    return {name: {clock: np.array(values) for clock, values in clocks.items()} for name, clocks in pairs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400, help="steps a round and arm")
    parser.add_argument("--arms", nargs="+", choices=ARMS[1:], default=ARMS[1:], help="default: all")
    options = parser.parse_args()
    random.seed(0)
    results: dict[str, Any] = {}
    heads = ("wall: low median high", "cpu: low median high")
    print(f"{'model':<10}{'arm':<18}{heads[0]:<26}{heads[1]:<26}{'ms a step':>10}{'ms a fit':>10}")
    for model_name, optimizer_name in (("cnn", "sgd"), ("mlp", "adamw")):
        lengths = (options.steps + SHORT, SHORT)
        arms = {
            arm: tuple(make_arm(arm, model_name, optimizer_name, steps) for steps in lengths)
            for arm in ("constant", *BESIDE.values(), *options.arms)
        }
        times = measure(arms, options.rounds)
        for arm in options.arms:
            row = {clock: interval(*times[arm][clock].T) for clock in ("wall", "cpu")}
            results.setdefault(arm, {})[f"{model_name}_{optimizer_name}"] = row
            cells = ["  ".join(f"{value:.3f}" for value in row[clock]) for clock in ("wall", "cpu")]
            step = 1e3 * float(np.median(times[arm]["wall"][:, 0])) / options.steps
            once = 1e3 * float(np.median(times[arm]["short"][:, 0]))
            name = f"{model_name} {optimizer_name}"
            print(f"{name:<10}{arm:<18}{cells[0]:<26}{cells[1]:<26}{step:>10.3f}{once:>10.1f}")
    # One number an arm: the larger of the two models' wall-clock medians.
    worst = {arm: max(row["wall"][1] for row in rows.values()) for arm, rows in results.items()}
    versions = {"python": platform.python_version(), "tensorflow": tf.__version__, "keras": keras.__version__}
    print(json.dumps({**worst, "intervals": results, "cores": os.cpu_count(), "versions": versions}))


if __name__ == "__main__":
    main()
