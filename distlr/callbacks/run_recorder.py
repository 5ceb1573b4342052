"""What a run leaves in its directory, for `distlr report`."""

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
from distlr.communicators.rank_zero import from_root
from distlr.communicators.topology import Topology
from distlr.errors import ConfigurationError
from distlr.optimizer import ScaledOptimizer
from distlr.runlog.directory import RunDirectory, now
from distlr.runlog.journal import KEPT, JournalEntry

__all__ = ["RunRecorder"]

_log = logging.getLogger("distlr")

_POINTS = 24  # of the rate's curve within an epoch
_AT_AN_END = ("plateau", "bad-numbers")  # kinds of decisions that an epoch's metrics make
_OURS = ("learning_rate", "lr_multiplier", "samples_seen")


class RunRecorder(JobCallback):
    """Writes the run's formula, epochs and decisions into its directory, on rank 0; `job.callbacks(run_dir=)` adds it.

    The files are those of `RunDirectory`. A run that is continued takes back what it trains again, apart from changes
    by hand, which are made again; a new run puts what it finds aside. Rank 0 locks the directory until `fit` ends; who
    finds it locked waits for two minutes at most, and is then refused.

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
        self._first_sample = self._first_drawn = 0  # of the epoch: on the clock, and of the data
        self._since = 0.0
        self._lost = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Takes the directory for this run, and begins to listen. Collective."""
        self._begins, self._begun = True, False
        from_root(
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
        """Begins the run's files, once it is known where it begins."""
        if not self.communicator.is_root:
            return
        if self._begins:
            self._begins = False
            self._begun = self._begin(epoch)
        self._within, self._since = [], time.monotonic()
        optimizer = self.core
        self._first_sample = optimizer.samples_seen if isinstance(optimizer, ScaledOptimizer) else 0
        self._first_drawn = self.drawn

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the epoch. The guard comes before, so ranks that differ do not come here."""
        if not (self._begun and self.communicator.is_root):
            return
        logs = logs or {}
        optimizer = self.core
        record: dict[str, Any] = {"epoch": epoch, **{name: _json(logs[name]) for name in _OURS if name in logs}}
        record["logs"] = {name: _json(value) for name, value in logs.items() if name not in _OURS}
        record["seconds"] = round(time.monotonic() - self._since, 3)
        if isinstance(optimizer, ScaledOptimizer):
            record["curve"] = self._curve(optimizer, logs.get("lr_multiplier", optimizer.multiplier))
            digests = optimizer.rate_digests()
            topology = Topology.of(self.communicator, self.model.distribute_strategy.num_replicas_in_sync)
            record["agreement"] = {
                "ranks": topology.ranks,
                "replicas": topology.replicas,
                "equal": len(set(digests)) == 1,
                "rates": digests,
            }
        self._write(self.directory.add_epoch, record)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Notes the end; not of a run that a signal or an error ended, and that will go on."""
        if self._begun and self.communicator.is_root:
            self._write(self.directory.end)
        self.directory.release()

    def _lock_directory(self) -> None:
        with contextlib.suppress(OSError):  # which costs the record, and is said when that begins
            self.directory.acquire(self.communicator.timeout)

    def _begin(self, epoch: int) -> bool:
        """Whether the run's files have begun; else nothing is added to what another run may have left."""
        optimizer = self.core
        explained = optimizer.explain() if isinstance(optimizer, ScaledOptimizer) else {"optimizer": optimizer.name}
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

            begun = self._write(self.directory.go_on, run, epoch, keep)
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
        """Writes, and says whether it could; what cannot be written costs the record and not the training.

        A directory that is full or gone, files that are no run's, or a number that JSON does not have.
        """
        try:
            how(*what)
        except (OSError, ValueError) as error:
            if not self._lost:
                _log.warning("%s cannot be written, and misses something from here on: %s.", self.directory.path, error)
            self._lost = True
            return False
        return True

    def _curve(self, optimizer: ScaledOptimizer, multiplier: float) -> list[list[float | int | None]]:
        """The rate within the epoch, at even times: what the formula gives, by the multiplier that held then."""
        batch, end = optimizer.batch, optimizer.samples_seen
        if batch is None or batch.samples_per_epoch is None or end <= self._first_sample:
            return []
        if optimizer.explain()["clock"] != "samples":
            return []  # where it stood then is not known any more
        samples = np.unique(np.linspace(self._first_sample, end, _POINTS).astype(np.int64))
        later = [np.prod([factor for at, factor in self._within if at > each]) for each in samples]
        try:
            rates = optimizer.rates_at(samples) * multiplier / np.array(later)
        except Exception as error:  # of a user's schedule: for a picture the training does not end
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
