"""`distlr run`: a script on n ranks, workers or replicas of this machine, on one GPU or none: the simulator."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from distlr.startup.local_workers import BACKENDS, build_command, run_workers

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["register", "run"]


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
    words, variables = build_command(args.n, args.backend, args.script, args.arguments)
    sys.stdout.flush()
    environ = {**os.environ, **variables}
    if args.backend != "multi-worker":
        os.execvpe(words[0], words, environ)
    return run_workers(args.n, words, environ)
