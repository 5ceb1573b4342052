"""The callback that writes a run's record into its directory, for `distlr report`."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distlr._version import __version__
from distlr.callbacks.job_callback import JobCallback
from distlr.callbacks.stage import Stage
from distlr.communicators.rank_zero import compute_on_root
from distlr.errors import ConfigurationError
from distlr.optimizer import AdoptedOptimizer
from distlr.runlog.directory import RunDirectory, now
from distlr.runlog.journal import KEPT, JournalEntry

__all__ = ["RunRecorder"]

_log = logging.getLogger("distlr")

_POINTS = 24  # points of the rate's curve within an epoch
_AT_AN_END = ("plateau", "bad-numbers")  # kinds of decisions that depend on an epoch's metrics
_OURS = ("learning_rate", "lr_multiplier", "samples_seen")


class RunRecorder(JobCallback):
    """Writes the run's formula, epochs and decisions into its directory, on rank 0; `job.callbacks(run_dir=)` adds it.

    The files are those of `RunDirectory`. A continued run removes the entries of epochs that it trains again,
    apart from changes by hand, which are made again. A new run moves the files of an older one aside. Rank 0 locks the
    directory until `fit` ends. A job that needs a locked directory waits for two minutes at most, and is then refused.

    Args:
        run_dir: the run's directory.
        about: gives the parts of the formula, as `job.explain` does; by default the optimizer's.

    >>> import distlr, keras, numpy as np
    >>> job = distlr.init(environ={})
    >>> with job.scope():
    ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    ...     model.compile(job.optimizer(keras.optimizers.SGD(0.1)), "mse")
    >>> x = np.ones((32, 2), "float32")
    >>> import json, pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = model.fit(x, x[:, :1], callbacks=job.callbacks([RunRecorder(folder)]), verbose=0)
    ...     sorted(path.name for path in pathlib.Path(folder).iterdir())
    ...     json.loads(pathlib.Path(folder, "epochs.jsonl").read_text())["agreement"]["equal"]
    ['epochs.jsonl', 'run.json']
    True
    """

    stage = Stage.RECORD

    def __init__(self, run_dir: str | os.PathLike[str], about: Callable[[], dict[str, Any]] | None = None) -> None:
        super().__init__()
        self.directory = RunDirectory(run_dir)
        self.about = about
        self._begins = True  # at the next epoch
        self._begun = self._listening = False
        self._held: list[JournalEntry] = []  # decisions from before the run's files were there
        self._within: list[
            tuple[int, float]
        ] = []  # changes of the multiplier after a batch of this epoch: clock, factor
        self._first_sample = self._first_drawn = 0  # the epoch's beginning: on the clock, and in the data
        self._since = 0.0
        self._lost = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Locks the directory for this run, and connects the journal. Collective."""
        self._begins, self._begun = True, False
        compute_on_root(
            self.communicator,
            self._lock_directory,
            tag="the run's directory",
            what="use run_dir",
            raised=(ConfigurationError,),
        )
        if self.communicator.is_root and not self._listening:
            self._listening = True
            self.journal.listen(self._on_entry)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Begins the run's files, now that the first epoch is known."""
        if not self.communicator.is_root:
            return
        if self._begins:
            self._begins = False
            self._begun = self._begin(epoch)
        self._within, self._since = [], time.monotonic()
        optimizer = self.core
        self._first_sample = optimizer.distlr.formula.samples_seen if isinstance(optimizer, AdoptedOptimizer) else 0
        self._first_drawn = self.drawn

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the epoch's record. The guard comes before, so ranks that differ do not get here."""
        if not (self._begun and self.communicator.is_root):
            return
        logs = logs or {}
        optimizer = self.core
        record: dict[str, Any] = {"epoch": epoch, **{name: _json(logs[name]) for name in _OURS if name in logs}}
        record["logs"] = {name: _json(value) for name, value in logs.items() if name not in _OURS}
        record["seconds"] = round(time.monotonic() - self._since, 3)
        if isinstance(optimizer, AdoptedOptimizer):
            record["curve"] = self._curve(optimizer, logs.get("lr_multiplier", optimizer.distlr.formula.multiplier))
            digests = optimizer.distlr.gradients.rate_digests()
            record["agreement"] = {
                "ranks": self.topology.ranks,
                "replicas": self.topology.replicas,
                "equal": len(set(digests)) == 1,
                "rates": digests,
            }
        self._write(self.directory.add_epoch, record)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Notes the end of the run. A run that a signal or an error ended does not get here, and can go on."""
        if self._begun and self.communicator.is_root:
            self._write(self.directory.end)
        self.directory.release()

    def _lock_directory(self) -> None:
        with contextlib.suppress(OSError):  # then there is no record; a warning comes when it would begin
            self.directory.acquire(self.communicator.timeout)

    def _begin(self, epoch: int) -> bool:
        """Begins the run's files, and returns whether it could; otherwise nothing is added to another run's files."""
        optimizer = self.core
        explained = {"optimizer": optimizer.name}
        if isinstance(optimizer, AdoptedOptimizer):
            explained = optimizer.distlr.explain()
        run = {
            "format": 1,
            "started": now(),
            "command": [os.path.basename(sys.argv[0]), *sys.argv[1:]],
            "host": platform.node(),
            "epochs": (self.params or {}).get("epochs"),
            "job": explained if self.about is None else self.about(),
            "versions": {
                "distlr": __version__,
                "keras": keras.__version__,
                "tensorflow": tf.__version__,
                "python": platform.python_version(),
            },
        }
        if epoch == 0 and not self.journal.resumed:
            begun = self._write(self.directory.begin, run)
        else:
            now_at = self.drawn

            def keep(entry: dict[str, Any]) -> bool:
                if entry.get("kind") in _AT_AN_END and entry.get("between") and entry.get("epoch") == epoch:
                    return False  # decided again, also where the validation alone is left of the epoch
                return entry.get("kind") in KEPT or entry.get("drawn", entry.get("clock", 0)) <= now_at

            begun = self._write(self.directory.resume, run, epoch, keep)
        held, self._held = self._held, []
        for entry in held if begun else ():
            self._write(self.directory.add_decision, entry.to_json())
        return begun

    def _on_entry(self, entry: JournalEntry) -> None:
        if entry.multiplier is not None and not entry.between:
            self._within.append((entry.clock, entry.multiplier))
        if entry.kind == "again":
            return  # it is in the file
        if self._begun:
            self._write(self.directory.add_decision, entry.to_json())
        elif self._begins:
            self._held.append(entry)

    def _write(self, how: Callable[..., None], *what: Any) -> bool:
        """Writes, and returns whether it could; an error ends the record and not the training.

        Causes are a directory that is full or gone, files that are no run's, or a number that JSON does not have.
        """
        try:
            how(*what)
        except (OSError, ValueError) as error:
            if not self._lost:
                _log.warning("%s cannot be written, and misses something from here on: %s.", self.directory.path, error)
            self._lost = True
            return False
        return True

    def _curve(self, optimizer: AdoptedOptimizer, multiplier: float) -> list[list[float | int | None]]:
        """The rate within the epoch, at even times: the formula times the multiplier of that time."""
        batch, end = optimizer.distlr.batch, optimizer.distlr.formula.samples_seen
        if batch is None or batch.samples_per_epoch is None or end <= self._first_sample:
            return []
        if optimizer.distlr.explain()["clock"] != "samples":
            return []  # where it stood then is not known any more
        samples = np.unique(np.linspace(self._first_sample, end, _POINTS).astype(np.int64))
        later = [np.prod([factor for at, factor in self._within if at > each]) for each in samples]
        try:
            rates = optimizer.distlr.formula.rates_at(samples) * multiplier / np.array(later)
        except Exception as error:  # raised by a user's schedule: the training does not end for a picture
            _log.warning("The rate within the epochs is not recorded: %s.", error)
            return []
        # Where steps were left out the clock is behind the epochs, which metrics and decisions are drawn by.
        places = np.interp(samples, [self._first_sample, end], [self._first_drawn, self.drawn])
        return [[each / batch.samples_per_epoch, _json(rate)] for each, rate in zip(places, rates, strict=True)]


def _json(value: Any) -> float | int | None:
    """A number of the logs as JSON has it: null where it is not finite, or no number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    if not np.isfinite(number):
        return None
    return int(value) if isinstance(value, (int, np.integer)) else number
