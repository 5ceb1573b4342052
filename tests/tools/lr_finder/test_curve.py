"""The curve of a range test: where it ends, and what it says."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from distlr.tools.lr_finder.curve import Sweep, _longest_fall, steepest, valley

RATES = [10.0**i for i in range(-6, 3)]


@pytest.mark.parametrize(
    ("losses", "expected_steepest", "expected_valley"),
    [
        # A V: all falling slopes are equal, so the first counts; the fall has five members, the middle is the third.
        ([4, 3, 2, 1, 0, 1, 2, 3, 4], 1e-5, 1e-4),
        # A plateau, a fall (steepest at its middle), a rise.
        ([2, 2, 2, 2, 1.5, 0.5, 0.4, 1, 9], 1e-2, 1e-2),
        # The fall is at the ends alone.
        ([2, 1, 1, 1, 1, 1, 1, 1, 0.5], 1e-5, 1e-5),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], None, None),
        ([2, 2, 2, 2, 2, 2, 2, 2, 2], None, None),
        ([2, 2, 2, 1.5, 0.5, 0.4, 1, 9, math.nan], 1e-3, 1e-3),
        ([2, 2, 2, 1.5, 0.5, 0.4, 1, math.inf, 0.1], 1e-3, 1e-3),
        ([math.nan] * 9, None, None),
        # Points between do not end the fall: 4, 3, 2, 1 with others among them.
        ([4, 4.5, 3, 5, 2, 6, 1, 7, 8], 1e-5, 1e-4),
        ([2, 1], None, 1e-6),
        ([1, 2], None, None),
        ([1], None, None),
        ([], None, None),
    ],
)
def test_what_a_curve_says(losses, expected_steepest, expected_valley) -> None:
    rates = RATES[: len(losses)]
    assert steepest(rates, losses) == expected_steepest
    assert valley(rates, losses) == expected_valley


def test_noise_moves_the_valley_by_little() -> None:
    rates = np.geomspace(1e-7, 10, 100)
    x = np.log10(rates)
    curve = 2.3 - 2 / (1 + np.exp(-3 * (x + 3))) + np.exp(4 * (x - 0.3))  # falls around 1e-3, rises from 1 on
    clean = valley(rates.tolist(), curve.tolist())
    assert 1e-5 < clean < 1e-2
    for seed in range(20):
        noisy = curve + np.random.default_rng(seed).normal(size=100) * 0.02
        assert 0.05 < valley(rates.tolist(), noisy.tolist()) / 1e-3 < 20
        assert 0.05 < steepest(rates.tolist(), noisy.tolist()) / 1e-3 < 20


def test_the_longest_fall_is_the_longest() -> None:
    """Beside all subsequences, one by one."""
    for seed in range(30):
        values = np.random.default_rng(seed).integers(0, 6, size=9).tolist()
        indices = _longest_fall(values)
        assert indices == sorted(indices)
        assert all(values[a] > values[b] for a, b in itertools.pairwise(indices))
        falls = (
            len(places)
            for size in range(1, 10)
            for places in itertools.combinations(range(9), size)
            if all(values[a] > values[b] for a, b in itertools.pairwise(places))
        )
        assert len(indices) == max(falls)


def swept(losses, *, smoothing=0.0, stop_at=4.0):
    sweep = Sweep(1e-3, 1.0, max(3, len(losses)), smoothing, stop_at)
    for count, loss in enumerate(losses, start=1):
        if not sweep.add(loss):
            return count, sweep
    return None, sweep


@pytest.mark.parametrize(
    ("losses", "ends_at", "text"),
    [
        ([2, 1, 3.9, 1], 4, "all rates up to 1 were tried"),
        ([2, 1, 4.1, 1], 3, "over 4 times its best, 1"),
        ([2, math.nan, 1, 1], 2, "the loss was nan at the rate 0.01"),
        ([math.inf, 1, 1, 1], 1, "the loss was inf at the rate 0.001"),
        ([-2, -1, 3.9, 1], 4, "all rates"),
        ([-2, -1, 4.1, 1], 3, "over 4 times its best, -2"),
    ],
)
def test_where_it_ends(losses, ends_at, text) -> None:
    count, sweep = swept(losses)
    assert count == ends_at
    assert text in sweep.stopped
    result = sweep.result(2.0)
    assert len(result.rates) == len(result.losses) == len(result.smoothed) == count - ("loss was" in text)
    assert text in result.explain()


def test_it_goes_on_to_the_end_if_requested() -> None:
    assert swept([1, 2, 1e30, 3], stop_at=math.inf)[0] == 4


def test_the_mean_is_bias_corrected() -> None:
    _, sweep = swept([1.0, 3.0, 2.0], smoothing=0.5)
    assert sweep.smoothed == pytest.approx([1, (0.5 * 0.5 * 1 + 0.5 * 3) / 0.75, (0.125 + 0.75 + 1) / 0.875])


def test_rates_are_a_geometric_sequence_of_float32() -> None:
    rates = Sweep(1e-7, 10.0, 100, 0.9, 4.0).rates
    assert rates == [float(np.float32(rate)) for rate in rates]
    np.testing.assert_allclose(rates, np.geomspace(1e-7, 10, 100), rtol=1e-7)


def test_the_result_in_other_forms(tmp_path) -> None:
    _, sweep = swept([4, 4, 3, 1, 0.5, 1, 2.1])
    result = sweep.result(8.0)
    assert result.suggestion == result.valley
    assert result.base(result.valley) == result.valley / 8
    values = result.to_json()
    assert values["base"]["valley"] == values["valley"] / 8
    assert "over 4 times" in values["stopped"]
    assert (
        f"valley: {result.valley:.3g} at the global batch, {result.valley / 8:.3g} at the base batch"
        in result.explain()
    )
    result.draw(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("losses", [[1, 2, 3], [math.nan]])
def test_a_result_without_a_suggestion_says_so(tmp_path, losses) -> None:
    result = swept(losses)[1].result(1.0)
    assert result.suggestion is None
    assert "falls nowhere" in result.explain()
    assert result.to_json()["base"] == {"steepest": None, "valley": None, "suggestion": None}
    result.draw(tmp_path / "curve.png")
