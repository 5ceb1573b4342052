"""The updates of one optimizer over Horovod: what they send, how many there were, and taking part in other ranks'."""

from __future__ import annotations

from typing import Any, NamedTuple

from distlr.communicators.step_signals import StepSignal

__all__ = ["HorovodUpdates", "distinct_zero", "flatten_name"]

# `hvd.elastic.run` restarts a job on an error that names one of these, and swallows the error of any other op.
_ALLREDUCE, _ALLGATHER = "HorovodAllreduce.distlr", "HorovodAllgather.distlr"


class _Sent(NamedTuple):
    """One tensor that an update sends. It is averaged; a part of a sparse gradient is gathered, and has 0 rows here."""

    name: str
    shape: tuple[int, ...]
    dtype: Any
    device: str
    gathered: bool


class HorovodUpdates:
    """The exchanges of one optimizer's updates, on ranks that make them and on ranks that wait.

    A rank whose data has ended waits in a collective, and takes part in the others' updates with zeros (`participate`).
    `hvd.join` is there for that, but no graph may keep one, it has no sparse gradients, and after a rank was lost
    while another had joined the next ranks that start in that process crash: Horovod does not forget the join.

    Attributes:
        gated: whether the ranks agree before each step that they make it (`HorovodGradients.all_true`).
        eager: whether the last step was outside of a graph, where Horovod pairs by order and not by name.
        graphs: the graphs of `participate` that begin with this optimizer's, by their signatures.

    Args:
        hvd: the module `horovod.tensorflow`, started.
        prefix: distinguishes this optimizer's tensors from another's; the same on all ranks.
        compression: a name of `hvd.Compression`, for gradients.
    """

    def __init__(self, hvd: Any, prefix: str, compression: str) -> None:
        import tensorflow as tf

        self._hvd = hvd
        self._prefix = flatten_name(prefix)
        self._compression = getattr(hvd.Compression, compression)
        self.gated = self.eager = False
        self.graphs: dict[Any, Any] = {}
        self._sent: list[_Sent] = []
        self._count = tf.Variable(0, trainable=False, dtype=tf.int64)

    def count_update(self) -> None:
        """Counts one more update, or, where it is gated, one more step."""
        self._count.assign_add(1)

    def pop_count(self) -> int:
        """Returns how many updates (steps, where it is gated) this rank has made since the last call."""
        count = int(self._count.numpy())
        if count:
            self._count.assign(0)
        return count

    def start_recording(self) -> None:
        """Begins to record what an update sends."""
        import tensorflow as tf

        self._sent, self.eager = [], tf.executing_eagerly()

    def average_gradient(self, gradient: Any, name: str) -> Any:
        """The mean of a dense gradient over the ranks."""
        self._record_sent(gradient, name)
        return self.average(gradient, name, self._compression)

    def gather_rows(self, part: Any, name: str) -> Any:
        """All ranks' rows of a part of a sparse gradient."""
        self._record_sent(part, name, gathered=True)
        return self._gather(part, name)

    def average(self, tensor: Any, name: str, compression: Any = None) -> Any:
        """The mean of a tensor over the ranks."""
        return self._hvd.allreduce(
            tensor,
            op=self._hvd.Average,
            name=f"{_ALLREDUCE}.{self._prefix}.{name}",
            compression=self._hvd.Compression.none if compression is None else compression,
            ignore_name_scope=True,
        )

    @property
    def are_known(self) -> bool:
        """Whether this rank knows what an update sends, because it has made one."""
        return self.gated or bool(self._sent)

    @property
    def signature(self) -> tuple[Any, ...]:
        """Identifies a graph of `participate`: for another signature it is traced anew."""
        return self.gated, *self._sent

    def participate(self, zero: Any) -> Any:
        """Takes part in the other ranks' updates, with zeros, until all ranks wait; in a graph if the updates are.

        Where it is gated the others skip these steps. Once all wait, the collective finds that the ranks have not
        made equally many updates, and all raise.

        Args:
            zero: 0.0 as an argument of the graph, because TensorFlow computes a constant once and keeps it; another
                `distinct_zero` for each optimizer in the graph.

        Returns:
            Tensors that the graph must return, or TensorFlow removes the exchanges as unused.
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
        """Signals, in the first exchange of a step, that this rank waits; the result is 1 where all ranks do."""
        import tensorflow as tf

        if self.gated:
            return -self.average(zero - 1.0, "finite")
        waits = StepSignal.WAITS.place
        return self.average(tf.one_hot(waits, len(StepSignal)) + zero, "signals")[waits]

    def _send(self, zero: Any) -> Any:
        """Sends zeros for each tensor of an update; returns a sum of all that it received."""
        import tensorflow as tf

        received = [zero]
        for place, (name, shape, dtype, device, gathered) in enumerate(self._sent):
            with tf.device(device):
                nothing = tf.fill(shape, tf.cast(distinct_zero(zero, place), dtype))
                received.append(
                    self._gather(nothing, name) if gathered else self.average(nothing, name, self._compression)
                )
        return tf.add_n([tf.cast(tf.reduce_sum(tensor), tf.float32) for tensor in received])

    def _record_sent(self, tensor: Any, name: str, gathered: bool = False) -> None:
        shape = (0, *tensor.shape[1:]) if gathered else tuple(tensor.shape)
        self._sent.append(_Sent(name, shape, tensor.dtype, tensor.device, gathered))

    def _gather(self, tensor: Any, name: str) -> Any:
        return self._hvd.allgather(tensor, name=f"{_ALLGATHER}.{self._prefix}.{name}", ignore_name_scope=True)


def distinct_zero(zero: Any, place: int) -> Any:
    """Returns 0.0 as another tensor at each place: TensorFlow merges two exchanges of the same tensor."""
    return zero * (2.0 + place)


def flatten_name(name: str) -> str:
    """Replaces all but ASCII letters and digits by dots: Horovod drops what stands before the last slash."""
    return "".join(letter if letter.isascii() and letter.isalnum() else "." for letter in name)
