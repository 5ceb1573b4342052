"""Files that are whole or absent: write, fsync, rename; and reading that waits for no pipe."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

__all__ = ["is_being_written", "open_plain", "write_bytes", "write_json", "write_parts"]

_being_written: set[str] = set()  # temporary files of this process


def write_bytes(path: str | os.PathLike[str], data: bytes, *, mode: int = 0o666) -> None:
    """Replaces a file in one step; after a crash at any instant the old one or the new one is there, whole.

    The directory is created if it is missing. The temporary file stands beside the target, so that the rename
    stays within one file system, and is removed when anything fails.

    Args:
        path: the file.
        data: its content.
        mode: its permissions, before the umask.
    """
    write_parts(path, [data], mode=mode)


def write_parts(
    path: str | os.PathLike[str], parts: Sequence[bytes | bytearray | memoryview], *, mode: int = 0o666
) -> None:
    """Works as `write_bytes`, for content in several pieces of memory, one after the other."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = str(target.with_name(f".{target.name}.{secrets.token_hex(4)}"))
    _being_written.add(temporary)
    try:
        # The kernel applies the umask, which a process can only read by setting it, for all of its threads.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
    finally:
        _being_written.discard(temporary)
    directory = os.open(target.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)  # the rename itself
    finally:
        os.close(directory)


def is_being_written(path: str | os.PathLike[str]) -> bool:
    """Whether a temporary file is one that this process writes now, in any thread, and not one that a crash left."""
    return str(path) in _being_written


def open_plain(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file to read its bytes; a pipe is not waited for, and no other program inherits it.

    Raises:
        OSError: it cannot be opened, or is no plain file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "It is no plain file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Writes a value as indented JSON, whole or not at all. NaN and infinity are refused: JSON has none."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())
