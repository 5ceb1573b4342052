"""The entry point of the `distlr` command: parses, dispatches, and turns errors into one line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from distlr._version import __version__
from distlr.cli import batch, plan, run
from distlr.errors import DistlrError

__all__ = ["main"]

COMMANDS = (batch, plan, run)
"""The subcommands' modules, in the order in which `--help` lists them."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, under the name of the command, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Says what is wrong in one line instead of argparse's usage block."""
        self.exit(_fail(message))


def _fail(message: str) -> int:
    print("distlr: error:", " ".join(message.split()), file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="distlr",
        description="The same, right learning rate at every step on every replica of a Keras 3 job.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"distlr {__version__}")
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: the process's own) and returns the exit code.

    0: done. 2: an argument is wrong, said in one line on stderr. `--help`, `--version` and what
    the parser itself refuses leave through `SystemExit`, as argparse does it.
    """
    args = _parser().parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except DistlrError as error:
        return _fail(str(error))
    except BrokenPipeError:
        # The reader (`| head`) left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
