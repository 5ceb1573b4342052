"""The check of the loss of a training step on the replicas of one strategy, whose gradients are summed."""

from __future__ import annotations

import logging
from typing import Any

import tensorflow as tf

from distlr.communicators import Communicator
from distlr.errors import ConfigurationError
from distlr.optimizer import AdoptedOptimizer
from distlr.strategies.loss_terms import Term, loss_terms
from distlr.strategies.step_record import Step

__all__ = ["LossCheck"]

_log = logging.getLogger("distlr")

_WRITE = (
    "loss = job.mean_loss(losses, batch), with one value a sample and not their mean (a penalty on the weights is "
    "divided by strategy.num_replicas_in_sync)"
)


class LossCheck:
    """Refuses a step whose loss is the mean over one replica's batch, where the update is too large by their number.

    Keras' losses, `add_loss` and `job.mean_loss` divide by the batch of all replicas. A `train_step`, a `compute_loss`
    or a loss function of one's own that takes a mean by itself does not; the gradients of all replicas are summed, and
    nothing in them shows it. The check reads the graph between the loss and the results of Keras' losses.

    It cannot see losses that a `tf.function` inside of the step computes, and a constant weight of exactly 1 by
    the number of replicas, which may be either. In an eager step there is no graph: it is refused where neither a loss
    of Keras nor `job.mean_loss` was computed, and a mixture is not judged.

    Args:
        model: compiled.
        communicator: the job's.
        is_own_step: whether the `train_step` is the user's.
    """

    def __init__(self, model: Any, communicator: Communicator, is_own_step: bool) -> None:
        self.replicas = int(model.distribute_strategy.num_replicas_in_sync)
        self.communicator = communicator
        self.is_own_step = is_own_step
        self._warned = self._has_warned_of_means = False

    def check(self, step: Step, core: AdoptedOptimizer | None) -> None:
        """Checks the losses whose gradients are about to be applied."""
        if self.replicas == 1:
            return
        if tf.executing_eagerly():
            if self.is_own_step and not step.keras_losses and not step.shares:
                self._refuse({Term.MEAN})
            return
        batch = None if core is None else core.distlr.batch
        samples = None if batch is None else batch.per_replica * batch.replicas
        shares = {part.ref() for part in step.shares}
        keras = {part.ref() for part in step.keras_losses if tf.is_tensor(part)}
        terms: set[Term] = set()
        for loss in filter(tf.is_tensor, step.losses):
            terms |= loss_terms(loss, self.replicas, samples, shares, keras)
        wrong = terms & {Term.MEAN, Term.OTHER}
        if wrong and Term.SHARE not in terms:
            self._refuse(wrong)
        if wrong or (terms and terms <= {Term.UNKNOWN}):
            self._warn(wrong)

    def check_shown(self, step: Step) -> None:
        """Warns once about metrics that show a loss divided by the replicas, as `Mean.update_state(loss)` does."""
        if self.replicas == 1 or not self.is_own_step or not step.means_of_losses or self._has_warned_of_means:
            return
        self._has_warned_of_means = True
        if self.communicator.is_root:
            names = ", ".join(dict.fromkeys(step.means_of_losses))
            _log.warning(
                "What these metrics show is 1/%d of the mean loss: %s. On the replicas of a strategy a loss of Keras, "
                "and that of job.mean_loss, is divided by the batch of all %d of them, and the metric takes the mean "
                "over them once more. The training is right. Fix: metric.update_state(loss * "
                "job.strategy.num_replicas_in_sync).",
                self.replicas,
                names,
                self.replicas,
            )

    def _refuse(self, wrong: set[Term]) -> None:
        raise ConfigurationError(
            f"[rank {self.communicator.rank}] The loss of this step is {_named(wrong)}, and {self.replicas} replicas' "
            f"gradients are summed, so each update is {self.replicas} times as large as on one device. Fix: in a "
            f"train_step or compute_loss of your own write {_WRITE}, or use a loss of Keras; let a loss function that "
            "compile gets return one value a sample."
        )

    def _warn(self, wrong: set[Term]) -> None:
        if self._warned or not self.communicator.is_root:
            return
        self._warned = True
        if wrong:
            _log.warning(
                "The loss of this step adds to a loss that is divided by the batch of all replicas another term, %s: "
                "%d replicas' gradients are summed, so that term counts %d times as much as on one device. Fix: for it "
                "write %s.",
                _named(wrong),
                self.replicas,
                self.replicas,
                _WRITE,
            )
        else:
            _log.warning(
                "Whether the loss of this step is divided by the batch of all %d replicas cannot be told: no loss of "
                "Keras and no job.mean_loss is in it. If it is a mean over one replica's batch, each update is %d "
                "times as large as on one device. Fix: write %s.",
                self.replicas,
                self.replicas,
                _WRITE,
            )


def _named(wrong: set[Term]) -> str:
    return " and ".join(term.value for term in (Term.MEAN, Term.OTHER) if term in wrong)
