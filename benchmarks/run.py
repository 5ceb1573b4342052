#!/usr/bin/env python3
"""Runs the benchmarks one after the other, and writes `RESULTS.md` and `results.json` beside this file: `make bench`.

    python benchmarks/run.py [--quick] [--only step memory]

`--quick` takes a few minutes, proves that all of them run, and writes to `runs/benchmarks/`. With `--only` the rest
of `results.json` stays; without a name after it the page alone is made anew. The grid of large batches is trained by
`large_batch.py` (`make bench-large`, hours), and is read from its file. Nothing in `RESULTS.md` is written by hand.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import large_batch
from _page import page
from _picture import draw
from _shapes import shaped

from distlr._utils.atomic_files import write_bytes, write_json

HERE = Path(__file__).resolve().parent
LIMIT = 1500  # seconds a script
ARMS = ["control", "keras_schedule", "full_stack", "set_from_python"]
STEP = ["--rounds", "8", "--steps", "200", "--arms", *ARMS]

# By name in results.json: the script and its arguments, each a run of its own; in full, and quick.
BENCHMARKS: dict[str, list[tuple[str, list[str], list[str]]]] = {
    "step": [
        ("step_overhead.py", ["--backend", "single", *STEP, "run_dir", "checkpoint"], ["--backend", "single"]),
        ("step_overhead.py", ["--backend", "simulated", *STEP, "--steps", "100"], ["--backend", "simulated"]),
        ("step_overhead.py", ["--backend", "horovod", *STEP], ["--backend", "horovod"]),
        ("step_overhead.py", ["--backend", "multi-worker", *STEP], ["--backend", "multi-worker"]),
    ],
    "exchange": [
        (
            "gradient_exchange.py",
            ["--backend", "horovod", "--rounds", "8"],
            ["--backend", "horovod", "--parameters", "10000"],
        ),
        (
            "gradient_exchange.py",
            ["--backend", "multi-worker", "--rounds", "8"],
            ["--backend", "multi-worker", "--parameters", "10000"],
        ),
    ],
    "epoch_end": [
        ("epoch_end.py", ["--ranks", "2"], ["--ranks", "2", "--metrics", "5"]),
        ("epoch_end.py", ["--ranks", "4"], []),
    ],
    "control_plane": [
        ("control_plane.py", ["--epochs", "1"], ["--epochs", "2", "--ranks", "2", "4"]),
    ],
    "memory": [
        ("memory.py", ["--backend", "single"], []),
        ("memory.py", ["--backend", "horovod"], ["--backend", "horovod"]),
    ],
}
QUICK = {
    "step_overhead.py": ["--rounds", "2", "--steps", "50", "--models", "cnn", "--arms", "control", "full_stack"],
    "gradient_exchange.py": ["--rounds", "2"],
    "epoch_end.py": ["--rounds", "2"],
    "memory.py": ["--rounds", "1"],
}


def measured(script: str, arguments: list[str]) -> dict[str, Any]:
    """Runs a script, shows what it prints, and gives the JSON object of its last line."""
    began = time.perf_counter()
    print(f"\n$ {script} {' '.join(arguments)}", flush=True)
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments],
        env={**os.environ, "PYTHONPATH": str(HERE.parent), "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    # horovodrun begins each line with the rank's number.
    lines = [line.removeprefix("[0]<stdout>:") for line in done.stdout.splitlines()]
    results = [line for line in lines if line.startswith("{")]
    if done.returncode or not results:
        raise SystemExit(f"{script} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-6000:]}")
    print("\n".join(line for line in lines if not line.startswith("{")), flush=True)
    return {**json.loads(results[-1]), "seconds": round(time.perf_counter() - began)}


def machine() -> dict[str, Any]:
    """The machine that the benchmarks run on."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """The versions of the packages that are measured."""
    names = ("distlr", "keras", "tensorflow", "tensorflow-cpu", "horovod", "tf_keras", "mpi4py", "numpy")
    by_name = {"python": platform.python_version()}
    for name in names:
        try:
            by_name[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return by_name


def write(folder: Path, results: dict[str, Any]) -> None:
    """Writes the files, with the runs of large batches so far."""
    runs = large_batch.tables(large_batch.OUT)
    results |= {name: shaped(name, runs) for name in ("large_batch", "large_batch_training")}
    draw(folder / "large_batch.png", results["large_batch"])
    write_json(folder / "results.json", results)
    write_bytes(folder / "RESULTS.md", page(results).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="*", choices=[*BENCHMARKS, []], default=list(BENCHMARKS))
    options = parser.parse_args()
    folder = HERE.parent / "runs" / "benchmarks" if options.quick else HERE
    path = folder / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for name in options.only:
        runs = []
        for script, full, quick in BENCHMARKS[name]:
            if options.quick and not quick:
                continue
            runs.append(measured(script, [*quick, *QUICK.get(script, [])] if options.quick else full))
            results[name] = {**results.get(name, {}), **shaped(name, runs)}
            dates = {**results.get("dates", {}), name: datetime.date.today().isoformat()}
            results |= {"dates": dates, "machine": machine(), "versions": versions()}
            write(folder, results)  # after each, so that a later one that fails loses nothing
    write(folder, results)
    print(f"\nwrote {path} and {folder / 'RESULTS.md'}")


if __name__ == "__main__":
    main()
