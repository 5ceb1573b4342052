"""A chart as SVG: axes, lines, and numbered marks; colours and type come from the page's style sheet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from distlr.tools.report.axis import Axis
from distlr.tools.report.series import Chart, Mark, Point, Series
from distlr.tools.report.style import LETTER, colour_class
from distlr.tools.report.values import DASH, escaped, short
from distlr.tools.report.words import described

__all__ = ["chart_svg", "key_svg"]

_WIDTH, _HEIGHT = 440, 280
_TOP, _RIGHT, _BOTTOM = 30, 16, 46  # margins; the left one depends on the labels
_MARKS = 13  # the middle of the row of numbers over the plot
_MOST_LINES = 8  # under one number; of more, which would hide the plot, the first and the last are drawn

_Group: TypeAlias = "list[tuple[float, Mark]]"
"""Marks that share a number's box, each with its place from the left."""


def chart_svg(chart: Chart, epochs: Axis, marks: Sequence[Mark], names: Sequence[str]) -> str:
    """One chart.

    Args:
        chart: the chart to draw.
        epochs: the horizontal axis.
        marks: the decisions; those beyond the axis are left out.
        names: a label for each run.
    """
    values = [value for series in chart.series for _, value in series.points if value is not None]
    return _Drawing(Axis.over(values, most=4, from_zero=chart.from_zero), epochs).svg(chart, marks, names)


def key_svg(run: int | None, dashed: bool = False) -> str:
    """A short piece of a line, for a legend."""
    line = f'<path class="line{" dashed" if dashed else ""}" d="M2,6H26"/>'
    return f'<svg class="key {colour_class(run)}" viewBox="0 0 28 12" aria-hidden="true">{line}</svg>'


class _Drawing:
    """The layout of one chart."""

    def __init__(self, vertical: Axis, epochs: Axis) -> None:
        self._vertical, self._epochs = vertical, epochs
        self._left = 30 + LETTER * max(3, *(len(label) for label in vertical.labels()))
        self._bottom, self._end = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT

    def svg(self, chart: Chart, marks: Sequence[Mark], names: Sequence[str]) -> str:
        lines = "".join(self._series(series, names[series.run]) for series in chart.series)
        about = f"{chart.title} over epochs. " + " ".join(_series_summary(series, names) for series in chart.series[:8])
        return (
            f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
            f'aria-label="{escaped(about, 1000)}">{self._axes(chart.axis)}{self._marks(marks, names)}{lines}</svg>'
        )

    def _x(self, at: float) -> float:
        return self._left + self._epochs.share(at) * (self._end - self._left)

    def _y(self, value: float) -> float:
        return self._bottom - self._vertical.share(value) * (self._bottom - _TOP)

    def _axes(self, title: str) -> str:
        grid, texts = [], []
        for tick, label in zip(self._vertical.ticks, self._vertical.labels(), strict=True):
            y = self._y(tick)
            grid.append(f"M{self._left:.1f},{y:.1f}H{self._end}")
            texts.append(
                f'<text class="tick" x="{self._left - 8:.1f}" y="{y + 5:.1f}" text-anchor="end">{label}</text>'
            )
        ends = []
        for tick, label in zip(self._epochs.ticks, self._epochs.labels(), strict=True):
            x = self._x(tick)
            ends.append(f"M{x:.1f},{self._bottom}v5")
            anchor = "end" if x + LETTER * len(label) / 2 > _WIDTH else "middle"
            at = f'x="{min(x, _WIDTH - 1):.1f}" y="{self._bottom + 20}"'
            texts.append(f'<text class="tick" {at} text-anchor="{anchor}">{label}</text>')
        middle = f'x="{(self._left + self._end) / 2:.1f}" y="{_HEIGHT - 7}" text-anchor="middle"'
        along = f'transform="translate(14,{(_TOP + self._bottom) / 2}) rotate(-90)" text-anchor="middle"'
        base = f"M{self._left:.1f},{self._bottom}H{self._end}"
        return (
            f'<path class="grid" d="{"".join(grid)}"/><path class="base" d="{base}{"".join(ends)}"/>{"".join(texts)}'
            f'<text class="title" {along}>{escaped(self._vertical.titled(title))}</text>'
            f'<text class="title" {middle}>{self._epochs.titled("epochs")}</text>'
        )

    def _marks(self, marks: Sequence[Mark], names: Sequence[str]) -> str:
        """A line for each decision; numbers that would stand on each other become one, `3-5`."""
        inside = [(self._x(mark.at), mark) for mark in marks if mark.at is not None and mark.is_on(self._epochs)]
        return "".join(self._mark(group, names) for group in _groups(inside))

    def _mark(self, group: _Group, names: Sequence[str]) -> str:
        label, left, width = _box(group)
        of_one = len({mark.run for _, mark in group}) == 1
        colour = colour_class(group[0][1].run if of_one else None)
        lined = group if len(group) <= _MOST_LINES else [group[0], group[-1]]
        lines = "".join(f"M{x}V{self._bottom}" for x in dict.fromkeys(f"{x:.1f},{_TOP - 6}" for x, _ in lined))
        descriptions = (f"{mark.number}: {names[mark.run]}: {described(mark.decision)}" for _, mark in group[:5])
        title = "\n".join(map(escaped, descriptions))
        return (
            f'<g class="mark {colour}"><title>{title}</title><path d="{lines}"/>'
            f'<rect x="{left:.1f}" y="{_MARKS - 9}" width="{width:.1f}" height="18" rx="9"/>'
            f'<text x="{left + width / 2:.1f}" y="{_MARKS + 4.5}" text-anchor="middle">{label}</text></g>'
        )

    def _series(self, series: Series, name: str) -> str:
        style = "series line dashed" if series.dashed else "series line"
        data = f'data-run="{escaped(name)}" data-series="{escaped(series.name)}"'
        title = f"<title>{escaped(f'{name}: {series.name}')}</title>"
        path = f'<path class="{style}" {data} d="{self._path(series.points)}">{title}</path>'
        return f'<g class="{colour_class(series.run)}">{path}{self._dots(series) if series.has_dots else ""}</g>'

    def _path(self, points: Sequence[Point]) -> str:
        """Pieces between gaps; one that is a single point has the length 0, which round caps make visible."""
        parts: list[str] = []
        pen = "M"
        for at, value in points:
            if value is None:
                pen = "M"
                continue
            parts.append(f"{pen}{self._x(at):.1f},{self._y(value):.1f}{'h0' if pen == 'M' else ''}")
            pen = "L"
        return "".join(parts)

    def _dots(self, series: Series) -> str:
        return "".join(
            f'<circle class="dot" cx="{self._x(at):.1f}" cy="{self._y(value):.1f}" r="2.6">'
            f"<title>{escaped(f'epoch {at:g}: {series.name} {short(value)}')}</title></circle>"
            for at, value in series.points
            if value is not None
        )


def _groups(marks: Iterable[tuple[float, Mark]]) -> list[_Group]:
    """Marks in a row whose numbers would stand on each other."""
    groups: list[_Group] = []
    for each in marks:
        groups.append([each])
        while len(groups) > 1 and _box(groups[-1])[1] < sum(_box(groups[-2])[1:]) + 3:
            last = groups.pop()
            groups[-1] += last
    return groups


def _box(group: _Group) -> tuple[str, float, float]:
    """The label over marks, and where its box begins and how wide it is: over the first, and within the chart."""
    first, last = group[0][1].number, group[-1][1].number
    label = str(first) if first == last else f"{first}{DASH}{last}"
    width = max(18.0, 10 + LETTER * len(label))
    return label, min(max(group[0][0] - 9, 1), _WIDTH - width - 1), width


def _series_summary(series: Series, names: Sequence[str]) -> str:
    values = [value for _, value in series.points if value is not None]
    first, last, least, greatest = (short(value) for value in (values[0], values[-1], min(values), max(values)))
    return f"{names[series.run]}: {series.name} from {first} to {last}, between {least} and {greatest}."
