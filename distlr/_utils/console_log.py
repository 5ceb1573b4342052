"""distlr's lines on the console, in a program that has configured no logging of its own."""

from __future__ import annotations

import logging
import sys

__all__ = ["show_log_where_none_is_configured"]


class _WithoutSetup(logging.Handler):
    """Writes distlr's lines to stderr as long as the program has configured no logging."""

    def emit(self, record: logging.LogRecord) -> None:
        if not logging.getLogger().handlers:
            print(f"[distlr] {self.format(record)}", file=sys.stderr, flush=True)


def show_log_where_none_is_configured() -> None:
    """Shows distlr's lines from INFO on, on stderr; nothing where the application has configured logging."""
    logger = logging.getLogger("distlr")
    if not logger.handlers and logger.level == logging.NOTSET and not logging.getLogger().handlers:
        logger.addHandler(_WithoutSetup())
        logger.setLevel(logging.INFO)
