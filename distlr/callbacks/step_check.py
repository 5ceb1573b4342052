"""The check of a training step: its samples, how often it applies, and with which optimizers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from distlr.batch.global_batch import GlobalBatch
from distlr.callbacks.loss_check import LossCheck
from distlr.callbacks.other_optimizers import OtherOptimizers
from distlr.communicators import Communicator
from distlr.communicators.topology import Topology
from distlr.errors import ConfigurationError
from distlr.optimizer import AdoptedOptimizer, batch_of, samples_of, unwrap_loss_scale
from distlr.optimizer.hooks import missing
from distlr.strategies.step_record import Step, StepRecord, overrides_train_step, record_of

__all__ = ["StepCheck", "how_to_feed"]

_log = logging.getLogger("distlr")


def how_to_feed(batch: GlobalBatch, topology: Topology) -> str:
    """The data to feed a model with, for a message: "job.shard(data, batch), with ..."."""
    if topology.strategy_spans_ranks:  # TensorFlow divides its data among the workers
        whole = batch.local_batch * topology.ranks
        return f"job.shard(data, batch), or with fit(x, y, batch_size={whole}) of the whole data on every worker"
    return (
        "job.shard(data, batch), with fit(x, y, batch_size=batch.local_batch) or with .batch(batch.local_batch), "
        f"here {batch.local_batch}"
    )


class StepCheck:
    """Refuses a step that does not fit the rate; `PreflightCheck` has one for each `fit`.

    A fault in the trace of the step is refused before the first update. A batch of unknown shape is checked after the
    first call of Keras' training function, and a fault that only counting shows is refused at the epoch's end.

    Args:
        model: compiled, its training function made.
        communicator: the job's.
        steps: Keras' steps an epoch, where it knows them.
        check_steps: refuses these where the batch of the model's optimizer has others, by their number.
        check_averaged: refuses an optimizer whose gradients nothing averages over the ranks.
        others: checks optimizers other than the model's own.
    """

    def __init__(
        self,
        model: Any,
        communicator: Communicator,
        steps: int | None,
        check_steps: Callable[[int], None],
        check_averaged: Callable[[Any], None],
        others: OtherOptimizers,
    ) -> None:
        self.model = model
        self.communicator = communicator
        self._steps = steps
        self._check_steps = check_steps
        self._check_averaged = check_averaged
        self.is_own_step = overrides_train_step(model)
        self._loss = LossCheck(model, communicator, self.is_own_step)
        self._applied: dict[int, tuple[AdoptedOptimizer, bool]] = {}  # and whether a loss scale is around it
        self._takes_whole_updates: set[int] = set()  # steps that hold all the passes of an update
        self._began: dict[int, tuple[int, int]] = {}  # the clock and the bad steps at the epoch's start
        self._warned: set[str] = set()
        self._add(model.optimizer)
        self._others = others
        self._history, self._has_ended = getattr(model, "history", None), False
        self._record = record_of(model)
        for step in self._record.steps:  # traced in an earlier `fit`, which may have had other callbacks
            for optimizer, _ in step.applied:
                self._add(optimizer)
                others.check_applied(unwrap_loss_scale(optimizer))
            others.check_step([unwrap_loss_scale(optimizer) for optimizer, _ in step.applied])
        self._record.begin(self)

    # -- the step is traced, or runs eagerly ---------------------------------------------------------

    def on_apply(self, step: Step) -> None:
        """Compares the batch, and refuses an optimizer that is applied more than once if its rate follows the clock."""
        optimizer = step.applied[-1][0]
        self._add(optimizer)
        core = unwrap_loss_scale(optimizer)
        self._loss.check(step, core if isinstance(core, AdoptedOptimizer) else None)
        if not step.averages_itself:
            self._check_averaged(core)
        self._others.check_applied(core)
        batch = batch_of(core)
        if batch is None:
            return
        may_go_on = self.is_own_step and batch.accumulation > 1
        times = step.times(optimizer)
        if step.samples is not None:
            self._check_samples(core, batch, step.samples, 0 if may_go_on else 1)
        if not isinstance(core, AdoptedOptimizer) or core.distlr.batch is None:
            return
        passes = core.distlr.batch.accumulation
        if times > 1 and not (may_go_on and times <= passes) and not self._is_declared(core, times):
            self._refuse_times(core, f"{times} times a step", times)

    def on_step(self, step: Step) -> None:
        """Refuses Keras' own step if it bypassed distlr's optimizer, and runs the checks that need the whole step."""
        expects_apply = not self.is_own_step and isinstance(unwrap_loss_scale(self.model.optimizer), AdoptedOptimizer)
        if expects_apply and not step.applied and self.model.trainable_weights:
            raise ConfigurationError(missing("apply"))
        self._others.check_step([unwrap_loss_scale(optimizer) for optimizer, _ in step.applied])
        self._loss.check_shown(step)
        if step.samples is not None:
            self._check_all(step, step.samples)
        can_count = all(always for _, always in step.applied)
        if self._steps and can_count and step.times(self.model.optimizer) == 1:
            self._check_steps(self._steps)

    def on_first_call(self, record: StepRecord) -> None:
        """Compares the first batch if its size was unknown in the trace."""
        samples = record.first_samples()
        if samples is not None and record.steps:
            self._check_all(record.steps[-1], samples)

    # -- epoch by epoch ------------------------------------------------------------------------------

    def begin_epoch(self) -> None:
        """Notes the positions of the clocks."""
        self._began = {
            key: (samples_of(core), core.distlr.gradients.bad_steps) for key, (core, _) in self._applied.items()
        }

    def end_epoch(self, steps: int) -> None:
        """Compares how far each clock has come with the steps that Keras has run since the epoch began."""
        noted = {id(unwrap_loss_scale(optimizer)) for step in self._record.steps for optimizer, _ in step.applied}
        for key, (core, is_loss_scaled) in self._applied.items():
            if core.distlr.batch is None or key not in self._began:
                continue
            batch = core.distlr.batch
            (start, bad_before), end = self._began[key], samples_of(core)
            if end < start or (end == start and key not in noted):
                continue  # a callback has loaded an earlier state; or the model has it, and never applies it
            passes = 1 if key in self._takes_whole_updates else batch.accumulation
            updates = batch.updates_at(end) - batch.updates_at(start)
            expected = (steps - (core.distlr.gradients.bad_steps - bad_before)) / passes
            # An update may have begun in the epoch before, or end in the next one; and another grid's place is between.
            slack = (passes > 1) + (batch.samples_at(batch.updates_at(start)) != start)
            if end - start == batch.samples_per_epoch:
                continue  # as its batch is declared
            if updates == expected or abs(updates - expected) < slack or (updates < expected and is_loss_scaled):
                if core is unwrap_loss_scale(self.model.optimizer) and steps == self._steps:
                    self._check_steps(steps)
                continue
            times = f"{updates} times in the {steps} steps of this epoch"
            self._refuse_times(core, times, updates / max(expected, 1))

    def end(self) -> None:
        """Stops the checks."""
        self._has_ended = True

    @property
    def is_on(self) -> bool:
        """Whether this `fit` still runs, which the model's History tells: each `fit` has its own."""
        return not self._has_ended and self._history is getattr(self.model, "history", None)

    # -- inner ---------------------------------------------------------------------------------------

    def _add(self, optimizer: Any) -> None:
        core = unwrap_loss_scale(optimizer)
        if isinstance(core, AdoptedOptimizer):
            self._applied.setdefault(id(core), (core, core is not optimizer))

    def _is_declared(self, core: AdoptedOptimizer, times: int) -> bool:
        """Whether an epoch of the optimizer's batch is that many times Keras' steps."""
        batch = core.distlr.batch
        assert batch is not None
        return bool(self._steps and batch.samples_per_epoch and batch.steps_per_epoch == times * self._steps)

    def _check_all(self, step: Step, samples: int) -> None:
        for optimizer in {id(optimizer): optimizer for optimizer, _ in step.applied}.values():
            core = unwrap_loss_scale(optimizer)
            batch = batch_of(core)
            if batch is not None:
                self._check_samples(core, batch, samples, step.times(optimizer))

    def _check_samples(self, core: Any, batch: GlobalBatch, samples: int, times: int) -> None:
        """Refuses another number of samples a step than the batch has; `times` the step applies, 0 if that may be more.

        A step that holds all the passes of an update, and applies after each, is right too.
        """
        if samples == batch.per_replica:
            return
        if times != 1 and samples == batch.per_replica * batch.accumulation:
            self._takes_whole_updates.add(id(core))
            return
        topology = Topology.of(self.communicator, self.model.distribute_strategy.num_replicas_in_sync)
        raise ConfigurationError(
            f"[rank {self.communicator.rank}] A step of one replica takes {samples} samples and the batch of optimizer "
            f"'{core.name}' says per_replica={batch.per_replica}: the rate is scaled for, and the clock counts, "
            f"{batch.per_replica / samples:.4g} times what is trained on. Found: {batch!r}. Fix: feed the model with "
            f"{how_to_feed(batch, topology)}; or make the batch with per_replica={samples}."
        )

    def _refuse_times(self, core: AdoptedOptimizer, how_often: str, ratio: float) -> None:
        assert core.distlr.batch is not None
        declared = _declared(core.distlr.batch, ratio)
        problem = (
            f"[rank {self.communicator.rank}] The train_step applies the optimizer '{core.name}' {how_often}, so its "
            f"clock runs {ratio:.4g} times as fast as the data"
        )
        if core.distlr.follows_clock:
            raise ConfigurationError(
                f"{problem}, and with it the schedule and the warmup. Fix: apply it once a step (add up what it is to "
                "apply, or let it accumulate: gradient_accumulation_steps= and accumulation=); or, where it is meant "
                f"so, say how long an epoch is in its own updates, job.batch(..., {declared}), or "
                'let its schedule count these: job.optimizer(..., clock="steps").'
            )
        if core.name not in self._warned and self.communicator.is_root:
            self._warned.add(core.name)
            _log.warning(
                "%s: `samples_seen` counts its updates and not the data. Its rate does not depend on the clock. Fix, "
                "where durations in epochs matter: job.batch(..., %s) for this optimizer.",
                problem,
                declared,
            )


def _declared(batch: GlobalBatch, ratio: float) -> str:
    """The argument of `job.batch` with which an epoch of the data is an epoch of the optimizer's updates."""
    if batch.samples_per_epoch is None:
        return f"samples_per_epoch=the data's size * {ratio:.4g}"
    return f"samples_per_epoch={round(batch.samples_per_epoch * ratio)}"
