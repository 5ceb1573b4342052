"""The report of runs: what is drawn and said, from files that may say anything."""

from __future__ import annotations

import dataclasses
import html.parser
import itertools
import json
import os
import pathlib
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distlr.runlog.directory import Run, RunDirectory
from distlr.tools.report import draw, html_page, write_report
from distlr.tools.report.series import charts

SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "link"}


@pytest.fixture(scope="module")
def sample(load_helper):
    return load_helper(pathlib.Path(__file__).parents[2] / "_sample_runs.py")


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
    paths = {}
    for drawing in drawings(page):
        for path in drawing.iter(f"{SVG}path"):
            if "series" in path.get("class", "").split():
                key = (path.get("data-run"), path.get("data-series"))
                assert key not in paths
                assert path.find(f"{SVG}title").text == ": ".join(key)
                paths[key] = path.get("d")
    return paths


def numbers(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.-]+),([\d.-]+)", path)]


def test_all_series_of_two_runs(sample) -> None:
    page = html_page(sample.two(), "Linear and square root")
    paths = lines(page)
    names = ("learning_rate", "lr_multiplier", *sample.METRICS)
    assert set(paths) == set(itertools.product(("linear", "sqrt"), names))
    for key, path in paths.items():
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

    run = sample.with_epochs(sample.cosine(), broken)
    page = html_page([run])
    paths = lines(page)
    assert ("linear", "val_loss") not in paths
    assert paths["linear", "loss"].count("M") == 2
    assert len(numbers(paths["linear", "loss"])) == 10
    assert "The loss was not a finite number in epochs 5\N{EN DASH}6." in Parser(page).text


def test_replicas_that_differ_are_warned_of(sample) -> None:
    def apart(epoch):
        if epoch["epoch"] not in (4, 5, 8):
            return epoch
        rates = [(0.25).hex(), (0.25).hex(), (0.025).hex(), (0.25).hex()]
        return {**epoch, "agreement": {**epoch["agreement"], "equal": epoch["epoch"] == 8, "rates": rates}}

    read = Parser(html_page([sample.with_epochs(sample.cosine(), apart)]))
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


def test_rows_in_which_the_runs_differ(sample) -> None:
    page = html_page(sample.two())
    differ = re.findall(r'<tr class="differs"><th scope="row">([^<]*)</th>', page)
    assert differ == ["command", "rule", "factor"]
    assert ["warmup: from", "0.1", "0.1"] in Parser(page).rows
    assert 'class="differs"' not in html_page([sample.cosine()])


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
