"""`distlr report`: one page, or a picture, of what runs did: rates, metrics, decisions, configuration."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from distlr.cli.file_arguments import file_errors_in_one_line

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["register", "run"]

_PAGE = "report.html"


def register(subparsers: Subparsers) -> None:
    """Adds the subcommand to the parser of the `distlr` command."""
    parser = subparsers.add_parser(
        "report",
        help="a page of what runs did: rates, metrics, decisions, whether the replicas agreed",
        description="Writes one HTML file, which needs no network and runs no script, of one run or of several over "
        "each other; also of runs that are under way. Exit status: 0; 2 where an argument cannot be right.",
        allow_abbrev=False,
    )
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR", help="what a script gave as run_dir=")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"the page (default: {_PAGE} in the first RUN_DIR)")
    parser.add_argument("--png", type=Path, metavar="FILE", help="also draws rate, multiplier and loss")
    parser.add_argument("--title", metavar="TEXT", help="the heading (default: the names of the runs)")
    parser.add_argument("--quiet", action="store_true", help="nothing on the terminal")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the files, and prints their names in one line."""
    from distlr.runlog.directory import RunDirectory
    from distlr.tools.report import draw, write_report

    with file_errors_in_one_line("The run cannot be read", "write the directory of job.callbacks(run_dir=)"):
        runs = [RunDirectory(path).read() for path in args.run_dirs]
    page = args.output or args.run_dirs[0] / _PAGE
    with file_errors_in_one_line("The report cannot be written", "choose --output and --png elsewhere"):
        if args.png is not None:
            draw(args.png, runs)
        write_report(page, runs, args.title)
    if not args.quiet:
        print(f"wrote {page}" + (f" and {args.png}" if args.png is not None else ""))
    return 0
