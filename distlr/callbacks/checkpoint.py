"""The callback that writes checkpoints and continues the newest one."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distlr._utils.checks import positive_integer
from distlr.batch.duration import Duration
from distlr.callbacks.base_rates import BaseRates
from distlr.callbacks.counters import Counters, append_to_logs
from distlr.callbacks.data_position_sync import DataPositionSync
from distlr.callbacks.job_callback import JobCallback
from distlr.callbacks.stage import Stage
from distlr.checkpoint.interval import Interval
from distlr.checkpoint.preemption import REASONS, Signals
from distlr.checkpoint.run_state import (
    LOG,
    RANK,
    RunState,
    are_finite,
    gather_arrays,
    log_arrays,
    rank_arrays,
    read_arrays,
    read_logs,
    restore_metrics,
    restore_seeds,
    write_arrays,
    write_weights,
)
from distlr.checkpoint.store import CheckpointDirectory
from distlr.communicators.bundles import Bundle
from distlr.communicators.rank_zero import compute_bundle_on_root, compute_on_root
from distlr.communicators.step_signals import StepSignal
from distlr.errors import ConfigurationError, RanksChanged, StateError, received
from distlr.optimizer import (
    AdoptedOptimizer,
    averages,
    begin_update,
    formula_of,
    has_partial_update,
    resume_line,
)
from distlr.sync.digests import weights_digests

__all__ = ["Checkpoint"]

_log = logging.getLogger("distlr")

LEFT = 128 + signal.SIGTERM
"""The exit status of a process that wrote a checkpoint at SIGTERM."""


class Checkpoint(JobCallback):
    """Writes checkpoints, and continues the newest one: at the right epoch, batch and sample, at the right rate.

    Rank 0 writes; a crash at any instant leaves the checkpoint before it whole. When `fit` begins and the directory has
    one, rank 0 reads it and every rank gets it: weights, optimizer, multiplier, clock, plateau, the order and place of
    the data that `job.shard` made, the metrics of the epoch that was interrupted, and each rank's dropout.
    `fit` then continues in that epoch, where no sample is trained twice and none is left out. `fit` itself
    stays as it is: `epochs` is the number of all, `initial_epoch` is not needed.

    The file has the training's state, even if a callback has put averages into the model (`SwapEMAWeights`), or Keras
    puts others there when `fit` ends (`use_ema`, `EarlyStopping(restore_best_weights=True)`): a run that is continued,
    in this process or another, goes on from its own weights. It also restores the counters of Keras' callbacks, and
    those that a class of your own names: `distlr_state = ("best", "wait")`. A run that `EarlyStopping` had stopped
    trains no more.

    At a SIGTERM late in an epoch `CutValidation` ends a long validation. The file then says that the epoch's training
    is done and its validation is not, and a continued run begins with that validation.

    On another number of workers than the one that wrote it the clock goes on in samples, while the factor and the
    momentum of moving averages are the script's, computed from the base; one line says what changed.

    Rank 0 locks the directory until `fit` ends. A job that finds it locked waits for two minutes at most, and is then
    refused. A damaged checkpoint is named, and the one before it is continued.

    At SIGUSR1 (Slurm's `--signal=USR1@60`) all ranks write a checkpoint after the same step and go on; at SIGTERM they
    write one and the process ends with 143 (128 + 15). A second signal does what it does without distlr. If the data is
    not from `job.shard` nothing is written in the middle of an epoch, which is then trained again from its start.

    Args:
        directory: the directory of this run and this `fit` alone.
        every: how often: "1ep" (the default), "100ba", "50000sp"; a checkpoint at an epoch's end is written after all
            decisions.
        keep: how many of the newest checkpoints stay.
        resume: False refuses a directory that has a checkpoint, so that nothing is overwritten.
        accept: whether to continue a checkpoint whose formula (schedule, rule, warmup, optimizer) differs from the
            script's; by default it is refused, with the differences.
        rewarm: a duration; after a change of the factor the rate climbs from its old value over this span.
        signals: the signals to listen to: "SIGTERM", "SIGUSR1".

    Raises:
        ConfigurationError, ConfigurationTypeError, StateError, DistributionError: see the messages; before the
            first step, on every rank.

    >>> import tempfile
    >>> import distlr, keras
    >>> def train(directory, epochs):
    ...     job = distlr.init(environ={})
    ...     batch = job.batch(per_replica=8, base_batch=8, samples_per_epoch=32)
    ...     with job.scope():
    ...         model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    ...         model.compile(job.optimizer(keras.optimizers.SGD(0.1), batch), "mse")
    ...     data = job.shard((np.ones((32, 2)), np.ones(32)), batch, seed=0)
    ...     callbacks = job.callbacks([Checkpoint(directory, every="1ep")])
    ...     return model.fit(data, epochs=epochs, callbacks=callbacks, shuffle=False, verbose=0).epoch
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     train(directory, epochs=1), train(directory, epochs=3)  # the second one after a crash, say
    ([0], [1, 2])
    """

    stage = Stage.CHECKPOINT
    decides_by = ("every",)
    stops_with_all_ranks = True

    def __init__(
        self,
        directory: str | os.PathLike[str],
        every: str | Duration = "1ep",
        *,
        keep: int = 3,
        resume: bool = True,
        accept: bool = False,
        rewarm: str | Duration | None = None,
        signals: Sequence[str] = ("SIGTERM", "SIGUSR1"),
    ) -> None:
        super().__init__()
        self.directory = CheckpointDirectory(directory, positive_integer("keep", keep))
        self._interval = Interval(every)
        self.every = self._interval.every
        self.resume, self.accept = resume, accept
        self.rewarm = None if rewarm is None else Duration.parse(rewarm, "rewarm")
        self.signals = Signals(signals)
        self.follow: DataPositionSync | None = None
        self.counters = Counters([])
        self._callbacks: Sequence[Any] = ()
        self._begun = False
        self._state: RunState  # the script's state, as it began
        self._path: Path  # the checkpoint that is continued, on rank 0
        self._ranks: list[dict[str, np.ndarray]] = []  # arrays of each rank in that checkpoint
        self._counted: dict[str, np.ndarray] = {}  # the arrays of callbacks' counters, on rank 0
        self._epoch = 0
        self._steps = self._steps_in_run = 0  # Keras' steps since the epoch began, or the run, in this process
        self._left: int | None = None  # steps of an epoch that was interrupted, and those that had been done
        self._done = 0
        self._training_logs: dict[str, Any] | None = None  # logs of an epoch whose validation alone is left
        self._updates = 0  # updates before this process, those that were left out among them
        self._saved_at = 0  # steps in this process
        self._left_in_model: list[str] = []  # digests of the weights that are not the training's, as `fit` ended

    def bind_data(self, follow: DataPositionSync) -> None:
        """Gives the job's data to the callback; called by `job.callbacks`."""
        self.follow = follow

    def bind_callbacks(self, callbacks: Sequence[Any]) -> None:
        """Gives the job's callbacks to this one, whose counters it keeps; called by `job.callbacks`.

        Args:
            callbacks: all callbacks of this rank.
        """
        self._callbacks, self.counters = callbacks, Counters(callbacks)

    def set_model(self, model: Any) -> None:
        """Makes callbacks keep the files that they would empty in a continued run, before any callback begins."""
        super().set_model(model)
        if self.communicator.is_root and self.resume and self.directory.files():
            append_to_logs(self._callbacks)

    @property
    def leaves_out_other_optimizers(self) -> str | None:
        """Checkpoints are of one optimizer."""
        return "keeps the slots, the clock and the multiplier of model.optimizer alone"

    @property
    def async_safe(self) -> bool:
        """Tells Keras whether the device may run ahead of the batches' callbacks."""
        return not (
            self._interval.within_epochs or self.signals or self.communicator.size > 1 or self.directory.files()
        )

    # -- the run begins ------------------------------------------------------------------------------

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Continues the newest checkpoint, if there is one. Collective."""
        optimizer = self.core
        if not isinstance(optimizer, AdoptedOptimizer):
            raise ConfigurationError(
                f"Checkpoint keeps the clock and the multiplier, which the plain Keras optimizer '{optimizer.name}' "
                "has not. Fix: optimizer = job.optimizer(optimizer, batch), inside `with job.scope():`."
            )
        if self.follow is None:
            raise ConfigurationError(
                "Checkpoint does not know the job's data. Fix: fit(callbacks=job.callbacks([Checkpoint(...)]))."
            )
        self._check_data()
        self._steps_in_run = 0
        self._state = RunState.of(self.model, self.communicator, formula_of(optimizer))
        self._begin_at(self._state.iterations)
        if not self._begun:
            self._continue()
        else:
            compute_on_root(
                self.communicator,
                self._restore_training_weights,
                tag="the weights to go on from",
                what="go on",
                raised=(StateError,),
            )
        self._begun = True
        self.counters.begin()
        if self.communicator.size == 1 or self.gradient_reducer is not None:  # else nothing would tell the other ranks
            self.signals.listen()

    def _check_data(self) -> None:
        if not self._interval.within_epochs:
            return
        assert self.follow is not None
        hint = 'write every="1ep"'
        if not self.follow.positions:
            needs_shard = "with data from job.shard(data, batch), which can be continued in the middle of an epoch"
            raise ConfigurationError(received("every", str(self.every), f"in whole epochs but {needs_shard}", hint))
        if (self.params or {}).get("steps") is None:
            known = "in whole epochs where the number of steps an epoch is not known"
            raise ConfigurationError(received("every", str(self.every), known, f"{hint}, or pass samples_per_epoch"))

    def _continue(self) -> None:
        """Rank 0 reads the newest checkpoint, and tells the others what is not in the model's variables."""
        reply = compute_bundle_on_root(
            self.communicator,
            self._load,
            tag="the checkpoint to continue",
            what="continue",
            raised=(ConfigurationError, StateError),
        )
        if reply.note is None:
            return
        state = RunState.from_json(reply.fields)
        self._ranks = rank_arrays(reply.arrays, state.ranks)
        self._set_place(state, reply.arrays)
        if self.communicator.is_root:
            _log.info("%s", resume_line(self.core, self._path, reply.fields, self._state.to_json(), self.rewarm))
            self.decided("resume", self._epoch, f"continues a checkpoint of update {state.iterations}")
        self.counters.restore(self.communicator, reply.fields["callbacks"], self._counted)
        stopped = self.counters.ended_by()
        if stopped is not None:
            self.model._initial_epoch = (self.params or {}).get("epochs")
            if self.communicator.is_root:
                _log.info("%s had stopped the run, which trains no more. With more patience it goes on.", stopped)

    def _load(self) -> Bundle:
        self.directory.acquire(self.communicator.timeout)
        self.directory.clean()
        for path, arrays, run in self.directory.readable():
            if not self.resume:
                hint = "write resume=True, or name another directory"
                raise ConfigurationError(received("resume", False, f"True where {path} is", hint))
            state = RunState.from_json(run)
            differences = state.differences(self._state, path, accept=self.accept)
            write_arrays(self.model, arrays)
            if state.accumulation not in (None, self.accumulation) or state.iterations != self._count:
                begin_update(self.core, state.iterations)
            for line in differences:
                _log.warning("The script's formula is used: %s.", line)
            self._path = path
            outside_model = {name: array for name, array in arrays.items() if name.startswith((RANK, LOG))}
            self._counted = {name: array for name, array in arrays.items() if name.startswith("callback/")}
            return Bundle(outside_model, note=state.to_json() | {"callbacks": run.get("callbacks")})
        return Bundle({})

    def _restore_training_weights(self) -> None:
        """Restores the training's weights if the last `fit` of this run left other weights in the model, for use.

        If somebody has changed the weights since then, they stay, as in Keras.
        """
        if not self._left_in_model or self._left_in_model != self._digests():
            return
        path, arrays, run = next(self.directory.readable(), (None, {}, {}))
        if path is None or RunState.from_json(run).iterations != self._count:
            raise StateError(
                f"The model has the averages or the best weights that fit left in it, and {self.directory.path} no "
                "longer the weights to go on from. Fix: leave the checkpoints there while the run goes on."
            )
        write_weights(self.model, arrays)

    def _set_place(self, state: RunState, arrays: Mapping[str, np.ndarray]) -> None:
        """Sets epoch, data, dropout and, after a change of the factor, the climb, on this rank."""
        assert self.follow is not None
        optimizer = self.core
        epoch, positions, left = state.epoch, state.positions, None
        if positions:
            positions = self.follow.choose(positions)
        epoch_steps, done = self.follow.epoch_steps, 0
        if state.steps:
            endless = any(position.endless for position in self.follow.positions)
            done = state.steps_done(self._state, epoch_steps, endless=endless)
            left = epoch_steps.left(done)
        began = state.epoch_began(done, epoch_steps)
        if state.to_validate is not None and self._can_begin_with_validation:
            left, self._training_logs = 0, read_logs(state.to_validate, arrays)
        elif left == 0:  # no whole update of the script's batch fits into what is left
            epoch, began, done = epoch + 1, began + epoch_steps.whole(done), 0
            positions, left = self.follow.next_epoch(positions), None
            if state.to_validate is not None and self.communicator.is_root:
                _log.warning(
                    "Epoch %d: its validation was cut, and is left out, since Keras does not know how many steps an "
                    "epoch has. Fix: pass steps_per_epoch, or data whose length is known, as the run before had.",
                    epoch,
                )
        self._left, self._done, self._epoch = left, state.steps, epoch
        if done:
            for callback in self._callbacks:
                if isinstance(callback, BaseRates):
                    callback.skip_resumed_epoch(epoch)
        self.follow.resume(epoch, positions, began=began, done=done)
        self._begin_at(state.iterations if state.updates is None else state.updates)
        restore_seeds(self.communicator, self.model, self._ranks)
        self.model._initial_epoch = epoch
        factor = self._state.factor
        if self.rewarm is not None and factor != state.factor:
            samples = int(optimizer.distlr.batch.to_samples(self.rewarm, argument="rewarm"))
            optimizer.distlr.formula.climb(state.factor / factor, samples)

    # -- a validation that was cut --------------------------------------------------------------------

    @property
    def may_leave_unvalidated(self) -> bool:
        """Whether this epoch's training is whole, and a run can be continued with its validation alone."""
        is_whole = self._can_begin_with_validation and self._ended() and not self.model.stop_training
        return bool(self.signals) and is_whole

    def training_logs_of(self, epoch: int) -> dict[str, Any] | None:
        """The logs of an epoch's training if its validation alone is left to do; else None."""
        return self._training_logs if epoch == self._epoch else None

    def leave_unvalidated(self, training_logs: Mapping[str, Any]) -> None:
        """Writes that the epoch's training is done and its validation is not, and ends the process. Collective.

        Args:
            training_logs: the results of the training over all ranks; those of rank 0 are written.
        """
        if self.communicator.is_root:
            _log.info("Epoch %d: its validation was cut, and comes first when the run goes on.", self._epoch + 1)
        self._write(steps=self._steps, within_epoch=False, training_logs=training_logs)
        self._end_if_requested({StepSignal.LEAVE})

    @property
    def _can_begin_with_validation(self) -> bool:
        """Whether Keras knows how many steps an epoch has; otherwise it would learn from an epoch without a step."""
        return (self.params or {}).get("steps") is not None

    # -- while it runs -------------------------------------------------------------------------------

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if epoch < self._epoch:
            raise ConfigurationError(
                f"fit begins epoch {epoch + 1}, and {self.directory.path} has checkpoints of a later one. Fix: "
                "give each fit a Checkpoint with a directory of its own."
            )
        if self._left is None or epoch != self._epoch:
            self._left, self._done, self._training_logs = None, 0, None
        self._epoch, self._steps = epoch, 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes a checkpoint if one is due or requested; restores the metrics of an epoch that was interrupted."""
        if self._left is not None and self._steps == 0:
            restore_metrics(self.communicator, self.model, self._ranks)
        self._steps_in_run += batch + 1 - self._steps
        self._steps = batch + 1
        requests = self.signals.requests(self.communicator, self.gradient_reducer)
        if self._known_steps is not None and self._ended():  # written after what is decided at the epoch's end
            if self._left is not None and self.follow is not None:
                self.follow.end_epoch()
        elif (requests or self._is_due()) and not has_partial_update(self.core):
            if self._can_continue_here:
                self._write(steps=self._steps)
                self._end_if_requested(requests)
            else:  # a request to save waits for the epoch's end; who leaves will train the epoch anew
                self._end_if_requested(requests - {StepSignal.SAVE})

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes a checkpoint if one is due or requested, after the deciders and the guard."""
        requests = self.signals.requests(self.communicator, self.gradient_reducer)
        steps = 0 if self._ended() else self._steps  # steps of an epoch that was stopped
        began_with_validation, self._training_logs = self._training_logs is not None, None
        if not steps:
            self._epoch, self._left, self._done, self._steps = epoch + 1, None, 0, 0
        # The end is written here: before `on_train_end` Keras and its callbacks put other weights into the model.
        ends = self.model.stop_training or epoch + 1 >= (self.params or {}).get("epochs", math.inf)
        unsaved = began_with_validation or (ends and self._steps_in_run != self._saved_at)
        if requests or unsaved or self._is_due(at_end=True):
            self._write(steps=steps, within_epoch=False)
        self._end_if_requested(requests)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Notes which weights are left in the model, and writes the end of the run if that is not done yet."""
        self.signals.stop()
        self.model._initial_epoch = None
        others = bool(averages(self.model.optimizer)) or self.counters.has_best_weights
        if self._steps_in_run != self._saved_at:  # a callback behind this one has stopped the run
            if not others:
                self._write(steps=self._steps, within_epoch=False)
            elif self.communicator.is_root:
                _log.warning(
                    "The end of the run is in no checkpoint: a callback that is not among job.callbacks stopped it, "
                    "and the model has other weights than the training's now. Fix: give it to job.callbacks([...])."
                )
        self._left_in_model = self._digests() if others and self._steps_in_run == self._saved_at else []
        self.directory.release()
        if self._any_rank_leaves():
            raise SystemExit(LEFT)

    def _any_rank_leaves(self) -> bool:
        """Whether a rank was asked to end too late for an update to carry it; then all end, once rank 0 has written."""
        is_leaving = self.signals.leaving
        if self.communicator.size == 1:
            return is_leaving
        return any(self.communicator.gather_json(is_leaving, tag="who was asked to end"))

    def _write(self, *, steps: int, within_epoch: bool = True, training_logs: Mapping[str, Any] | None = None) -> None:
        """Writes a checkpoint after `steps` steps of the epoch in this process; 0 means that it is whole. Collective.

        With `training_logs` all steps of the epoch are done, and its validation is not complete.
        """
        assert self.follow is not None
        is_open = bool(steps) or training_logs is not None  # the epoch
        if steps and training_logs is None and not self._can_continue_here:
            return
        ranks = gather_arrays(self.communicator, self.model, within_epoch=within_epoch)
        self._interval.mark_done(self._epoch, self._steps_in_run)
        self._saved_at = self._steps_in_run
        if not self.communicator.is_root:
            return
        arrays = read_arrays(self.model, ranks)
        if not are_finite(arrays):
            _log.warning("The weights are not finite, so no checkpoint is written; the one before stays the newest.")
            return
        logs = log_arrays(training_logs or {})
        arrays |= {LOG + name: array for name, array in logs.items()}
        updates = self._updates + self._steps_in_run // self.accumulation
        state = dataclasses.replace(
            self._state,
            epoch=self._epoch,
            steps=self._done + steps if is_open else 0,
            iterations=self._count,
            samples_seen=self.core.distlr.formula.samples_seen,
            positions=self.follow.places(steps if is_open else None, self._steps_in_run),
            began=self.follow.began if is_open else self.follow.drawn,
            place=self.follow.place if is_open else 0,
            updates=updates,
            to_validate=None if training_logs is None else list(logs),
        )
        counted = self.counters.read()
        # Named by updates: the iterations stand still if steps are left out, so each file would replace the last one.
        self.directory.write(updates, {**arrays, **counted.arrays}, state.to_json() | {"callbacks": counted.note})

    # -- when ----------------------------------------------------------------------------------------

    @property
    def _count(self) -> int:
        return int(self.core.iterations.numpy())

    def _digests(self) -> list[str]:
        return weights_digests(self.model, self.model.distribute_strategy)

    @property
    def _known_steps(self) -> int | None:
        """Keras' steps of this epoch, or what is left of it, where they are known."""
        return (self.params or {}).get("steps") if self._left is None else self._left

    @property
    def _can_continue_here(self) -> bool:
        """Whether a run can go on in the middle of an epoch: only `job.shard` knows where its data stands."""
        return bool(self.follow is not None and self.follow.positions and self._known_steps is not None)

    def _ended(self) -> bool:
        return self._known_steps is None or self._steps >= self._known_steps

    def _begin_at(self, updates: int) -> None:
        """Notes where this run begins: how far the data is, and after how many updates."""
        assert self.follow is not None
        drawn, each = self.follow.drawn, self.accumulation
        self._interval.begin(drawn * each, drawn, epoch=self._epoch, batch=self.batch, accumulation=each)
        self._updates, self._saved_at = updates, 0

    def _is_due(self, at_end: bool = False) -> bool:
        return self._interval.is_due(self._epoch, self._steps_in_run, at_end=at_end)

    # -- requests --------------------------------------------------------------------------

    def _end_if_requested(self, requests: set[StepSignal]) -> None:
        """Ends the process, or this generation of ranks, if that was requested. The checkpoint is written before."""
        if not requests:
            return
        self.signals.mark_done(requests, self.communicator, self.gradient_reducer)
        if self.communicator.is_root:
            newest = next(iter(self.directory.files()), None)
            _log.info("The newest checkpoint is %s: %s.", newest, " and ".join(REASONS[kind] for kind in requests))
        if not requests & {StepSignal.REGROUP, StepSignal.LEAVE}:
            return
        self.signals.stop()
        if self.communicator.size > 1:
            self.communicator.barrier(tag="saved, and ending")  # a launcher ends all when the first has ended
        if StepSignal.REGROUP in requests:
            raise RanksChanged("The job goes on with other ranks; `distlr.elastic.run` catches this.")
        raise SystemExit(LEFT)
