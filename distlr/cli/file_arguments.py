"""Files that a command is given, and cannot read or write."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from distlr.errors import ConfigurationError

__all__ = ["file_errors_in_one_line"]


@contextlib.contextmanager
def file_errors_in_one_line(what: str, to_mend: str) -> Iterator[None]:
    """Turns what the file system refuses inside, and text that is none, into an error that is said in one line.

    Args:
        what: "The report cannot be written", for example.
        to_mend: what to do about it.
    """
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{what}: {error}. Fix: {to_mend}.") from error
