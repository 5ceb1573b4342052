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
_TOLD = 200  # refused requests that a run warns of; the others are among its decisions alone
_LOOKS = 10  # that are taken at once where a run begins or ends
_LONGEST_NAME = 120  # letters of a file's name that are shown


class ManualControl(JobCallback):
    """Does what `distlr control RUN_DIR` asks for; `job.callbacks(run_dir=)` adds it.

    Rank 0 looks for requests every so many batches and at each epoch's end, and checks them. That there is one travels
    to the other ranks with the gradients; at the next look all of them hear of it, rank 0 broadcasts what it has
    decided, and every rank applies it before the next step. So nothing is exchanged while nobody asks. Each change is
    a decision in the journal, with who asked for it, and so is each request that is refused.

    A run that continues a checkpoint makes the changes again, at the same places, that came after it. One that begins
    anew, also for want of a checkpoint, has none of them. A request that nobody has answered is done by the run that
    continues only within its time limit.

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
        """Of a plain optimizer it changes nothing, and says so."""
        return isinstance(self.core, AdoptedOptimizer)

    def __init__(self, run_dir: str | os.PathLike[str], every: int = 50) -> None:
        super().__init__()
        self.every = positive_integer("every", every)
        self.directory = ControlDirectory(run_dir)
        self.run = RunDirectory(run_dir)
        self.has_plateau = True
        self._active = self._begun = False
        self._looks = 0
        self._asked: list[PendingRequest] = []  # rank 0: what is to be decided next
        self._waiting: list[PendingRequest] = []  # rank 0: what waits for its epoch
        self._answered: list[tuple[str, bool]] = []  # rank 0: what is to be marked as applied, or refused
        self._accepted: set[str] = set()  # rank 0: names of requests that wait, and have no time limit any more
        self._since = 0  # rank 0: a request that came before is not of this run; by the clock of the file system
        self._refusals = 0
        self._epochs: set[int] = set()  # for which something waits, on every rank
        self._again: list[dict[str, Any]] = []  # changes of before a restart, in the order of their places
        self._epoch = 0

    def bind_plateau(self, has_plateau: bool) -> None:
        """Says whether there is a plateau that can be paused; called by `job.callbacks`."""
        self.has_plateau = has_plateau

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Makes the place for requests."""
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
        """Finds out, once, what was asked for before. Collective then."""
        self._epoch, self._looks = epoch, 0
        if self._active and not self._begun:
            self._begun = True
            self._begin(epoch)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks, where it is time: after an update."""
        if not self._active:
            return
        self._mark()
        if self._again:
            self._do_again(Moment.BATCH)
        looks = (batch + 1) // self.every
        # Not between the steps that an update accumulates over: a stop there would lose them.
        if looks > self._looks and not has_partial_update(self.core):
            self._looks = looks
            self._look(Moment.BATCH)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks, and does what was asked for the epoch that comes next."""
        if self._active:
            self._mark()
            self._do_again(Moment.EPOCH_END)
            self._look(Moment.EPOCH_END)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Answers what nobody will answer any more."""
        if not self._active or not self.communicator.is_root:
            return
        self._mark()
        for found in [*self._waiting, *self._asked, *self._looks_at_once()]:
            self._refuse(found, found.refused or "The run has ended.")
        self._waiting, self._asked = [], []
        self._mark()
        self.directory.close()

    @property
    def _signals(self) -> StepSignals:
        """Where the request travels; on several ranks nothing is read without (`_active`)."""
        assert self.step_signals is not None
        return self.step_signals

    # -- the run begins ------------------------------------------------------------------------------

    def _begin(self, epoch: int) -> None:
        """What came before: nothing for a new run, all changes since the checkpoint for one that is continued."""
        tag = f"changes by hand, as epoch {epoch + 1} begins"
        said = compute_on_root(self.communicator, lambda: self._found_at_begin(epoch), tag=tag, what=_READ)
        self._epochs = set()
        write_manual_control(self.core.distlr.variables, ManualControlState(*said["steered"]))
        self._again = said["again"]
        if self.communicator.size > 1:
            self._signals.clear(StepSignal.MANUAL_CONTROL)
        self._do_again(Moment.BEGIN)
        if said["asked"]:
            self._decide(Moment.BEGIN)

    def _found_at_begin(self, epoch: int) -> dict[str, Any]:
        self.directory.make()
        steered = read_manual_control(self.core.distlr.variables)
        fresh = not self.journal.resumed and (epoch == 0 or int(self.core.iterations.numpy()) == 0)
        changes, answered = ([], {}) if fresh else (read_changes(self.run), read_answers(self.run))
        self._accepted = {name for name, kind in answered.items() if kind == "asked"}
        waiting, self._waiting, self._asked = [*self._waiting, *self._asked], [], []  # of an earlier fit
        back = self.directory.release_claimed()
        self._since = self.directory.file_time() if fresh else 0
        for found in [*waiting, *self._looks_at_once()]:
            kind = answered.get(found.name, "asked")
            if kind != "asked" and (found.name in back or not self.directory.was_answered(found.name)):
                self._answered.append((found.name, kind == "control"))  # a crash came between the two
            elif fresh:
                self._refuse(found, found.refused or "It was there before the run began.")
            else:
                self._take(found)
        if fresh:
            steered = ManualControlState()
        again = changes_to_repeat(changes, Place(steered.clock, steered.moment), steered.made)
        return {"steered": list(steered), "again": again, "asked": bool(self._asked)}

    def _do_again(self, moment: Moment) -> None:
        """The changes whose place the run has come to."""
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
        """Hears what was asked for at the last look, then looks."""
        alone = self.communicator.size == 1
        due = moment == Moment.EPOCH_END and self._epoch + 2 in self._epochs  # before the epoch that comes next, from 1
        if not alone and (due or self._signals.has_received(StepSignal.MANUAL_CONTROL)):
            self._decide(moment)
        if self.communicator.is_root:
            for found in self.directory.look():
                self._take(found)
            if self._asked and not alone:
                self._signals.send(StepSignal.MANUAL_CONTROL)
        if alone and (self._asked or due):
            self._decide(moment)

    def _looks_at_once(self) -> list[PendingRequest]:
        """All that lies there, within bounds."""
        found: list[PendingRequest] = []
        for _ in range(_LOOKS):
            looked = self.directory.look()
            found += looked
            if not looked:
                break
        return found

    def _take(self, found: PendingRequest) -> None:
        if found.request is None:
            self._refuse(found, found.refused)
        elif found.came < self._since:
            self._refuse(found, "It was there before the run began.")
        elif "plateau" in found.request.action and not self.has_plateau:
            self._refuse(found, "The run has no distlr.callbacks.ReduceLROnPlateau.")
        elif self._is_late(found):
            self._refuse(found, self._late(found))
        else:
            self._asked.append(found)

    def _is_late(self, found: PendingRequest) -> bool:
        """Whether the time limit of a request has passed; one that was accepted for its epoch has none any more."""
        if found.expires is None or found.name in self._accepted:
            return False
        return self.directory.file_time() > found.expires

    @staticmethod
    def _late(found: PendingRequest) -> str:
        assert found.request is not None
        return (
            f"It was valid for {found.request.valid_for:g} s, and nobody took it in that time. Fix: ask once more, "
            "with a longer --valid-for where the run looks rarely."
        )

    def _refuse(self, found: PendingRequest, why: str) -> None:
        name = ascii(found.name)[1:-1]
        if len(name) > _LONGEST_NAME:
            name = f"{name[:_LONGEST_NAME]}..."
        self._refusals += 1
        if self._refusals <= _TOLD:
            _log.warning("The request '%s' of %s is refused and changes nothing. %s", name, found.by, why[:500])
        elif self._refusals == _TOLD + 1:
            _log.warning("Further requests that are refused are in %s alone.", self.run.path / DECISIONS)
        self.decided("refused", self._epoch, why[:500], by=found.by, id=name, between=False)
        self._answered.append((found.name, False))

    def _mark(self) -> None:
        """Marks the files that were answered, once their answer is in the run's decisions."""
        answered, self._answered = self._answered, []
        for name, applied in answered:
            self.directory.mark_answered([name], applied=applied)

    # -- a decision ----------------------------------------------------------------------------------

    def _decide(self, moment: Moment) -> None:
        """Rank 0 decides on what was asked for, and every rank does it. Collective."""
        tag = f"changes by hand in epoch {self._epoch + 1}"
        said = compute_on_root(self.communicator, lambda: self._decision(moment), tag=tag, what=_READ)
        self._epochs = set(said["epochs"])
        if self.communicator.size > 1:
            self._signals.clear(StepSignal.MANUAL_CONTROL)
        for change in said["changes"]:
            self._carry_out(change, moment)

    def _decision(self, moment: Moment) -> dict[str, Any]:
        """Rank 0: the changes to make now, and for which epochs others wait."""
        changes: list[dict[str, Any]] = []
        kept, rate = [], rate_of(self.model.optimizer)
        begun = self._epoch + (0 if moment == Moment.BEGIN else 1)  # the last epoch that has begun, from 1
        # An epoch that was stopped may go on after a restart: the next one does not begin now.
        between = moment != Moment.BATCH and not self.model.stop_training
        for found in [*self._waiting, *self._asked]:
            assert found.request is not None
            at = found.request.at_epoch
            if self._is_late(found):
                self._refuse(found, self._late(found))
            elif at is not None and at <= begun:
                self._refuse(found, f"Epoch {at} has begun already.")
            elif at is not None and (at > begun + 1 or not between):
                kept.append(found)
                if found.name not in self._accepted:
                    self._accepted.add(found.name)
                    _log.info("%s asks for `%s`, which waits for that epoch.", found.by, found.request)
                    reason, when = f"waits: {found.request}", moment != Moment.BATCH
                    self.decided("asked", self._epoch, reason, by=found.by, between=when, id=found.name)
            else:
                factor = self._checked(found, rate)
                if found.request.action == "set-lr" and factor is None:
                    continue
                if not self.directory.claim(found):
                    self._refuse(found, "It was cancelled.")
                    continue
                rate *= factor or 1.0
                action = found.request.action
                changes.append({"id": found.name, "action": action, "multiplier": factor, "by": found.by})
        self._waiting, self._asked = kept, []
        return {"changes": changes, "epochs": [found.request.at_epoch for found in kept if found.request]}

    def _checked(self, found: PendingRequest, rate: float) -> float | None:
        """Rank 0: the factor of a change of the rate, which is `rate` then; None where it is refused, or none."""
        assert found.request is not None
        if found.request.action != "set-lr":
            return None
        try:
            return found.request.factor(rate)
        except ConfigurationError as error:
            self._refuse(found, str(error))
            return None

    def _carry_out(self, change: dict[str, Any], moment: Moment) -> None:
        before = rate_of(self.model.optimizer)
        self._apply(change, Place(self.drawn, moment))
        after = rate_of(self.model.optimizer)
        rates = f": the rate goes from {before:.6g} to {after:.6g}" if change["multiplier"] else ""
        if self.communicator.is_root:
            samples = self.core.distlr.formula.samples_seen
            _log.info("Epoch %d, at %d samples: %s%s.", self._epoch + 1, samples, describe_change(change), rates)
            self._answered.append((change["id"], True))
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
        state = ManualControlState(paused, *place, steered.made + 1 if same else 1)
        write_manual_control(optimizer.distlr.variables, state)
