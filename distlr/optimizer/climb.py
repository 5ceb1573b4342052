"""A factor that lets the rate change slowly after a change of the batch, which changes the rate at once."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

__all__ = ["CLIMB", "NO_CLIMB", "climb_factor", "explain_climb"]

CLIMB = "climb"
"""The state of a climb: where it began and its length, in samples, and the share of the rate that it began at."""
NO_CLIMB = (0.0, 0.0, 1.0)


def climb_factor(climb: Any, samples: tf.Tensor) -> tf.Tensor:
    """The factor at a clock, float64: from the share at the beginning linearly to 1, and 1 after that.

    >>> climb = tf.constant([100.0, 50.0, 0.5], tf.float64)
    >>> [float(climb_factor(climb, tf.constant(samples))) for samples in (100, 125, 150, 999)]
    [0.5, 0.75, 1.0, 1.0]
    """
    start, length, share = tf.unstack(tf.cast(climb, tf.float64))
    passed = tf.cast(samples, tf.float64) - start
    return tf.where(passed < length, share + (1.0 - share) * passed / tf.maximum(length, 1.0), 1.0)


def explain_climb(climb: Any) -> dict[str, float] | None:
    """The state as plain numbers by their names; None where there is no climb."""
    names = ("from_sample", "samples", "share")
    return None if climb is None else dict(zip(names, climb.numpy().tolist(), strict=True))
