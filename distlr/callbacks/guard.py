"""The comparison of the ranks, with an error on all of them if they differ, and one stop for all ranks."""

from __future__ import annotations

import logging
from typing import Any

from distlr._utils.checks import positive_integer
from distlr._utils.rank_names import name_ranks
from distlr.callbacks.job_callback import JobCallback
from distlr.callbacks.stage import Stage
from distlr.communicators.step_signals import StepSignal, StepSignals
from distlr.sync.digests import compare_ranks, rank_state

__all__ = ["ReplicaGuard"]

_log = logging.getLogger("distlr")


class ReplicaGuard(JobCallback):
    """Compares what must be equal on every rank, after all have decided and before anything is saved.

    At each epoch's end one gather carries each rank's iterations, samples seen, multiplier, the bits of its rate, the
    digest of the rates that it has applied and a digest of its weights. Where ranks differ, all of them raise
    `ReplicaDivergenceError`, with a table of who differs in what.

    The same gather makes the stop of one rank the stop of all. In the middle of an epoch a stop (by `TerminateOnNaN`,
    for example) travels with the next update's gradients, so that all ranks stop at the same step. If no signal travels
    with them (with a plain Keras optimizer under a strategy that spans the ranks) all ranks stop at the epoch's end.

    Args:
        every: compare every so many batches too; None for the epoch's end alone.

    `job.callbacks` adds it on several ranks, with `every=None`. Two ranks that differ: `errors.ReplicaDivergenceError`.

    >>> import distlr
    >>> job = distlr.init(environ={})
    >>> [type(callback).__name__ for callback in job.callbacks([ReplicaGuard(every=100)])]
    ['PreflightCheck', 'DataPositionSync', 'LearningRateLogger', 'NonFiniteGuard', 'ReplicaGuard']
    """

    stage = Stage.COMPARE_RANKS
    decides_by = ("every",)
    stops_with_all_ranks = True

    trained_alone = False  # whether weights that are not trained may differ

    def __init__(self, every: int | None = None) -> None:
        super().__init__()
        self.every = None if every is None else positive_integer("every", every)
        self.stops_within_epoch = False  # whether a callback of this rank may stop within an epoch
        self._others_may_stop = False
        self._stop_at_end = False
        self._epoch = 0

    @property
    def async_safe(self) -> bool:
        """Tells Keras whether the device may run ahead of the batches' callbacks."""
        return not (self.every or self.stops_within_epoch)

    def watch_steps(self, any_may_stop: bool) -> None:
        """Looks after each step for a stop that another rank asks for; `SameCallbacks` calls it as a `fit` begins.

        Args:
            any_may_stop: whether a callback of any rank may stop within an epoch; the same on all ranks.
        """
        self._stop_at_end = False
        if self.step_signals is not None:
            self.step_signals.clear(StepSignal.STOP)  # left by a `fit` that ended with an error
        self._others_may_stop = any_may_stop and not self.stops_within_epoch
        self._look_after_each_step(self._others_may_stop)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes the epoch, for the tags; Keras would end one after its first step that a callback stops here."""
        self._epoch = epoch
        if self.model.stop_training and self.communicator.size > 1:
            self._ask_to_stop()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Compares if that is due, and passes a stop on."""
        if self.every and (batch + 1) % self.every == 0:
            self._compare(f"batch {batch + 1} of epoch {self._epoch + 1}")
        if not self.stops_within_epoch:
            return
        if self.step_signals is not None and self.step_signals.has_received(StepSignal.STOP):
            self.model.stop_training = True
        elif self.model.stop_training:
            self._ask_to_stop()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Compares, and agrees on stopping. Collective."""
        self._compare(f"epoch {epoch + 1}", at_end=True)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Gives Keras' step back."""
        self._look_after_each_step(False)

    def _ask_to_stop(self) -> None:
        """Asks all ranks to stop: a rank that stopped alone would leave the others waiting in the next step.

        Where no rank looks after each step, all stop at the epoch's end.
        """
        self.model.stop_training = False
        if self.step_signals is not None and (self.stops_within_epoch or self._others_may_stop):
            self.step_signals.send(StepSignal.STOP)
        elif not self._stop_at_end:
            self._stop_at_end = True
            _log.warning(
                "[rank %d] A callback asked to stop in epoch %d, and nothing tells the other ranks before its end: all "
                "stop there.",
                self.communicator.rank,
                self._epoch + 1,
            )

    def _look_after_each_step(self, look: bool) -> None:
        """Adds a look at the others' requests after Keras' step, or removes it.

        Where no callback of this rank looks at the batches Keras runs ahead of its callbacks, and had decided so before
        the ranks compared their callbacks. A look from a callback would come at another step on each rank.
        """
        model = self.model
        if isinstance(model.train_function, _WatchedStep):
            model.train_function = model.train_function.step
        if look and self.step_signals is not None:
            model.train_function = _WatchedStep(model.train_function, model, self.step_signals)

    def _compare(self, when: str, at_end: bool = False) -> None:
        signals = self.step_signals
        requested = signals is not None and signals.is_sent(StepSignal.STOP)
        stop = bool(self.model.stop_training or self._stop_at_end or requested)
        asks_to_stop = bool(self._stop_at_end or requested or (stop and not self._has_received_stop()))
        state = rank_state(self.model, self.model.optimizer, trained_alone=self.trained_alone)
        local: dict[str, Any] = {"stop": stop, "asked": asks_to_stop, "state": state}
        all_ranks = self.communicator.gather_json(local, tag=f"replicas at {when}")
        compare_ranks(self.communicator, [rank["state"] for rank in all_ranks], self.model, when=when)
        if at_end and any(rank["stop"] for rank in all_ranks):
            self._log_who_stops([number for number, rank in enumerate(all_ranks) if rank["asked"]])
            self.model.stop_training = True
            self._stop_at_end = False
            if signals is not None:
                signals.clear(StepSignal.STOP)

    def _has_received_stop(self) -> bool:
        return self.step_signals is not None and self.step_signals.has_received(StepSignal.STOP)

    def _log_who_stops(self, ranks: list[int]) -> None:
        if self.communicator.is_root and 0 < len(ranks) < self.communicator.size:
            _log.info("Epoch %d: a callback on %s alone stops the training of all.", self._epoch + 1, name_ranks(ranks))


class _WatchedStep:
    """Keras' step, and after it a look at whether any rank asked to stop."""

    def __init__(self, step: Any, model: Any, signals: StepSignals) -> None:
        self.step, self._model, self._signals = step, model, signals

    def __call__(self, iterator: Any) -> Any:
        logs = self.step(iterator)
        if self._signals.has_received(StepSignal.STOP):
            self._model.stop_training = True
        return logs
