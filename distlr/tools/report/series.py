"""The content of charts, from runs: lines over epochs, and decisions as numbered marks."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from distlr.runlog.directory import Run
from distlr.tools.report.axis import Axis
from distlr.tools.report.values import TIMES, mapping, number, plain, sequence

__all__ = ["Chart", "Mark", "Point", "Series", "charts", "epoch_of", "labels", "marks", "span", "thinned"]

Point: TypeAlias = "tuple[float, float | None]"
"""A position in epochs and a value; None is a gap in the line."""

MOST_METRICS = 60
"""Charts of metrics on one page."""

_MOST_POINTS = 1000
_MOST_DOTS = 60
_RATE, _MULTIPLIER, _VALIDATION = "learning_rate", "lr_multiplier", "val_"
_NO_METRICS = frozenset({_RATE, _MULTIPLIER, "samples_seen"})  # in the logs, too


@dataclasses.dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        run: the number of its run, from 0.
        name: as the run's files have it: "learning_rate", "val_loss".
        points: in order.
        dashed: whether it is a validation's.
        each_epoch: whether the points are epochs.
    """

    run: int
    name: str
    points: list[Point]
    dashed: bool = False
    each_epoch: bool = False

    @property
    def has_dots(self) -> bool:
        """Whether the points are to be seen one by one."""
        return self.each_epoch and len(self.points) <= _MOST_DOTS


@dataclasses.dataclass(frozen=True)
class Chart:
    """Lines that share their axes.

    Attributes:
        title: the title of the chart.
        axis: the title of the vertical axis, with its unit; short, since it stands along the axis.
        series: the lines, at least one.
        from_zero: whether the vertical axis has to show 0.
    """

    title: str
    axis: str
    series: list[Series]
    from_zero: bool = False


@dataclasses.dataclass(frozen=True)
class Mark:
    """A decision.

    Attributes:
        number: from 1, over all runs, in the order of positions.
        run: the number of its run, from 0.
        at: the position in epochs; None where the file does not say it.
        decision: the line of the file.
    """

    number: int
    run: int
    at: float | None
    decision: dict[str, Any]

    def is_on(self, epochs: Axis) -> bool:
        """Whether it is in the part of the run that an axis shows."""
        return self.at is not None and epochs.low <= self.at <= epochs.high


def labels(runs: Sequence[Run]) -> list[str]:
    """A name for each run, all different."""
    unique_labels: list[str] = []
    for run in runs:
        name = label = plain(run.name or "run", 60)
        count = 1
        while label in unique_labels:
            count += 1
            label = f"{name} ({count})"
        unique_labels.append(label)
    return unique_labels


def marks(runs: Sequence[Run]) -> list[Mark]:
    """The decisions of all runs, numbered."""
    entries = [(_at(decision), run, decision) for run, one in enumerate(runs) for decision in one.decisions]
    entries.sort(key=lambda each: (each[0] is None, each[0] or 0.0, each[1]))  # stable: else as they were made
    return [Mark(i + 1, run, at, decision) for i, (at, run, decision) in enumerate(entries)]


def charts(runs: Sequence[Run]) -> list[Chart]:
    """Rate, multiplier and loss, then each other metric with its validation; those that no run has are left out."""
    rates = [_rates(run, index) for index, run in enumerate(runs)]
    multipliers = [_multipliers(run, index) for index, run in enumerate(runs)]
    all_charts = [
        Chart("Learning rate", "learning rate", rates, from_zero=True),
        Chart("Multiplier", f"multiplier ({TIMES})", multipliers, from_zero=True),
    ]
    pairs: dict[str, list[str]] = {"loss": []}
    for name in dict.fromkeys(name for run in runs for epoch in run.epochs for name in mapping(epoch.get("logs"))):
        if name not in _NO_METRICS:
            pairs.setdefault(_trained(name), []).append(name)
    for metric, pair in pairs.items():
        lines = [_metric(run, index, name) for index, run in enumerate(runs) for name in sorted(pair, key=len)]
        all_charts.append(Chart(_heading(plain(metric, 60)), plain(metric, 20), lines))
    shown = [dataclasses.replace(chart, series=_visible(chart.series)) for chart in all_charts]
    return [chart for chart in shown if chart.series]


def span(shown_charts: Iterable[Chart]) -> Axis:
    """The axis of epochs, which all charts share."""
    ends = [at for chart in shown_charts for series in chart.series for at, _ in series.points]
    return Axis.over([0.0, *ends], most=6, to_ticks=False)


def epoch_of(record: dict[str, Any], index: int) -> float:
    """The number of an epoch, from 0, of the record at `index`."""
    epoch = number(record.get("epoch"))
    return float(index) if epoch is None else epoch


def thinned(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """At most about `most` of the points: the least, the greatest and one gap, if any, of each stretch."""
    if len(points) <= most:
        return list(points)
    parts = max(1, most // 3)
    indices = {0, len(points) - 1}
    for part in range(parts):
        stretch = range(part * len(points) // parts, (part + 1) * len(points) // parts)
        values = [(value, i) for i in stretch if (value := points[i][1]) is not None]
        if values:
            indices |= {min(values)[1], max(values)[1]}
        indices.update([i for i in stretch if points[i][1] is None][:1])
    return [points[i] for i in sorted(indices)]


def _visible(lines: Iterable[Series]) -> list[Series]:
    """The lines that have something to show, thinned."""
    seen = (line for line in lines if any(value is not None for _, value in line.points))
    return [dataclasses.replace(line, points=thinned(line.points)) for line in seen]


def _rates(run: Run, index: int) -> Series:
    """The rate within each epoch, or where that is not recorded, at its end."""
    points: list[Point] = []
    curves = False
    for i, epoch in enumerate(run.epochs):
        curve = _curve(epoch.get("curve"))
        curves = curves or bool(curve)
        points += curve or [(epoch_of(epoch, i) + 1, number(epoch.get(_RATE)))]
    return Series(index, _RATE, points, each_epoch=not curves)


def _curve(value: Any) -> list[Point]:
    pairs = (pair for pair in sequence(value) if isinstance(pair, list) and len(pair) == 2)
    return [(at, number(rate)) for position, rate in pairs if (at := number(position)) is not None]


def _multipliers(run: Run, index: int) -> Series:
    """Stairs. The multiplier of a record is the one at the epoch's end, before what is decided there."""
    factors = [(mark.at, number(mark.decision.get("multiplier"))) for mark in marks([run])]
    changes = [(at, factor) for at, factor in factors if at is not None and factor]  # in order
    times = [at for at, _ in changes]
    points: list[Point] = []
    for i, epoch in enumerate(run.epochs):
        begin, value = epoch_of(epoch, i), number(epoch.get(_MULTIPLIER))
        within = changes[bisect.bisect_right(times, begin) : bisect.bisect_left(times, begin + 1)]
        steps: list[Point] = [(begin + 1, value)]
        for at, factor in reversed(within):
            steps.append((at, value))
            value = None if value is None else number(value / factor)
            steps.append((at, value))
        points += [(begin, value), *reversed(steps)]
    return Series(index, _MULTIPLIER, points)


def _metric(run: Run, index: int, name: str) -> Series:
    points = [
        (epoch_of(epoch, i) + 1, number(mapping(epoch.get("logs")).get(name))) for i, epoch in enumerate(run.epochs)
    ]
    return Series(index, name, points, dashed=name != _trained(name), each_epoch=True)


def _heading(metric: str) -> str:
    """`top_5_accuracy` as a heading: `Top 5 accuracy`."""
    words = metric.replace("_", " ").strip() or metric
    return words[:1].upper() + words[1:]


def _trained(name: str) -> str:
    """The metric of the training that belongs to a validation's."""
    return name.removeprefix(_VALIDATION) or name


def _at(decision: dict[str, Any]) -> float | None:
    at, epoch = number(decision.get("at")), number(decision.get("epoch"))
    return at if at is not None or epoch is None else epoch + 1
