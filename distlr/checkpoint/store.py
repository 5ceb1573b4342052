"""Checkpoints of a run: one file each, whole or absent, of which the newest are kept.

A file is in the safetensors format: named arrays, and text beside them; nothing in it is code. This module knows no
framework: the meaning of the arrays is its caller's.

The text "checksum" is the CRC-32 of the whole file, in eight hexadecimal digits, computed while these are zeros. It
notices every single bit that flips, and other damage but for one time in 2**32; it is no seal against somebody who
changes a file on purpose. (Where zlib's CRC-32 reads 1.4 GB/s SHA-256 reads 0.27, and BLAKE2 0.34.) Files of earlier
versions have none.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from distlr._utils.atomic_files import is_being_written, open_plain, write_parts
from distlr._utils.directory_lock import DirectoryLock
from distlr._utils.json_lines import parse_json
from distlr.errors import ConfigurationError, StateError

__all__ = ["CheckpointDirectory", "read_checkpoint", "write_checkpoint"]

FORMAT = "1"

_SUFFIX = ".safetensors"
_NAME = re.compile(r"step-(\d{12,})" + re.escape(_SUFFIX))

# The name within a file: it cannot be part of a string in JSON, where its quotation marks would be escaped.
_CHECKSUM = re.compile(rb'"checksum":"([0-9a-f]{8})"')
_NO_CHECKSUM = "00000000"
_BEFORE_CHECKSUMS = {"format", "run"}  # the value in files of earlier versions
_LONGEST_HEADER = 100_000_000  # as safetensors has it
_PIECE = 4 * 2**20  # bytes read in one go

_log = logging.getLogger("distlr")


class _DamagedError(StateError):
    """The content of a file is not what was written; reading it again would not help."""


def write_checkpoint(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], run: Mapping[str, Any]) -> None:
    """Writes one file, whole or not at all.

    Args:
        path: where.
        arrays: the arrays by name.
        run: JSON values that stand beside them.
    """
    text = {"format": FORMAT, "run": json.dumps(run, allow_nan=False), "checksum": _NO_CHECKSUM}
    whole = memoryview(save({name: np.asarray(array, order="C") for name, array in arrays.items()}, text))
    start = 8 + int.from_bytes(whole[:8], "little")
    header, values = bytearray(whole[:start]), whole[start:]
    (place,) = _CHECKSUM.finditer(header)
    header[slice(*place.span(1))] = _digits(zlib.crc32(values, zlib.crc32(header))).encode()
    write_parts(path, [header, values])


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads a file of `write_checkpoint`.

    Raises:
        StateError: it is no checkpoint of distlr, is damaged, or of a version that this one does not know.
    """
    try:
        has_checksum = _verify(path)
        text = _text(path, has_checksum)
        run = _run(path, text["run"])
        if text["format"] != FORMAT:
            raise StateError(
                f"{path} has the format {text['format']!r}, and this version of distlr reads {FORMAT!r}. Fix: continue "
                "with the version of distlr that wrote it."
            )
        with safe_open(path, "np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except StateError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise _no_checkpoint(path, error) from error
    if not has_checksum:
        _log.info("%s is of an earlier version, without a checksum: damage in it would not be noticed.", path)
    return arrays, run


def _no_checkpoint(path: str | os.PathLike[str], why: object, kind: type[StateError] = StateError) -> StateError:
    return kind(f"{path} is no checkpoint of distlr: {why}. Fix: remove the file, or put a good copy in its place.")


def _verify(path: str | os.PathLike[str]) -> bool:
    """Whether a file has a checksum; raises where the file is not as it was when that was computed."""
    with open_plain(path) as file:
        length = file.read(8)
        size = int.from_bytes(length, "little")
        if size > _LONGEST_HEADER:
            raise _no_checkpoint(path, f"its header is to have {size} bytes", _DamagedError)
        header = bytearray(length + file.read(size))
        places = list(_CHECKSUM.finditer(header))
        if len(places) != 1:
            return False
        stored = places[0][1].decode()
        header[slice(*places[0].span(1))] = _NO_CHECKSUM.encode()
        computed = zlib.crc32(header)
        while piece := file.read(_PIECE):
            computed = zlib.crc32(piece, computed)
    if stored != _digits(computed):
        raise _DamagedError(
            f"{path} is damaged: its checksum is {stored}, and what it holds has {_digits(computed)}. Fix: remove the "
            "file, or put a good copy in its place."
        )
    return True


def _text(path: str | os.PathLike[str], has_checksum: bool) -> dict[str, str]:
    """The text beside the arrays."""
    try:
        with safe_open(path, "np") as file:
            text = dict(file.metadata() or {})
    except SafetensorError as error:
        raise _no_checkpoint(path, error, _DamagedError) from error
    missing, more = sorted(_BEFORE_CHECKSUMS - set(text)), sorted(set(text) - _BEFORE_CHECKSUMS)
    if missing:
        raise _no_checkpoint(path, f"it does not say its {missing[0]!r}")
    if more and not has_checksum:  # one bit makes another name of "checksum", and no file of an earlier version
        raise _no_checkpoint(path, f"it says its {more[0]!r} and has no checksum", _DamagedError)
    return text


def _run(path: str | os.PathLike[str], text: str) -> dict[str, Any]:
    try:
        run = parse_json(text)
    except ValueError as error:
        raise _no_checkpoint(path, error, _DamagedError) from error
    if not isinstance(run, dict):
        raise _no_checkpoint(path, "its 'run' is no object")
    return run


def _digits(checksum: int) -> str:
    return f"{checksum:08x}"


class CheckpointDirectory:
    """The checkpoints of one run, by the optimizer's iterations.

    A writer locks it first, so that no other job's files are rotated away or mixed with these.

    Args:
        path: the directory; made when it is first locked or written to.
        keep: how many of the newest files stay, of those that can be read.
    """

    def __init__(self, path: str | os.PathLike[str], keep: int) -> None:
        self.path = Path(path)
        self.keep = keep
        self._lock = DirectoryLock(self.path, "checkpoints")
        self._warned = False

    def acquire(self, timeout: float | None = None) -> None:
        """Locks the directory for this process; see `DirectoryLock.acquire`.

        Raises:
            ConfigurationError: another job uses it, or it cannot be made.
        """
        try:
            self._lock.acquire(timeout)
        except OSError as error:
            expected = f"a directory that can be made and written to ({error})"
            raise ConfigurationError(
                f"`directory` must be {expected}. Received: directory={str(self.path)!r}. Fix: name another one."
            ) from error

    def release(self) -> None:
        """Unlocks the directory for other jobs."""
        self._lock.release()

    def files(self) -> list[Path]:
        """All files with the name of a finished checkpoint, newest first."""
        if not self.path.is_dir():
            return []
        return sorted((entry for entry in self.path.iterdir() if _number(entry) is not None), key=_order, reverse=True)

    def readable(self) -> Iterator[tuple[Path, dict[str, np.ndarray], dict[str, Any]]]:
        """Each readable file with its content, newest first; a warning for each other one.

        A damaged file is renamed if the directory is locked, so that it is not read again.
        """
        files, any_read = self.files(), False
        for path in files:
            try:
                arrays, run = read_checkpoint(path)
            except StateError as error:
                aside = self._set_aside(path) if isinstance(error, _DamagedError) and self._lock.held else None
                where = "" if aside is None else f" It is {aside.name} now."
                _log.warning("%s%s The checkpoint before it is tried.", error, where)
                continue
            any_read = True
            yield path, arrays, run
        if files and not any_read:
            _log.warning(
                "None of the checkpoints in %s can be read, so the training begins anew. Fix: where that is not meant, "
                "end it, and put a good copy there.",
                self.path,
            )

    def write(self, iterations: int, arrays: Mapping[str, np.ndarray], run: Mapping[str, Any]) -> Path:
        """Writes a checkpoint, and only then removes the oldest."""
        self.acquire()
        path = self.path / f"step-{iterations:012d}{_SUFFIX}"
        if path.is_dir() and not path.is_symlink():
            self._set_aside(path)  # a file cannot take the place of a directory
        write_checkpoint(path, arrays, run)
        self._rotate(iterations)
        return path

    def clean(self) -> None:
        """Removes the temporary files of a process that was killed while it wrote."""
        self.acquire()
        for entry in self.path.iterdir():
            if entry.name.startswith(".") and _NAME.match(entry.name[1:]) and not is_being_written(entry):
                self._remove(entry)

    def _rotate(self, iterations: int) -> None:
        """Removes the files that are older than the `keep` newest, up to the one just written.

        Unreadable files do not count. Later files are not this run's: it would have continued them, so they could not
        be read as it began.
        """
        whole_files = 1
        for old in self.files():
            if (_number(old) or 0) >= iterations:
                continue
            if whole_files < self.keep:
                whole_files += _looks_whole(old)
            else:
                self._remove(old)

    def _set_aside(self, path: Path) -> Path | None:
        """Renames a file to a name that no checkpoint has; None if it has to stay."""
        numbers = itertools.count(2)
        aside = path.with_name(f"{path.name}.damaged")
        while os.path.lexists(aside):
            aside = path.with_name(f"{path.name}.damaged-{next(numbers)}")
        with contextlib.suppress(OSError):
            return path.rename(aside)
        return None

    def _remove(self, path: Path) -> None:
        """Removes a file; one that cannot be removed stays, with one warning."""
        try:
            path.unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            if not self._warned:
                _log.warning("%s cannot be removed, and stays: %s. Fix: remove it by hand.", path, error)
            self._warned = True


def _number(path: Path) -> int | None:
    """The number of updates in the name of a checkpoint."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def _order(path: Path) -> tuple[int, str]:
    return _number(path) or 0, path.name


def _looks_whole(path: Path) -> bool:
    """Whether a file has its full length and a checkpoint's text; reading its values would take too long."""
    try:
        with open_plain(path):
            _text(path, has_checksum=True)
    except (OSError, StateError):
        return False
    return True
