"""The page: one file, which loads nothing and runs nothing."""

from __future__ import annotations

import os
from collections.abc import Sequence

from distlr._utils.atomic_files import write_bytes
from distlr._version import __version__
from distlr.runlog.directory import Run
from distlr.tools.report.series import MOST_METRICS, Chart, Series, charts, labels, marks, span
from distlr.tools.report.style import PALETTE, STYLE_SHEET, colour_class
from distlr.tools.report.svg import chart_svg, key_svg
from distlr.tools.report.tables import agreement_table, configuration_table, decisions_table
from distlr.tools.report.values import escaped
from distlr.tools.report.words import verdict

__all__ = ["html_page", "write_report"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_FIXED = 3  # charts before those of metrics
_MOST_IN_TITLE = 3


def html_page(runs: Sequence[Run], title: str | None = None) -> str:
    """The report as HTML, of runs that are over, under way, or have only begun.

    Args:
        runs: the runs, as read from their directories.
        title: the heading; without it, one of the runs' names.
    """
    names = labels(runs)
    heading = escaped(_title(names) if title is None else title)
    all_charts, decisions = charts(runs), marks(runs)
    parts = [_runs(runs, names, all_charts)]
    if all_charts:
        epochs = span(all_charts)
        most = _FIXED + MOST_METRICS
        figures = [_figure(chart, chart_svg(chart, epochs, decisions, names), names) for chart in all_charts[:most]]
        parts.append(f'<section class="charts" aria-label="Charts">\n{"".join(figures)}</section>\n')
        if len(runs) > len(PALETTE):
            parts.append(
                f'<p class="note">There are {len(PALETTE)} colours; a line names its run under the pointer.</p>\n'
            )
        if len(all_charts) > most:
            parts.append(f'<p class="note">{len(all_charts) - most} more metrics are in the files of the runs.</p>\n')
    if decisions:
        parts.append(_section("Decisions", decisions_table(decisions, names)))
    if any(run.epochs for run in runs):
        parts.append(_section("Agreement of the replicas", agreement_table(runs, names)))
    if runs:
        parts.append(_section("Configuration and versions", configuration_table(runs, names)))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="generator" content="distlr {__version__}">\n<title>{heading}</title>\n'
        f'<link rel="icon" href="data:,">\n<style>\n{STYLE_SHEET}</style>\n</head>\n<body>\n<main>\n'
        f"<header>\n<h1>{heading}</h1>\n</header>\n{''.join(parts)}"
        f"<footer>Written by distlr {__version__}.</footer>\n</main>\n</body>\n</html>\n"
    )


def write_report(path: str | os.PathLike[str], runs: Sequence[Run], title: str | None = None) -> None:
    """Writes the report to a file, whole or not at all.

    Raises:
        OSError: it cannot be written there.
    """
    write_bytes(path, html_page(runs, title).encode())


def _title(names: Sequence[str]) -> str:
    if len(names) > _MOST_IN_TITLE:
        return f"Report of {len(names)} runs"
    return f"Report of {', '.join(names[:-1])}{' and ' if len(names) > 1 else ''}{''.join(names[-1:])}"


def _runs(runs: Sequence[Run], names: Sequence[str], all_charts: Sequence[Chart]) -> str:
    lines = [line for chart in all_charts for line in chart.series if line.name == "learning_rate"]
    rates = {line.run: [rate for _, rate in line.points if rate is not None] for line in lines}
    items = []
    for i, run in enumerate(runs):
        run_verdict = verdict(run, rates.get(i, []))
        warnings = "".join(f'<p class="warning">Warning: {escaped(text)}</p>' for text in run_verdict.warnings)
        heading = f"<h2>{escaped(names[i])}</h2>"
        items.append(f'<li class="{colour_class(i)}">{heading}<p>{escaped(run_verdict.text, 600)}</p>{warnings}</li>\n')
    return f'<ul class="runs" aria-label="Runs">\n{"".join(items)}</ul>\n'


def _figure(chart: Chart, drawing: str, names: Sequence[str]) -> str:
    caption = f"<h3>{escaped(chart.title)}</h3>{_legend(chart.series, names)}"
    return f"<figure><figcaption>{caption}</figcaption>{drawing}</figure>\n"


def _legend(lines: Sequence[Series], names: Sequence[str]) -> str:
    """The legend: the colours of the runs, if there are several, and the meaning of dashes."""
    keys = []
    if len(names) > 1:
        keys = [
            f"<span>{key_svg(run)}{escaped(names[run])}</span>" for run in dict.fromkeys(line.run for line in lines)
        ]
    if any(line.dashed for line in lines):
        run = 0 if len(names) == 1 else None
        keys += [f"<span>{key_svg(run)}training</span>", f"<span>{key_svg(run, dashed=True)}validation</span>"]
    return "".join(keys)


def _section(heading: str, content: str) -> str:
    return f"<section>\n<h2>{heading}</h2>\n{content}</section>\n"
