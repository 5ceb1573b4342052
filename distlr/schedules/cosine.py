"""Cosine decay, once."""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from distlr._utils.checks import not_negative_real, positive_real
from distlr.schedules.schedule import Schedule, progress

__all__ = ["Cosine"]


@keras.saving.register_keras_serializable("distlr")
class Cosine(Schedule):
    """`lr(t) = floor + (initial_learning_rate - floor) (1 + cos(pi p^k)) / 2` with `p = min(t / steps, 1)`.

    Source: Loshchilov and Hutter 2017, SGDR, arXiv 1608.03983, equation 5; `k`: Zhang and Li 2020, k-decay,
    arXiv 2004.05909.

    Args:
        initial_learning_rate: the rate at t = 0, at least `floor`.
        steps: the length of the decay in base steps, above 0.
        floor: the rate at its end, at least 0.
        k: above 1 holds the rate up for longer; above 0.

    >>> decay = Cosine(1.0, steps=100, floor=0.5)
    >>> [round(float(decay(t)), 6) for t in (0, 50, 100, 1000)]
    [1.0, 0.75, 0.5, 0.5]
    """

    name = "cosine"
    time_arguments = ("steps",)

    def __init__(self, initial_learning_rate: float, steps: float, floor: float = 0.0, k: float = 1.0) -> None:
        self.initial_learning_rate = not_negative_real("initial_learning_rate", initial_learning_rate)
        self.steps = positive_real("steps", steps)
        self.floor = not_negative_real("floor", floor)
        self.k = positive_real("k", k)

    def at(self, t: tf.Tensor) -> tf.Tensor:
        """The rate at base step `t`: `floor` from `steps` on."""
        share = tf.pow(progress(t, self.steps), self.k)
        return self.floor + (self.initial_learning_rate - self.floor) * (1.0 + tf.cos(math.pi * share)) / 2.0
