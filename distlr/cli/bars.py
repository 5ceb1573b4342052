"""Curves on a terminal, as bars."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

__all__ = ["WIDTH", "bars"]

WIDTH = 60
_BARS = " ▁▂▃▄▅▆▇█"


def bars(values: Sequence[float], *, low: float = 0.0, high: float | None = None, rows: int = 1) -> list[str]:
    """Lines of equal length, at most `WIDTH`, a bar a column: the highest of the values that it stands for.

    Args:
        values: from left to right.
        low: where a bar has no height; anything above it has some.
        high: where it is full; by default the highest value.
        rows: how many lines high.

    >>> bars([0, 1, 2, 4])
    [' ▂▄█']
    >>> bars([0, 1, 2, 4], rows=2)
    ['   █', ' ▄██']
    """
    width = min(WIDTH, len(values))
    edges = [len(values) * i // max(width, 1) for i in range(width + 1)]
    columns = [max(values[start:end]) for start, end in itertools.pairwise(edges)]
    top = max(columns, default=low) if high is None else high
    span = (top - low) or 1.0
    full = 8 * rows
    levels = [min(full, max(int(value > low), round(full * (value - low) / span))) for value in columns]
    return ["".join(_BARS[min(8, max(0, level - 8 * row))] for level in levels) for row in reversed(range(rows))]
