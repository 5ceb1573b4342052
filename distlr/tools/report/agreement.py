"""Whether the replicas of a run applied the same rates, epoch by epoch."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from distlr._utils.rank_names import spans
from distlr.runlog.directory import Run
from distlr.tools.report.series import epoch_of
from distlr.tools.report.values import DASH, mapping, plain, sequence, whole

__all__ = ["Stretch", "epochs_in_words", "stretches"]

_MOST_NAMED = 8


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Consecutive epochs with the same agreement.

    Attributes:
        first: its first epoch, from 1.
        last: its last.
        ranks: how many processes there were; None where that was not recorded, as with `replicas`.
        replicas: how many replicas.
        equal: whether all applied the same rates; None where it was not recorded.
        rates: if they are not equal, the rate of each, or a digest of all its rates.
    """

    first: int
    last: int
    ranks: int | None
    replicas: int | None
    equal: bool | None
    rates: tuple[str, ...] = ()

    @property
    def epochs(self) -> range:
        """The numbers of its epochs, from 1."""
        return range(self.first, self.last + 1)

    def rates_in_words(self) -> str:
        """Each rate, and who had it: `0.4 on 0, 1, 3; 0.04 on 2`."""
        who: dict[str, list[int]] = {}
        for i, rate in enumerate(self.rates):
            who.setdefault(rate, []).append(i)
        return "; ".join(f"{rate} on {_few(list(map(str, places)))}" for rate, places in who.items())


def stretches(run: Run) -> list[Stretch]:
    """The whole run, in order."""
    runs_of_epochs: list[Stretch] = []
    for i, epoch in enumerate(run.epochs):
        number = int(epoch_of(epoch, i)) + 1
        one = _stretch(number, mapping(epoch.get("agreement")))
        if runs_of_epochs and runs_of_epochs[-1].last + 1 == number:
            longer = dataclasses.replace(one, first=runs_of_epochs[-1].first)
            if longer == dataclasses.replace(runs_of_epochs[-1], last=number):
                runs_of_epochs[-1] = longer
                continue
        runs_of_epochs.append(one)
    return runs_of_epochs


def epochs_in_words(numbers: Iterable[int]) -> str:
    """`epoch 5`, `epochs 1-3, 7`, of numbers in order."""
    rows = spans(numbers)
    words = [str(first) if first == last else f"{first}{DASH}{last}" for first, last in rows]
    return f"epoch{'' if words == [str(rows[0][0])] else 's'} {_few(words)}"


def _stretch(number: int, record: dict[str, Any]) -> Stretch:
    rates = sequence(record.get("rates"))
    stated = record.get("equal")
    # Rates count as equal only if the file says so and they do not differ.
    equal = None if stated is None else stated is True and len(set(map(str, rates))) <= 1
    words = tuple(_rate(rate) for rate in rates) if equal is False else ()
    return Stretch(number, number, whole(record.get("ranks")), whole(record.get("replicas")), equal, words)


def _rate(value: Any) -> str:
    """A float that is written in hexadecimal, in full; any other text unchanged."""
    if isinstance(value, str) and value.lstrip("-")[:2] == "0x":
        with contextlib.suppress(ValueError, OverflowError):
            return repr(float.fromhex(value))
    return plain(value, 24)


def _few(words: Sequence[str]) -> str:
    more = len(words) - _MOST_NAMED
    return ", ".join(words[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
