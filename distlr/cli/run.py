"""`distlr run`: a script on n ranks, workers or replicas of this machine, on one GPU or none: the simulator."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from distlr.cli.local_workers import run_workers
from distlr.errors import ConfigurationError, DistributionError, received

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["command", "register", "run"]

BACKENDS = ("tf", "horovod", "multi-worker")


def register(subparsers: Subparsers) -> None:
    """Adds the subcommand to the parser of the `distlr` command."""
    parser = subparsers.add_parser(
        "run",
        help="run a script on n simulated replicas (tf) or n processes of this machine (horovod, multi-worker)",
        description="Runs a script that calls distlr.init() on n simulated replicas of one process (tf), or on n "
        "processes that share this machine and its GPUs, if any: Horovod's ranks (horovodrun over gloo) or the workers "
        "of a tf.distribute strategy (multi-worker). Everything but the speed is as on n GPUs.",
        allow_abbrev=False,
    )
    parser.add_argument("-n", type=int, required=True, metavar="N", help="replicas, ranks or workers")
    parser.add_argument("--backend", choices=BACKENDS, default="tf", help="default: tf")
    parser.add_argument("script", help="the Python script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its own arguments")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Becomes the script, or its launcher; returns the status of the workers that it started itself."""
    words, variables = command(args.n, args.backend, args.script, args.arguments)
    sys.stdout.flush()
    environ = {**os.environ, **variables}
    if args.backend != "multi-worker":
        os.execvpe(words[0], words, environ)
    return run_workers(args.n, words, environ)


def command(n: int, backend: str, script: str, arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """The words of the command and the variables that are set for it.

    Raises:
        ConfigurationError: `n` is below 1, or there is no such script.
        DistributionError: horovodrun is not installed.
    """
    if n < 1:
        raise ConfigurationError(received("-n", n, "at least 1"))
    if not Path(script).is_file():
        raise ConfigurationError(received("script", script, "a file"))
    words = [sys.executable, script, *arguments]
    if backend == "tf":
        return words, {"DISTLR_SIMULATE": str(n)}
    threads = str(max(1, (os.cpu_count() or 1) // n))
    variables = {"TF_NUM_INTRAOP_THREADS": threads, "OMP_NUM_THREADS": threads}
    variables = {name: value for name, value in variables.items() if name not in os.environ}
    if backend == "multi-worker":
        return words, variables
    # Beside this interpreter first: that Horovod is the one the script imports.
    own = Path(sys.executable).with_name("horovodrun")
    horovodrun = str(own) if own.is_file() else shutil.which("horovodrun")
    if horovodrun is None:
        raise DistributionError(
            "horovodrun is not installed. To mend it: build Horovod with docker/build-horovod.sh (`make horovod` in a "
            "clone of distlr), or use --backend tf."
        )
    launcher = [horovodrun, "--gloo", "-np", str(n), "-H", f"localhost:{n}", "--network-interface", "lo"]
    return [*launcher, *words], variables
