"""`distlr completion`: a script for the shell, which then completes commands, options and files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from distlr.errors import ConfigurationError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

__all__ = ["register", "run"]

SHELLS = ("bash", "zsh", "fish", "tcsh")
_PATHS = frozenset({"--csv", "--output", "--png", "--script", "run_dir", "run_dirs", "script"})


def register(subparsers: Subparsers) -> None:
    """Adds the subcommand to the parser of the `distlr` command."""
    parser = subparsers.add_parser(
        "completion",
        help="a script that lets the shell complete this command",
        description="Prints a script for a shell. For bash: distlr completion bash > "
        "~/.local/share/bash-completion/completions/distlr",
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the script, made from the parser itself."""
    try:
        import shtab
    except ImportError as error:
        raise ConfigurationError(f"Completion needs shtab: {error}. Fix: pip install shtab.") from error
    whole: argparse.ArgumentParser = args.whole_parser
    for action in _actions(whole):
        if _PATHS & {action.dest, *action.option_strings}:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(whole, args.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of a parser and of its subcommands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)
