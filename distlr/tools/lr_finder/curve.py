"""The curve of a learning-rate range test: its rates, its end, and its suggestion. Pure, without TensorFlow."""

from __future__ import annotations

import bisect
import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from distlr._utils.checks import positive_integer, positive_real, real
from distlr.errors import ConfigurationError, received

__all__ = ["RangeTest", "Sweep", "steepest", "valley"]

_ENDS = 10  # a tenth of the points at each end says nothing: the mean of few, and the divergence
_LOWEST, _HIGHEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def steepest(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """The rate at which the loss falls fastest against log(rate), where the test would learn most.

    The least slope `(loss[i+1] - loss[i-1]) / (log(rate[i+1]) - log(rate[i-1]))`, without a tenth of the points at each
    end, at least one. All after a number that is not finite is ignored.

    Args:
        rates: increasing.
        losses: one a rate, smoothed.

    Returns:
        None where no slope is below 0, as with fewer than three points.

    >>> steepest([0.001, 0.01, 0.1, 1.0, 10.0], [2.0, 1.9, 1.0, 0.8, 4.0])
    0.1
    """
    count = _finite(losses)
    left_out = max(1, count // _ENDS)
    slopes = {
        i: (losses[i + 1] - losses[i - 1]) / math.log(rates[i + 1] / rates[i - 1])
        for i in range(left_out, count - left_out)
    }
    index = min(slopes, key=slopes.__getitem__, default=None)
    return rates[index] if index is not None and slopes[index] < 0 else None


def valley(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """The rate in the middle of the longest stretch over which the loss falls.

    The stretch is a longest strictly decreasing subsequence of the losses (points between may be higher: noise does not
    end it), and the rate is that of its middle member, of two the lower one. All after a number that is not finite
    is ignored.

    Args:
        rates: increasing.
        losses: one a rate, smoothed.

    Returns:
        None where no loss is below one before it.

    >>> valley([0.001, 0.01, 0.1, 1.0, 10.0], [2.0, 1.9, 1.0, 0.8, 4.0])
    0.01
    """
    fall = _longest_fall(losses[: _finite(losses)])
    return rates[fall[(len(fall) - 1) // 2]] if len(fall) > 1 else None


def _finite(values: Sequence[float]) -> int:
    """How many values there are before the first that is not finite."""
    return next((i for i, value in enumerate(values) if not math.isfinite(value)), len(values))


def _longest_fall(values: Sequence[float]) -> list[int]:
    """The places of a longest strictly decreasing subsequence, in n log(n)."""
    lows: list[float] = []  # by length: the negative of the highest value that a fall of that length can end with
    ends: list[int] = []  # and its place
    before: list[int | None] = []
    for place, value in enumerate(values):
        length = bisect.bisect_left(lows, -value)
        before.append(ends[length - 1] if length else None)
        if lows[length : length + 1] != [-value]:  # the first of equal ones counts
            lows[length : length + 1], ends[length : length + 1] = [-value], [place]
    chain: list[int] = []
    last = ends[-1] if ends else None
    while last is not None:
        chain.append(last)
        last = before[last]
    return chain[::-1]


@dataclasses.dataclass(frozen=True)
class RangeTest:
    """The result of a learning-rate range test, `distlr.find_lr`.

    Attributes:
        rates: the applied rates, one an update, at the global batch, up to the last one with a finite loss.
        losses: the loss of each update's batch, over all replicas and ranks, before the update.
        smoothed: their bias-corrected exponential mean.
        steepest: the rate at which the smoothed loss falls fastest; see `steepest`.
        valley: the rate in the middle of its longest fall; see `valley`.
        factor: the factor of the job's rule: a rate at the global batch is `factor` times the rate at the base batch.
        stopped: why the test ended.

    >>> losses = [2.0, 1.0, 3.0]
    >>> found = RangeTest([0.01, 0.1, 1.0], losses, losses, steepest=None, valley=0.01, factor=4.0, stopped="the end")
    >>> found.suggestion, found.base(found.suggestion)
    (0.01, 0.0025)
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    steepest: float | None
    valley: float | None
    factor: float
    stopped: str

    @property
    def suggestion(self) -> float | None:
        """The valley, or the steepest where there is none; at the global batch, as both are."""
        return self.steepest if self.valley is None else self.valley

    def base(self, rate: float) -> float:
        """The rate at the base batch, `rate / factor`, for a script that gives the job its batch."""
        return rate / self.factor

    def explain(self) -> str:
        """The result, in a few lines."""
        lines = [f"{len(self.rates)} rates; the test ended because {self.stopped}."]
        for name, rate, what in (
            ("valley", self.valley, "the middle of the longest fall of the smoothed loss"),
            ("steepest", self.steepest, "where it falls fastest"),
        ):
            if rate is not None:
                lines.append(
                    f"{name}: {rate:.3g} at the global batch, {self.base(rate):.3g} at the base batch; {what}."
                )
        if self.suggestion is None:
            lines.append(
                "The smoothed loss falls nowhere, so there is no rate to suggest. Fix: begin at a lower rate, "
                "take more steps, or see whether the model learns anything at a small constant rate."
            )
        elif self.steepest is None:
            lines.append("steepest: none, the loss falls at the ends alone. Fix: take more steps.")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The attributes and the suggestion, and under "base" the rates at the base batch; plain JSON values."""
        points = {"steepest": self.steepest, "valley": self.valley, "suggestion": self.suggestion}
        base = {name: None if rate is None else self.base(rate) for name, rate in points.items()}
        return {**dataclasses.asdict(self), **points, "base": base}

    def draw(self, path: str | os.PathLike[str]) -> None:
        """Writes a picture of the curve.

        Args:
            path: the path of a PNG file.

        Raises:
            ConfigurationError: matplotlib is not installed.
        """
        from distlr._utils.figures import picture

        with picture(path) as (axes,):
            axes.plot(self.rates, self.losses, color="C0", alpha=0.3, linewidth=1, label="loss of the batch")
            axes.plot(self.rates, self.smoothed, color="C0", linewidth=2, label="smoothed")
            for i, (name, rate) in enumerate((("valley", self.valley), ("steepest", self.steepest))):
                if rate is not None:
                    label = f"{name}: {rate:.3g}, base {self.base(rate):.3g}"
                    axes.axvline(rate, color=f"C{i + 1}", linestyle="--", linewidth=1, label=label)
            axes.set(xscale="log", xlabel="learning rate at the global batch", ylabel="loss")
            if self.smoothed:
                low, high = self.shown()
                axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
            axes.legend(frameon=False)

    def shown(self) -> tuple[float, float]:
        """The least and the greatest smoothed loss that a picture should hold: without the last one, that ended it."""
        values = self.smoothed[:-1] or self.smoothed
        low, high = min(self.smoothed), max(values)
        return low, high if high > low else low + 1.0


class Sweep:
    """A range test in progress: which rates, the smoothed loss, and where it ends. The arguments are `find_lr`'s.

    Raises:
        ConfigurationError, ConfigurationTypeError: an argument is out of its range.
    """

    def __init__(self, low: float, high: float, steps: int, smoothing: float, stop_at: float) -> None:
        self.low, self.high = positive_real("low", low), positive_real("high", high)
        if self.low < _LOWEST:
            raise ConfigurationError(received("low", low, f"at least {_LOWEST:.3g}, as a float32 is"))
        if not self.low < self.high <= _HIGHEST:
            raise ConfigurationError(received("high", high, f"above low={self.low:g}, and a float32"))
        self.steps = positive_integer("steps", steps)
        if self.steps < 3:
            raise ConfigurationError(received("steps", steps, "at least 3", "write steps=100"))
        self.smoothing = real("smoothing", smoothing)
        if not 0 <= self.smoothing < 1:
            raise ConfigurationError(received("smoothing", smoothing, "in [0, 1)", "write 0 for none"))
        self.stop_at = real("stop_at", stop_at)
        if not self.stop_at > 1:  # infinity is "never"
            raise ConfigurationError(received("stop_at", stop_at, "above 1", "write float('inf') to go to the end"))
        # In float32, as the optimizer applies them, so that the reported rates are the applied ones.
        exact = self.low * (self.high / self.low) ** (np.arange(self.steps) / (self.steps - 1))
        self.rates: list[float] = [float(rate) for rate in exact.astype(np.float32)]
        if len(set(self.rates)) < self.steps:
            expected = f"so few that the rates from {self.low:g} to {self.high:g} differ"
            raise ConfigurationError(received("steps", steps, expected))
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self.stopped = ""
        self._mean = 0.0

    def add(self, loss: float) -> bool:
        """Notes the loss of the next rate; returns whether the test goes on."""
        rate = self.rates[len(self.losses)]
        if not math.isfinite(loss):
            self.stopped = f"the loss was {loss:g} at the rate {rate:.3g}"
            return False
        best = min(self.smoothed, default=math.inf)
        self.losses.append(loss)
        self._mean = self.smoothing * self._mean + (1 - self.smoothing) * loss
        self.smoothed.append(self._mean / (1 - self.smoothing ** len(self.losses)))
        # stop_at * best, where the best is positive; and as far above it where it is not.
        if math.isfinite(self.stop_at) and self.smoothed[-1] > best + (self.stop_at - 1) * abs(best):
            self.stopped = (
                f"the smoothed loss at the rate {rate:.3g} was over {self.stop_at:g} times its best, {best:.4g}"
            )
            return False
        if len(self.losses) == self.steps:
            self.stopped = f"all rates up to {rate:.3g} were tried"
            return False
        return True

    def result(self, factor: float) -> RangeTest:
        """The result of the sweep."""
        rates = self.rates[: len(self.losses)]
        return RangeTest(
            rates=rates,
            losses=list(self.losses),
            smoothed=list(self.smoothed),
            steepest=steepest(rates, self.smoothed),
            valley=valley(rates, self.smoothed),
            factor=factor,
            stopped=self.stopped,
        )
