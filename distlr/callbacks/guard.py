"""Whether the ranks still are one training: an error on all of them where not, and one stop for all."""

from __future__ import annotations

from typing import Any

from distlr._arguments import positive_integer
from distlr.callbacks.base import JobCallback
from distlr.digest import compare_ranks, rank_state
from distlr.errors import ConfigurationError

__all__ = ["ReplicaGuard"]


class ReplicaGuard(JobCallback):
    """Compares what must be equal on every rank, after all have decided and before anything is saved.

    At each epoch's end one gather carries each rank's iterations, samples seen, multiplier, the bits of its rate, the
    digest of the rates that it has applied and a digest of its weights. Where ranks differ, all of them raise
    `ReplicaDivergenceError`, with a table of who differs in what.

    The same gather makes the stop of one rank the stop of all. In the middle of an epoch a stop (of
    `TerminateOnNaN`, for example) travels with the next update's gradients, so that all ranks stop at the same step.

    Args:
        every: compare every so many batches too; None for the epoch's end alone.

    `job.callbacks` adds it on several ranks, with `every=None`. Two ranks that differ: `errors.ReplicaDivergenceError`.

    >>> import distlr
    >>> job = distlr.init(environ={})
    >>> [type(callback).__name__ for callback in job.callbacks([ReplicaGuard(every=100)])]
    ['Audit', 'FollowEpochs', 'LearningRateLogger', 'BadNumbers', 'ReplicaGuard']
    """

    def __init__(self, every: int | None = None) -> None:
        super().__init__()
        self.every = None if every is None else positive_integer("every", every)
        self.stops_within_epoch = False
        self._epoch = 0

    @property
    def async_safe(self) -> bool:
        """Tells Keras whether the device may run ahead of the batches' callbacks."""
        return not (self.every or self.stops_within_epoch)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Refuses what could end one worker in the middle of an epoch, and leave the others waiting."""
        alone = self.exchange is None and self.communicator.strategy_spans_ranks
        if self.stops_within_epoch and alone and self.communicator.size > 1:
            raise ConfigurationError(
                f"[rank {self.communicator.rank}] A callback that looks at each batch may stop one worker in the "
                "middle of an epoch, and nothing tells the others: a request to stop travels with the gradients of "
                "distlr's optimizer. To mend it: optimizer = job.optimizer(optimizer, batch)."
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes the epoch, for the tags."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Compares where it is time, and passes a stop on."""
        if self.every and (batch + 1) % self.every == 0:
            self._compare(f"batch {batch + 1} of epoch {self._epoch + 1}")
        exchange = self.exchange
        if not self.stops_within_epoch or exchange is None:
            return
        if exchange.agreed_on("stop"):
            self.model.stop_training = True
        elif self.model.stop_training:
            # Alone it would leave the others waiting in the next step: it asks, and goes on until all stop.
            exchange.request("stop")
            self.model.stop_training = False

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Compares, and agrees on stopping. Collective."""
        self._compare(f"epoch {epoch + 1}", at_end=True)

    def _compare(self, when: str, at_end: bool = False) -> None:
        exchange = self.exchange
        stop = bool(self.model.stop_training or (exchange is not None and exchange.requested("stop")))
        own = {"stop": stop, "state": rank_state(self.model, self.model.optimizer)}
        said = self.communicator.gather_json(own, tag=f"replicas at {when}")
        compare_ranks(self.communicator, [rank["state"] for rank in said], self.model, when=when)
        if at_end and any(rank["stop"] for rank in said):
            self.model.stop_training = True
            if exchange is not None:
                exchange.take_back("stop")
