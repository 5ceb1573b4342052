"""The report's page in a browser: nothing is loaded, nothing overflows, and every line and label can be seen."""

from __future__ import annotations

import itertools
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from distlr.tools.report import write_report

pytestmark = pytest.mark.browser

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDTHS = {360: 740, 768: 1024, 1280: 800}

BOXES_OF_LINES = """() => [...document.querySelectorAll('.series')].map(line => {
    const box = line.getBBox(), view = line.ownerSVGElement.viewBox.baseVal
    const {run, series} = line.dataset
    return {run, series, length: line.getTotalLength(), x: box.x, y: box.y, width: box.width, height: box.height,
            across: view.width, down: view.height, title: line.querySelector('title').textContent}
})"""

# Boxes on the screen, since some text is rotated.
BOXES_OF_TEXT = """() => [...document.querySelectorAll('svg.chart')].map(chart => {
    const box = element => { const {left, top, right, bottom} = element.getBoundingClientRect()
                             return {left, top, right, bottom, text: element.textContent} }
    return {chart: box(chart), texts: [...chart.querySelectorAll('text')].map(box)}
})"""

OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
COLOURS = "() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"


@pytest.fixture(scope="module")
def sample(load_helper):
    return load_helper(pathlib.Path(__file__).parents[1] / "_sample_runs.py")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def reports(sample, tmp_path_factory) -> dict[str, pathlib.Path]:
    """Pages by name."""
    apart = {"ranks": 4, "replicas": 4, "equal": False, "rates": ["0x1p-2", "0x1p-2", "0x1p-3", "0x1p-2"]}
    differing = sample.cosine(done=7)
    differing.epochs[4]["agreement"] = apart
    many = [sample.decision("refused", 12 * i / 299, None, "no " * 100, "maria") for i in range(300)]
    tiny = sample.cosine("tiny", 4e-7, shift=123_456.0)
    runs = {
        "two": sample.two(),
        "one": [differing],
        "many": [sample.cosine(decisions=many), *[sample.cosine(f"run-{i}-{'x' * 50}", shift=i) for i in range(7)]],
        "tiny": [tiny],
        "begun": [sample.cosine(done=0)],
        "hostile": [sample.hostile()],
    }
    directory = tmp_path_factory.mktemp("reports")
    for name, shown in runs.items():
        write_report(directory / f"{name}.html", shown)
    return {name: directory / f"{name}.html" for name in runs}


class Seen:
    """A page that is open, and all that happened while it was."""

    def __init__(self, page: Any, path: pathlib.Path) -> None:
        self.page, self.url = page, path.as_uri()
        self.requests: list[str] = []
        self.troubles: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.troubles.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("dialog", lambda dialog: self.troubles.append(dialog.message))
        page.goto(self.url, wait_until="load")

    def check(self) -> None:
        """Nothing but the file was asked for, and there is nothing in the console."""
        assert [url for url in self.requests if not url.startswith("data:")] == [self.url]
        assert self.troubles == []
        assert self.page.evaluate(OVERFLOW) <= 0


@pytest.fixture
def look(browser, reports) -> Iterator[Any]:
    """Opens a page of a width and scheme."""
    opened = []

    def open_page(name: str, width: int = 1280, scheme: str = "light") -> Seen:
        size = {"width": width, "height": WIDTHS[width]}
        opened.append(browser.new_context(viewport=size, color_scheme=scheme))
        return Seen(opened[-1].new_page(), reports[name])

    yield open_page
    for context in opened:
        context.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["two", "one", "many", "tiny", "begun", "hostile"])
def test_nothing_is_loaded_and_nothing_overflows(look, name, width) -> None:
    seen = look(name, width)
    seen.check()
    charts = seen.page.evaluate(BOXES_OF_TEXT)
    assert bool(charts) == (name != "begun")
    for chart in charts:
        whole, texts = chart["chart"], chart["texts"]
        assert whole["left"] >= 0
        assert whole["right"] <= width
        for text in texts:
            assert text["right"] - text["left"] > 0, text
            # Half a pixel: glyphs are hinted to whole ones.
            inside = text["left"] >= whole["left"] - 0.5 and text["right"] <= whole["right"] + 0.5
            assert inside, (whole, text)
            assert text["top"] >= whole["top"] - 0.5, (whole, text)
            assert text["bottom"] <= whole["bottom"] + 0.5, (whole, text)
        for one, other in itertools.combinations(texts, 2):
            beside = one["right"] <= other["left"] + 0.5 or other["right"] <= one["left"] + 0.5
            above = one["bottom"] <= other["top"] + 0.5 or other["bottom"] <= one["top"] + 0.5
            assert beside or above, (one, other)


def test_every_line_is_seen_in_its_chart(look, sample) -> None:
    lines = look("two").page.evaluate(BOXES_OF_LINES)
    expected = itertools.product(("linear", "sqrt"), ("learning_rate", "lr_multiplier", *sample.METRICS))
    assert sorted((line["run"], line["series"]) for line in lines) == sorted(expected)
    for line in lines:
        assert line["title"] == f"{line['run']}: {line['series']}"
        assert line["length"] > 100
        assert line["width"] > 100
        assert line["height"] > 10
        assert 0 < line["x"] < line["x"] + line["width"] < line["across"]
        assert 0 < line["y"] < line["y"] + line["height"] < line["down"]


def test_a_colour_a_run_and_dashes_for_validation(look) -> None:
    style = "line => [line.dataset.run, line.dataset.series, getComputedStyle(line).stroke, getComputedStyle(line)"
    series = look("two").page.evaluate(f"() => [...document.querySelectorAll('.series')].map({style}.strokeDasharray])")
    assert {run: {colour for each, _, colour, _ in series if each == run} for run, *_ in series} == {
        "linear": {"rgb(0, 114, 178)"},
        "sqrt": {"rgb(213, 94, 0)"},
    }
    assert {name: dashes != "none" for _, name, _, dashes in series} == {
        "learning_rate": False,
        "lr_multiplier": False,
        "loss": False,
        "val_loss": True,
        "accuracy": False,
        "val_accuracy": True,
    }


@pytest.mark.parametrize(("width", "columns"), [(360, 1), (1280, 2)])
def test_columns_of_charts(look, width, columns) -> None:
    page = look("two", width).page
    lefts = page.evaluate(
        "() => [...document.querySelectorAll('figure')].map(each => each.getBoundingClientRect().left)"
    )
    assert len(set(map(round, lefts))) == columns


def test_text_in_charts_is_readable_on_a_phone(look) -> None:
    page = look("two", 360).page
    heights = page.evaluate(
        "() => [...document.querySelectorAll('.tick')].map(each => parseFloat(getComputedStyle(each).fontSize)"
        " * each.ownerSVGElement.getBoundingClientRect().width / each.ownerSVGElement.viewBox.baseVal.width)"
    )
    assert min(heights) >= 9  # pixels of CSS


@pytest.mark.parametrize("name", ["two", "one", "many", "hostile"])
def test_dark_and_on_paper(look, name) -> None:
    light, dark = look(name, 360), look(name, 360, "dark")
    assert light.page.evaluate(COLOURS) == ["rgb(244, 246, 248)", "rgb(21, 25, 30)"]
    assert dark.page.evaluate(COLOURS) == ["rgb(16, 20, 24)", "rgb(233, 237, 241)"]
    dark.check()
    dark.page.emulate_media(media="print", color_scheme="dark")
    assert dark.page.evaluate(COLOURS) == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]
    stroke = "() => getComputedStyle(document.querySelector('.series')).stroke"
    assert dark.page.evaluate(stroke) == light.page.evaluate(stroke)
    paper = look(name, 768)
    paper.page.emulate_media(media="print")
    paper.check()
    pdf = paper.page.pdf(format="A4")
    assert pdf.startswith(b"%PDF-")
    assert len(pdf) > 20_000


def test_a_warning_can_be_seen(look) -> None:
    page = look("one", 360).page
    warning = page.locator(".warning")
    assert warning.inner_text() == "Warning: The replicas did not apply the same rates in epoch 5."
    assert warning.is_visible()
    assert "NO: 0.25 on 0, 1, 3; 0.125 on 2" in page.locator(".apart").inner_text()
