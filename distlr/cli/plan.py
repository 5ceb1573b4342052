"""`distlr plan`: the rate over a run, on each number of replicas, before any of them is reserved."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distlr.batch.global_batch import GlobalBatch
from distlr.cli.bars import bars
from distlr.cli.file_arguments import file_errors_in_one_line
from distlr.cli.importing import import_object, importable_working_directory
from distlr.errors import ConfigurationError, received

if TYPE_CHECKING:
    from distlr.schedules.preview import Curve

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["register", "run"]

_ROWS = 10
_LONGEST = 1_000_000  # bytes of a schedule as JSON


def register(subparsers: Subparsers) -> None:
    """Adds the subcommand to the parser of the `distlr` command."""
    parser = subparsers.add_parser(
        "plan",
        help="the rate over a run on each number of replicas, and what looks like a mistake",
        description="Evaluates a schedule, scaled and warmed up, over a run. Exit status: 0, also with warnings; 2 "
        "where an argument cannot be right.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "schedule",
        help='an importable schedule, optimizer or rate, "package.module:name"; or a schedule as JSON, such as '
        '\'{"name": "cosine", "initial": 0.1, "steps": "90ep"}\', or a file of it',
    )
    parser.add_argument("--per-replica", type=int, required=True, metavar="N", help="samples a replica takes a step")
    parser.add_argument("--base-batch", type=int, required=True, metavar="N", help="the batch the rate was tuned at")
    parser.add_argument("--samples-per-epoch", type=int, required=True, metavar="N", help="of the training set")
    parser.add_argument("--epochs", type=float, required=True, metavar="E", help="the length of the run")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 8, 64], metavar="N", help="default: 1 8 64")
    parser.add_argument("--accumulation", type=int, default=1, metavar="N", help="steps per update (default: 1)")
    parser.add_argument("--rule", default="linear", help="linear (default), sqrt or none")
    parser.add_argument("--warmup", metavar="DURATION", help='such as "5ep"')
    parser.add_argument("--png", type=Path, metavar="FILE", help="draws the curves")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="writes the curves: epoch, and a rate a column")
    parser.add_argument("--quiet", action="store_true", help="nothing on the terminal but warnings")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the table, the chart and the warnings, and writes the files."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    batches = [
        GlobalBatch(
            args.per_replica,
            replicas=replicas,
            base_batch=args.base_batch,
            accumulation=args.accumulation,
            samples_per_epoch=args.samples_per_epoch,
            duration=f"{args.epochs}ep",
        )
        for replicas in args.replicas
    ]
    from distlr.schedules.preview import plan

    curves = plan(_schedule(args.schedule, batches[0]), batches, rule=args.rule, warmup=args.warmup, epochs=args.epochs)
    if not args.quiet:
        print(_table(curves))
        print(_chart(curves))
    for curve in curves:
        for warning in curve.warnings:
            print(f"warning ({curve.batch.replicas} replicas): {warning}", file=sys.stderr)
    with file_errors_in_one_line("The curves cannot be written", "choose --csv and --png elsewhere"):
        if args.csv is not None:
            _write_csv(args.csv, curves)
        if args.png is not None:
            _draw(args.png, curves)
    return 0


def _schedule(text: str, batch: GlobalBatch) -> Any:
    """Reads the schedule that the argument names: an object of a module, or a description as JSON."""
    from distlr import schedules

    rate = _number(text)
    if rate is not None:
        return schedules.get(rate)
    if text.lstrip()[:1] in ("{", "["):
        return schedules.get(_json(text, "schedule"), batch)
    described = _contents(text)
    if described is not None:
        return schedules.get(_json(described, text), batch)
    if ":" not in text:
        hint = "write package.module:name, or a schedule as JSON"
        raise ConfigurationError(received("schedule", text, "an importable object, JSON, or a file of it", hint))
    with importable_working_directory():
        value = import_object("schedule", text)
    import keras

    from distlr.optimizer import schedule_of

    if isinstance(value, keras.optimizers.Optimizer):
        value = schedule_of(value)
    return schedules.get(value) if isinstance(value, (int, float)) else value


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _contents(text: str) -> str | None:
    """Reads the file of this name; None where there is none."""
    with file_errors_in_one_line(
        f"The schedule {text[:200]} cannot be read", "write a schedule as JSON, or the name of a file of it"
    ):
        path = Path(text)
        if not path.is_file():
            return None
        if path.stat().st_size > _LONGEST:
            raise ConfigurationError(received("schedule", text, f"a file of at most {_LONGEST} bytes"))
        return path.read_text(encoding="utf-8")


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"`{where}` is not JSON: {error}.") from error


def _name(curve: Curve) -> str:
    return f"{curve.batch.replicas} replica{'s' if curve.batch.replicas > 1 else ''}"


def _table(curves: list[Curve]) -> str:
    """Rates at even times and at each mark, a column for each number of replicas."""
    from rich.console import Console
    from rich.table import Table

    end = float(curves[0].epochs[-1])
    marks = {round(mark.epoch, 6): mark.what for curve in curves for mark in curve.marks}
    times = sorted({*(end * i / _ROWS for i in range(_ROWS + 1)), *marks})
    table = Table()
    table.add_column("epoch", justify="right")
    for curve in curves:
        head = f"{_name(curve)}\nbatch {curve.batch.size}\nfactor {curve.schedule.factor:g}"
        table.add_column(head, justify="right")
    if marks:
        table.add_column("")
    for time in times:
        cells = [f"{time:g}", *(f"{curve.rate_at(time):.6g}" for curve in curves)]
        table.add_row(*cells, *([marks.get(time, "")] if marks else []))
    console = Console(file=io.StringIO(), width=max(80, 14 * (len(curves) + 3)), color_system=None)
    console.print(table)
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue().rstrip()


def _chart(curves: list[Curve]) -> str:
    """A line of bars for each number of replicas, each to its own scale, with its peak."""
    lines = []
    for curve in curves:
        (line,) = bars(curve.rates.tolist())
        lines.append(f"{_name(curve):>14} {line} to {curve.rates.max():.4g}")
    return "\n".join(lines)


def _write_csv(path: Path, curves: list[Curve]) -> None:
    from distlr._utils.atomic_files import write_bytes

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["epoch", *(f"replicas_{curve.batch.replicas}" for curve in curves)])
    for i, epoch in enumerate(curves[0].epochs):
        writer.writerow([repr(float(epoch)), *(repr(float(curve.rates[i])) for curve in curves)])
    write_bytes(path, text.getvalue().encode())


def _draw(path: Path, curves: list[Curve]) -> None:
    from distlr._utils.figures import picture

    with picture(path) as (axes,):
        for i, curve in enumerate(curves):
            label = f"{_name(curve)}: batch {curve.batch.size}, factor {curve.schedule.factor:g}"
            axes.plot(curve.epochs, curve.rates, color=f"C{i}", label=label)
            for mark in curve.marks:
                axes.axvline(mark.epoch, color=f"C{i}", linestyle=":", linewidth=1)
        axes.set(xlabel="epoch", ylabel="learning rate", xlim=(0, curves[0].epochs[-1]), ylim=(0, None))
        axes.legend(frameon=False)
