"""The report of runs: what is drawn and said, from files that may say anything."""

from __future__ import annotations

import dataclasses
import html.parser
import itertools
import json
import math
import os
import pathlib
import re
import struct
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distlr.errors import ConfigurationError
from distlr.report import draw, html_page, write_report
from distlr.report.agreement import stretches
from distlr.report.axis import Axis
from distlr.report.series import charts, labels, marks, thinned
from distlr.report.style import PALETTE
from distlr.report.words import verdict
from distlr.run_directory import Run, RunDirectory

SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "link"}


@pytest.fixture(scope="module")
def sample(load_helper):
    return load_helper(pathlib.Path(__file__).with_name("_sample_runs.py"))


class Parser(html.parser.HTMLParser):
    """Reads a page, and fails where an element is not closed in its place."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []  # cells of tables
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return "".join(self.texts)


def drawings(page: str) -> list[ET.Element]:
    """The charts, each of which is well-formed XML by itself."""
    return [ET.fromstring(text) for text in re.findall(r'<svg class="chart".*?</svg>', page, re.DOTALL)]


def lines(page: str) -> dict[tuple[str, str], str]:
    """The paths of all series, by run and name."""
    found = {}
    for drawing in drawings(page):
        for path in drawing.iter(f"{SVG}path"):
            if "series" in path.get("class", "").split():
                key = (path.get("data-run"), path.get("data-series"))
                assert key not in found
                assert path.find(f"{SVG}title").text == ": ".join(key)
                found[key] = path.get("d")
    return found


def numbers(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.-]+),([\d.-]+)", path)]


def with_epochs(run: Run, change) -> Run:
    return dataclasses.replace(run, epochs=[change(epoch) for epoch in run.epochs])


def test_all_series_of_two_runs(sample) -> None:
    page = html_page(sample.two(), "Linear and square root")
    found = lines(page)
    names = ("learning_rate", "lr_multiplier", *sample.METRICS)
    assert set(found) == set(itertools.product(("linear", "sqrt"), names))
    for key, path in found.items():
        points = numbers(path)
        assert all(0 <= x <= 440 and 0 <= y <= 280 for x, y in points), key
        assert [x for x, _ in points] == sorted(x for x, _ in points), key
    dashed = re.findall(r'class="series line dashed" data-run="\w+" data-series="(\w+)"', page)
    assert sorted(set(dashed)) == ["val_accuracy", "val_loss"]
    headings = [drawing.get("aria-label").split(" over epochs")[0] for drawing in drawings(page)]
    assert headings == ["Learning rate", "Multiplier", "Loss", "Accuracy"]
    assert all(drawing.get("role") == "img" for drawing in drawings(page))


def test_a_line_is_where_its_values_are(sample) -> None:
    run = sample.cosine()
    drawing = drawings(html_page([run]))[0]
    labelled = {text.text: text for text in drawing.iter(f"{SVG}text") if text.get("class") == "tick"}
    left, right = (float(labelled[label].get("x")) for label in ("2", "12"))  # "0" is on both axes
    bottom, top = (float(labelled[label].get("y")) - 5 for label in ("0.0", "0.4"))
    points = numbers(lines(html_page([run]))["linear", "learning_rate"])
    values = [point for epoch in run.epochs for point in epoch["curve"]]
    assert len(points) == len(values) == 288
    for (x, y), (at, rate) in zip(points, values, strict=True):
        assert x == pytest.approx(left + (at - 2) / 10 * (right - left), abs=0.1)
        assert y == pytest.approx(bottom + rate / 0.4 * (top - bottom), abs=0.1)


def test_the_axis_of_rates_begins_at_0() -> None:
    page = html_page([Run("r", {}, [{"epoch": i, "learning_rate": 0.3 + i / 100} for i in range(3)], [])])
    (drawing,) = drawings(page)
    assert [text.text for text in drawing.iter(f"{SVG}text")][:5] == ["0.0", "0.1", "0.2", "0.3", "0.4"]


def test_decisions_have_the_same_numbers_in_charts_and_table(sample) -> None:
    page = html_page(sample.two())
    for drawing in drawings(page):
        shown = [mark.find(f"{SVG}text").text for mark in drawing.iter(f"{SVG}g") if "mark" in mark.get("class", "")]
        assert shown == ["1", "2", "3"]
    rows = [row for row in Parser(page).rows if row[0] in ("1", "2", "3")]
    assert [row[:4] for row in rows] == [
        ["1", "sqrt", "4.5", "change by hand, \N{MULTIPLICATION SIGN}0.5set-lr --multiply 0.5"],
        ["2", "sqrt", "6.2", "refused requestby more than a factor of 100"],
        [
            "3",
            "linear",
            "8",
            "cut on a plateau, \N{MULTIPLICATION SIGN}0.1val_loss did not improve on 0.53 for 3 epochs",
        ],
    ]
    assert [row[4:] for row in rows] == [
        ["0.01", "maria", "2026-03-14 09:18:00 UTC"],
        ["", "maria", "2026-03-14 09:24:00 UTC"],
        ["0.01", "ReduceLROnPlateau", "2026-03-14 09:32:00 UTC"],
    ]


def test_numbers_of_many_decisions_never_stand_on_each_other(sample) -> None:
    many = [sample.decision("refused", 12 * i / 299, None, "no", "maria") for i in range(300)]
    boxes = []
    for mark in drawings(html_page([sample.cosine(decisions=many)]))[0].iter(f"{SVG}g"):
        if "mark" in mark.get("class", ""):
            box = mark.find(f"{SVG}rect")
            top = re.match(r"M[\d.]+,([\d.]+)V", mark.find(f"{SVG}path").get("d"))[1]
            assert float(box.get("y")) + float(box.get("height")) < float(top)
            boxes.append((float(box.get("x")), float(box.get("width")), mark.find(f"{SVG}text").text))
    ends = [(start, start + width) for start, width, _ in boxes]
    assert len(boxes) > 3
    assert all(a[1] < b[0] for a, b in itertools.pairwise(ends))
    assert ends[0][0] >= 0
    assert ends[-1][1] <= 440
    firsts = [int(label.split("\N{EN DASH}")[0]) for _, _, label in boxes]
    lasts = [int(label.split("\N{EN DASH}")[-1]) for _, _, label in boxes]
    assert firsts == [1, *(last + 1 for last in lasts[:-1])]
    assert lasts[-1] == 300
    few = [sample.decision("refused", 6 + i / 100, None, "no", "maria") for i in range(3)]
    (mark,) = (
        g
        for g in drawings(html_page([sample.cosine(decisions=few)]))[0].iter(f"{SVG}g")
        if "mark" in g.get("class", "")
    )
    assert mark.find(f"{SVG}text").text == "1\N{EN DASH}3"
    assert mark.find(f"{SVG}path").get("d").count("M") == 3


def test_the_multiplier_changes_where_the_decisions_are(sample) -> None:
    within = [
        sample.decision("control", at, factor, "", "maria") for at, factor in ((1.25, 0.5), (1.75, 0.5), (3.0, 0.1))
    ]
    (chart,) = (chart for chart in charts([sample.cosine(done=4, decisions=within)]) if "multiplier" in chart.axis)
    points = [(at, round(value, 9)) for at, value in chart.series[0].points if value is not None]
    stairs = [point for i, point in enumerate(points) if point not in points[:i]]
    corners = [(0, 1), (1.25, 1), (1.25, 0.5), (1.75, 0.5), (1.75, 0.25), (3, 0.25), (3, 0.025), (4, 0.025)]
    assert [at for at in stairs if at in corners] == corners
    assert {value for _, value in stairs} == {1, 0.5, 0.25, 0.025}


def test_hostile_text_is_text(sample) -> None:
    runs = [sample.hostile(), sample.hostile()]
    page = html_page(runs, sample.HOSTILE)
    page.encode()  # no half of a surrogate pair is left
    read = Parser(page)
    assert {tag for tag, _ in read.tags} <= {tag for tag, _ in Parser(html_page(sample.two())).tags}
    assert not [
        name for _, attributes in read.tags for name in attributes if name.startswith("on") or name in ("src", "style")
    ]
    assert "<script>alert(1)</script>\"' onload='x' ]]> <!-- \ufffd\ufffd[31m \ufffd \ufffd</title>" in read.text
    assert len(drawings(page)) == 6  # rate, multiplier, loss, accuracy, and the two metrics with hostile names
    assert len(page) < 150_000  # however long the texts are


@pytest.mark.parametrize(
    "run",
    [
        Run("r", {}, [], []),
        Run("", {"epochs": None, "job": None, "versions": None, "command": None}, [], [{}]),
        Run("r", {"epochs": 3, "job": {"optimizer": "adam", "warmup": None}}, [{}, {"epoch": None}], []),
        Run("r", {"epochs": True, "job": [1], "versions": "x"}, [{"logs": None, "curve": None, "agreement": None}], []),
        Run("r", {}, [{"epoch": 0, "learning_rate": 0.1, "logs": {"loss": 1}}], [{"kind": "control", "at": None}]),
        Run("r", {}, [{"epoch": 0, "learning_rate": float("nan"), "logs": {"loss": float("inf")}}], [{"at": 1e300}]),
        Run("r", {}, [{"epoch": 1e300, "learning_rate": 5e-324, "logs": {"loss": -1e299}}] * 2, [{"epoch": 1e299}]),
    ],
)
def test_a_run_that_says_little_or_nonsense(run, tmp_path) -> None:
    for page in (html_page([run]), html_page([run, run])):
        Parser(page)
        drawings(page)
        assert re.search(r"\b(nan|inf)\b", page) is None
    draw(tmp_path / "run.png", [run])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


def objects(*keys: str) -> st.SearchStrategy[dict]:
    return st.fixed_dictionaries({}, optional=dict.fromkeys(keys, JSON | st.floats(-10, 10) | st.integers(0, 20)))


@given(
    objects("started", "command", "host", "epochs", "job", "versions"),
    st.lists(
        objects("epoch", "learning_rate", "lr_multiplier", "logs", "curve", "agreement")
        | st.fixed_dictionaries(
            {
                "logs": objects("loss", "val_loss", "val_"),
                "curve": st.lists(st.lists(st.floats(), min_size=2, max_size=2), max_size=9),
                "agreement": objects("ranks", "replicas", "equal", "rates"),
            }
        ),
        max_size=5,
    ),
    st.lists(objects("kind", "epoch", "at", "multiplier", "learning_rate", "reason", "by", "time"), max_size=5),
)
def test_whatever_a_run_says_there_is_a_page(about, epochs, decisions) -> None:
    page = html_page([Run("r", about, epochs, decisions)])
    Parser(page)
    for path in lines(page).values():
        assert all(0 <= x <= 440 and 0 <= y <= 280 for x, y in numbers(path))
        assert re.fullmatch(r"([ML][\d.]+,[\d.]+(h0)?)+", path)


def test_no_run_at_all() -> None:
    assert drawings(html_page([])) == []


def test_a_run_that_has_only_begun(sample) -> None:
    page = html_page([sample.cosine(done=0)])
    assert "no epoch has ended yet, 12 are planned." in Parser(page).text
    assert drawings(page) == []
    assert "global batch" in page


def test_what_is_not_a_number_is_a_gap(sample) -> None:
    def broken(epoch):
        nothing = {"val_loss": None, **({"loss": None} if epoch["epoch"] in (4, 5) else {})}
        return {**epoch, "logs": {**epoch["logs"], **nothing}}

    run = with_epochs(sample.cosine(), broken)
    page = html_page([run])
    found = lines(page)
    assert ("linear", "val_loss") not in found
    assert found["linear", "loss"].count("M") == 2
    assert len(numbers(found["linear", "loss"])) == 10
    assert "The loss was not a finite number in epochs 5\N{EN DASH}6." in Parser(page).text


def test_replicas_that_differ_are_warned_of(sample) -> None:
    def apart(epoch):
        if epoch["epoch"] not in (4, 5, 8):
            return epoch
        rates = [(0.25).hex(), (0.25).hex(), (0.025).hex(), (0.25).hex()]
        return {**epoch, "agreement": {**epoch["agreement"], "equal": epoch["epoch"] == 8, "rates": rates}}

    read = Parser(html_page([with_epochs(sample.cosine(), apart)]))
    dash = "\N{EN DASH}"
    # In the ninth epoch the file says that they are equal, and shows that they are not.
    assert f"Warning: The replicas did not apply the same rates in epochs 5{dash}6, 9." in read.text
    assert "applied the same rates in every epoch" not in read.text
    assert [row for row in read.rows if len(row) == 4 and row[0] != "epochs"] == [
        [f"epochs 1{dash}4", "4", "4", "yes"],
        [f"epochs 5{dash}6", "4", "4", "NO: 0.25 on 0, 1, 3; 0.025 on 2"],
        [f"epochs 7{dash}8", "4", "4", "yes"],
        ["epoch 9", "4", "4", "NO: 0.25 on 0, 1, 3; 0.025 on 2"],
        [f"epochs 10{dash}12", "4", "4", "yes"],
    ]


def test_what_is_known_of_agreement_is_joined(sample) -> None:
    def elastic(epoch):
        ranks = 4 if epoch["epoch"] < 5 else 2
        return {**epoch, "agreement": {"ranks": ranks, "replicas": ranks, "equal": True, "rates": []}}

    run = with_epochs(sample.cosine(), elastic)
    assert [(one.first, one.last, one.ranks) for one in stretches(run)] == [(1, 5, 4), (6, 12, 2)]
    assert "all replicas (4, then 2) applied the same rates in every epoch" in verdict(run, []).text


def _verdict(run: Run) -> str:
    rates = [line for chart in charts([run]) for line in chart.series if line.name == "learning_rate"]
    return verdict(run, [rate for line in rates for _, rate in line.points if rate is not None]).text


def test_the_verdict(sample) -> None:
    linear, sqrt = (_verdict(run) for run in sample.two())
    assert re.fullmatch(
        r"12 of 12 epochs; rate 0\.3414 at its peak, [\d.e-]+ at the end; 1 cut on a plateau; "
        r"all 4 replicas applied the same rates in every epoch\.",
        linear,
    )
    assert "1 change by hand; 1 refused request;" in sqrt
    cuts = [sample.decision("plateau", at, 0.5, "", "") for at in (3.0, 5.0)]
    assert "2 cuts on a plateau" in _verdict(sample.cosine(decisions=cuts))
    assert re.match(r"7 of 12 epochs so far; rate 0.3414 at its peak, [\d.]+ now; all", _verdict(sample.cosine(done=7)))
    one = Run("r", {}, [{"epoch": 0, "learning_rate": 0.1}], [])
    assert _verdict(one) == "1 epoch; rate 0.1 throughout; whether the replicas agreed was not recorded."
    alone = with_epochs(sample.cosine(), lambda epoch: {**epoch, "agreement": {"replicas": 1, "equal": True}})
    assert _verdict(alone).endswith("; one replica.")
    half = with_epochs(sample.cosine(), lambda epoch: epoch if epoch["epoch"] < 6 else {**epoch, "agreement": None})
    assert _verdict(half).endswith("applied the same rates in epochs 1\N{EN DASH}6.")


def test_rows_in_which_the_runs_differ(sample) -> None:
    page = html_page(sample.two())
    differ = re.findall(r'<tr class="differs"><th scope="row">([^<]*)</th>', page)
    assert differ == ["command", "rule", "factor"]
    assert ["warmup: from", "0.1", "0.1"] in Parser(page).rows
    assert 'class="differs"' not in html_page([sample.cosine()])


def test_names_of_runs_are_all_different() -> None:
    runs = [Run(name, {}, [], []) for name in ("a", "a", "a (2)", "", "x" * 100, "x" * 100)]
    found = labels(runs)
    assert found[:4] == ["a", "a (2)", "a (2) (2)", "run"]
    assert len(set(found)) == 6
    assert max(map(len, found)) <= 64


def test_decisions_are_numbered_by_their_positions(sample) -> None:
    runs = sample.two()
    runs[0].decisions.append({"kind": "resume"})
    found = marks(runs)
    assert [(mark.number, mark.run, mark.at) for mark in found] == [(1, 1, 4.5), (2, 1, 6.2), (3, 0, 8.0), (4, 0, None)]


def test_thinning_keeps_extremes_ends_and_gaps() -> None:
    points = [(float(i), math.sin(i / 300)) for i in range(50_000)]
    points[12_345] = (12_345.0, 9.0)
    points[33_333] = (33_333.0, -9.0)
    points[40_000] = (40_000.0, None)
    found = thinned(points)
    assert 500 <= len(found) <= 1002
    assert found == sorted(found, key=lambda point: point[0])
    for kept in (points[0], points[-1], points[12_345], points[33_333], points[40_000]):
        assert kept in found
    # What is drawn is nowhere far from what was thrown away: each of the 333 stretches keeps its range.
    for begin in range(0, 50_000, 5_000):
        part = [value for at, value in points if begin <= at < begin + 5_000 and value is not None]
        left = [value for at, value in found if begin <= at < begin + 5_000 and value is not None]
        assert max(left) == pytest.approx(max(part), abs=0.02)
        assert min(left) == pytest.approx(min(part), abs=0.02)
    assert thinned(points[:1000]) == points[:1000]
    assert len(thinned([(float(i), None if i % 2 else 1.0) for i in range(5000)])) <= 1002


@pytest.mark.parametrize(
    ("values", "options", "labelled", "unit"),
    [
        ((0.0, 0.4), {}, ["0.0", "0.1", "0.2", "0.3", "0.4"], "y"),
        ((0.0, 0.3), {}, ["0.0", "0.1", "0.2", "0.3"], "y"),
        ((0.1, 0.37), {}, ["0.1", "0.2", "0.3", "0.4"], "y"),
        ((0.31, 0.37), {"from_zero": True}, ["0.0", "0.1", "0.2", "0.3", "0.4"], "y"),
        ((0.0, 1.0), {}, ["0.0", "0.5", "1.0"], "y"),
        ((3.0, 97.0), {}, ["0", "50", "100"], "y"),
        ((-1.0, 1.0), {}, ["-1.0", "-0.5", "0.0", "0.5", "1.0"], "y"),
        ((0.0, 12.0), {"most": 6, "to_ticks": False}, ["0", "2", "4", "6", "8", "10", "12"], "y"),
        ((0.0, 7.0), {"most": 6, "to_ticks": False}, ["0", "2", "4", "6"], "y"),
        ((0.0, 1.0), {"most": 6, "to_ticks": False}, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"], "y"),
        ((0.0, 3e-4), {}, ["0", "1", "2", "3"], "y (10\u207b\u2074)"),
        ((0.0, 1.5e6), {}, ["0.0", "0.5", "1.0", "1.5"], "y (10\u2076)"),
        ((1.0,), {"from_zero": True}, ["0.0", "0.5", "1.0"], "y"),
        ((0.0,), {}, ["0.0", "0.5", "1.0"], "y"),
        ((2.0, 2.0), {}, ["1.0", "1.5", "2.0", "2.5", "3.0"], "y"),
    ],
)
def test_ticks(values, options, labelled, unit) -> None:
    axis = Axis.over(values, **{"most": 4, **options})
    assert axis.labels() == labelled
    assert axis.titled("y") == unit
    assert axis.low <= min(values) <= max(values) <= axis.high


@pytest.mark.parametrize("low", [0.0, 1e-300, 1e-12, 0.3, 1.0, 123_456.0, 1e300])
@pytest.mark.parametrize("span", [0.0, 1e-300, 1e-12, 1e-3, 1.0, 7e7, 1e300])
def test_ticks_of_any_range(low, span) -> None:
    for sign, from_zero in itertools.product((1, -1), (True, False)):
        values = (sign * low, sign * (low + span))
        axis = Axis.over(values, most=4, from_zero=from_zero)
        assert axis.low <= min(values) <= max(values) <= axis.high
        assert 2 <= len(axis.ticks) <= 7
        assert len(set(axis.labels())) == len(axis.ticks)
        assert max(len(label) for label in axis.labels()) <= 8
        assert all(-1e-9 <= axis.share(tick) <= 1 + 1e-9 for tick in axis.ticks)


def test_the_page_loads_and_runs_nothing(sample) -> None:
    page = html_page(sample.two(), "Linear and square root")
    bare = page.replace('xmlns="http://www.w3.org/2000/svg"', "")
    for text in (
        "http:",
        "https:",
        "//",
        "src=",
        "<script",
        "url(",
        "@import",
        "javascript",
        "<iframe",
        "<img",
        "<form",
    ):
        assert text not in bare, text
    read = Parser(page)
    policies = [attributes["content"] for tag, attributes in read.tags if attributes.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    assert [attributes["href"] for tag, attributes in read.tags if "href" in attributes] == ["data:,"]
    assert ("html", {"lang": "en"}) in read.tags
    assert any(attributes.get("name") == "viewport" for _, attributes in read.tags)
    assert html_page(sample.two(), "Linear and square root") == page  # nothing of when and where it is written


def test_a_long_run_gives_a_page_of_bounded_size(sample) -> None:
    epoch = sample.cosine(done=1).epochs[0]
    logs = {f"metric_{i}": 0.5 for i in range(100)}
    curve = [[i / 24, 0.1 + i / 100] for i in range(24)]
    epochs = [
        {**epoch, "epoch": i, "logs": {**epoch["logs"], **logs}, "curve": [[i + at, rate] for at, rate in curve]}
        for i in range(3000)
    ]
    decisions = [sample.decision("refused", i / 10, None, "no", "maria") for i in range(3000)]
    run = Run("long", sample.cosine().run, epochs, decisions)
    page = html_page([run])
    assert len(page) < 2_500_000
    assert len(drawings(page)) == 63
    read = Parser(page)
    assert "41 more metrics are in the files of the runs." in read.text
    assert "The first 500 of 3000 decisions." in read.text


def test_what_a_directory_holds_becomes_a_page(sample, tmp_path) -> None:
    run = sample.two()[1]
    directory = RunDirectory(tmp_path / "cosine")
    tmp_path.joinpath("cosine").mkdir()
    directory.begin(run.run)
    for epoch in run.epochs:
        directory.add_epoch(epoch)
    for decision in run.decisions:
        directory.add_decision(decision)
    read = directory.read()
    write_report(tmp_path / "new" / "report.html", [read], "A title")
    page = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert page == html_page([dataclasses.replace(run, name="cosine")], "A title")
    assert ("cosine", "learning_rate") in lines(page)
    assert json.loads(json.dumps(read.epochs)) == run.epochs


def test_the_old_page_stays_whole_where_the_new_one_cannot_be_written(sample, tmp_path, monkeypatch) -> None:
    path = tmp_path / "report.html"
    write_report(path, [sample.cosine(done=2)])
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_report(path, [sample.cosine()])
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def _height(path: pathlib.Path) -> int:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n")
    return int(struct.unpack(">II", data[16:24])[1])


def test_the_picture(sample, tmp_path) -> None:
    draw(tmp_path / "two.png", sample.two())
    draw(tmp_path / "constant.png", [sample.cosine()])
    draw(tmp_path / "hostile.png", [sample.hostile(), Run("_$\\frac$ \u4e2d", {}, [], [])])
    # The multiplier is drawn where it changes.
    assert _height(tmp_path / "two.png") > _height(tmp_path / "constant.png")
    assert _height(tmp_path / "hostile.png") > 0


def test_a_picture_needs_matplotlib(sample, tmp_path, monkeypatch) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigurationError, match=r"pip install 'distlr\[plot\]'"):
        draw(tmp_path / "run.png", [sample.cosine()])
    assert list(tmp_path.iterdir()) == []


# Machado, Oliveira and Fernandes 2009, table 1, severity 1: what is left of linear RGB without one kind of cones.
DEFICIENCIES = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def _linear(colour: str) -> np.ndarray:
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    x, y, z = np.cbrt(np.maximum(TO_XYZ @ np.clip(linear, 0, 1) / [0.9505, 1.0, 1.089], 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize(("scheme", "page"), [(0, "#ffffff"), (1, "#181d23")])
def test_colours_differ_for_all_readers(scheme, page) -> None:
    colours = [_linear(each[scheme]) for each in PALETTE]
    for colour in colours:
        light, dark = sorted((float(TO_XYZ[1] @ each) for each in (colour, _linear(page))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3  # WCAG 2.2, 1.4.11
    for matrix in DEFICIENCIES.values():
        seen = [_lab(np.array(matrix) @ colour) for colour in colours]
        assert min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2)) > 12  # CIE 1976
