"""One cycle up and down."""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from distlr._utils.checks import not_negative_real, one_of, positive_real
from distlr.errors import ConfigurationError, received
from distlr.schedules.schedule import Schedule, progress

__all__ = ["OneCycle"]

ANNEALS = ("cosine", "linear")


@keras.saving.register_keras_serializable("distlr")
class OneCycle(Schedule):
    """Climbs from `peak / start_div` to the peak and falls to `peak / start_div / final_div`, over `steps`.

    Two phases: up until `warm = up * steps`, down until `steps`. Three: up until `warm`, down to where it began
    until `2 warm`, and on to the end. Each goes along a cosine or a line.

    Source: Smith and Topin 2017, super-convergence, arXiv 1708.07120. The arguments are PyTorch's `OneCycleLR`'s, whose
    last step is `total_steps - 1`: it is this one with `steps = total_steps - 1` and
    `up = (pct_start * total_steps - 1) / (total_steps - 1)`.

    Args:
        peak_learning_rate: the largest rate, at least 0.
        steps: the whole length in base steps, above 0.
        up: the share of it that goes up, in (0, 1); with three phases in (0, 0.5].
        start_div: the peak over the first rate, at least 1.
        final_div: the first rate over the last, above 0.
        anneal: "cosine" or "linear".
        three_phase: whether the way down stops over at the first rate.

    >>> cycle = OneCycle(1.0, steps=100, up=0.3, start_div=4, final_div=10, anneal="linear")
    >>> [round(float(cycle(t)), 6) for t in (0, 30, 100, 200)]
    [0.25, 1.0, 0.025, 0.025]
    """

    name = "one-cycle"
    time_arguments = ("steps",)

    def __init__(
        self,
        peak_learning_rate: float,
        steps: float,
        up: float = 0.3,
        start_div: float = 25.0,
        final_div: float = 1e4,
        anneal: str = "cosine",
        three_phase: bool = False,
    ) -> None:
        self.peak_learning_rate = not_negative_real("peak_learning_rate", peak_learning_rate)
        self.steps = positive_real("steps", steps)
        self.up = positive_real("up", up)
        self.start_div = positive_real("start_div", start_div)
        self.final_div = positive_real("final_div", final_div)
        self.anneal = one_of("anneal", anneal, ANNEALS)
        self.three_phase = bool(three_phase)
        if not self.up < 1 or (self.three_phase and self.up > 0.5):
            raise ConfigurationError(received("up", up, "a share below 1, and up to 0.5 with three phases"))

    def at(self, t: tf.Tensor) -> tf.Tensor:
        """The rate at base step `t`: the last one from `steps` on."""
        peak, warm = self.peak_learning_rate, self.up * self.steps
        first = peak / self.start_div
        last = first / self.final_div
        if not self.three_phase:
            down = self._between(peak, last, (t - warm) / (self.steps - warm))
            return tf.where(t < warm, self._between(first, peak, t / warm), down)
        back = self._between(peak, first, (t - warm) / warm)
        rest = self.steps - 2 * warm
        end = self._between(first, last, (t - 2 * warm) / rest) if rest > 0 else tf.fill(tf.shape(t), _f64(last))
        return tf.where(t < warm, self._between(first, peak, t / warm), tf.where(t < 2 * warm, back, end))

    def _between(self, a: float, b: float, share: tf.Tensor) -> tf.Tensor:
        share = progress(share, 1.0)
        if self.anneal == "cosine":
            return b + (a - b) / 2.0 * (1.0 + tf.cos(math.pi * share))
        return a + (b - a) * share


def _f64(value: float) -> tf.Tensor:
    return tf.constant(value, tf.float64)
