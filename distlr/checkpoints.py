"""Checkpoints of a run: one file each, whole or absent, of which the newest are kept.

A file is in the safetensors format: named arrays, and text beside them; nothing in it is code. This module knows no
framework: what the arrays are is its caller's.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from distlr.errors import StateError
from distlr.files import write_bytes

__all__ = ["CheckpointDirectory", "read_checkpoint", "write_checkpoint"]

FORMAT = "1"

_SUFFIX = ".safetensors"
_NAME = re.compile(r"step-(\d{12,})" + re.escape(_SUFFIX))

_log = logging.getLogger("distlr")


def write_checkpoint(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], run: Mapping[str, Any]) -> None:
    """Writes one file, whole or not at all.

    Args:
        path: where.
        arrays: by name.
        run: JSON values that stand beside them.
    """
    metadata = {"format": FORMAT, "run": json.dumps(run, allow_nan=False)}
    write_bytes(path, save({name: np.asarray(array, order="C") for name, array in arrays.items()}, metadata))


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `write_checkpoint` wrote.

    Raises:
        StateError: it is no checkpoint of distlr, or of a version that this one does not know.
    """
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            found = metadata.get("format")
            run = json.loads(metadata["run"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise StateError(f"{path} is no checkpoint of distlr: {error}. To mend it: remove the file.") from error
    if not isinstance(run, dict) or found != FORMAT:
        raise StateError(f"{path} has the format {found!r}, and this version of distlr reads {FORMAT!r}.")
    return arrays, run


class CheckpointDirectory:
    """The checkpoints of one run, by the optimizer's iterations.

    Args:
        path: the directory; made when it is first written to.
        keep: how many of the newest files stay.
    """

    def __init__(self, path: str | os.PathLike[str], keep: int) -> None:
        self.path = Path(path)
        self.keep = keep

    def files(self) -> list[Path]:
        """The finished ones, newest first."""
        if not self.path.is_dir():
            return []
        found = [(int(match[1]), entry) for entry in self.path.iterdir() if (match := _NAME.fullmatch(entry.name))]
        return [entry for _, entry in sorted(found, reverse=True)]

    def readable(self) -> Iterator[tuple[Path, dict[str, np.ndarray], dict[str, Any]]]:
        """Each file that can be read with what is in it, newest first; a word on each that cannot."""
        for path in self.files():
            try:
                arrays, run = read_checkpoint(path)
            except StateError as error:
                _log.warning("%s The checkpoint before it is tried.", error)
                continue
            yield path, arrays, run

    def write(self, iterations: int, arrays: Mapping[str, np.ndarray], run: Mapping[str, Any]) -> Path:
        """Writes a checkpoint, and only then removes the oldest."""
        path = self.path / f"step-{iterations:012d}{_SUFFIX}"
        write_checkpoint(path, arrays, run)
        for old in self.files()[self.keep :]:
            with contextlib.suppress(FileNotFoundError):
                old.unlink()
        return path

    def clean(self) -> None:
        """Removes what a process that was killed while it wrote has left."""
        if self.path.is_dir():
            for entry in self.path.iterdir():
                if entry.name.startswith(".") and _NAME.match(entry.name[1:]):
                    entry.unlink()
