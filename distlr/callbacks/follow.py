"""The data's place, kept in step with `fit`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from distlr.callbacks.base import JobCallback
from distlr.errors import StateError
from distlr.position import Position, matched

__all__ = ["FollowEpochs"]

_log = logging.getLogger("distlr")


class FollowEpochs(JobCallback):
    """Tells the training data which epoch begins, so that its order is that epoch's; `job.callbacks` puts it first.

    Without it each iteration of the data is the next epoch, which is right only where a run starts at the first one and
    nothing else iterates.

    Args:
        positions: one for each training pipeline of the job.

    >>> import distlr, numpy as np
    >>> job = distlr.init(environ={})
    >>> batch = job.batch(per_replica=8, base_batch=8)
    >>> data = job.shard((np.arange(8.0)[:, None], np.zeros(8)), batch, seed=0)
    >>> (follow,) = (callback for callback in job.callbacks() if isinstance(callback, FollowEpochs))
    >>> def order_in(epoch):
    ...     follow.positions[0].begin(epoch, first=False)
    ...     return next(iter(data))[0].numpy().ravel().tolist()
    >>> order_in(0) == order_in(0), order_in(0) == order_in(1)
    (True, False)
    """

    def __init__(self, positions: Sequence[Position]) -> None:
        super().__init__()
        self.positions = positions  # of the data that this `fit` reads, once that is known
        self._all = positions
        self._resumed: int | None = None
        self._cut_short = False
        self._checked = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forgets an earlier `fit`."""
        self.positions = list(self._all)
        for position in self.positions:
            position.remember()
        self._resumed, self._cut_short, self._checked = None, False, False

    def choose(self, places: Sequence[Sequence[int]]) -> list[list[int]]:
        """Keeps to the data of a checkpoint, and gives a place for each: seed, pass and offset.

        Args:
            places: of the data that the `fit` read which wrote it.

        Raises:
            StateError: it read several, and the script's are others.
        """
        chosen = matched(self.positions, places)
        if chosen is None:
            raise StateError(
                f"[rank {self.communicator.rank}] The checkpoint is of a fit that read {len(places)} data sets of "
                f"job.shard, with the seeds {[seed for seed, _, _ in places]}, and the script has made "
                f"{len(self.positions)}, with {[position.seed for position in self.positions]}. Fix: give job.shard "
                "the seeds that it had, or make the data sets as they were."
            )
        self.positions = [position for position, _ in chosen]
        return [list(place) for _, place in chosen]

    def _settle(self) -> None:
        """Keeps to the data that this `fit` reads; what is of other trainings of the script stays where it was."""
        used = [position for position in self.positions if position.is_used]
        if used and len(used) < len(self.positions):
            for position in self.positions:
                if not position.is_used:
                    position.forget()
            self.positions = used

    def resume(self, epoch: int, positions: Sequence[Sequence[int]]) -> None:
        """Says where the data goes on: seed, pass and offset of each pipeline, in the order in which they were made."""
        self._resumed = epoch
        for position, (seed, number, offset) in zip(self.positions, positions, strict=False):
            position.resume(epoch, seed, number, offset)

    def places(self, steps: int, steps_in_run: int) -> list[list[int]]:
        """Where the data goes on after so many steps of the epoch, and of the run; 0 of the epoch for its end."""
        self._settle()
        found = []
        for position in self.positions:
            if position.endless:
                found.append([position.seed, position.epoch, position.after(steps_in_run)])
            elif steps:
                found.append([position.seed, position.epoch, position.after(steps)])
            else:
                found.append([position.seed, position.epoch + 1, 0])
        return found

    def next_epoch(self, places: Sequence[Sequence[int]]) -> list[list[int]]:
        """Where the data goes on when the rest of an epoch is left out."""
        return [
            [seed, number, offset] if position.endless else [seed, number + 1, 0]
            for position, (seed, number, offset) in zip(self.positions, places, strict=True)
        ]

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Before Keras begins to iterate."""
        if not self._checked and epoch != self._resumed:
            self._check_clock()
        for position in self.positions:
            position.begin(epoch, first=not self._checked)
        self._checked = True

    def end_epoch(self) -> None:
        """Lets Keras end the epoch after this batch: the one that was resumed has fewer than it counts with."""
        if not self.model.stop_training:
            self.model.stop_training = self._cut_short = True

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """The training goes on."""
        self._go_on()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """The training goes on."""
        self._settle()
        self._go_on()

    def _go_on(self) -> None:
        if self._cut_short:
            self.model.stop_training = self._cut_short = False

    def _check_clock(self) -> None:
        batch = self.batch
        if batch is None or batch.samples_per_epoch is None or not self.communicator.is_root:
            return
        share = self.core.samples_seen % batch.samples_per_epoch / batch.samples_per_epoch
        if share:
            _log.warning(
                "The clock stands at %.3g of an epoch, and fit begins a whole one, so the schedule is ahead by as "
                "much. To go on in the middle of an epoch: job.callbacks([distlr.callbacks.Checkpoint(...)]).",
                share,
            )
