"""The data's place, kept in step with `fit`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from distlr._utils.checks import counted
from distlr.callbacks.job_callback import JobCallback
from distlr.callbacks.stage import Stage
from distlr.data.position import EpochSteps, Position, matched
from distlr.errors import StateError
from distlr.optimizer import AdoptedOptimizer

__all__ = ["DataPositionSync"]

_log = logging.getLogger("distlr")


class DataPositionSync(JobCallback):
    """Tells the training data which epoch begins, and counts how far it has come; `job.callbacks` puts it first.

    The order of the data is then that of its epoch. Without it each iteration of the data is the next epoch, which is
    right only where a run starts at the first one and nothing else iterates.

    The place in the data is not the clock: a step that is left out (`NonFiniteGuard("skip")`, an overflow of a loss
    scale) moves the data on and not the clock. An epoch that lost steps so says it, once, on rank 0, and in the
    journal.

    Args:
        positions: one position for each training pipeline of the job.

    >>> import distlr, numpy as np
    >>> job = distlr.init(environ={})
    >>> batch = job.batch(per_replica=8, base_batch=8)
    >>> data = job.shard((np.arange(8.0)[:, None], np.zeros(8)), batch, seed=0)
    >>> (follow,) = (callback for callback in job.callbacks() if isinstance(callback, DataPositionSync))
    >>> def order_in(epoch):
    ...     follow.positions[0].begin(epoch, first=False)
    ...     return next(iter(data))[0].numpy().ravel().tolist()
    >>> order_in(0) == order_in(0), order_in(0) == order_in(1)
    (True, False)
    """

    stage = Stage.CHECK
    stops_with_all_ranks = True

    # Keras calls from another thread, in order, and does not wait for the device after each step.
    async_safe = True

    def __init__(self, positions: Sequence[Position]) -> None:
        super().__init__()
        self.positions = positions  # those that this `fit` reads, once they are known
        self._all = positions
        self._resumed: int | None = None
        self._cut_short = False
        self._checked = False
        self._began: int | None = None  # `drawn` at the beginning of the epoch; None before the first one
        self._done = self._steps = 0  # steps of the epoch: before this process, and in it
        self._before: tuple[int, int] | None = None  # the optimizer's steps and clock as the epoch began
        self._bad_before = 0  # the steps that it had left out by then

    def set_model(self, model: Any) -> None:
        """Connects the journal, so that its entries say how far the data is."""
        super().set_model(model)
        self.journal.drawn = lambda: self.drawn

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forgets an earlier `fit`."""
        self.positions = list(self._all)
        for position in self.positions:
            position.remember()
        self._resumed, self._cut_short, self._checked = None, False, False
        self._began, self._done, self._steps = None, 0, 0

    def choose(self, places: Sequence[Sequence[int]]) -> list[list[int]]:
        """Selects the pipelines of a checkpoint, and returns the place of each: seed, pass and offset.

        Args:
            places: the places of the data that was read by the `fit` that wrote it.

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

    def _keep_used_positions(self) -> None:
        """Drops pipelines that this `fit` does not read; those of other trainings stay where they were."""
        used = [position for position in self.positions if position.is_used]
        if used and len(used) < len(self.positions):
            for position in self.positions:
                if not position.is_used:
                    position.forget()
            self.positions = used

    # -- where the data stands -----------------------------------------------------------------------

    @property
    def epoch_steps(self) -> EpochSteps:
        """Where the steps of an epoch stand in it."""
        per_step = self.positions[0].per_step if self.positions else 1
        steps = (self.params or {}).get("steps")
        return EpochSteps.of(self.batch, per_step=per_step, steps=steps, accumulation=self.accumulation)

    @property
    def began(self) -> int:
        """The value of `drawn` at the beginning of the epoch."""
        if self._began is not None:
            return self._began
        return self.clock + (self.core.distlr.formula.samples_behind if isinstance(self.core, AdoptedOptimizer) else 0)

    @property
    def place(self) -> int:
        """Samples of the epoch that are behind, over all ranks, whether their steps were applied or left out."""
        return self.epoch_steps.place(self._done + self._steps)

    @property
    def drawn(self) -> int:
        """The clock as if no step had been left out: in samples, or in updates if there is no batch."""
        return self.began + self.epoch_steps.drawn(self._done + self._steps)

    def resume(
        self, epoch: int, positions: Sequence[Sequence[int]], *, began: int | None = None, done: int = 0
    ) -> None:
        """Sets where the data goes on.

        Args:
            epoch: Keras' epoch, from 0.
            positions: seed, pass and offset of each pipeline, in the order in which they were made.
            began: the value of `drawn` at the beginning of that epoch; None if it is unknown.
            done: steps of the epoch, in steps of this script, that are behind.
        """
        self._resumed = epoch
        self._began, self._done, self._steps = began, done, 0
        for position, (seed, number, offset) in zip(self.positions, positions, strict=False):
            position.resume(epoch, seed, number, offset)

    def places(self, steps: int | None, steps_in_run: int) -> list[list[int]]:
        """Where the data goes on after so many steps of the epoch and of the run; `steps=None` is the epoch's end."""
        self._keep_used_positions()
        places = []
        for position in self.positions:
            if position.endless:
                places.append([position.seed, position.epoch, position.after(steps_in_run)])
            elif steps is not None:
                places.append([position.seed, position.epoch, position.after(steps)])
            else:
                places.append([position.seed, position.epoch + 1, 0])
        return places

    def next_epoch(self, places: Sequence[Sequence[int]]) -> list[list[int]]:
        """Where the data goes on when the rest of an epoch is left out."""
        return [
            [seed, number, offset] if position.endless else [seed, number + 1, 0]
            for position, (seed, number, offset) in zip(self.positions, places, strict=True)
        ]

    # -- while it runs -------------------------------------------------------------------------------

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the data's place before Keras begins to iterate."""
        first, optimizer = not self._checked, self.core
        adopted = isinstance(optimizer, AdoptedOptimizer)
        if not first or epoch != self._resumed:
            if first and adopted:
                self._check_clock(epoch)
            self._began, self._done = self.drawn, 0
        self._steps, self._checked = 0, True
        for position in self.positions:
            position.begin(epoch, first=first)
        self._before = optimizer.distlr.formula.counts() if adopted else None
        self._bad_before = optimizer.distlr.gradients.bad_steps if adopted else 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts; `batch` is the last one done, of several with `steps_per_execution`."""
        self._steps = batch + 1

    def end_epoch(self) -> None:
        """Lets Keras end the epoch after this batch: the one that was resumed has fewer than it counts with."""
        if not self.model.stop_training:
            self.model.stop_training = self._cut_short = True

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Clears the stop by which `end_epoch` ended the epoch's data."""
        self._clear_stop()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Clears the stop of `end_epoch`, and reports the steps that the epoch has lost."""
        self._keep_used_positions()
        self._clear_stop()
        if self._before is not None:
            steps, samples = self.core.distlr.formula.counts()
            clock = samples if self.batch is not None else steps // self.accumulation
            self.core.distlr.formula.samples_behind = self.drawn - clock
            self._report_left_out_steps(epoch, steps - self._before[0], samples - self._before[1])

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Forgets places in data that was not read: of several data sets one may be another training's."""
        if len(self.positions) > 1:
            for position in self.positions:
                if not position.is_used:
                    position.forget()

    def _clear_stop(self) -> None:
        if self._cut_short:
            self.model.stop_training = self._cut_short = False

    def _report_left_out_steps(self, epoch: int, applied: int, moved: int) -> None:
        """Reports, once an epoch, how many of its steps were left out and how far the clock is behind.

        Args:
            epoch: from 0.
            applied: the number of its steps in this process that were applied.
            moved: the samples by which the clock moved on.
        """
        left_out = self._steps - applied
        scales = self.model.optimizer is not self.core  # a loss scale leaves steps out by itself, and does not count
        if left_out <= 0 or not (scales or self.core.distlr.gradients.bad_steps > self._bad_before):
            return
        unit = "update" if self.accumulation == 1 else "step"
        reason = f"{left_out} of {counted(self._steps, unit)} left out, for gradients that were not finite"
        batch, behind = self.batch, self.core.distlr.formula.samples_behind
        length = None if batch is None else batch.samples_per_epoch
        if batch is not None:
            data = self.place - self.epoch_steps.place(self._done)
            reason += f"; the clock moved on by {moved} samples, the data by {data}"
        self.decided("left-out", epoch, reason, steps=left_out)
        if self.communicator.is_root:
            so_far = f"{behind / length:.3g} epochs" if length else counted(behind, "update" if not batch else "sample")
            _log.warning(
                "Epoch %d: %s. Until now the schedule is behind the data by %s; epochs keep their length.",
                epoch + 1,
                reason,
                so_far,
            )

    # -- as fit begins -------------------------------------------------------------------------------

    def _check_clock(self, epoch: int) -> None:
        """Warns if the clock does not fit the epoch that begins."""
        optimizer, batch = self.core, self.batch
        if not self.communicator.is_root:
            return
        length = None if batch is None else batch.samples_per_epoch
        clock = self.drawn
        if epoch and not clock:
            if length and _are_equal(optimizer, 0, epoch * length):
                return
            _log.warning(
                "fit begins epoch %d (initial_epoch=%d), and the optimizer's clock stands at 0, so the schedule and "
                "the warmup begin anew. Fix: give fit distlr.callbacks.Checkpoint(...) from the first epoch on, which "
                "needs no initial_epoch; or load the optimizer's state as well, with keras.models.load_model, or "
                "model.load_weights after compile.",
                epoch + 1,
                epoch,
            )
        elif length and clock % length:
            _log.warning(
                "The clock stands at %.3g of an epoch, and fit begins a whole one, so the schedule is ahead by as "
                "much, unless steps were left out before (for a NaN, or an overflow of a loss scale). To go on in the "
                "middle of an epoch: job.callbacks([distlr.callbacks.Checkpoint(...)]).",
                clock % length / length,
            )


def _are_equal(optimizer: AdoptedOptimizer, first: int, second: int) -> bool:
    """Whether the formula gives one rate at two clocks."""
    try:
        one, other = optimizer.distlr.formula.rates_at([first, second])
    except Exception:  # a user's schedule may not reach so far
        return False
    return bool(one == other)
