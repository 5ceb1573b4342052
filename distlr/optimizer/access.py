"""Looking at an optimizer, distlr's or a plain one of Keras, inside a `LossScaleOptimizer` or not."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from distlr.optimizer.mixin import ScaledOptimizer

__all__ = ["inner", "is_adopted", "rate_of", "schedule_of", "strategy_of"]


def inner(optimizer: Any) -> Any:
    """The optimizer that updates the weights: inside a `LossScaleOptimizer`, or itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def is_adopted(optimizer: Any) -> bool:
    """Whether distlr sets this optimizer's rate."""
    return isinstance(inner(optimizer), ScaledOptimizer)


def strategy_of(optimizer: Any) -> tf.distribute.Strategy:
    """The `tf.distribute` strategy that an optimizer of Keras was made under."""
    return inner(optimizer)._distribution_strategy


def rate_of(optimizer: Any) -> float:
    """The rate of the next update of an optimizer, distlr's or a plain one of Keras, in whatever form it gives it."""
    rate = optimizer.learning_rate
    return float(rate if isinstance(rate, float) else rate.numpy())


def schedule_of(optimizer: Any) -> Any:
    """What an optimizer of Keras was given as its rate: the schedule, or the number."""
    rate = inner(optimizer)._learning_rate
    return float(rate.numpy()) if isinstance(rate, keras.Variable) else rate
