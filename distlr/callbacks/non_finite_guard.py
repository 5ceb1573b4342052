"""The reaction to a NaN or an infinity in a gradient, the loss or a metric."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

import numpy as np

from distlr._utils.checks import one_of, positive_integer, positive_real
from distlr.callbacks.job_callback import JobCallback
from distlr.callbacks.stage import Stage
from distlr.checkpoint.snapshot import Snapshot
from distlr.communicators.step_signals import StepSignal
from distlr.errors import ConfigurationError, NonFiniteError, received
from distlr.optimizer import AdoptedOptimizer
from distlr.sync.metrics import KeptStates

__all__ = ["NonFiniteGuard"]

_log = logging.getLogger("distlr")

POLICIES = ("raise", "skip", "backtrack")

COUNT = "bad_numbers/count"
"""Names the optimizer's variable that counts the steps that a run has lost."""


class NonFiniteGuard(JobCallback):
    """Looks for numbers that are not finite, and acts on all ranks at the same step.

    With "skip" and "backtrack" every step is watched: where a gradient of any replica or rank is not finite, all of
    them leave the step out, weights, slots and clock as they were. "skip" goes on from there; "backtrack" returns to
    the weights and slots of the epoch's start and multiplies the rate by `factor`, decided on rank 0. More than `limit`
    such steps in a run are an error; they are counted in the optimizer's variables, so that a run that is continued
    from a checkpoint goes on counting, and `count` says how many there were in all. A loss that is not finite counts as
    such a step, and so does a metric at an epoch's end. The epoch's metrics are those of its other steps.

    With "raise", which `job.callbacks` adds by itself, the logs of each epoch are checked and the training ends with
    `NonFiniteError` on every rank, before anything is saved; with `each_step` at the first step, before the weights
    have changed. Under `mixed_float16` an overflow is the loss scale's business, which leaves the step out by itself.

    Args:
        policy: "raise", "skip" or "backtrack".
        factor: the factor on the rate at each return.
        limit: how many steps a run may lose.
        each_step: whether each step is watched; always with "skip" and "backtrack".
        ignore: names of metrics that may be not finite.

    Raises:
        ConfigurationError: a value is out of its range, or the optimizer is not distlr's and steps are to be watched.

    >>> import distlr, keras, numpy as np
    >>> job = distlr.init(environ={})
    >>> with job.scope():
    ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    ...     model.compile(job.optimizer(keras.optimizers.SGD(0.1)), "mse")
    >>> x = np.ones((32, 2), "float32")
    >>> x[3] = np.nan
    >>> bad = NonFiniteGuard("skip")
    >>> _ = model.fit(x, np.ones(32), batch_size=8, shuffle=False, callbacks=job.callbacks([bad]), verbose=0)
    >>> bad.count, bool(np.isfinite(model.get_weights()[0]).all())
    (1, True)
    """

    stage = Stage.CHECK_NUMBERS
    decides_by = ("policy", "factor", "limit", "each_step")
    stops_with_all_ranks = True

    def __init__(
        self,
        policy: str = "raise",
        *,
        factor: float = 0.5,
        limit: int = 10,
        each_step: bool = False,
        ignore: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.policy = one_of("policy", policy, POLICIES)
        self.factor = positive_real("factor", factor)
        if self.factor > 1:
            raise ConfigurationError(received("factor", factor, "at most 1"))
        self.limit = positive_integer("limit", limit)
        self.each_step = each_step or policy != "raise"
        self.ignore = set(ignore)
        self._count = 0
        self._kept_count: Any = None  # the optimizer's variable, where the run goes on after such a step
        self._epoch = 0
        self._seen: int | None = None
        self._snapshot: Snapshot | None = None
        self._counted: KeptStates | None = None  # the metrics' states before the current step
        self._is_waiting = False  # this rank's loss is bad, which the others learn with the next update

    @property
    def leaves_out_other_optimizers(self) -> str | None:
        """Each optimizer would have to be watched, and all leave a step out together."""
        return "watches the gradients of model.optimizer alone" if self.each_step else None

    @property
    def async_safe(self) -> bool:
        """Tells Keras whether the device may run ahead of the batches' callbacks."""
        return not self.each_step

    @property
    def count(self) -> int:
        """The number of steps that the run has lost, including those before a restart."""
        return self._count if self._kept_count is None else int(self._kept_count.numpy()[0])

    def set_model(self, model: Any) -> None:
        """Lets the optimizer watch its gradients, before the step is traced."""
        super().set_model(model)
        if not self.each_step:
            return
        optimizer = self.core
        if not isinstance(optimizer, AdoptedOptimizer):
            hint = "optimizer = job.optimizer(optimizer, batch), inside `with job.scope():`"
            raise ConfigurationError(received("policy", self.policy, "'raise' with a plain Keras optimizer", hint))
        if optimizer.distlr.gradients.leave_out_bad_steps():
            model.train_function = None  # the traced one does not look

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Begins or continues the count of lost steps."""
        if self.policy != "raise":
            self._kept_count = self.core.distlr.state(COUNT, [0.0])
        self._is_waiting = False
        self._seen = None  # known once every rank has rank 0's state
        self._snapshot = Snapshot(self.model) if self.policy == "backtrack" else None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Copies the weights and slots to which "backtrack" returns."""
        self._epoch = epoch
        if self._seen is None and self.each_step:
            self._seen = self.core.distlr.gradients.bad_steps
        if self._snapshot is not None and not self._snapshot.copy_if_finite() and not self._snapshot:
            raise NonFiniteError(f"[rank {self.communicator.rank}] The weights are not finite before the first step.")

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Copies the states of the metrics, to restore them if the step is left out."""
        if self.each_step and self.policy != "raise" and not self._is_waiting:
            self._counted = KeptStates(self.model.metrics, self.model.distribute_strategy)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Acts if this step was left out, or if the loss of any rank is not finite."""
        if not self.each_step:
            return
        assert self._seen is not None
        bad = self.core.distlr.gradients.bad_steps - self._seen
        self._seen += bad
        here = _is_bad((logs or {}).get("loss"))
        lost = not bad and self._loss_is_bad(here)
        self._is_waiting = here and not (bad or lost)
        if bad or lost:
            what = "the loss is not finite" if lost else "a gradient is not finite"
            self._apply_policy(f"batch {batch + 1} of epoch {self._epoch + 1}", what, max(bad, 1), between=False)
            if self._counted is not None and (bad or here):
                self._counted.restore()  # a sum that is not finite stays so

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Checks the epoch's logs, which are equal on all ranks."""
        # A loss scale leaves steps out by itself, whose loss the epoch's mean has all the same.
        scales = self.model.optimizer is not self.core
        ignored = self.ignore | ({"loss"} if scales else set())
        bad = {name: value for name, value in (logs or {}).items() if name not in ignored and _is_bad(value)}
        if bad:
            bad_values = ", ".join(f"{name} is {value}" for name, value in bad.items())
            self._apply_policy(f"the end of epoch {epoch + 1}", bad_values, 1, between=True)

    def _loss_is_bad(self, here: bool) -> bool:
        """Whether the loss of any rank is bad, as far as all ranks know; `here` says whether this rank's is."""
        signals = self.step_signals
        if self.communicator.size == 1 or signals is None:
            return here and self.communicator.size == 1
        agreed = signals.has_received(StepSignal.NON_FINITE)
        if agreed:
            signals.clear(StepSignal.NON_FINITE)
        elif here:
            signals.send(StepSignal.NON_FINITE)
        return agreed

    def _apply_policy(self, when: str, what: str, steps: int, *, between: bool) -> None:
        """Applies the policy, on every rank at the same step. Collective if the policy is to go back."""
        count = self.count + steps
        if self._kept_count is None:
            self._count = count
        else:
            self._kept_count.assign([float(count)])
        place = f"[rank {self.communicator.rank}] At {when} {what}"
        if self.policy == "raise":
            raise NonFiniteError(
                f"{place}. Fix: a lower rate, a longer warmup or clipping; or go on with "
                "distlr.callbacks.NonFiniteGuard('skip'), or 'backtrack'."
            )
        if count > self.limit:
            raise NonFiniteError(
                f"{place}, the {count}th time in this run, and the limit is {self.limit}. Fix: look for "
                "what diverges, or raise NonFiniteGuard(limit=)."
            )
        if self._snapshot is not None:
            decision = {"factor": self.factor, "count": count}  # rank 0's counts
            decision = self.communicator.broadcast_json(decision, tag=f"back to earlier weights at {when}")
            self._snapshot.restore()
            self.core.distlr.formula.multiply_rate(decision["factor"])
        done, factor = "the step is left out", None
        if self._snapshot is not None:
            done, factor = f"back to the weights of the epoch's start, at {self.factor:g} of the rate", self.factor
        self.decided("bad-numbers", self._epoch, f"at {when} {what}: {done}", multiplier=factor, between=between)
        if self.communicator.is_root:
            _log.warning("At %s %s: %s (%d of at most %d).", when, what, done, count, self.limit)


def _is_bad(value: Any) -> bool:
    """Whether a number of the logs, or an array of them, is not finite; other values count as finite."""
    try:
        return value is not None and not np.isfinite(value).all()
    except (TypeError, ValueError):  # no number, or a ragged list
        return False
