"""The gradient reducer where a `tf.distribute` strategy spans the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from distlr.communicators.gradient_reducer import GradientReducer
from distlr.strategies.replicas import sum_over_replicas

__all__ = ["StrategyGradients"]


class StrategyGradients(GradientReducer):
    """The sum over all replicas of all ranks, which the strategy computes, and with it signals."""

    def average(self, gradients: Sequence[Any], names: Sequence[str]) -> list[Any]:
        """The mean over the batch of each gradient: dense, sparse, or None. In a replica.

        Args:
            gradients: one a variable, of a loss divided by the number of replicas, as Keras does.
            names: not needed: a strategy numbers its reductions itself.
        """
        # A gradient first: at the end of data of unknown length Keras runs one more step, which fails.
        with tf.control_dependencies([gradient for gradient in gradients if gradient is not None][:1]):
            sent = tf.identity(self.signals.sent)
        *summed, received = sum_over_replicas([*gradients, sent])
        self.signals.received.assign(received)
        return summed

    def all_true(self, flag: Any) -> Any:
        """Returns the flag, on which all replicas of all ranks have agreed already."""
        return flag
