"""Warmup, a long stable stretch, and a short decay."""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from distlr._utils.checks import not_negative_real, one_of, positive_real
from distlr.errors import ConfigurationError, received
from distlr.schedules.schedule import Schedule, progress

__all__ = ["WarmupStableDecay"]

TAILS = ("linear", "cosine", "exponential", "1-sqrt")


@keras.saving.register_keras_serializable("distlr")
class WarmupStableDecay(Schedule):
    """Climbs in a line over `warmup_steps`, holds for `stable_steps`, and decays to the floor over `decay_steps`.

    With r the share of the decay that has passed: `lr = floor + (learning_rate - floor) c(r)` and c(r) one of

    - linear: `1 - r`
    - cosine: `(1 + cos(pi r)) / 2`
    - exponential: `2 * 0.5^r - 1`
    - 1-sqrt: `1 - sqrt(r)` (Haegele et al. 2024, arXiv 2405.18392)

    Source: Hu et al. 2024, MiniCPM, arXiv 2404.06395, section 4.

    Args:
        learning_rate: the stable rate, at least 0.
        warmup_steps: base steps of the climb from `warmup_from * learning_rate`; 0 for none.
        stable_steps: base steps at the rate.
        decay_steps: base steps of the decay, above 0.
        tail: "linear", "cosine", "exponential" or "1-sqrt".
        floor: the rate at the end, at least 0.
        warmup_from: the share of the rate at t = 0, in [0, 1].

    >>> wsd = WarmupStableDecay(1.0, warmup_steps=10, stable_steps=80, decay_steps=10)
    >>> [float(wsd(t)) for t in (0, 5, 10, 90, 95, 100)]
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """

    name = "warmup-stable-decay"
    time_arguments = ("warmup_steps", "stable_steps", "decay_steps")

    def __init__(
        self,
        learning_rate: float,
        warmup_steps: float,
        stable_steps: float,
        decay_steps: float,
        tail: str = "linear",
        floor: float = 0.0,
        warmup_from: float = 0.0,
    ) -> None:
        self.learning_rate = not_negative_real("learning_rate", learning_rate)
        self.warmup_steps = not_negative_real("warmup_steps", warmup_steps)
        self.stable_steps = not_negative_real("stable_steps", stable_steps)
        self.decay_steps = positive_real("decay_steps", decay_steps)
        self.tail = one_of("tail", tail, TAILS)
        self.floor = not_negative_real("floor", floor)
        self.warmup_from = not_negative_real("warmup_from", warmup_from)
        if self.warmup_from > 1:
            raise ConfigurationError(received("warmup_from", warmup_from, "a share of the rate from 0 to 1"))

    def at(self, t: tf.Tensor) -> tf.Tensor:
        """The rate at base step `t`: `floor` from `warmup_steps + stable_steps + decay_steps` on."""
        r = progress(t - self.warmup_steps - self.stable_steps, self.decay_steps)
        if self.tail == "linear":
            share = 1.0 - r
        elif self.tail == "cosine":
            share = (1.0 + tf.cos(math.pi * r)) / 2.0
        elif self.tail == "exponential":
            share = 2.0 * tf.pow(tf.constant(0.5, tf.float64), r) - 1.0
        else:
            share = 1.0 - tf.sqrt(r)
        rate = self.floor + (self.learning_rate - self.floor) * share
        if self.warmup_steps == 0:
            return rate
        climb = self.warmup_from + (1.0 - self.warmup_from) * progress(t, self.warmup_steps)
        return tf.where(t < self.warmup_steps, self.learning_rate * climb, rate)
