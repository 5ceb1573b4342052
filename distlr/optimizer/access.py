"""Looking at an optimizer, distlr's or a plain one of Keras, inside a `LossScaleOptimizer` or not."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from distlr.batch.global_batch import GlobalBatch
from distlr.optimizer.mixin import ScaledOptimizer
from distlr.optimizer.training_values import TrainingValues
from distlr.schedules.scaled import Scaled

__all__ = [
    "adopted_by",
    "averages",
    "batch_of",
    "inner",
    "is_adopted",
    "rate_of",
    "samples_of",
    "schedule_of",
    "strategy_of",
    "training_values_of",
]


def inner(optimizer: Any) -> Any:
    """The optimizer that updates the weights: inside a `LossScaleOptimizer`, or itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def adopted_by(model: Any) -> list[Any]:
    """The optimizers that distlr adopted and a model has: the compiled one first, then those in attributes of its own.

    A model that trains with several (a GAN) keeps them in attributes, lists or dictionaries, in the same order on all
    ranks.
    """
    found: dict[int, Any] = {}
    for value in [model.optimizer, *vars(model).values()]:
        several = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
        for each in several:
            core = inner(each) if isinstance(each, keras.optimizers.Optimizer) else None
            if isinstance(core, ScaledOptimizer):
                found.setdefault(id(core), core)
    return list(found.values())


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


def batch_of(optimizer: Any) -> GlobalBatch | None:
    """The batch that an optimizer's rate is scaled for, by `job.optimizer` or `distlr.scale`, or None."""
    core = inner(optimizer)
    if isinstance(core, ScaledOptimizer) and core.batch is not None:
        return core.batch  # type: ignore[no-any-return]
    return core._learning_rate.batch if isinstance(core._learning_rate, Scaled) else None


def samples_of(optimizer: Any) -> int:
    """What the clock of an adopted optimizer shows, without asking its schedule for a rate."""
    return int(inner(optimizer)._samples().numpy())


def schedule_of(optimizer: Any) -> Any:
    """What an optimizer of Keras was given as its rate: the schedule, or the number."""
    rate = inner(optimizer)._learning_rate
    return float(rate.numpy()) if isinstance(rate, keras.Variable) else rate


def training_values_of(optimizer: Any) -> TrainingValues:
    """Where the values of the training are; in their own variables where the optimizer is not distlr's."""
    core = inner(optimizer)
    return core._distlr.training_values if is_adopted(core) else TrainingValues(strategy_of(core))


def averages(optimizer: Any) -> list[tuple[Any, Any]]:
    """Each weight with its moving average, of an optimizer with `use_ema` that has been built; else nothing."""
    core = inner(optimizer)
    kept = getattr(core, "_model_variables_moving_average", None) if getattr(core, "use_ema", False) else None
    return [pair for pair in zip(core._trainable_variables, kept or (), strict=False) if pair[1] is not None]
