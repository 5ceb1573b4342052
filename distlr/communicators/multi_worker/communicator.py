"""The communicator over the collectives of a `tf.distribute` strategy that spans several workers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from distlr.communicators.communicator import Communicator
from distlr.communicators.frames import Frame
from distlr.communicators.gradient_reducer import GradientReducer
from distlr.communicators.lost_ranks import lost_worker
from distlr.errors import CollectiveTimeoutError
from distlr.startup.launcher import rank_on_host

__all__ = ["StrategyCommunicator"]

# Each gather of a process is an instance of its own: two runs of one instance can write to each other's buffers.
_instances = itertools.count(1)
_GROUP = 1_851_877_481  # far from the keys that strategies count up from 1


class StrategyCommunicator(Communicator):
    """The workers of a `MultiWorkerMirroredStrategy`, over TensorFlow's own collectives between their CPUs.

    Every collective is two gathers: of the lengths, and of the frames, padded to the longest. They are eager operations
    in a group of their own, so that they cannot pair with the strategy's.

    Args:
        strategy: the strategy, whose workers are connected.
        addresses: "host:port" of each worker, in the order of the ranks.
        rank: which of them this process is.
        timeout: seconds after which a watchdog ends a collective, or an update, for which some ranks wait.
    """

    strategy_spans_ranks = True
    exchanges_gradients = True

    def __init__(self, strategy: Any, addresses: Sequence[str], rank: int, timeout: float) -> None:
        super().__init__("multi-worker", rank, len(addresses), *rank_on_host(addresses, rank))
        from distlr.strategies.watchdog import limit_waits

        self.timeout = timeout
        self._watchdog = limit_waits(strategy, timeout, rank)
        self._lost: int | None = None
        resolver = strategy.cluster_resolver
        self._chiefs = len(resolver.cluster_spec().as_dict().get("chief", []))
        self._device = f"/job:{resolver.task_type}/replica:0/task:{resolver.task_id}/device:CPU:0"

    def gradients(self, prefix: str, compression: str = "none") -> GradientReducer:
        """Creates the gradient reducer of one optimizer; see `StrategyGradients`."""
        from distlr.communicators.multi_worker.gradients import StrategyGradients

        return StrategyGradients()

    def lost_rank(self, message: str) -> int | None:
        """The worker whose connection broke: distlr's, or TensorFlow's."""
        return lost_worker(message, self._chiefs) if self._lost is None else self._lost

    def end_without(self, lost: int) -> None:
        """Ends every wait for a worker that has ended: it raises, now and later.

        Args:
            lost: its rank.
        """
        import tensorflow as tf

        from distlr.strategies.watchdog import end_collectives

        self._lost = lost
        end_collectives(tf.errors.UNAVAILABLE, self.survivor_message("What waits for all workers", ""))

    def _exchange(self, frame: Frame, label: str) -> Sequence[Frame]:
        import tensorflow as tf

        if self.size == 1:
            return [frame]
        words = frame.view(np.int64)
        try:
            with self._watchdog.watching(label):
                lengths = self._gather(np.array([len(words)], np.int64))
                padded = np.zeros(int(lengths.max()), np.int64)
                padded[: len(words)] = words
                all_words = self._gather(padded).reshape(self.size, -1)
        except tf.errors.OpError as error:
            text = self.survivor_message(label, error.message)
            raise CollectiveTimeoutError(f"{text} TensorFlow says: {error.message.strip()}") from error
        return [row[:length].view(np.uint8) for row, length in zip(all_words, lengths, strict=True)]

    def _gather(self, words: np.ndarray) -> np.ndarray:
        import tensorflow as tf

        with tf.device(self._device):
            gathered = tf.raw_ops.CollectiveGatherV2(
                input=tf.constant(words),
                group_size=self.size,
                group_key=_GROUP,
                instance_key=next(_instances),
                ordering_token=[],
                communication_hint="ring",
                timeout_seconds=0,  # the watchdog's
            )
        result: np.ndarray = gathered.numpy()
        return result
