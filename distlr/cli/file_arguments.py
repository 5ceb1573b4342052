"""Errors of files that a command cannot read or write."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from distlr.errors import ConfigurationError

__all__ = ["file_errors_in_one_line"]


@contextlib.contextmanager
def file_errors_in_one_line(what: str, fix: str) -> Iterator[None]:
    """Turns an error of the file system, or a file that is no text, into an error of one line.

    Args:
        what: "The report cannot be written", for example.
        fix: what to do about it.
    """
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{what}: {error}. Fix: {fix}.") from error
