"""JSON from files that may be damaged: objects, one a line; damaged lines are skipped."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
from pathlib import Path
from typing import Any, NoReturn

from distlr._utils.atomic_files import open_plain

__all__ = ["Lines", "parse_json", "read_file", "read_lines"]

LONGEST_FILE = 256 * 2**20
"""Bytes of a file that is read."""

_LONGEST_LINE = 4 * 2**20  # JSON takes many times its length in memory


@dataclasses.dataclass(frozen=True)
class Lines:
    """The contents of a file of JSON lines.

    Attributes:
        objects: those that could be read, in order.
        damaged: how many lines are no JSON object.
        unfinished: whether the last line has no end, as a crash leaves it, or a write that is under way.
    """

    objects: list[dict[str, Any]]
    damaged: int = 0
    unfinished: bool = False


def parse_json(text: bytes | str) -> Any:
    """Parses a text that is not trusted.

    >>> parse_json('{"epoch": 1}'), parse_json(b"[0.5]")
    ({'epoch': 1}, [0.5])
    >>> parse_json("1e999")
    Traceback (most recent call last):
        ...
    ValueError: 1e999 is no finite number

    Raises:
        ValueError: it is not UTF-8, not JSON, nested too deeply, or has a number that is not finite.
    """
    try:
        decoded = text if isinstance(text, str) else text.decode("utf-8")
        return json.loads(decoded, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Reads a plain file.

    Raises:
        OSError: it cannot be read, is longer than 256 MiB, or is no plain file; a pipe is not waited for.
    """
    with open_plain(path) as file:
        if os.fstat(file.fileno()).st_size > LONGEST_FILE:
            raise OSError(errno.EFBIG, f"It has over {LONGEST_FILE} bytes", str(path))
        return file.read(LONGEST_FILE)


def read_lines(path: Path) -> Lines:
    """Reads the objects of a file of JSON lines; none where the file is missing.

    A power cut may leave zeros in place of data: the text before and behind them is read.

    Raises:
        OSError: see `read_file`.
    """
    try:
        data = read_file(path)
    except FileNotFoundError:
        return Lines([])
    *lines, unfinished = data.split(b"\n")
    objects = [_object(line) for line in lines if line.strip()]
    readable = [value for value in objects if value is not None]
    damaged = len(objects) - len(readable)
    last = _object(unfinished)  # all of an object is there, or it is none
    return Lines(readable if last is None else [*readable, last], damaged, bool(unfinished))


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = parse_json(line.strip(b"\0")) if len(line) <= _LONGEST_LINE else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        _no_number(text)
    return value


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no finite number")
