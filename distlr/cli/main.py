"""The entry point of the `distlr` command: parses, dispatches, and turns errors into one line."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from distlr._utils.console_log import show_log_where_none_is_configured
from distlr._version import __version__
from distlr.cli import batch, completion, control, doctor, lr_find, plan, report, run
from distlr.errors import DistlrError

__all__ = ["main", "parser"]

COMMANDS = (batch, plan, lr_find, report, run, control, completion, doctor)
"""The subcommands' modules, in the order in which `--help` lists them."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, under the name of the command, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Prints the error in one line instead of argparse's usage block."""
        self.exit(_fail(message))


def _fail(message: str) -> int:
    print("distlr: error:", " ".join(message.split()), file=sys.stderr)
    return 2


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command."""
    whole = _Parser(
        prog="distlr",
        description="The same, right learning rate at every step on every replica of a Keras 3 job.",
        allow_abbrev=False,
    )
    whole.add_argument("--version", action="version", version=f"distlr {__version__}")
    subparsers = whole.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.register(subparsers)
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv` (default: the process's own) and returns the exit code.

    0: done. 1 and 3: see the command. 2: an argument is wrong; the error is one line on stderr. 130: interrupted.
    `--help`, `--version` and errors of the parser itself leave through `SystemExit`, as argparse does it.
    """
    show_log_where_none_is_configured()  # the command is the application
    whole = parser()
    args = whole.parse_args(argv, argparse.Namespace(whole_parser=whole))
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except DistlrError as error:
        return _fail(str(error))
    except BrokenPipeError:
        # The reader (`| head`) left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return code


if __name__ == "__main__":
    sys.exit(main())
