"""`distlr lr-find`: the learning-rate range test of a script's model, on all replicas and ranks it is started on."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from distlr.cli.bars import bars
from distlr.cli.file_arguments import file_errors_in_one_line
from distlr.cli.importing import check_name, import_object, importable_working_directory
from distlr.errors import ConfigurationTypeError, received

if TYPE_CHECKING:
    from distlr.tools.lr_finder.curve import RangeTest

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["register", "run"]

_ROWS, _MARGIN = 6, 10


def register(subparsers: Subparsers) -> None:
    """Adds the subcommand to the parser of the `distlr` command."""
    parser = subparsers.add_parser(
        "lr-find",
        help="where the loss falls, over rates from low to high (the learning-rate range test)",
        description="Trains a script's model for a moment at rates that grow from --low to --high, and says where the "
        "loss falls; nothing is saved. Alone, with -n on simulated replicas, or under a launcher: horovodrun -np 2 "
        "distlr lr-find train:setup. Exit status: 0; 2 where an argument cannot be right.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "setup",
        metavar="module:function",
        help="an importable function that takes the job and returns the compiled model and what job.shard gave",
    )
    parser.add_argument("--low", type=float, default=1e-7, metavar="RATE", help="at the global batch (default: 1e-7)")
    parser.add_argument("--high", type=float, default=10.0, metavar="RATE", help="at the global batch (default: 10)")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="updates (default: 100)")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draws the curve")
    parser.add_argument("--json", action="store_true", help="print all that was found as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress and no chart")
    parser.add_argument("-n", type=int, metavar="N", help="on N simulated replicas, without a launcher")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the test on all ranks; rank 0 prints and draws."""
    check_name("setup", args.setup)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from distlr.start import init
    from distlr.tools.lr_finder.search import find_lr

    job = init(simulate=args.n)  # before the script is imported, which may start TensorFlow
    with importable_working_directory():
        model_and_data = _call_setup(args.setup, job)
    shown = job.is_root and not args.quiet and sys.stderr.isatty()
    with _progress(args.steps, shown) as progress:
        test = find_lr(job, *model_and_data, low=args.low, high=args.high, steps=args.steps, progress=progress)
    if not job.is_root:
        return 0
    if args.json:
        print(json.dumps(test.to_json(), indent=2, allow_nan=False))
    else:
        print("\n".join([*([] if args.quiet else _chart(test)), test.explain(), *_advise(test)]))
    if args.png is not None:
        with file_errors_in_one_line("The curve cannot be drawn", "choose --png elsewhere"):
            test.draw(args.png)
    return 0


def _call_setup(text: str, job: object) -> tuple[object, object]:
    """Calls the script's function, which returns the model and the data, and may return more."""
    function = import_object("setup", text)
    hint = "def setup(job): ...; return model, job.shard(train, batch)"
    if not callable(function):
        raise ConfigurationTypeError(received("setup", function, "a function that takes the job", hint))
    result = function(job)
    if not isinstance(result, tuple) or len(result) < 2:
        what = type(result).__name__
        raise ConfigurationTypeError(received("setup", f"a function that gives {what}", "one that gives two", hint))
    return result[0], result[1]


@contextlib.contextmanager
def _progress(steps: int, shown: bool) -> Iterator[Callable[[int, float, float], None] | None]:
    if not shown:
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=steps)

        def show(number: int, rate: float, loss: float) -> None:
            progress.update(task, completed=number, description=f"rate {rate:.2e}  loss {loss:.4g}")

        yield show


def _chart(test: RangeTest) -> list[str]:
    """The smoothed loss over log(rate) as bars, with the two suggestions marked under it."""
    count = len(test.smoothed)
    if count < 2:
        return []
    low, high = test.shown()
    rows = bars(test.smoothed, low=low - (high - low) / (8 * _ROWS), high=high, rows=_ROWS)
    width = len(rows[0])
    labels = [f"{high:.4g}", *[""] * (_ROWS - 2), f"{low:.4g}"]
    lines = [f"{label:>{_MARGIN - 1}} {row}" for label, row in zip(labels, rows, strict=True)]
    marks = [" "] * width
    for mark, rate in (("s", test.steepest), ("v", test.valley)):
        if rate is not None:
            marks[test.rates.index(rate) * width // count] = mark
    first, last = f"{test.rates[0]:.3g}", f"{test.rates[-1]:.3g}"
    axis = first + last.rjust(width - len(first))
    return [*lines, " " * _MARGIN + "".join(marks), " " * _MARGIN + axis + "  rate", ""]


def _advise(test: RangeTest) -> list[str]:
    """One sentence on how to use the result."""
    rates = sorted({test.base(rate) for rate in (test.valley, test.steepest) if rate is not None})
    if not rates:
        return []
    what = f"{rates[0]:.3g}" if len(rates) == 1 else f"a rate from {rates[0]:.3g} to {rates[1]:.3g}"
    scaled = "" if test.factor == 1 else f"; job.optimizer multiplies it by {test.factor:g} for the global batch"
    return [f"Write {what} into the script, as the peak of its schedule{scaled}."]
