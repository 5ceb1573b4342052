"""Ranks in messages: `ranks 0-2, 5`."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["name_ranks", "spans"]


def spans(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Numbers in order as the first and the last of each unbroken row.

    >>> spans([1, 2, 3, 7])
    [(1, 3), (7, 7)]
    """
    rows: list[tuple[int, int]] = []
    for number in numbers:
        if rows and number == rows[-1][1] + 1:
            rows[-1] = (rows[-1][0], number)
        else:
            rows.append((number, number))
    return rows


def name_ranks(ranks: Iterable[int]) -> str:
    """Names ranks briefly.

    >>> name_ranks([0, 1, 2, 5]), name_ranks([3])
    ('ranks 0-2, 5', 'rank 3')
    """
    names = [str(first) if first == last else f"{first}-{last}" for first, last in spans(sorted(ranks))]
    return f"rank{'' if len(names) == 1 and '-' not in names[0] else 's'} {', '.join(names)}"
