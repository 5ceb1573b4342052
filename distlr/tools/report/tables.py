"""The tables of the page: decisions, the ranks' agreement, configuration and versions."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from distlr.runlog.directory import Run
from distlr.tools.report.agreement import epochs_in_words, stretches
from distlr.tools.report.series import Mark
from distlr.tools.report.svg import key_svg
from distlr.tools.report.values import escaped, mapping, number, short
from distlr.tools.report.words import title_of

__all__ = ["agreement_table", "configuration_table", "decisions_table"]

_MOST_ROWS = 500
_DEEPEST = 3  # levels of objects in each other
_MISSING = object()


def decisions_table(marks: Sequence[Mark], names: Sequence[str]) -> str:
    """A row a decision, under the number that the charts show."""
    several = len(names) > 1
    head = ["#", *(["run"] if several else []), "epoch", "what", "rate after", "by", "when"]
    rows = []
    for mark in marks[:_MOST_ROWS]:
        decision = mark.decision
        rate = number(decision.get("learning_rate"))
        reason = decision.get("reason")
        by = decision.get("by")
        why = f"<small>{escaped(reason)}</small>" if reason else ""
        rows.append(
            f'<tr><th scope="row" class="number">{mark.number}</th>'
            + (f"<td>{_run(mark.run, names)}</td>" if several else "")
            + _number(None if mark.at is None else f"{mark.at:.6g}")
            + f'<td class="wide">{escaped(title_of(decision))}{why}</td>'
            + _number(None if rate is None else short(rate))
            + f'<td class="by">{"" if by is None else escaped(by, 80)}</td>'
            + f"<td>{_time(decision.get('time'))}</td></tr>"
        )
    numeric = ("#", "epoch", "rate after")
    return _table("Decisions", head, rows, numeric=numeric) + _more(len(marks), "decisions")


def agreement_table(runs: Sequence[Run], names: Sequence[str]) -> str:
    """A row for each stretch of epochs with the same agreement."""
    several = len(names) > 1
    head = [*(["run"] if several else []), "epochs", "ranks", "replicas", "the same rates on all"]
    entries = [(run, one) for run, each in enumerate(runs) for one in stretches(each)]
    rows = []
    for run, one in entries[:_MOST_ROWS]:
        answer = {True: "yes", None: "not recorded"}.get(one.equal, f"NO: {one.rates_in_words()}")
        rows.append(
            ('<tr class="apart">' if one.equal is False else "<tr>")
            + (f"<td>{_run(run, names)}</td>" if several else "")
            + f'<th scope="row">{escaped(epochs_in_words(one.epochs))}</th>'
            + _number(one.ranks)
            + _number(one.replicas)
            + f'<td class="wide">{escaped(answer, 600)}</td></tr>'
        )
    return _table("Agreement", head, rows, numeric=("ranks", "replicas")) + _more(len(entries), "rows")


def configuration_table(runs: Sequence[Run], names: Sequence[str]) -> str:
    """A column a run; rows in which the runs differ are highlighted."""
    rows = []
    for part, columns in (
        ("Run", [{key: run.run.get(key) for key in ("command", "host", "started", "epochs")} for run in runs]),
        ("Formula and job", [mapping(run.run.get("job")) for run in runs]),
        ("Versions", [mapping(run.run.get("versions")) for run in runs]),
    ):
        flat_columns = [dict(_flattened(column)) for column in columns]
        keys = list(dict.fromkeys(key for column in flat_columns for key in column))
        if keys:
            rows.append(f'<tr class="part"><th scope="rowgroup" colspan="{len(runs) + 1}">{part}</th></tr>')
        for key in keys:
            cells = [_cell(key, column.get(key, _MISSING)) for column in flat_columns]
            differs = ' class="differs"' if len(set(cells)) > 1 and key != "started" else ""
            rows.append(f'<tr{differs}><th scope="row">{escaped(key.replace("_", " "), 60)}</th>{"".join(cells)}</tr>')
    head = [_run(i, names) for i in range(len(runs))]
    return _table("Configuration", ["", *head], rows[:_MOST_ROWS]) + _more(len(rows), "rows")


def _table(name: str, head: Iterable[str], rows: Sequence[str], numeric: Sequence[str] = ()) -> str:
    """A table that scrolls by itself where the page is narrow. Its cells are HTML."""
    cells = "".join(
        f'<th scope="col"{" class=number" if cell in numeric else ""}>{cell}</th>' if cell else "<td></td>"
        for cell in head
    )
    return (
        f'<div class="scroll" role="region" aria-label="{name}" tabindex="0"><table><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>\n"
    )


def _more(count: int, what: str) -> str:
    return f'<p class="note">The first {_MOST_ROWS} of {count} {what}.</p>' if count > _MOST_ROWS else ""


def _run(run: int, names: Sequence[str]) -> str:
    return f'<span class="named">{key_svg(run)}{escaped(names[run])}</span>'


def _number(value: Any) -> str:
    return f'<td class="number">{"" if value is None else value}</td>'


def _time(value: Any) -> str:
    """A time in readable form; any other text unchanged."""
    try:
        time = datetime.datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return "" if value is None else escaped(value, 40)
    zone = " UTC" if time.utcoffset() == datetime.timedelta(0) else f"{time:%z}"
    return f'<time datetime="{escaped(value, 40)}">{time:%Y-%m-%d %H:%M:%S}{zone}</time>'


def _flattened(value: dict[str, Any], before: str = "", deep: int = 1) -> Iterator[tuple[str, Any]]:
    for key, part in value.items():
        name = f"{before}{key}"
        if isinstance(part, dict) and part:
            yield from _flattened(part, f"{name}: ", deep + 1) if deep < _DEEPEST else [(name, "...")]
        else:
            yield name, part


def _cell(key: str, value: Any) -> str:
    if value is _MISSING:
        return "<td></td>"
    if key == "started" and value is not None:
        return f"<td>{_time(value)}</td>"
    return f"<td>{escaped(value)}</td>"
