#!/usr/bin/env python3
"""Kills a random rank of a job at a random moment, starts it anew, and compares with the run that was not interrupted.

Compared is the sequence of (samples, rate) after each step, on each rank, by all bits of the rate: of the attempt that
was killed it must be the beginning of the whole one's, of the one after it the rest from a checkpoint on. The final
weights, statistics, slots and states must be equal bit for bit.

    python benchmarks/kill_and_resume.py [--trials 20] [--launcher gloo] [--size 2] [--seed 0]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _common import result

import _launching  # isort: skip  (of the tests, where `_common` looks)

SCRIPT = "tests/distributed/scripts/resumable.py"
LIMIT = 120  # seconds a job
SAMPLES, ELASTIC_EPOCHS = 330, 30


def steps_of(directory: Path, attempt: str, rank: int) -> list[str]:
    """The steps that a rank noted, without a last line that is incomplete."""
    path = directory / f"{attempt}-{rank}.txt"
    return path.read_text().rpartition("\n")[0].splitlines() if path.exists() else []


class RandomKiller:
    """Kills a rank with SIGKILL, so many seconds after the first step."""

    def __init__(self, rank: int, after: float, log: Path) -> None:
        self.rank, self.after, self.log = rank, after, log
        self.killed = False

    def __call__(self, ranks: Callable[[], dict[int, int]]) -> None:
        deadline = time.monotonic() + LIMIT
        while not (self.log.exists() and self.log.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.01)
        pid = ranks().get(self.rank)
        time.sleep(self.after)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):  # it had ended: not killed
                os.kill(pid, signal.SIGKILL)
                self.killed = True


def trial(launcher: str, size: int, whole: Path, directory: Path, rng: random.Random, span: float) -> dict:
    """Runs one job that is killed once, and again if it ended before it was to be killed."""
    for _ in range(10):
        shutil.rmtree(directory, ignore_errors=True)
        rank = rng.randrange(size)
        killer = RandomKiller(rank, rng.uniform(0, span), directory / f"first-{rank}.txt")
        first = _launching.launch(launcher, size, [SCRIPT, str(directory), "first"], limit=LIMIT, watch=killer)
        if killer.killed:
            break
    else:
        raise RuntimeError(f"The job never ran for long enough to be killed:\n{first.output[-3000:]}")
    last = _launching.launch(launcher, size, [SCRIPT, str(directory), "second"], limit=LIMIT)
    identical = last.code == 0
    resumed_at = 0
    for other in range(size):
        expected = steps_of(whole, "whole", other)
        before, second = steps_of(directory, "first", other), steps_of(directory, "second", other)
        resumed_at = len(expected) - len(second)
        identical &= before == expected[: len(before)] and second == expected[resumed_at:] and resumed_at <= len(before)
    if identical:
        ends = (directory / "second.json", whole / "whole.json")
        resumed, expected = (json.loads(path.read_text()) for path in ends)
        identical = resumed["weights"] == expected["weights"] and resumed["multiplier"] == expected["multiplier"]
    if not identical:
        print(last.output[-3000:], file=sys.stderr)
    return {
        "rank": rank,
        "steps": len(steps_of(whole, "whole", 0)),
        "resumed_at": resumed_at,
        "identical": bool(identical),
    }


def elastic_trial(directory: Path, rng: random.Random, span: float) -> dict:
    """One elastic job of two ranks, of which one is killed: the other must end it, and with 0."""
    directory.mkdir()
    hosts = directory / "hosts.sh"
    hosts.write_text("#!/bin/sh\necho localhost:1\necho 127.0.0.1:1\n")  # the ranks of one host end together
    hosts.chmod(0o755)
    rank = rng.randrange(2)
    killer = RandomKiller(rank, rng.uniform(0, span), directory / f"run-{rank}.txt")
    words = [
        "launch/horovodrun.sh",
        "--gloo",
        "-np",
        "2",
        "--min-np",
        "1",
        "--max-np",
        "2",
        "--network-interface",
        "lo",
    ]
    words += ["--host-discovery-script", str(hosts), SCRIPT, str(directory), "run", str(ELASTIC_EPOCHS)]
    finished = _launching.run(words, limit=LIMIT, environ={"TF_NUM_INTRAOP_THREADS": "1"}, watch=killer)
    written = directory / "run.json"
    replicas = json.loads(written.read_text())["replicas"] if written.exists() else 0
    clocks = [int(steps_of(directory, "run", other)[-1].split()[0]) for other in range(2)]
    complete = finished.code == 0 and max(clocks) == ELASTIC_EPOCHS * SAMPLES
    if not complete:
        print(finished.output[-12000:], file=sys.stderr)
    return {"rank": rank, "code": finished.code, "replicas": replicas, "killed": killer.killed, "complete": complete}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--launcher", default="gloo", help="gloo, horovod-mpi, mpirun or multi-worker")
    parser.add_argument("--size", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--elastic", action="store_true", help="Horovod's elastic mode: the other rank goes on")
    args = parser.parse_args(arguments)
    rng, trials = random.Random(args.seed), []
    if args.elastic:
        with tempfile.TemporaryDirectory() as folder:
            for number in range(args.trials):
                trials.append(elastic_trial(Path(folder, str(number)), rng, 4.0))
                print(json.dumps({"trial": number, **trials[-1]}), file=sys.stderr, flush=True)
        complete = sum(one["complete"] for one in trials)
        lost = sum(one["killed"] and one["replicas"] == 1 for one in trials)
        summary = {"launcher": "elastic", "trials": len(trials), "continued_alone": lost, "identical": complete}
        result(summary)
        return summary
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole")
        _launching.launch(args.launcher, args.size, [SCRIPT, str(whole), "whole"], limit=LIMIT).check()
        span = json.loads((whole / "whole.json").read_text())["seconds"]
        for number in range(args.trials):
            trials.append(trial(args.launcher, args.size, whole, Path(folder, str(number)), rng, span))
            print(json.dumps({"trial": number, **trials[-1]}), file=sys.stderr, flush=True)
    summary = {
        "launcher": args.launcher,
        "size": args.size,
        "trials": len(trials),
        "resumed": sum(one["resumed_at"] > 0 for one in trials),
        "identical": sum(one["identical"] for one in trials),
    }
    result(summary)
    return summary


if __name__ == "__main__":
    summary = main()
    sys.exit(summary["identical"] != summary["trials"])
