"""The parts of the report: axes, lines, words, colours and the picture."""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
import re
import struct
import sys

import numpy as np
import pytest

from distlr.errors import ConfigurationError
from distlr.runlog.directory import Run
from distlr.tools.report import draw
from distlr.tools.report.agreement import stretches
from distlr.tools.report.axis import Axis
from distlr.tools.report.series import charts, labels, marks, thinned
from distlr.tools.report.style import PALETTE
from distlr.tools.report.words import verdict


@pytest.fixture(scope="module")
def sample(load_helper):
    return load_helper(pathlib.Path(__file__).parents[2] / "_sample_runs.py")


def test_what_is_known_of_agreement_is_joined(sample) -> None:
    def elastic(epoch):
        ranks = 4 if epoch["epoch"] < 5 else 2
        return {**epoch, "agreement": {"ranks": ranks, "replicas": ranks, "equal": True, "rates": []}}

    run = sample.with_epochs(sample.cosine(), elastic)
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
    stopped = dataclasses.replace(sample.cosine(done=7), run={**sample.cosine().run, "ended": "2026-01-01T00:00:00Z"})
    assert re.match(r"7 of 12 epochs; rate 0.3414 at its peak, [\d.]+ at the end; all", _verdict(stopped))
    one = Run("r", {}, [{"epoch": 0, "learning_rate": 0.1}], [])
    assert _verdict(one) == "1 epoch; rate 0.1 throughout; whether the replicas agreed was not recorded."
    single = sample.with_epochs(sample.cosine(), lambda epoch: {**epoch, "agreement": {"replicas": 1, "equal": True}})
    assert _verdict(single).endswith("; one replica.")
    half = sample.with_epochs(
        sample.cosine(), lambda epoch: epoch if epoch["epoch"] < 6 else {**epoch, "agreement": None}
    )
    assert _verdict(half).endswith("applied the same rates in epochs 1\N{EN DASH}6.")


def test_names_of_runs_are_all_different() -> None:
    runs = [Run(name, {}, [], []) for name in ("a", "a", "a (2)", "", "x" * 100, "x" * 100)]
    names = labels(runs)
    assert names[:4] == ["a", "a (2)", "a (2) (2)", "run"]
    assert len(set(names)) == 6
    assert max(map(len, names)) <= 64


def test_decisions_are_numbered_by_their_positions(sample) -> None:
    runs = sample.two()
    runs[0].decisions.append({"kind": "resume"})
    drawn = marks(runs)
    assert [(mark.number, mark.run, mark.at) for mark in drawn] == [(1, 1, 4.5), (2, 1, 6.2), (3, 0, 8.0), (4, 0, None)]


def test_thinning_keeps_extremes_ends_and_gaps() -> None:
    points = [(float(i), math.sin(i / 300)) for i in range(50_000)]
    points[12_345] = (12_345.0, 9.0)
    points[33_333] = (33_333.0, -9.0)
    points[40_000] = (40_000.0, None)
    thin = thinned(points)
    assert 500 <= len(thin) <= 1002
    assert thin == sorted(thin, key=lambda point: point[0])
    for each in (points[0], points[-1], points[12_345], points[33_333], points[40_000]):
        assert each in thin
    # The drawn points are nowhere far from those that were left out: each of the 333 stretches keeps its range.
    for begin in range(0, 50_000, 5_000):
        part = [value for at, value in points if begin <= at < begin + 5_000 and value is not None]
        left = [value for at, value in thin if begin <= at < begin + 5_000 and value is not None]
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


def test_many_decisions_cost_as_much_each_as_few(load_helper, sample) -> None:
    operations_of = load_helper(pathlib.Path(__file__).parents[2] / "_operation_count.py").operations_of
    costs = []
    for count in (100, 400):
        epochs = [{"epoch": i, "lr_multiplier": 0.5**i, "learning_rate": 0.1} for i in range(count)]
        decisions = [{"epoch": i, "at": i + 0.5, "multiplier": 0.5} for i in range(count)]
        run = dataclasses.replace(sample.cosine(), epochs=epochs, decisions=decisions)
        costs.append(operations_of(lambda run=run: charts([run])))
    assert costs[1] < 6 * costs[0]
