"""Ranks whose data ends at different batches: an error on all of them, and never a hang."""

from __future__ import annotations

from typing import Any

from distlr.callbacks.base import JobCallback
from distlr.communicators.frames import by_rank
from distlr.errors import DistributionError
from distlr.optimizer import inner

__all__ = ["EqualBatches"]


class EqualBatches(JobCallback):
    """Compares the ranks' numbers of batches at an epoch's end, where Keras does not know them before.

    A rank whose data has ended takes part in the others' exchanges with zeros until theirs has ended too; then all
    compare, and all raise where the numbers differ. Where the number is known, `BroadcastState` compares it
    before the first step, and this does nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._epoch = 0
        self._begun = 0
        self._met = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Starts to count."""
        self._epoch, self._begun, self._met = epoch, 0, False

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts; one more begins, on every rank, than the data has."""
        self._begun += 1

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Compares before the validation."""
        self._meet()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Compares where there was no validation."""
        self._meet()

    def _meet(self) -> None:
        exchange = getattr(inner(self.model.optimizer), "exchange", None)
        if self._met or exchange is None or (self.params or {}).get("steps") is not None:
            return
        self._met = True
        exchange.join()
        counts = self.communicator.gather_json(self._begun, tag=f"batches of epoch {self._epoch + 1}")
        if len(set(counts)) > 1:
            said = by_rank([f"{count - 1} batches" for count in counts], "with")
            raise DistributionError(
                f"[rank {self.communicator.rank}] The ranks' data ended at different batches in epoch "
                f"{self._epoch + 1}: {said}. The weights are no longer those of one training. To mend it: feed each "
                "rank with job.shard(data, batch), or give fit the same steps_per_epoch on every rank."
            )
