"""Gradients averaged over the ranks by Horovod, in graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distlr._utils.checks import one_of
from distlr.communicators.gradient_reducer import GradientReducer
from distlr.communicators.horovod.participation import HorovodUpdates, flatten_name

__all__ = ["COMPRESSIONS", "HorovodGradients", "check_compression"]

COMPRESSIONS = ("none", "fp16")


def check_compression(compression: Any) -> None:
    """Refuses an unknown name; also where nothing is exchanged, so that a script that runs alone runs on many ranks."""
    one_of("compression", compression, COMPRESSIONS)


class HorovodGradients(GradientReducer):
    """The mean over the ranks of an optimizer's gradients, and of what travels with them.

    Each tensor is an operation of its own, named after optimizer and variable: Horovod begins with those that
    back-propagation has first, fuses small ones by itself, and a rank that has built another model beside this
    one still pairs right. Signals travel in the same buffer, so that a stop that one rank
    wants reaches all of them at the same update at no collective's cost.

    Attributes:
        updates: the state of the updates between collectives. It outlives this object, which is collected with the
            optimizer: the communicator keeps it until it has reported the updates to the other ranks.

    Args:
        hvd: the module `horovod.tensorflow`, started.
        prefix: distinguishes this optimizer's tensors from another's; the same on all ranks.
        compression: "none", or "fp16" to send float32 gradients in half precision.
    """

    def __init__(self, hvd: Any, prefix: str, compression: str = "none") -> None:
        check_compression(compression)
        super().__init__()
        self._hvd = hvd
        self.updates = HorovodUpdates(hvd, prefix, compression)
        self._named = f"optimizer {prefix}, compression {compression}"

    @property
    def terms(self) -> str:
        """The optimizer's prefix and the compression; see `GradientReducer`."""
        return self._named

    def average(self, gradients: Sequence[Any], names: Sequence[str]) -> list[Any]:
        """The mean over the ranks of each gradient; see `GradientReducer`."""
        import tensorflow as tf

        before = self._update_before()
        # Wait for a gradient: at the end of data of unknown length Keras runs one more step, which fails, and an
        # operation that does not wait for the data would be sent all the same, with no counterpart on other ranks.
        first = [gradient for gradient in gradients if gradient is not None][:1]
        with tf.control_dependencies([before, *first]):
            sent = tf.identity(self.signals.sent)
            if not self.updates.gated:
                self.updates.count_update()
        self.updates.start_recording()
        received = self.updates.average(sent, "signals")
        with tf.control_dependencies([before]):
            means = [
                gradient if gradient is None else self._average(gradient, flatten_name(name))
                for gradient, name in zip(gradients, names, strict=True)
            ]
        with tf.control_dependencies(tf.nest.flatten(means, expand_composites=True)):
            self.signals.received.assign(received)
        return means

    def _update_before(self) -> Any:
        """The operation that the second update in a graph waits for: it reads the signals that the first one received.

        Both send under the same names, of which Horovod refuses one that is still under way. The second's gradients
        need not depend on the first's: that of a Wasserstein loss by the last layer's bias is a constant.
        """
        return self.signals.received.read_value()

    def all_true(self, flag: Any) -> Any:
        """Whether a boolean tensor is true on every rank; the same on each."""
        import tensorflow as tf

        self.updates.gated, self.updates.eager = True, tf.executing_eagerly()
        with tf.control_dependencies([flag, self._update_before()]):
            self.updates.count_update()
        return self.updates.average(tf.cast(flag, tf.float32), "finite") >= 1.0

    def _average(self, gradient: Any, name: str) -> Any:
        import tensorflow as tf

        if not isinstance(gradient, tf.IndexedSlices):
            return self.updates.average_gradient(gradient, name)
        values = self.updates.gather_rows(gradient.values, f"{name}.values")
        indices = self.updates.gather_rows(gradient.indices, f"{name}.indices")
        return tf.IndexedSlices(values / self._hvd.size(), indices, gradient.dense_shape)
