"""`distlr control`: asks a run that is under way for another rate, for its plateaus to pause, or for its end."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from distlr.cli.files import refused
from distlr.control import ControlDirectory, Request
from distlr.errors import ConfigurationError, received
from distlr.run_directory import RunDirectory

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["register", "run"]

REFUSED, UNANSWERED = 1, 3
_PAUSE = 0.2  # seconds between two looks for the answer


def register(subparsers: Subparsers) -> None:
    """Adds the subcommand to the parser of the `distlr` command."""
    parser = subparsers.add_parser(
        "control",
        help="change the rate of a run by hand, pause its plateaus, or stop it",
        description="Asks a run for something, by a file in RUN_DIR/control. Rank 0 checks it, and all ranks do it at "
        "the same step; what was asked and done is in RUN_DIR/decisions.jsonl, with your name. Exit status: 0, asked "
        "(with --wait: done, or accepted for its epoch); 1, refused (with --wait); 2, it cannot be asked; 3, no answer "
        "in time.",
        allow_abbrev=False,
    )
    parser.add_argument("run_dir", help="the directory of job.callbacks(run_dir=)")
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    rate = _action(actions, "set-lr", "multiply the rate, or set it")
    value = rate.add_mutually_exclusive_group(required=True)
    value.add_argument("--multiply", type=float, metavar="X", help="by this factor")
    value.add_argument("--to", type=float, metavar="RATE", help="as it is applied, after scaling")
    rate.add_argument("--force", action="store_true", help="also by more than a factor of 100")
    _action(actions, "pause-plateau", "let no plateau cut the rate")
    _action(actions, "resume-plateau", "let plateaus cut again")
    _action(actions, "stop", "end the training as if it had come to its end: with a checkpoint, on all ranks")
    parser.set_defaults(run=run)


def _action(actions: Subparsers, name: str, words: str) -> argparse.ArgumentParser:
    action = actions.add_parser(name, help=words, description=words, allow_abbrev=False)
    action.add_argument("--at-epoch", type=int, metavar="N", help="before the epoch that Keras prints as N")
    action.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="for the answer")
    return action


def run(args: argparse.Namespace) -> int:
    """Writes the request, and waits for the answer where that is asked for."""
    directory = RunDirectory(args.run_dir)
    with refused("The run cannot be read", "write the directory of job.callbacks(run_dir=)"):
        ended = directory.read().run.get("ended")
    if ended:
        raise ConfigurationError(f"The run in {args.run_dir} ended at {ended}; there is nothing left to control.")
    options = {name: getattr(args, name, None) for name in ("multiply", "to", "at_epoch")}
    if not 0 <= args.wait < float("inf"):
        raise ConfigurationError(received("--wait", args.wait, "a number of seconds"))
    request = Request(args.action, **options, force=getattr(args, "force", False))
    with refused("The request cannot be written", "ask as the user whose run it is, where there is room"):
        name = ControlDirectory(args.run_dir).ask(request)
    if args.wait <= 0:
        where = os.path.join(args.run_dir, "decisions.jsonl")
        print(f"asked: {request}; the answer will be in {where}, under {name}")
        return 0
    answer = _answer(directory, name, args.wait)
    if answer is None:
        print(f"no answer to {name} in {args.wait:g} s; is the run under way?", file=sys.stderr)
        return UNANSWERED
    print(f"{answer['kind']}: {answer['reason']}")
    return REFUSED if answer["kind"] == "refused" else 0


def _answer(directory: RunDirectory, name: str, seconds: float) -> dict[str, Any] | None:
    """What the run has said about a request."""
    deadline = time.monotonic() + seconds
    while True:
        found = [entry for entry in directory.decisions() if entry.get("id") == name]
        if found:
            return found[-1]
        if time.monotonic() > deadline:
            return None
        time.sleep(_PAUSE)
