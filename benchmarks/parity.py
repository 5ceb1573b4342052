#!/usr/bin/env python3
"""The peers' table in docs/schedules.md: their name for a schedule, ours, and the largest deviation at 200 steps.

    python benchmarks/parity.py

Reads the peers' numbers from tests/parity/ (`make parity` measures them anew); Keras' own are measured here. The last
line is a JSON object: the deviation by peer and name.
"""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from _common import result

from distlr.schedules import get
from distlr.schedules.schedule import as_float64

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tests" / "parity"
K = keras.optimizers.schedules
KERAS = [
    (K.CosineDecay(0.4, 150, alpha=0.1), {"name": "cosine", "initial": 0.4, "steps": 150, "floor": 0.04}),
    (
        K.CosineDecayRestarts(0.4, 30, t_mul=2.0, m_mul=0.5),
        {"name": "cosine-restarts", "initial": 0.4, "first_steps": 30, "t_mul": 2.0, "m_mul": 0.5},
    ),
    (K.ExponentialDecay(0.4, 30, 0.7), {"name": "exponential", "initial": 0.4, "steps": 30, "rate": 0.7}),
    (K.InverseTimeDecay(0.4, 30, 0.7), {"name": "inverse-time", "initial": 0.4, "steps": 30, "rate": 0.7}),
    (
        K.PolynomialDecay(0.4, 150, 0.02, 2.0),
        {"name": "polynomial", "initial": 0.4, "steps": 150, "end": 0.02, "power": 2.0},
    ),
    (
        K.PiecewiseConstantDecay([59, 119], [0.4, 0.04, 0.004]),
        {"name": "multi-step", "initial": 0.4, "boundaries": [60, 120], "gamma": 0.1},
    ),
]


def deviation(values: np.ndarray, spec: dict[str, Any]) -> float:
    ours = as_float64(get(spec))(tf.range(len(values), dtype=tf.float64)).numpy()
    return float(np.max(np.abs(ours - values) / np.maximum(np.abs(values), 1e-9 * values.max())))


def main() -> None:
    rows = [
        (
            "Keras",
            type(schedule).__name__,
            spec,
            "changes one step later" if spec["name"] == "multi-step" else "",
            [float(schedule(t)) for t in range(200)],
        )
        for schedule, spec in KERAS
    ]
    for path in sorted(FOLDER.glob("*.json")):
        content = json.loads(path.read_text())
        rows += [(path.stem, case["peer"], case["ours"], case["note"], case["values"]) for case in content["cases"]]
    print("| peer | its schedule | ours | largest relative deviation | convention |\n|---|---|---|---|---|")
    deviations: dict[str, dict[str, float]] = {}
    for peer, name, spec, note, values in rows:
        deviations.setdefault(peer, {})[name] = deviation(np.array(values), spec)
        inside = spec.get("schedules", [spec.get("schedule")])
        parts = ", ".join(part["name"] for part in inside if part)
        ours = spec["name"] + (f" of {parts}" if parts else "")
        print(f"| {peer} | `{name}` | {ours} | {deviations[peer][name]:.1e} | {note} |")
    result(deviations)


if __name__ == "__main__":
    main()
