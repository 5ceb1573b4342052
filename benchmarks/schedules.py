#!/usr/bin/env python3
"""How long a million steps of each schedule take to evaluate at once, as for a plot.

    python benchmarks/schedules.py

The last line is a JSON object: seconds by name, after TensorFlow's import.
"""

from __future__ import annotations

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf
from _common import result

from distlr.schedules import get
from distlr.schedules.schedule import as_float64

STEPS = 1_000_000
COSINE = {"name": "cosine", "initial": 0.1, "steps": 1000}
SPECS = {
    "constant": {"initial": 0.1},
    "cosine": {"initial": 0.1, "steps": STEPS},
    "cosine-restarts": {"initial": 0.1, "first_steps": 100, "t_mul": 1.1, "warmup_steps": 10},
    "cyclic": {"initial": 0.1, "peak": 0.2, "up": 100, "mode": "exp_range", "gamma": 0.99999},
    "exponential": {"initial": 0.1, "steps": 100, "rate": 0.96},
    "interpolated": {"times": list(range(50)), "values": [0.1] * 50},
    "inverse-sqrt": {"initial": 0.1, "timescale": 100},
    "join": {"schedules": [COSINE] * 5, "boundaries": [10, 100, 1000, 10_000]},
    "multi-step": {"initial": 0.1, "boundaries": list(range(1, 50))},
    "one-cycle": {"peak": 0.1, "steps": STEPS, "three_phase": True},
    "per-epoch": {"function": [0.1] * 90, "steps_per_epoch": 100},
    "polynomial": {"initial": 0.1, "steps": STEPS, "end": 0.01, "power": 2.0},
    "tanh": {"initial": 0.1, "steps": STEPS},
    "warmup": {"schedule": COSINE, "steps": 100},
    "warmup-stable-decay": {"initial": 0.1, "warmup_steps": 100, "stable_steps": 1000, "decay_steps": 100},
}


def main() -> None:
    seconds = {}
    for name, arguments in SPECS.items():
        at = as_float64(get({"name": name, **arguments}))
        start = time.perf_counter()
        at(tf.range(STEPS, dtype=tf.float64)).numpy()
        seconds[name] = round(time.perf_counter() - start, 3)
        print(f"{name:<22}{seconds[name]:>8.3f} s")
    result(seconds)


if __name__ == "__main__":
    main()
