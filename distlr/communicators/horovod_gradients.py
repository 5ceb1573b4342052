"""Gradients averaged over the ranks by Horovod, in graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distlr._arguments import one_of
from distlr.communicators.requests import Requests

__all__ = ["COMPRESSIONS", "HorovodGradients", "check_compression"]

COMPRESSIONS = ("none", "fp16")

# `hvd.elastic.run` restarts a job on an error that names one of these, and swallows the error of any other op.
_ALLREDUCE, _ALLGATHER = "HorovodAllreduce.distlr", "HorovodAllgather.distlr"


def check_compression(compression: Any) -> None:
    """Refuses an unknown name; also where nothing is exchanged, so that a script that runs alone runs on many ranks."""
    one_of("compression", compression, COMPRESSIONS)


class HorovodGradients(Requests):
    """The mean over the ranks of an optimizer's gradients, and of what travels with them.

    Each tensor is an operation of its own, named after optimizer and variable: Horovod begins with those that
    back-propagation has first, fuses small ones by itself, and a rank that has built another model beside this
    one still pairs right. Requests travel in the same buffer, so that a stop that one rank
    wants reaches all of them at the same update at no collective's cost.

    Args:
        hvd: the module `horovod.tensorflow`, started.
        prefix: tells this optimizer's tensors from another's; the same on all ranks.
        compression: "none", or "fp16" to send float32 gradients in half precision.
    """

    def __init__(self, hvd: Any, prefix: str, compression: str = "none") -> None:
        check_compression(compression)
        super().__init__()
        import tensorflow as tf

        self._hvd = hvd
        self._prefix = _flat(prefix)
        self._compression = getattr(hvd.Compression, compression)
        self.factor = 1.0  # on the mean; for Horovod's own argument meanings (distlr.horovod)
        self.sums = False
        self._updates = tf.Variable(0, trainable=False, dtype=tf.int64)

    def average(self, gradients: Sequence[Any], names: Sequence[str]) -> list[Any]:
        """The mean over the ranks of each gradient: dense, sparse (`IndexedSlices`), or None, which stays None.

        Args:
            gradients: one a variable.
            names: the variables' names, the same on all ranks, none twice.
        """
        import tensorflow as tf

        # Not before a gradient is there: at the end of data of unknown length Keras runs one more step, which fails,
        # and what does not wait for the data would be sent all the same and meet nothing.
        with tf.control_dependencies([gradient for gradient in gradients if gradient is not None][:1]):
            wanted = tf.identity(self.wanted)
            self._updates.assign_add(1)
        self.agreed.assign(self._mean(wanted, "requests"))
        return [
            gradient if gradient is None else self._scaled(self._average(gradient, name))
            for gradient, name in zip(gradients, names, strict=True)
        ]

    def all_true(self, flag: Any) -> Any:
        """Whether a boolean tensor is true on every rank; the same on each."""
        import tensorflow as tf

        return self._mean(tf.cast(flag, tf.float32), "finite") >= 1.0

    def take_updates(self) -> int:
        """How many updates this rank has averaged for since it was last asked."""
        updates = int(self._updates.numpy())
        self._updates.assign(0)
        return updates

    def _average(self, gradient: Any, name: str) -> Any:
        import tensorflow as tf

        if not isinstance(gradient, tf.IndexedSlices):
            return self._mean(gradient, f"{_flat(name)}", self._compression)
        values, indices = (
            self._hvd.allgather(part, name=f"{_ALLGATHER}.{self._prefix}.{_flat(name)}.{kind}", ignore_name_scope=True)
            for part, kind in ((gradient.values, "values"), (gradient.indices, "indices"))
        )
        return tf.IndexedSlices(values / self._hvd.size(), indices, gradient.dense_shape)

    def _scaled(self, gradient: Any) -> Any:
        if self.factor == 1.0 and not self.sums:
            return gradient
        import tensorflow as tf

        dense = gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient
        factor = tf.cast(self.factor * (self._hvd.size() if self.sums else 1), dense.dtype)
        if dense is gradient:
            return gradient * factor
        return tf.IndexedSlices(dense * factor, gradient.indices, gradient.dense_shape)

    def _mean(self, tensor: Any, name: str, compression: Any = None) -> Any:
        return self._hvd.allreduce(
            tensor,
            op=self._hvd.Average,
            name=f"{_ALLREDUCE}.{self._prefix}.{name}",
            compression=self._hvd.Compression.none if compression is None else compression,
            ignore_name_scope=True,
        )


def _flat(name: str) -> str:
    """A name without slashes, behind the last of which Horovod looks for it, and of what TensorFlow allows."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "." for letter in name)
