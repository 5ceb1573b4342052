"""`distlr control`: asks a run that is under way for another rate, for its plateaus to pause, or for its end."""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from distlr.cli.file_arguments import file_errors_in_one_line
from distlr.errors import ConfigurationError, received
from distlr.runlog.control_requests import ControlDirectory, PendingRequest, Request
from distlr.runlog.directory import RunDirectory
from distlr.runlog.manual_changes import read_answers

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["register", "run"]

REFUSED, UNANSWERED = 1, 3
_PAUSE = 0.2  # seconds between two looks for the answer
_VALID_FOR = 3600.0  # seconds


def register(subparsers: Subparsers) -> None:
    """Adds the subcommand to the parser of the `distlr` command."""
    parser = subparsers.add_parser(
        "control",
        help="change the rate of a run by hand, pause its plateaus, or stop it",
        description="Asks a run for something, by a file in RUN_DIR/control. Rank 0 checks it, and all ranks do it at "
        "the same step; what was asked and done is in RUN_DIR/decisions.jsonl, with your name. A request that no run "
        "takes in an hour (--valid-for) is refused. Exit status: 0, asked (with --wait: done, or accepted for its "
        "epoch), listed or cancelled; 1, refused (with --wait), or too late to cancel; 2, it cannot be asked; 3, no "
        "answer in time.",
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
    words = "show the requests that wait, with their IDs"
    actions.add_parser("list", help=words, description=words, allow_abbrev=False)
    words = "take a request back that the run has not done"
    cancel = actions.add_parser("cancel", help=words, description=words, allow_abbrev=False)
    cancel.add_argument("id", metavar="ID", help="as `list` shows it")
    parser.set_defaults(run=run)


def _action(actions: Subparsers, name: str, words: str) -> argparse.ArgumentParser:
    action = actions.add_parser(name, help=words, description=words, allow_abbrev=False)
    action.add_argument("--at-epoch", type=int, metavar="N", help="before the epoch that Keras prints as N")
    action.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="for the answer")
    action.add_argument(
        "--valid-for",
        type=float,
        metavar="SECONDS",
        help="until when a run may take it: by default an hour, or as long as --wait. What a run has accepted for an "
        "epoch waits for it without a limit",
    )
    return action


def run(args: argparse.Namespace) -> int:
    """Writes the request, and waits for the answer with `--wait`; or lists or cancels."""
    directory, requests = RunDirectory(args.run_dir), ControlDirectory(args.run_dir)
    with file_errors_in_one_line("The run cannot be read", "write the directory of job.callbacks(run_dir=)"):
        ended = directory.read().run.get("ended")
    if args.action == "list":
        return _list(directory, requests)
    if args.action == "cancel":
        return _cancel(directory, requests, args.id)
    if ended:
        raise ConfigurationError(f"The run in {args.run_dir} ended at {ended}; there is nothing left to control.")
    if not 0 <= args.wait < float("inf"):
        raise ConfigurationError(received("--wait", args.wait, "a number of seconds"))
    options = {name: getattr(args, name, None) for name in ("multiply", "to", "at_epoch")}
    valid_for = max(_VALID_FOR, args.wait) if args.valid_for is None else args.valid_for
    request = Request(args.action, **options, force=getattr(args, "force", False), valid_for=valid_for)
    with file_errors_in_one_line(
        "The request cannot be written", "ask as the user whose run it is, where there is room"
    ):
        name = requests.ask(request)
    if args.wait <= 0:
        where = os.path.join(args.run_dir, "decisions.jsonl")
        until = _local_time(time.time() + valid_for)
        print(f"asked: {request}; valid until {until}. The answer will be in {where}, under {name}")
        return 0
    try:
        answer = _answer(directory, name, args.wait)
    except KeyboardInterrupt:
        _cancel(directory, requests, name)
        raise
    if answer is None:
        _print_pending(args, requests, name)
        return UNANSWERED
    return _print_answer(answer)


def _answer(directory: RunDirectory, name: str, seconds: float) -> dict[str, Any] | None:
    """Waits for the run's answer to a request; None where none comes in time."""
    deadline = time.monotonic() + seconds
    while True:
        entries = [entry for entry in directory.decisions() if entry.get("id") == name]
        if entries:
            return entries[-1]
        if time.monotonic() > deadline:
            return None
        time.sleep(_PAUSE)


def _print_answer(answer: dict[str, Any]) -> int:
    print(f"{answer['kind']}: {answer['reason']}")
    return REFUSED if answer["kind"] == "refused" else 0


def _print_pending(args: argparse.Namespace, requests: ControlDirectory, name: str) -> None:
    message = f"no answer to {name} in {args.wait:g} s; is the run under way?"
    pending = [request for request in requests.waiting() if request.name == name]
    if pending:
        message += (
            f" The request still waits, {_expiry(pending[0])}: a run that looks before then does it. To take it back: "
            f"distlr control {args.run_dir} cancel {name}"
        )
    else:
        message += " A run has taken the request, and will answer in its decisions."
    print(message, file=sys.stderr)


def _list(directory: RunDirectory, requests: ControlDirectory) -> int:
    with file_errors_in_one_line("The requests cannot be read", "ask as the user whose run it is"):
        waiting = requests.waiting()
    answers = read_answers(directory)
    open_ones = [each for each in waiting if answers.get(each.name, "asked") == "asked"]
    for each in open_ones:
        if each.request is None:
            what, state = "no request", f"it will be refused: {each.refused}"
        elif each.name in answers:
            what, state = str(each.request), "accepted, and waits for its epoch"
        else:
            what, state = str(each.request), f"not taken yet, {_expiry(each)}"
        print(f"{ascii(each.name)[1:-1][:120]}  {each.by}  `{what}`  {state}")
    if not open_ones:
        print("no request waits")
    return 0


def _cancel(directory: RunDirectory, requests: ControlDirectory, name: str) -> int:
    """Cancels a request, and prints whether it was still there."""
    if os.path.basename(name) != name or not name.endswith(".json"):
        raise ConfigurationError(received("ID", name, "an ID that `distlr control RUN_DIR list` shows"))
    with file_errors_in_one_line("The request cannot be cancelled", "cancel it as the user whose run it is"):
        cancelled = requests.cancel(name)
    if cancelled:
        print(f"cancelled: {name}; no run will do it")
        return 0
    answer = next((entry for entry in reversed(directory.decisions()) if entry.get("id") == name), None)
    if answer is not None:
        print(f"{name} was answered already, and cannot be cancelled. {answer['kind']}: {answer['reason']}")
    elif requests.was_claimed(name):
        print(f"{name} was taken by the run already, and cannot be cancelled; the answer will be in its decisions")
    else:
        print(f"there is no request {name}: it was cancelled before, or never asked")
    return REFUSED


def _expiry(request: PendingRequest) -> str:
    return "without a limit" if request.expires is None else f"until {_local_time(request.expires / 1e9)}"


def _local_time(seconds: float) -> str:
    """A time in local form, with the difference to UTC."""
    try:
        return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(sep=" ", timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return "the far future"
