#!/usr/bin/env python3
"""The resident memory of a rank, with and without distlr: fresh processes that train the same model.

    python benchmarks/memory.py [--backend horovod] [--rounds 5]

Each measurement is a job of its own, in an order drawn anew each round: the constant arm of `step_overhead.py` (plain
Keras; on Horovod's ranks with the leanest exchange), the same once more as control, and distlr's full stack. The
constant arm's job imports distlr too, to find its ranks: what the import alone takes is measured apart, beside
TensorFlow's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from _common import memory, patience, ratio, result, shown, start, written
from step_overhead import REPLICAS, Arm

ARMS = {"constant": "constant", "control": "constant", "full_stack": "full_stack"}
HERE = Path(__file__).resolve().parent
LIMIT = 200  # seconds a job


def inside(path: Path, backend: str, arm: str) -> None:
    """The code of one rank: it trains, and rank 0 then writes its resident memory."""
    start(backend, REPLICAS[backend])
    import distlr

    job = distlr.init(timeout=patience(backend))
    train = Arm(job, arm, "cnn", 100)
    train()
    train()
    if job.is_root:
        path.write_text(json.dumps(memory()))


def measure(backend: str, arm: str) -> float:
    words = [sys.executable, __file__, "--backend", backend, "--arm", arm, "--inside"]
    return float(written(lambda path: [*words, str(path)], LIMIT))


def imported(module: str) -> float:
    """The resident memory of a process that has imported a module and no more."""
    code = f"import {module}; import sys; sys.path.insert(0, {str(HERE)!r}); import _common; print(_common.memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT, check=True)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=REPLICAS, default="single")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--arm", choices=ARMS.values(), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is not None:
        inside(options.inside, options.backend, options.arm)
        return
    random.seed(0)
    measurements: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(options.rounds):
        for arm in random.sample(list(ARMS), len(ARMS)):
            measurements[arm].append(measure(options.backend, ARMS[arm]))
    ratios = {arm: ratio(values, measurements["constant"]) for arm, values in measurements.items() if arm != "constant"}
    megabytes = {arm: round(float(np.median(values)), 1) for arm, values in measurements.items()}
    imports = {name: round(imported(name), 1) for name in ("keras", "distlr.job")}
    for arm, values in megabytes.items():
        print(f"{arm:<12}{values:>8.1f} MB   {shown(ratios[arm]) if arm in ratios else ''}")
    result({"backend": options.backend, "ratio": ratios, "megabytes": megabytes, "imported": imports})


if __name__ == "__main__":
    main()
