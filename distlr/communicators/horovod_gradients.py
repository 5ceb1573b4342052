"""Gradients averaged over the ranks by Horovod, in graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from distlr._arguments import one_of
from distlr.communicators.requests import KINDS, Requests

__all__ = ["COMPRESSIONS", "HorovodGradients", "check_compression"]

COMPRESSIONS = ("none", "fp16")

# `hvd.elastic.run` restarts a job on an error that names one of these, and swallows the error of any other op.
_ALLREDUCE, _ALLGATHER = "HorovodAllreduce.distlr", "HorovodAllgather.distlr"


def check_compression(compression: Any) -> None:
    """Refuses an unknown name; also where nothing is exchanged, so that a script that runs alone runs on many ranks."""
    one_of("compression", compression, COMPRESSIONS)


class _Sent(NamedTuple):
    """One tensor that an update sends: to be averaged, or, of a sparse gradient, gathered; then without its rows."""

    name: str
    shape: tuple[int, ...]
    dtype: Any
    device: str
    gathered: bool


class HorovodGradients(Requests):
    """The mean over the ranks of an optimizer's gradients, and of what travels with them.

    Each tensor is an operation of its own, named after optimizer and variable: Horovod begins with those that
    back-propagation has first, fuses small ones by itself, and a rank that has built another model beside this
    one still pairs right. Requests travel in the same buffer, so that a stop that one rank
    wants reaches all of them at the same update at no collective's cost.

    A rank that waits in a collective, its data ended, takes part in the updates of the others with zeros (`wait`).
    `hvd.join` is there for that, but no graph may keep one, it has no sparse gradients, and after a rank was lost
    while another had joined the next ranks that start in that process crash: Horovod does not forget the join.

    Attributes:
        gated: whether the ranks agree, before each step, that they take it (`all_true`).
        eager: whether the last step was outside of a graph, where Horovod pairs by order and not by name.
        meetings: the graphs of `wait` that begin with this one, by what they were traced for.

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
        self.gated = self.eager = False
        self.meetings: dict[Any, Any] = {}
        self._sent: list[_Sent] = []
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
            if not self.gated:
                self._updates.assign_add(1)
        self._sent, self.eager = [], tf.executing_eagerly()
        self.agreed.assign(self._mean(wanted, "requests"))
        return [
            gradient if gradient is None else self._scaled(self._average(gradient, name))
            for gradient, name in zip(gradients, names, strict=True)
        ]

    def all_true(self, flag: Any) -> Any:
        """Whether a boolean tensor is true on every rank; the same on each."""
        import tensorflow as tf

        self.gated, self.eager = True, tf.executing_eagerly()
        with tf.control_dependencies([flag]):
            self._updates.assign_add(1)
        return self._mean(tf.cast(flag, tf.float32), "finite") >= 1.0

    @property
    def signature(self) -> tuple[Any, ...]:
        """What a graph of `wait` is traced for."""
        return self.gated, *self._sent

    def take_updates(self) -> int:
        """How many updates, where it is gated how many steps, this rank has taken since it was last asked."""
        updates = int(self._updates.numpy())
        if updates:
            self._updates.assign(0)
        return updates

    def wait(self, zero: Any) -> Any:
        """Takes part in the updates of the other ranks, with zeros, until all ranks wait; in a graph if those are.

        Where it is gated the others leave these steps out. Once all wait, the collective finds that the ranks have not
        made equally many updates, and all raise.

        Args:
            zero: 0.0, an argument of the graph: what depends on nothing else TensorFlow computes once, and keeps. It is
                `different` for each optimizer in the graph.

        Returns:
            What the graph must return, or TensorFlow takes what is exchanged for unused.
        """
        import tensorflow as tf

        def others_go_on(share: Any, received: Any) -> Any:
            return share < 1.0 - 0.5 / self._hvd.size()

        def again(share: Any, received: Any) -> Any:
            nothing = tf.nn.relu(share - 2.0)  # zero, which no optimization of the graph can know
            received = nothing if self.gated else self._send(nothing)
            with tf.control_dependencies([received]):
                return self._share_that_waits(tf.identity(nothing)), received

        return tf.while_loop(others_go_on, again, (self._share_that_waits(zero), zero), parallel_iterations=1)

    def _share_that_waits(self, zero: Any) -> Any:
        """Says that this rank waits where the others send what a step sends first; 1 where all say so."""
        import tensorflow as tf

        if self.gated:
            return -self._mean(zero - 1.0, "finite")
        here = tf.one_hot(KINDS.index("waits"), len(KINDS)) + zero
        return self._mean(here, "requests")[KINDS.index("waits")]

    def _send(self, zero: Any) -> Any:
        """Sends zeros for each tensor of an update; returns a sum of all that came."""
        import tensorflow as tf

        received = [zero]
        for place, (name, shape, dtype, device, gathered) in enumerate(self._sent):
            with tf.device(device):
                nothing = tf.fill(shape, tf.cast(different(zero, place), dtype))
                received.append(
                    self._gathered(nothing, name) if gathered else self._mean(nothing, name, self._compression)
                )
        return tf.add_n([tf.cast(tf.reduce_sum(tensor), tf.float32) for tensor in received])

    def _average(self, gradient: Any, name: str) -> Any:
        import tensorflow as tf

        name = _flat(name)
        if not isinstance(gradient, tf.IndexedSlices):
            self._note(gradient, name)
            return self._mean(gradient, name, self._compression)
        parts = {f"{name}.values": gradient.values, f"{name}.indices": gradient.indices}
        for part, tensor in parts.items():
            self._note(tensor, part, gathered=True)
        values, indices = (self._gathered(tensor, part) for part, tensor in parts.items())
        return tf.IndexedSlices(values / self._hvd.size(), indices, gradient.dense_shape)

    def _note(self, tensor: Any, name: str, gathered: bool = False) -> None:
        shape = (0, *tensor.shape[1:]) if gathered else tuple(tensor.shape)
        self._sent.append(_Sent(name, shape, tensor.dtype, tensor.device, gathered))

    def _gathered(self, tensor: Any, name: str) -> Any:
        return self._hvd.allgather(tensor, name=f"{_ALLGATHER}.{self._prefix}.{name}", ignore_name_scope=True)

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


def different(zero: Any, place: int) -> Any:
    """0.0 again, and another tensor at each place: of two exchanges of one and the same TensorFlow keeps one."""
    return zero * (2.0 + place)


def _flat(name: str) -> str:
    """A name without slashes, behind the last of which Horovod looks for it, and of what TensorFlow allows."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "." for letter in name)
