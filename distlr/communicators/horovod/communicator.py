"""The communicator over Horovod, and the exchange of gradients that it hands to the optimizer.

No other module of the training imports Horovod, except `elastic.py` and the drop-in.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from distlr._utils.checks import not_negative_real
from distlr.communicators.communicator import Communicator
from distlr.communicators.frames import Frame, pad_frame, split_frames
from distlr.communicators.gradient_reducer import GradientReducer
from distlr.communicators.horovod.gradients import HorovodGradients
from distlr.communicators.horovod.participation import HorovodUpdates, distinct_zero
from distlr.errors import CollectiveTimeoutError, ConfigurationError, DistributionError, received

__all__ = ["HorovodCommunicator"]

_STALL_WARNING, _STALL_END = "HOROVOD_STALL_CHECK_TIME_SECONDS", "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"
_WARN_AFTER = 30  # seconds, at most
_UNIT = 2048  # bytes: most frames are of one size then, which Horovod's ranks need not tell each other anew
_STILL_TRAINED = (
    " If the others still trained, the ranks' data end at different batches. Fix: feed each rank with "
    "job.shard(data, batch), or give every rank the same number of steps."
)


class HorovodCommunicator(Communicator):
    """The ranks that `horovodrun`, `mpirun` or `srun` started, over Horovod's own controller (gloo or MPI).

    Every collective is one Horovod allgather of int64 words, of a size of its own on each rank. Horovod pairs eager
    calls by their order, whatever their names. As all of them are allgathers they always pair, and the frames show
    whether the ranks are in the same collective. In the first one after updates the rank also takes part in the others'
    updates until all have arrived (`HorovodUpdates.participate`): one whose data has ended enters while others average.

    Args:
        timeout: seconds after which Horovod ends a job in which some ranks wait for others, if the variable
            HOROVOD_STALL_SHUTDOWN_TIME_SECONDS is not set. It takes effect where Horovod was not
            started before.

    Raises:
        ConfigurationError: that variable is no number of seconds.
        DistributionError: Horovod is not installed, or was built for another TensorFlow.
    """

    exchanges_gradients = True

    def __init__(self, timeout: float = 600.0) -> None:
        self._hvd = hvd = _horovod()
        os.environ.setdefault(_STALL_END, str(max(1, round(timeout))))
        self.timeout = _stall_end() or None
        warning = _WARN_AFTER if self.timeout is None else max(1, min(_WARN_AFTER, round(self.timeout / 2)))
        os.environ.setdefault(_STALL_WARNING, str(warning))
        hvd.init()
        super().__init__("horovod", hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size())
        self._reducers: list[tuple[HorovodUpdates, weakref.ref[HorovodGradients]]] = []
        self._updated: list[HorovodUpdates] = []  # those with updates since the last collective
        self._ended: HorovodUpdates | None = None  # of the optimizer whose data has ended on this rank

    def gradients(self, prefix: str, compression: str = "none") -> HorovodGradients:
        """Creates the gradient reducer of one optimizer; see `HorovodGradients`."""
        reducer = HorovodGradients(self._hvd, prefix, compression)
        self._reducers.append((reducer.updates, weakref.ref(reducer)))
        return reducer

    def data_ended(self, reducer: GradientReducer | None) -> None:
        """Lets the next collective take part in updates that other ranks still make; see `Communicator`."""
        self._ended = reducer.updates if isinstance(reducer, HorovodGradients) else None

    def _pop_update_count(self) -> int:
        ended, self._ended = self._ended, None
        counts = {updates: updates.pop_count() for updates, _ in self._reducers}
        # Kept for one more report after their optimizer is gone: Python collects it at another time on each rank, and
        # a rank that still has it would wait here for one that has not.
        self._reducers = [(updates, of) for updates, of in self._reducers if counts[updates] or of() is not None]
        self._updated = [
            updates
            for updates, count in counts.items()
            if self.size > 1 and (count or (updates is ended and updates.are_known))
        ]
        return sum(counts.values())

    def _exchange(self, frame: Frame, label: str) -> Sequence[Frame]:
        import tensorflow as tf

        updated, self._updated = self._updated, []
        with self._explaining(label, _STILL_TRAINED if updated else ""):
            with tf.device("/CPU:0"):
                local_frame = tf.constant(pad_frame(frame, _UNIT).view(np.int64))
            all_frames = (
                self._gather_while_participating(updated, local_frame) if updated else self._gather(local_frame)
            )
        return split_frames(all_frames.numpy().view(np.uint8), self.size, label, _UNIT)

    def _gather_while_participating(self, updated: Sequence[HorovodUpdates], local_frame: Any) -> Any:
        """Gathers frames and takes part in the other ranks' updates until all ranks have arrived.

        It does both at once where the updates are in a graph, because one after the other needs a further round of
        Horovod: 5 ms of an epoch's end of 48, on 4 ranks of 2 cores.
        """
        import tensorflow as tf

        zero = tf.constant(0.0)
        for updates in updated:
            if updates.eager:
                updates.participate(zero)
        updated = [updates for updates in updated if not updates.eager]
        if not updated:
            return self._gather(local_frame)
        graphs = updated[0].graphs
        key = tuple((updates, updates.signature) for updates in updated)
        if key not in graphs:

            def gather_and_participate(local_frame: Any, zero: Any) -> Any:
                waits = [updates.participate(distinct_zero(zero, place)) for place, updates in enumerate(updated)]
                return self._gather(local_frame), waits

            graphs[key] = tf.function(gather_and_participate, autograph=False).get_concrete_function(
                tf.TensorSpec([None], tf.int64), tf.TensorSpec([], tf.float32)
            )
        return graphs[key](local_frame, zero)[0]

    def _gather(self, local_frame: Any) -> Any:
        import tensorflow as tf

        with tf.device("/CPU:0"):
            return self._hvd.allgather(local_frame, name="HorovodAllgather.distlr", ignore_name_scope=True)

    @contextlib.contextmanager
    def _explaining(self, label: str, hint: str) -> Iterator[None]:
        """Explains Horovod's error."""
        import tensorflow as tf

        try:
            yield
        except tf.errors.OpError as error:
            text = self.survivor_message(label, error.message)
            raise CollectiveTimeoutError(f"{text}{hint} Horovod says: {error.message.strip()}") from error


def stop() -> None:
    """Ends Horovod in this process; the job is over."""
    _horovod().shutdown()


def _stall_end() -> float:
    """The seconds after which Horovod ends a job in which ranks wait; 0 for never."""
    text = os.environ[_STALL_END]
    try:
        return not_negative_real(_STALL_END, float(text))
    except ValueError as error:
        raise ConfigurationError(received(_STALL_END, text, "a number of seconds", "write 600")) from error


def _horovod() -> Any:
    try:
        import horovod.tensorflow as hvd
    except Exception as error:  # an import that fails in a C++ library raises errors of many classes
        raise DistributionError(
            f"Horovod cannot be loaded: {error} Fix: build it for the installed TensorFlow with "
            "docker/build-horovod.sh (`make horovod` in a clone of distlr)."
        ) from error
    return hvd
