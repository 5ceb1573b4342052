"""Changes by hand, while the run is under way: the same on every rank, at the same step."""

from __future__ import annotations

import logging
import os
from typing import Any

from distlr._numbers import positive_integer
from distlr.callbacks.base import JobCallback
from distlr.control import ControlDirectory, Found
from distlr.errors import ConfigurationError
from distlr.optimizer import ScaledOptimizer, inner, rate_of
from distlr.run_directory import RunDirectory

__all__ = ["Steering"]

_log = logging.getLogger("distlr")

_DID = {
    "pause-plateau": "paused the plateaus",
    "resume-plateau": "let the plateaus go on",
    "stop": "stopped the training",
}


class Steering(JobCallback):
    """Does what `distlr control RUN_DIR` asks for; `job.callbacks(run_dir=)` adds it.

    Rank 0 looks for requests every so many batches and at each epoch's end, and checks them. That there is one
    travels to the other ranks with the gradients; at the next look all of them hear of it, rank 0 broadcasts what it
    has decided, and every rank applies it before the next step. So nothing is exchanged while nobody asks. Each
    change is a decision in the journal, with who asked for it, and so is each request that is refused. A run that
    continues a checkpoint makes the changes again, at the same places, that came after it.

    Args:
        run_dir: the run's directory.
        every: batches between two looks.
    """

    def __init__(self, run_dir: str | os.PathLike[str], every: int = 50) -> None:
        super().__init__()
        self.every = positive_integer("every", every)
        self.directory = ControlDirectory(run_dir)
        self.run = RunDirectory(run_dir)
        self.has_plateau = True
        self._active = self._begun = False
        self._looks = 0
        self._asked: list[Found] = []  # rank 0: what is to be decided next
        self._waiting: list[Found] = []  # rank 0: what waits for its epoch
        self._epochs: set[int] = set()  # for which something waits, on every rank
        self._again: list[dict[str, Any]] = []  # changes of before a restart, each with its place
        self._epoch = 0

    def bind_plateau(self, has_plateau: bool) -> None:
        """Says whether there is a plateau that can be paused; called by `job.callbacks`."""
        self.has_plateau = has_plateau

    @property
    def _exchange(self) -> Any:
        return inner(self.model.optimizer).exchange

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Makes the place for requests."""
        optimizer = inner(self.model.optimizer)
        self._begun = False
        self._active = isinstance(optimizer, ScaledOptimizer)
        if self._active and self.communicator.size > 1:
            self._active = optimizer.exchange is not None
        if not self._active:
            if self.communicator.is_root:
                _log.warning(
                    "%s is not read: requests change a rate that distlr sets, and travel with its gradients. To mend "
                    "it: optimizer = job.optimizer(optimizer, batch).",
                    self.directory.path,
                )
            return
        optimizer.steer(*optimizer.steered)  # the state is made on every rank
        if self.communicator.is_root:
            self.directory.make()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Finds out, once, what was asked for before. Collective then."""
        self._epoch, self._looks = epoch, 0
        if self._active and not self._begun:
            self._begun = True
            self._begin(epoch)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks, where it is time."""
        if not self._active:
            return
        if self._again:
            self._do_again()
        looks = (batch + 1) // self.every
        if looks > self._looks:
            self._looks = looks
            self._look()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks, and does what was asked for the epoch that comes next."""
        if self._active:
            self._look(coming=epoch + 1)

    # -- the run begins ------------------------------------------------------------------------------

    def _begin(self, epoch: int) -> None:
        """What came before: nothing for a new run, all changes since the checkpoint for one that is continued."""
        said: dict[str, Any] = {}
        if self.communicator.is_root:
            optimizer = inner(self.model.optimizer)
            paused, count = optimizer.steered
            fresh = epoch == 0 and not self.journal.resumed
            changes = [] if fresh else [entry for entry in self.run.decisions() if entry["kind"] == "control"]
            done = {entry.get("id") for entry in changes}
            waiting, self._waiting = self._waiting, []  # of an earlier fit
            for found in [*waiting, *self.directory.look()]:
                if found.name in done:
                    self.directory.settle([found.name], applied=True)  # a crash came between the two
                elif fresh:
                    self._refuse(found, "It was there before the run began.")
                else:
                    self._take(found)
            places = ("samples_seen", "action", "multiplier", "by")
            said = {
                "state": [paused, 0 if fresh else count],
                "again": [{name: entry[name] for name in places} for entry in changes[count:]],
                "asked": bool(self._asked),
            }
        said = self._broadcast(said, f"changes by hand, as epoch {epoch + 1} begins")
        self._epochs = set()
        inner(self.model.optimizer).steer(*said["state"])
        self._again = said["again"]
        self._do_again()
        if said["asked"]:
            self._decide(epoch, between=True)

    def _do_again(self) -> None:
        """The changes whose place the clock has come to."""
        while self._again and inner(self.model.optimizer).samples_seen >= (self._again[0]["samples_seen"] or 0):
            change = self._again.pop(0)
            if self.communicator.is_root:
                _log.info("Once more, as before the restart: %s.", _words(change))
            self._apply(change, again=True)

    # -- a look --------------------------------------------------------------------------------------

    def _look(self, coming: int | None = None) -> None:
        """Hears what was asked for at the last look, then looks. `coming`: the epoch that begins next, from 0."""
        alone = self.communicator.size == 1
        due = coming is not None and coming + 1 in self._epochs
        if not alone and (due or self._exchange.agreed_on("steer")):
            self._decide(self._epoch if coming is None else coming, coming is not None)
        if self.communicator.is_root:
            for found in self.directory.look():
                self._take(found)
            if self._asked and not alone:
                self._exchange.request("steer")
        if alone and (self._asked or due):
            self._decide(self._epoch if coming is None else coming, coming is not None)

    def _take(self, found: Found) -> None:
        if found.request is None:
            self._refuse(found, found.refused)
        elif "plateau" in found.request.action and not self.has_plateau:
            self._refuse(found, "The run has no distlr.callbacks.ReduceLROnPlateau")
        else:
            self._asked.append(found)

    def _refuse(self, found: Found, why: str) -> None:
        _log.warning("The request %a of %s is refused and changes nothing. %s", found.name, found.by, why[:500])
        self.decided("refused", self._epoch, why[:500], by=found.by, id=ascii(found.name)[1:-1])
        self.directory.settle([found.name], applied=False)

    # -- a decision ----------------------------------------------------------------------------------

    def _decide(self, epoch: int, between: bool = False) -> None:
        """Rank 0 decides on what was asked for, and every rank does it. Collective.

        Args:
            epoch: the one under way, or that begins next, from 0.
            between: whether none is under way.
        """
        said: dict[str, Any] = {}
        if self.communicator.is_root:
            said = self._decision(begun=epoch if between else epoch + 1, between=between)
        said = self._broadcast(said, f"changes by hand in epoch {epoch + 1}")
        self._epochs = set(said["epochs"])
        if self.communicator.size > 1:
            self._exchange.take_back("steer")
        for change in said["changes"]:
            self._carry_out(change)

    def _decision(self, begun: int, between: bool) -> dict[str, Any]:
        """Rank 0: the changes to make now, and for which epochs others wait. `begun`: the last one, from 1."""
        changes, epochs, kept = [], [], []
        for found in [*self._waiting, *self._asked]:
            assert found.request is not None
            at = found.request.at_epoch
            if at is not None and at <= begun:
                self._refuse(found, f"Epoch {at} has begun already.")
            elif at is not None and (at > begun + 1 or not between):
                kept.append(found)
                epochs.append(at)
                if found in self._asked:
                    _log.info("%s asks for `%s`, which waits for that epoch.", found.by, found.request)
                    self.decided("asked", self._epoch, f"waits: {found.request}", by=found.by, id=found.name)
            else:
                changes += self._checked(found)
        self._waiting, self._asked = kept, []
        return {"changes": changes, "epochs": epochs}

    def _checked(self, found: Found) -> list[dict[str, Any]]:
        """Rank 0: the change that a request is, now; none where it is refused."""
        assert found.request is not None
        factor = None
        if found.request.action == "set-lr":
            try:
                factor = found.request.factor(rate_of(self.model.optimizer))
            except ConfigurationError as error:
                self._refuse(found, str(error))
                return []
        return [{"id": found.name, "action": found.request.action, "multiplier": factor, "by": found.by}]

    def _carry_out(self, change: dict[str, Any]) -> None:
        before = rate_of(self.model.optimizer)
        self._apply(change)
        after = rate_of(self.model.optimizer)
        rates = f": the rate goes from {before:.6g} to {after:.6g}" if change["multiplier"] else ""
        samples = inner(self.model.optimizer).samples_seen
        if self.communicator.is_root:
            _log.info("Epoch %d, at %d samples: %s%s.", self._epoch + 1, samples, _words(change), rates)
        more = {name: change[name] for name in ("id", "action", "multiplier", "by")}
        self.decided("control", self._epoch, f"{_words(change)}{rates}", **more)
        if self.communicator.is_root:
            self.directory.settle([change["id"]], applied=True)

    def _apply(self, change: dict[str, Any], again: bool = False) -> None:
        optimizer = inner(self.model.optimizer)
        paused, count = optimizer.steered
        if change["action"] == "set-lr":
            optimizer.multiply_rate(change["multiplier"])
        elif change["action"] == "stop":
            self.model.stop_training = self.model.stop_training or not again  # who starts it once more wants it to run
        else:
            paused = change["action"] == "pause-plateau"
        optimizer.steer(paused, count + 1)

    def _broadcast(self, said: dict[str, Any], tag: str) -> dict[str, Any]:
        if self.communicator.size == 1:
            return said
        heard: dict[str, Any] = self.communicator.broadcast_json(said, tag=tag)
        return heard


def _words(change: dict[str, Any]) -> str:
    did = _DID.get(change["action"]) or f"multiplied the rate by {change['multiplier']:.6g}"
    return f"{change['by']} {did}"
