"""`distlr doctor`: what this machine, and a script, will do, and what to do about it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from distlr._version import __version__

if TYPE_CHECKING:
    from distlr.tools.doctor import Finding

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["register", "run"]

_COLORS = {"OK": "green", "warning": "yellow", "error": "red"}


def register(subparsers: Subparsers) -> None:
    """Adds the subcommand to the parser of the `distlr` command."""
    parser = subparsers.add_parser(
        "doctor",
        help="what this machine will do, whether gradients are really averaged, and what a script gets wrong",
        description="Looks at Python, TensorFlow, Keras, devices, launchers, MPI and Horovod, says what distlr.init() "
        "would choose and why, and makes one update on two ranks of this machine to see whether gradients are "
        "averaged. Exit status: 0, also with warnings; 1 where a finding is an error; 2 where an argument cannot be "
        "right.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--script",
        metavar="FILE",
        help="read a training script, too; where it has setup(job), as for lr-find, compare an update on two replicas",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, for a bug report")
    parser.add_argument("--quick", action="store_true", help="start no ranks, and import no script")
    parser.add_argument("--quiet", action="store_true", help="only warnings and errors")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the findings, and returns 1 where one of them is an error."""
    from distlr.tools.doctor import examine

    speaks = sys.stderr.isatty() and not args.quiet
    # As with Ctrl-C, the processes that were started are ended, too.
    before = {number: signal.signal(number, _exit_on_signal) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        findings = examine(args.script, quick=args.quick, waiting=_print_progress if speaks else lambda what: None)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    shown = [finding for finding in findings if finding.status != "OK" or not args.quiet]
    if args.json:
        print(json.dumps({"distlr": __version__, "findings": list(map(dataclasses.asdict, shown))}, indent=2))
    elif sys.stdout.isatty():
        _draw(shown)
    else:
        for finding in shown:
            print("\n".join(_lines(finding)))
    return int(any(finding.status == "error" for finding in findings))


def _exit_on_signal(number: int, _: Any) -> NoReturn:
    sys.exit(128 + number)


def _print_progress(what: str) -> None:
    print(f"distlr doctor: {what} ...", file=sys.stderr, flush=True)


def _lines(finding: Finding) -> list[str]:
    to_do = [f"{'':9}{finding.to_do}"] if finding.to_do else []
    return [f"{finding.status:8} {finding.name}: {finding.found}", *to_do]


def _draw(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=True)
    for heading in ("", "what", "found, and what to do"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        text = Text(finding.found)
        if finding.to_do:
            text.append(f"\n{finding.to_do}", style="bold")
        table.add_row(Text(finding.status, style=_COLORS[finding.status]), Text(finding.name), text)
    if findings:
        Console().print(table)
