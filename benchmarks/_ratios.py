"""Ratios of paired measurements, as every benchmark here gives them."""

from __future__ import annotations

import numpy as np

__all__ = ["interval"]


def interval(over: np.ndarray, under: np.ndarray) -> list[float]:
    """Low, median and high: the median of the pairs' ratios and its 95% interval (bootstrap)."""
    ratios = over / under
    generator = np.random.default_rng(0)
    medians = np.median(generator.choice(ratios, (2000, len(ratios))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return [round(float(value), 4) for value in (low, np.median(ratios), high)]
