"""A run and its decisions in plain words."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from distlr._utils.checks import counted
from distlr.runlog.directory import Run
from distlr.tools.report.agreement import Stretch, epochs_in_words, stretches
from distlr.tools.report.series import epoch_of
from distlr.tools.report.values import TIMES, mapping, number, plain, short, whole

__all__ = ["Verdict", "described", "title_of", "verdict"]

_KINDS = {
    "plateau": ("cut on a plateau", "cuts on a plateau"),
    "control": ("change by hand", "changes by hand"),
    "asked": ("request that waited", "requests that waited"),
    "refused": ("refused request", "refused requests"),
    "bad-numbers": ("answer to bad numbers", "answers to bad numbers"),
    "left-out": ("epoch that lost steps", "epochs that lost steps"),
    "resume": ("continuation of a checkpoint", "continuations of a checkpoint"),
}
_OTHER = ("other decision", "other decisions")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The most important facts about a run.

    Attributes:
        text: one line.
        warnings: the problems, a sentence each.
    """

    text: str
    warnings: list[str]


def verdict(run: Run, rates: list[float]) -> Verdict:
    """How far the run is, its rates, its decisions, and whether its replicas agreed.

    Args:
        run: the run.
        rates: all that are recorded, in order.
    """
    known = stretches(run)
    parts = [_progress(run), *_rates(run, rates), *_decisions(run), *_agreement(known)]
    return Verdict("; ".join(parts) + ".", _warnings(run, known))


def title_of(decision: dict[str, Any]) -> str:
    """The decision and its factor: `cut on a plateau, x0.1`."""
    kind = decision.get("kind")
    what = _KINDS[kind][0] if isinstance(kind, str) and kind in _KINDS else plain(kind or "decision", 40)
    factor = number(decision.get("multiplier"))
    return what if factor is None or factor == 1 else f"{what}, {TIMES}{short(factor)}"


def described(decision: dict[str, Any]) -> str:
    """The title and the reason."""
    reason = decision.get("reason")
    return title_of(decision) + (f": {plain(reason, 200)}" if reason else "")


def _progress(run: Run) -> str:
    planned = whole(run.run.get("epochs"))
    if not run.epochs:
        return "no epoch has ended yet" + (f", {planned} are planned" if planned else "")
    if not planned:
        return counted(len(run.epochs), "epoch")
    return f"{len(run.epochs)} of {planned} epochs{' so far' if _is_under_way(run) else ''}"


def _is_under_way(run: Run) -> bool:
    planned = whole(run.run.get("epochs"))
    return planned is not None and len(run.epochs) < planned and not run.run.get("ended")


def _rates(run: Run, rates: list[float]) -> list[str]:
    if not rates:
        return []
    if min(rates) == max(rates):
        return [f"rate {short(rates[0])} throughout"]
    return [f"rate {short(max(rates))} at its peak, {short(rates[-1])} {'now' if _is_under_way(run) else 'at the end'}"]


def _decisions(run: Run) -> list[str]:
    kinds = [decision.get("kind") for decision in run.decisions]
    numbers = Counter(_KINDS[kind] if isinstance(kind, str) and kind in _KINDS else _OTHER for kind in kinds)
    return [counted(numbers[words], *words) for words in (*_KINDS.values(), _OTHER) if numbers[words]]


def _agreement(known: list[Stretch]) -> list[str]:
    compared = [one for one in known if one.equal is not None]
    if not known or not all(one.equal for one in compared):
        return []  # nothing to say, or said as a warning
    if not compared:
        return ["whether the replicas agreed was not recorded"]
    when = "in every epoch" if len(compared) == len(known) else f"in {_epochs(compared)}"
    counts = list(dict.fromkeys(str(one.replicas) for one in compared if one.replicas is not None))
    if counts == ["1"]:
        return ["one replica"]
    who = {0: "all replicas", 1: f"all {''.join(counts)} replicas"}.get(
        len(counts), f"all replicas ({', then '.join(counts)})"
    )
    return [f"{who} applied the same rates {when}"]


def _warnings(run: Run, known: list[Stretch]) -> list[str]:
    warnings = list(run.damage)
    apart = [one for one in known if one.equal is False]
    if apart:
        warnings.append(f"The replicas did not apply the same rates in {_epochs(apart)}.")
    bad = [
        int(epoch_of(epoch, i)) + 1
        for i, epoch in enumerate(run.epochs)
        if "loss" in (logs := mapping(epoch.get("logs"))) and number(logs["loss"]) is None
    ]
    if bad:
        warnings.append(f"The loss was not a finite number in {epochs_in_words(bad)}.")
    return warnings


def _epochs(spans: list[Stretch]) -> str:
    return epochs_in_words(number for one in spans for number in one.epochs)
