"""Changes by hand, while the run is under way: the same on every rank, at the same step."""

from __future__ import annotations

import logging
import os
from typing import Any

from distlr._utils.checks import positive_integer
from distlr.callbacks.job_callback import JobCallback
from distlr.communicators.rank_zero import compute_on_root
from distlr.communicators.step_signals import StepSignal, StepSignals
from distlr.errors import ConfigurationError
from distlr.optimizer import (
    AdoptedOptimizer,
    ManualControlState,
    has_partial_update,
    rate_of,
    read_manual_control,
    write_manual_control,
)
from distlr.runlog.control_requests import ControlDirectory, PendingRequest
from distlr.runlog.directory import DECISIONS, RunDirectory
from distlr.runlog.manual_changes import Moment, Place, changes_to_repeat, describe_change, read_answers, read_changes

__all__ = ["ManualControl"]

_log = logging.getLogger("distlr")

_READ = "read what was asked for by hand"
_MOST_WARNINGS = 200  # refused requests that a run warns of; the others are among its decisions alone
_LOOKS = 10  # looks at most, as a run begins or ends
_LONGEST_NAME = 120  # letters of a file's name that are shown


class ManualControl(JobCallback):
    """Does what `distlr control RUN_DIR` asks for; `job.callbacks(run_dir=)` adds it.

    Rank 0 looks for requests every so many batches and at each epoch's end, and checks them. A signal travels
    to the other ranks with the gradients; at the next look all of them have received it, rank 0 broadcasts its
    decision, and every rank applies it before the next step. So nothing is exchanged while nobody asks. Each change is
    a decision in the journal, with who asked for it, and so is each request that is refused.

    A run that continues a checkpoint makes the changes that came after it again, at the same places. A run that begins
    anew, also for want of a checkpoint, makes none of them. A continued run carries out a request that nobody has
    answered only within its time limit.

    Args:
        run_dir: the run's directory.
        every: batches between two looks.

    >>> import distlr, keras, numpy as np
    >>> job = distlr.init(environ={})
    >>> with job.scope():
    ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    ...     model.compile(job.optimizer(keras.optimizers.SGD(0.1)), "mse")
    >>> x = np.ones((32, 2), "float32")
    >>> import tempfile
    >>> from distlr.runlog.control_requests import ControlDirectory, Request
    >>> half = Request("set-lr", multiply=0.5)  # as `distlr control RUN_DIR set-lr --multiply 0.5` does
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ask = lambda epoch, logs: ControlDirectory(folder).ask(half)
    ...     callbacks = [ManualControl(folder), keras.callbacks.LambdaCallback(on_epoch_begin=ask)]
    ...     _ = model.fit(x, x[:, :1], callbacks=job.callbacks(callbacks), verbose=0)
    >>> round(float(model.optimizer.learning_rate), 6), [entry.kind for entry in callbacks[0].journal.entries]
    (0.05, ['control'])
    """

    decides_by = ("every",)
    stops_with_all_ranks = True

    @property
    def acts_on_rate(self) -> bool:
        """False for a plain optimizer, whose rate it does not change; a warning says that."""
        return isinstance(self.core, AdoptedOptimizer)

    def __init__(self, run_dir: str | os.PathLike[str], every: int = 50) -> None:
        super().__init__()
        self.every = positive_integer("every", every)
        self.directory = ControlDirectory(run_dir)
        self.run = RunDirectory(run_dir)
        self.has_plateau = True
        self._active = self._begun = False
        self._looks = 0
        self._to_decide: list[PendingRequest] = []  # rank 0: requests that are to be decided next
        self._waiting: list[PendingRequest] = []  # rank 0: requests that wait for their epoch
        self._to_mark: list[tuple[str, bool]] = []  # rank 0: requests that are to be marked as applied or refused
        self._accepted: set[str] = set()  # rank 0: names of requests that wait, and have no time limit any more
        self._since = 0  # rank 0: a request that came before is not of this run; by the clock of the file system
        self._refusals = 0
        self._epochs: set[int] = set()  # the epochs that requests wait for, on every rank
        self._again: list[dict[str, Any]] = []  # changes of before a restart, in the order of their places
        self._epoch = 0

    def bind_plateau(self, has_plateau: bool) -> None:
        """Tells the callback whether there is a plateau that can be paused; called by `job.callbacks`."""
        self.has_plateau = has_plateau

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Makes the optimizer's state for changes by hand, or warns that requests are not read."""
        optimizer = self.core
        self._begun = False
        self._active = isinstance(optimizer, AdoptedOptimizer)
        if self._active and self.communicator.size > 1:
            self._active = self.gradient_reducer is not None
        if not self._active:
            if self.communicator.is_root:
                _log.warning(
                    "%s is not read: requests change a rate that distlr sets, and travel with its gradients. "
                    "Fix: optimizer = job.optimizer(optimizer, batch).",
                    self.directory.path,
                )
            return
        write_manual_control(optimizer.distlr.variables)  # its state is made on every rank

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Reads, once, the requests and changes of before; collective then."""
        self._epoch, self._looks = epoch, 0
        if self._active and not self._begun:
            self._begun = True
            self._begin(epoch)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks for requests if a look is due, after an update."""
        if not self._active:
            return
        self._mark_answered()
        if self._again:
            self._repeat_changes(Moment.BATCH)
        looks = (batch + 1) // self.every
        # Not between the steps that an update accumulates over: a stop there would lose them.
        if looks > self._looks and not has_partial_update(self.core):
            self._looks = looks
            self._look(Moment.BATCH)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks for requests, and applies those for the epoch that comes next."""
        if self._active:
            self._mark_answered()
            self._repeat_changes(Moment.EPOCH_END)
            self._look(Moment.EPOCH_END)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Refuses all requests that are left."""
        if not self._active or not self.communicator.is_root:
            return
        self._mark_answered()
        for pending in [*self._waiting, *self._to_decide, *self._all_pending()]:
            self._refuse(pending, pending.refused or "The run has ended.")
        self._waiting, self._to_decide = [], []
        self._mark_answered()
        self.directory.close()

    @property
    def _signals(self) -> StepSignals:
        """The signals that carry a request; on several ranks nothing is read without them (`_active`)."""
        assert self.step_signals is not None
        return self.step_signals

    # -- the run begins ------------------------------------------------------------------------------

    def _begin(self, epoch: int) -> None:
        """Restores earlier changes: none for a new run, those since the checkpoint for a continued one. Collective."""
        tag = f"changes by hand, as epoch {epoch + 1} begins"
        reply = compute_on_root(self.communicator, lambda: self._state_at_begin(epoch), tag=tag, what=_READ)
        self._epochs = set()
        write_manual_control(self.core.distlr.variables, ManualControlState(*reply["steered"]))
        self._again = reply["again"]
        if self.communicator.size > 1:
            self._signals.clear(StepSignal.MANUAL_CONTROL)
        self._repeat_changes(Moment.BEGIN)
        if reply["asked"]:
            self._decide(Moment.BEGIN)

    def _state_at_begin(self, epoch: int) -> dict[str, Any]:
        self.directory.make()
        steered = read_manual_control(self.core.distlr.variables)
        fresh = not self.journal.resumed and (epoch == 0 or int(self.core.iterations.numpy()) == 0)
        changes, answered = ([], {}) if fresh else (read_changes(self.run), read_answers(self.run))
        self._accepted = {name for name, kind in answered.items() if kind == "asked"}
        waiting, self._waiting, self._to_decide = [*self._waiting, *self._to_decide], [], []  # those of an earlier fit
        back = self.directory.release_claimed()
        self._since = self.directory.file_time() if fresh else 0
        for pending in [*waiting, *self._all_pending()]:
            kind = answered.get(pending.name, "asked")
            if kind != "asked" and (pending.name in back or not self.directory.was_answered(pending.name)):
                self._to_mark.append((pending.name, kind == "control"))  # a crash came before it was marked
            elif fresh:
                self._refuse(pending, pending.refused or "It was there before the run began.")
            else:
                self._queue_or_refuse(pending)
        if fresh:
            steered = ManualControlState()
        again = changes_to_repeat(changes, Place(steered.clock, steered.moment), steered.number)
        return {"steered": list(steered), "again": again, "asked": bool(self._to_decide)}

    def _repeat_changes(self, moment: Moment) -> None:
        """Makes the changes again whose place the run has reached."""
        while self._again:
            change = self._again[0]
            if Place.of(change) > Place(self.drawn, moment):
                return
            self._again.pop(0)
            if self.communicator.is_root:
                _log.info("Once more, as before the restart: %s.", describe_change(change))
            self._apply(change, Place.of(change), again=True)
            between = change["moment"] != Moment.BATCH
            self.decided(
                "again", self._epoch, describe_change(change), multiplier=change["multiplier"], between=between
            )

    # -- a look --------------------------------------------------------------------------------------

    def _look(self, moment: Moment) -> None:
        """Applies the requests of the last look, then looks for new ones."""
        is_single = self.communicator.size == 1
        due = moment == Moment.EPOCH_END and self._epoch + 2 in self._epochs  # before the epoch that comes next, from 1
        if not is_single and (due or self._signals.has_received(StepSignal.MANUAL_CONTROL)):
            self._decide(moment)
        if self.communicator.is_root:
            for pending in self.directory.look():
                self._queue_or_refuse(pending)
            if self._to_decide and not is_single:
                self._signals.send(StepSignal.MANUAL_CONTROL)
        if is_single and (self._to_decide or due):
            self._decide(moment)

    def _all_pending(self) -> list[PendingRequest]:
        """All requests in the directory, up to a limit."""
        pending: list[PendingRequest] = []
        for _ in range(_LOOKS):
            looked = self.directory.look()
            pending += looked
            if not looked:
                break
        return pending

    def _queue_or_refuse(self, pending: PendingRequest) -> None:
        if pending.request is None:
            self._refuse(pending, pending.refused)
        elif pending.came < self._since:
            self._refuse(pending, "It was there before the run began.")
        elif "plateau" in pending.request.action and not self.has_plateau:
            self._refuse(pending, "The run has no distlr.callbacks.ReduceLROnPlateau.")
        elif self._is_late(pending):
            self._refuse(pending, self._late_text(pending))
        else:
            self._to_decide.append(pending)

    def _is_late(self, pending: PendingRequest) -> bool:
        """Whether a request's time limit has passed; a request that was accepted for an epoch has none any more."""
        if pending.expires is None or pending.name in self._accepted:
            return False
        return self.directory.file_time() > pending.expires

    @staticmethod
    def _late_text(pending: PendingRequest) -> str:
        assert pending.request is not None
        return (
            f"It was valid for {pending.request.valid_for:g} s, and nobody took it in that time. Fix: ask once more, "
            "with a longer --valid-for where the run looks rarely."
        )

    def _refuse(self, pending: PendingRequest, why: str) -> None:
        name = ascii(pending.name)[1:-1]
        if len(name) > _LONGEST_NAME:
            name = f"{name[:_LONGEST_NAME]}..."
        self._refusals += 1
        if self._refusals <= _MOST_WARNINGS:
            _log.warning("The request '%s' of %s is refused and changes nothing. %s", name, pending.by, why[:500])
        elif self._refusals == _MOST_WARNINGS + 1:
            _log.warning("Further requests that are refused are in %s alone.", self.run.path / DECISIONS)
        self.decided("refused", self._epoch, why[:500], by=pending.by, id=name, between=False)
        self._to_mark.append((pending.name, False))

    def _mark_answered(self) -> None:
        """Marks the files that were answered, once their answer is in the run's decisions."""
        answered, self._to_mark = self._to_mark, []
        for name, applied in answered:
            self.directory.mark_answered([name], applied=applied)

    # -- a decision ----------------------------------------------------------------------------------

    def _decide(self, moment: Moment) -> None:
        """Rank 0 decides on the requests, and every rank applies the decision. Collective."""
        tag = f"changes by hand in epoch {self._epoch + 1}"
        reply = compute_on_root(self.communicator, lambda: self._decision(moment), tag=tag, what=_READ)
        self._epochs = set(reply["epochs"])
        if self.communicator.size > 1:
            self._signals.clear(StepSignal.MANUAL_CONTROL)
        for change in reply["changes"]:
            self._carry_out(change, moment)

    def _decision(self, moment: Moment) -> dict[str, Any]:
        """Rank 0: the changes to make now, and for which epochs others wait."""
        changes: list[dict[str, Any]] = []
        still_waiting, rate = [], rate_of(self.model.optimizer)
        begun = self._epoch + (0 if moment == Moment.BEGIN else 1)  # the last epoch that has begun, from 1
        # An epoch that was stopped may go on after a restart: the next one does not begin now.
        between = moment != Moment.BATCH and not self.model.stop_training
        for pending in [*self._waiting, *self._to_decide]:
            assert pending.request is not None
            at = pending.request.at_epoch
            if self._is_late(pending):
                self._refuse(pending, self._late_text(pending))
            elif at is not None and at <= begun:
                self._refuse(pending, f"Epoch {at} has begun already.")
            elif at is not None and (at > begun + 1 or not between):
                still_waiting.append(pending)
                if pending.name not in self._accepted:
                    self._accepted.add(pending.name)
                    _log.info("%s asks for `%s`, which waits for that epoch.", pending.by, pending.request)
                    reason, when = f"waits: {pending.request}", moment != Moment.BATCH
                    self.decided("asked", self._epoch, reason, by=pending.by, between=when, id=pending.name)
            else:
                factor = self._factor_of(pending, rate)
                if pending.request.action == "set-lr" and factor is None:
                    continue
                if not self.directory.claim(pending):
                    self._refuse(pending, "It was cancelled.")
                    continue
                rate *= factor or 1.0
                action = pending.request.action
                changes.append({"id": pending.name, "action": action, "multiplier": factor, "by": pending.by})
        self._waiting, self._to_decide = still_waiting, []
        return {
            "changes": changes,
            "epochs": [pending.request.at_epoch for pending in still_waiting if pending.request],
        }

    def _factor_of(self, pending: PendingRequest, rate: float) -> float | None:
        """Rank 0: the factor of a change of the rate, which is `rate` then; None where it is refused, or none."""
        assert pending.request is not None
        if pending.request.action != "set-lr":
            return None
        try:
            return pending.request.factor(rate)
        except ConfigurationError as error:
            self._refuse(pending, str(error))
            return None

    def _carry_out(self, change: dict[str, Any], moment: Moment) -> None:
        before = rate_of(self.model.optimizer)
        self._apply(change, Place(self.drawn, moment))
        after = rate_of(self.model.optimizer)
        rates = f": the rate goes from {before:.6g} to {after:.6g}" if change["multiplier"] else ""
        if self.communicator.is_root:
            samples = self.core.distlr.formula.samples_seen
            _log.info("Epoch %d, at %d samples: %s%s.", self._epoch + 1, samples, describe_change(change), rates)
            self._to_mark.append((change["id"], True))
        reason = f"{describe_change(change)}{rates}"
        more: dict[str, Any] = {**change, "moment": moment, "between": moment != Moment.BATCH}
        self.decided("control", self._epoch, reason, **more)

    def _apply(self, change: dict[str, Any], place: Place, again: bool = False) -> None:
        optimizer = self.core
        steered = read_manual_control(optimizer.distlr.variables)
        paused = steered.paused
        if change["action"] == "set-lr":
            optimizer.distlr.formula.multiply_rate(change["multiplier"])
        elif change["action"] == "stop":
            self.model.stop_training = self.model.stop_training or not again  # who starts it once more wants it to run
        else:
            paused = int(change["action"] == "pause-plateau")
        same = place == (steered.clock, steered.moment)
        state = ManualControlState(paused, *place, steered.number + 1 if same else 1)
        write_manual_control(optimizer.distlr.variables, state)
