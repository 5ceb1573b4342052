"""An axis: a range of numbers with round ticks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

__all__ = ["Axis"]

_LEAST_SPAN = 1e-4  # share of the largest value: below it labels would be many digits of noise
_PLAIN = (1e-3, 1e5)  # labels of larger and smaller values share a power of ten, which the title says
_SUPERSCRIPTS = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")


@dataclasses.dataclass(frozen=True)
class Axis:
    """A range and its ticks.

    Attributes:
        low: where it begins.
        high: where it ends, above `low`.
        ticks: round numbers in the range, equally far from each other: a step of 1, 2 or 5 times a power of ten.
        power: the unit of the labels is 10 to this power.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    power: int

    @classmethod
    def over(cls, values: Iterable[float], *, most: int, from_zero: bool = False, to_ticks: bool = True) -> Axis:
        """The axis that shows all values.

        Args:
            values: finite, at least one.
            most: how many steps between ticks there are at most, but for the ends.
            from_zero: whether 0 has to be in the range.
            to_ticks: whether the range is widened to a tick at each end.
        """
        all_values = [*values, *([0.0] if from_zero else [])]
        low, high = min(all_values), max(all_values)
        largest = max(abs(low), abs(high))
        if high - low <= _LEAST_SPAN * largest or low == high:
            half = 0.5 * largest if low == high else _LEAST_SPAN * largest
            low, high = low - half, (high + half) or 1.0
        step = _round_step((high - low) / most)
        # A hair inside of a tick is on it: 0.1 * 3 is not 0.3.
        first, last = (low / step, high / step)
        if to_ticks:
            begin, end = math.floor(first + 1e-9), math.ceil(last - 1e-9)
            low, high = min(low, begin * step), max(high, end * step)
        else:
            begin, end = math.ceil(first - 1e-9), math.floor(last + 1e-9)
        ticks = tuple(_rounded(i, step) for i in range(begin, end + 1))
        largest = max(abs(low), abs(high))
        power = 0 if _PLAIN[0] <= largest < _PLAIN[1] else math.floor(math.log10(largest))
        return cls(low, high, ticks, power)

    def share(self, value: float) -> float:
        """Where a value stands: 0 at the beginning, 1 at the end."""
        return (value - self.low) / (self.high - self.low)

    def labels(self) -> list[str]:
        """The ticks as text, all with the same decimals."""
        scaled = [tick / 10.0**self.power for tick in self.ticks]
        step = scaled[1] - scaled[0] if len(scaled) > 1 else 1.0
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        return [f"{value or 0.0:.{decimals}f}" for value in scaled]

    def titled(self, title: str) -> str:
        """The title with the unit of the labels: `learning rate (10⁻⁵)`."""
        return f"{title} (10{str(self.power).translate(_SUPERSCRIPTS)})" if self.power else title


def _round_step(least: float) -> float:
    power = math.floor(math.log10(least))
    for digit in (1, 2, 5):
        if digit * 10.0**power >= least * (1 - 1e-9):
            return digit * 10.0**power
    return 10.0 ** (power + 1)


def _rounded(count: int, step: float) -> float:
    """`count` steps, as the float that is nearest to the decimal number."""
    return float(f"{count * step:.12g}")
