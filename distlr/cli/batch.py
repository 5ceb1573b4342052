"""`distlr batch`: the global batch and the factor on the rate, over numbers of replicas."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from distlr.batch.global_batch import GlobalBatch
from distlr.scaling.rules import factor

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["register", "run"]

_HEADINGS = {
    "replicas": "replicas",
    "global_batch": "global batch",
    "k": "k",
    "factor": "factor",
    "updates_per_epoch": "updates per epoch",
}


def register(subparsers: Subparsers) -> None:
    """Adds the subcommand to the parser of the `distlr` command."""
    parser = subparsers.add_parser(
        "batch",
        help="global batch, factor on the rate and updates per epoch, over numbers of replicas",
        description="Prints, for each number of replicas: the global batch (replicas x per-replica batch x "
        "accumulation), k (global batch / base batch), the factor that the rule puts on the rate, and the "
        "updates per epoch.",
        allow_abbrev=False,
    )
    parser.add_argument("--per-replica", type=int, required=True, metavar="N", help="samples a replica takes a step")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4, 8], metavar="N", help="default: 1 2 4 8")
    parser.add_argument(
        "--base-batch", type=int, required=True, metavar="N", help="the batch that the rate was tuned at"
    )
    parser.add_argument("--accumulation", type=int, default=1, metavar="N", help="steps per update (default: 1)")
    parser.add_argument("--samples-per-epoch", type=int, metavar="N", help="for the updates per epoch")
    parser.add_argument("--rule", default="linear", help="linear (default), sqrt or none")
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object a row")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the table, or with `--json` a list of objects (`updates_per_epoch` is null where unknown)."""
    rows = [_row(args, replicas) for replicas in args.replicas]
    print(json.dumps(rows, indent=2) if args.json else _table(rows))
    return 0


def _row(args: argparse.Namespace, replicas: int) -> dict[str, int | float | None]:
    batch = GlobalBatch(
        per_replica=args.per_replica,
        replicas=replicas,
        base_batch=args.base_batch,
        accumulation=args.accumulation,
        samples_per_epoch=args.samples_per_epoch,
    )
    return {
        "replicas": replicas,
        "global_batch": batch.size,
        "k": batch.ratio,
        "factor": factor(args.rule, batch.ratio),
        "updates_per_epoch": None if args.samples_per_epoch is None else batch.updates_per_epoch,
    }


def _table(rows: list[dict[str, int | float | None]]) -> str:
    """Right-aligned columns; a column without any value is left out."""
    keys = [key for key in _HEADINGS if any(row[key] is not None for row in rows)]
    cells = [[_HEADINGS[key] for key in keys]]
    cells += [[_text(row[key]) for key in keys] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)


def _text(value: int | float | None) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
