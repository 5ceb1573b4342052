"""The rate in the logs, epoch by epoch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from distlr.callbacks.base import JobCallback
from distlr.files import write_bytes
from distlr.optimizer import inner, is_adopted, rate_of

__all__ = ["LearningRateLogger"]


class LearningRateLogger(JobCallback):
    """Writes the rate of each epoch into `logs`: Keras' progress bar, History and TensorBoard show it.

    The names are `learning_rate` (the rate at the epoch's end, before what is decided there),
    `lr_multiplier` and `samples_seen`. With `run_dir`, rank 0 also appends a JSON line an epoch to
    `RUN_DIR/learning_rate.jsonl`. A run that is continued takes back the lines of epochs that it trains again.

    Args:
        run_dir: the run's directory, or None.
    """

    FILE = "learning_rate.jsonl"

    def __init__(self, run_dir: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        self.run_dir = None if run_dir is None else Path(run_dir)
        self._began = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Makes the run's directory on rank 0."""
        self._began = False
        if self.run_dir is not None and self.communicator.is_root:
            self.run_dir.mkdir(parents=True, exist_ok=True)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Takes back what is about to be trained again: what was noted after the last checkpoint."""
        if self._began:
            return
        self._began = True
        path = None if self.run_dir is None else self.run_dir / self.FILE
        if epoch == 0 or path is None or not self.communicator.is_root or not path.exists():
            return  # a first epoch begins a new run, whose lines come after those of an earlier one
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = lines
        while kept and json.loads(kept[-1])["epoch"] >= epoch:
            kept = kept[:-1]
        if len(kept) < len(lines):
            write_bytes(path, "".join(kept).encode())

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the rate to the logs and to the file."""
        record = self._record()
        if logs is not None:
            logs.update(record)
        if self.run_dir is not None and self.communicator.is_root:
            # One short write of a whole line: a reader sees all of it or nothing.
            with open(self.run_dir / self.FILE, "a", encoding="utf-8") as file:
                file.write(json.dumps({"epoch": epoch, **record}) + "\n")

    def _record(self) -> dict[str, float | int]:
        optimizer = inner(self.model.optimizer)
        if not is_adopted(optimizer):
            return {"learning_rate": rate_of(optimizer)}
        return {
            "learning_rate": rate_of(optimizer),
            "lr_multiplier": optimizer.multiplier,
            "samples_seen": optimizer.samples_seen,
        }
