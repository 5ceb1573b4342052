"""Cosine decay with restarts."""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from distlr._utils.checks import not_negative_real, positive_real
from distlr.errors import ConfigurationError, received
from distlr.schedules.schedule import Schedule, divided, progress

__all__ = ["CosineRestarts"]

_LAST = 2.0**53  # the largest time that float64 counts by ones
_SLOWEST = 1.0001  # the table of cycles has 300 000 entries then; nearer to 1 it would fill the memory


@keras.saving.register_keras_serializable("distlr")
class CosineRestarts(Schedule):
    """Cycles of cosine decay: cycle i is `first_steps * t_mul^i` long and begins at `initial_learning_rate * m_mul^i`.

    With L the cycle's length, w the warmup's and s the base steps since the cycle began (at `t >=` its time):
    `floor + (peak - floor) (1 + cos(pi (s - w) / (L - w))) / 2`, and for s < w a line from `warmup_from * peak` to it.

    Source: Loshchilov and Hutter 2017, SGDR, arXiv 1608.03983, section 3. (Keras' `CosineDecayRestarts` finds the cycle
    by a logarithm, which is a cycle off at some boundaries where `t_mul` is not 1.)

    Args:
        initial_learning_rate: the first cycle's peak, at least 0.
        first_steps: the first cycle's length in base steps, above 0.
        t_mul: each cycle's length over the one before: 1, or at least 1.0001.
        m_mul: each cycle's peak over the one before, above 0.
        floor: the rate at a cycle's end, at least 0.
        warmup_steps: the climb at the beginning of each cycle; shorter than the first cycle.
        warmup_from: the share of the peak that the climb begins at, in [0, 1].

    >>> cycles = CosineRestarts(1.0, first_steps=10, t_mul=2.0, m_mul=0.5)
    >>> [round(float(cycles(t)), 6) for t in (0, 5, 10, 20, 30)]
    [1.0, 0.5, 0.5, 0.25, 0.25]
    """

    name = "cosine-restarts"
    time_arguments = ("first_steps", "warmup_steps")

    def __init__(
        self,
        initial_learning_rate: float,
        first_steps: float,
        t_mul: float = 1.0,
        m_mul: float = 1.0,
        floor: float = 0.0,
        warmup_steps: float = 0.0,
        warmup_from: float = 0.0,
    ) -> None:
        self.initial_learning_rate = not_negative_real("initial_learning_rate", initial_learning_rate)
        self.first_steps = positive_real("first_steps", first_steps)
        self.t_mul = positive_real("t_mul", t_mul)
        self.m_mul = positive_real("m_mul", m_mul)
        self.floor = not_negative_real("floor", floor)
        self.warmup_steps = not_negative_real("warmup_steps", warmup_steps)
        self.warmup_from = not_negative_real("warmup_from", warmup_from)
        if self.t_mul < 1:
            raise ConfigurationError(received("t_mul", t_mul, "at least 1: shorter and shorter cycles would end"))
        if 1 < self.t_mul < _SLOWEST:
            hint = "write 1 for cycles of one length"
            raise ConfigurationError(received("t_mul", t_mul, f"1, or at least {_SLOWEST}", hint))
        if self.warmup_steps >= self.first_steps:
            hint = "shorten it, or lengthen the first cycle"
            raise ConfigurationError(received("warmup_steps", warmup_steps, f"shorter than {first_steps}", hint))
        if self.warmup_from > 1:
            raise ConfigurationError(received("warmup_from", warmup_from, "a share of the peak from 0 to 1"))

    def at(self, t: tf.Tensor) -> tf.Tensor:
        """The rate at base step `t`, cycle after cycle without an end; `t` = 2^53 at most where `t_mul` is above 1."""
        cycle, begin, length = self._cycle(t)
        s = t - begin
        peak = self.initial_learning_rate * tf.pow(tf.constant(self.m_mul, tf.float64), cycle)
        share = progress(s - self.warmup_steps, length - self.warmup_steps)
        rate = self.floor + (peak - self.floor) * (1.0 + tf.cos(math.pi * share)) / 2.0
        if self.warmup_steps == 0:
            return rate
        climb = peak * (self.warmup_from + (1.0 - self.warmup_from) * progress(s, self.warmup_steps))
        return tf.where(s < self.warmup_steps, climb, rate)

    def _cycle(self, t: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The number, the beginning and the length of the cycle that `t` is in."""
        if self.t_mul == 1:
            cycle = tf.floor(divided(t, self.first_steps))
            return cycle, cycle * self.first_steps, tf.fill(tf.shape(t), tf.constant(self.first_steps, tf.float64))
        begins = [0.0]
        while begins[-1] < _LAST:
            begins.append(begins[-1] + self.first_steps * self.t_mul ** (len(begins) - 1))
        table = tf.constant(begins, tf.float64)
        # The logarithm is right to a cycle; the table says which.
        guess = tf.math.log1p(t / self.first_steps * (self.t_mul - 1.0)) / math.log(self.t_mul)
        index = tf.clip_by_value(tf.cast(guess, tf.int64), 0, len(begins) - 2)
        index += tf.cast(t >= tf.gather(table, index + 1), tf.int64) - tf.cast(t < tf.gather(table, index), tf.int64)
        index = tf.clip_by_value(index, 0, len(begins) - 2)
        begin = tf.gather(table, index)
        return tf.cast(index, tf.float64), begin, tf.gather(table, index + 1) - begin
