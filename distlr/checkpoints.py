"""Checkpoints of a run: one file each, whole or absent, of which the newest are kept.

A file is Keras' own `.weights.h5` of the compiled model, so that `model.load_weights` reads it too: the weights, the
optimizer's slots, the multiplier, the clock and what a plateau remembers. Beside them, in a group of its own, stands
what is in no variable of either: where in the data the run stands, the formula of the rate, each rank's own state.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from distlr.errors import StateError
from distlr.files import replacing

__all__ = ["CheckpointDirectory", "read_run", "write_checkpoint"]

FORMAT = 1

_GROUP, _JSON, _SUFFIX = "distlr", "run", ".weights.h5"
_NAME = re.compile(r"step-(\d{12,})" + re.escape(_SUFFIX))
_UNFINISHED = re.compile(r"\.step-\d{12,}" + re.escape(_SUFFIX) + r"\..*")

_log = logging.getLogger("distlr")


def write_checkpoint(path: Path, model: Any, run: Mapping[str, Any], ranks: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Writes one file, whole or not at all.

    Args:
        path: where, ending in `.weights.h5`.
        model: compiled, with a built optimizer.
        run: JSON values.
        ranks: the arrays that are each rank's own, by rank.
    """
    with replacing(path, suffix=_SUFFIX) as temporary:
        model.save_weights(temporary, overwrite=True)
        with h5py.File(temporary, "r+") as file:
            group = file.create_group(_GROUP)
            text = json.dumps({"format": FORMAT, **run}, allow_nan=False)
            group.create_dataset(_JSON, data=np.frombuffer(text.encode(), np.uint8))
            for rank, arrays in enumerate(ranks):
                for name, array in arrays.items():
                    group.create_dataset(f"ranks/{rank}/{name}", data=array)


def read_run(path: Path) -> tuple[dict[str, Any], list[dict[str, np.ndarray]]]:
    """What `write_checkpoint` wrote beside the weights.

    Raises:
        StateError: it is no checkpoint of distlr, or of a version that this one does not know.
    """
    try:
        with h5py.File(path, "r") as file:
            group = file[_GROUP]
            run = json.loads(group[_JSON][()].tobytes())
            ranks = [_arrays(group[f"ranks/{rank}"]) for rank in range(len(group.get("ranks", ())))]
    except (OSError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise StateError(f"{path} is no checkpoint of distlr: {error}. To mend it: remove the file.") from error
    if not isinstance(run, dict) or run.get("format") != FORMAT:
        found = run.get("format") if isinstance(run, dict) else None
        raise StateError(f"{path} has the format {found!r}, and this version of distlr reads {FORMAT}.")
    return run, ranks


def _arrays(group: Any) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    group.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


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

    def newest(self) -> Iterator[tuple[Path, dict[str, Any], list[dict[str, np.ndarray]]]]:
        """Each file that can be read with what is in it, newest first; a word on each that cannot."""
        for path in self.files():
            try:
                run, ranks = read_run(path)
            except StateError as error:
                _log.warning("%s The checkpoint before it is tried.", error)
                continue
            yield path, run, ranks

    def write(
        self, iterations: int, model: Any, run: Mapping[str, Any], ranks: Sequence[Mapping[str, np.ndarray]]
    ) -> Path:
        """Writes a checkpoint, and only then removes the oldest."""
        path = self.path / f"step-{iterations:012d}{_SUFFIX}"
        write_checkpoint(path, model, run, ranks)
        for old in self.files()[self.keep :]:
            with contextlib.suppress(FileNotFoundError):
                old.unlink()
        return path

    def clean(self) -> None:
        """Removes what a process that was killed while it wrote has left."""
        if self.path.is_dir():
            for entry in self.path.iterdir():
                if _UNFINISHED.fullmatch(entry.name):
                    entry.unlink()
