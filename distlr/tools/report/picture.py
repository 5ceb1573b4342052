"""The picture: rate, multiplier and loss as a PNG."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

from distlr._utils.figures import picture
from distlr.runlog.directory import Run
from distlr.tools.report.series import Chart, Mark, charts, labels, marks, span
from distlr.tools.report.style import PALETTE
from distlr.tools.report.values import plain

__all__ = ["draw"]

_DRAWN = ("learning_rate", "lr_multiplier", "loss", "val_loss")


def draw(path: str | os.PathLike[str], runs: Sequence[Run]) -> None:
    """Draws the runs' rate, their multiplier where it changes, and their loss; vertical lines are decisions.

    Raises:
        ConfigurationError: matplotlib is not installed.
        OSError: the file cannot be written there.
    """
    drawn_charts = [chart for chart in charts(runs) if _is_drawn(chart)]
    decisions, names, epochs = marks(runs), labels(runs), span(drawn_charts)
    rows = max(1, len(drawn_charts))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # for a character in a run's name: the font shows a box
        with picture(path, rows=rows, size=(8, 1 + 2.6 * rows)) as all_axes:
            for each, chart in zip(all_axes, drawn_charts, strict=False):
                _chart(each, chart, [mark for mark in decisions if mark.is_on(epochs)])
            all_axes[-1].set(xlabel="epochs", xlim=(epochs.low, epochs.high))
            _legend(all_axes[0], names, any(line.dashed for chart in drawn_charts for line in chart.series))


def _is_drawn(chart: Chart) -> bool:
    values = {value for line in chart.series for _, value in line.points if value is not None}
    names = {line.name for line in chart.series}
    return bool(names & set(_DRAWN)) and (len(values) > 1 or "lr_multiplier" not in names)


def _chart(axes: Any, chart: Chart, decisions: Sequence[Mark]) -> None:
    for line in chart.series:
        x = [at for at, _ in line.points]
        y = [float("nan") if value is None else value for _, value in line.points]
        dash, dot = "--" if line.dashed else "-", "." if line.has_dots else ""
        axes.plot(x, y, color=_colour(line.run), linestyle=dash, marker=dot)
    for mark in decisions:
        axes.axvline(mark.at, color=_colour(mark.run), linestyle=":", linewidth=1)
    if chart.from_zero:
        axes.set_ylim(bottom=0)
    axes.set_ylabel(chart.axis)


def _legend(axes: Any, names: Sequence[str], dashed: bool) -> None:
    from matplotlib.lines import Line2D

    # matplotlib leaves out labels that begin with "_", and reads text between dollars as a formula.
    lines = [Line2D([], [], color=_colour(i), label=f"run {plain(name, 40)}") for i, name in enumerate(names)]
    kinds = [Line2D([], [], color="0.4", linestyle="--", label="validation")] if dashed else []
    for text in axes.legend(handles=[*lines, *kinds], frameon=False, fontsize="small").get_texts():
        text.set_parse_math(False)


def _colour(run: int) -> str:
    return PALETTE[run % len(PALETTE)][0]
