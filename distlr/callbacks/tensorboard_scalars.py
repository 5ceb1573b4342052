"""The rate and the numbers that it depends on, for TensorBoard."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from distlr._utils.checks import positive_integer
from distlr.callbacks.job_callback import JobCallback
from distlr.callbacks.stage import Stage
from distlr.optimizer import AdoptedOptimizer, rate_of
from distlr.runlog.journal import JournalEntry

__all__ = ["TensorBoardScalars"]

_PREFIX = "distlr/"
_log = logging.getLogger("distlr")


class TensorBoardScalars(JobCallback):
    """Writes scalars and decisions for TensorBoard, on rank 0; `job.callbacks(run_dir=)` adds it.

    Against the number of updates: `learning_rate`, `multiplier`, `global_batch`, `samples_seen`, `gradient_norm` (of
    the averaged gradients, before they are clipped), `collective_seconds` (in distlr's own collectives since the last
    point, most of it waiting for other ranks), and `decisions`, how many there were so far, which steps up at each
    decision; its description is text of the same name. TensorBoard itself is not needed to write them.

    Args:
        log_dir: for TensorBoard.
        every: batches between two points; an epoch's end is one too.

    >>> import distlr, keras, numpy as np
    >>> job = distlr.init(environ={})
    >>> with job.scope():
    ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    ...     model.compile(job.optimizer(keras.optimizers.SGD(0.1)), "mse")
    >>> x = np.ones((32, 2), "float32")
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = model.fit(x, x[:, :1], callbacks=job.callbacks([TensorBoardScalars(folder, every=10)]), verbose=0)
    ...     [path.name.startswith("events.out.tfevents") for path in pathlib.Path(folder).iterdir()]
    [True]
    """

    stage = Stage.RECORD
    stops_with_all_ranks = True

    def __init__(self, log_dir: str | os.PathLike[str], every: int = 100) -> None:
        super().__init__()
        self.log_dir = os.fspath(log_dir)
        self.every = positive_integer("every", every)
        self._writer: Any = None
        self._points = self._decisions = 0
        self._waited = 0.0
        self._listening = False

    def set_model(self, model: Any) -> None:
        """Lets the optimizer keep the norm of its gradients, before the step is traced."""
        super().set_model(model)
        optimizer = self.core
        if isinstance(optimizer, AdoptedOptimizer) and optimizer.distlr.gradients.watch_norm():
            model.train_function = None  # the traced one does not keep it

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Opens the file on rank 0."""
        if not self.communicator.is_root:
            return
        if self._writer is None:
            with self._warn_on_error():
                self._writer = tf.summary.create_file_writer(self.log_dir)
        if not self._listening:
            self._listening = True
            self.journal.listen(self._on_entry)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._points = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if (batch + 1) // self.every > self._points:
            self._points = (batch + 1) // self.every
            self._write()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._write()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._writer is not None:
            with self._warn_on_error():
                self._writer.close()
            self._writer = None

    def _write(self) -> None:
        if self._writer is None:
            return
        optimizer = self.core
        waited, self._waited = self._waited, self.communicator.log.seconds
        values = {"collective_seconds": self._waited - waited}
        if isinstance(optimizer, AdoptedOptimizer):
            now = optimizer.distlr.formula.reading()
            values |= {
                "learning_rate": now.rate,
                "multiplier": now.multiplier,
                "samples_seen": now.samples_seen,
                "gradient_norm": optimizer.distlr.gradients.norm,
            }
            if optimizer.distlr.batch is not None:
                values["global_batch"] = optimizer.distlr.batch.size
        else:
            values["learning_rate"] = rate_of(optimizer)
        with self._warn_on_error():
            for name, value in values.items():
                self._add(name, tf.constant(value, tf.float64), "scalars")  # float32 has no odd number above 2**24
            self._writer.flush()

    def _on_entry(self, entry: JournalEntry) -> None:
        if self._writer is None:
            return
        self._decisions += 1
        with self._warn_on_error():
            self._add("decisions", tf.constant(self._decisions, tf.float64), "scalars")
            self._add("decisions", tf.constant([f"epoch {entry.epoch + 1}: {entry.reason}"]), "text")
            self._writer.flush()

    @contextlib.contextmanager
    def _warn_on_error(self) -> Iterator[None]:
        """Turns an error of writing into a warning: it ends the scalars and not the training on rank 0 alone."""
        try:
            yield
        except tf.errors.OpError as error:
            self._writer = None
            _log.warning("%s cannot be written, and gets no more scalars: %s", self.log_dir, error.message)

    def _add(self, name: str, value: tf.Tensor, plugin: str) -> None:
        """Writes as `tf.summary.scalar` and `tf.summary.text` do, which need TensorBoard installed."""
        metadata = tf.compat.v1.SummaryMetadata(
            plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name=plugin),
            data_class={"scalars": "DATA_CLASS_SCALAR", "text": "DATA_CLASS_TENSOR"}[plugin],
        )
        with self._writer.as_default(step=int(self.core.iterations.numpy())):
            tag = f"{_PREFIX}{name}" + ("/text_summary" if plugin == "text" else "")
            tf.summary.write(tag, value, metadata=metadata)
