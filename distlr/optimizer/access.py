"""Reads and writes an optimizer from outside: adopted or plain, inside a `LossScaleOptimizer` or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from distlr.batch.global_batch import GlobalBatch
from distlr.optimizer.adopted import AdoptedOptimizer
from distlr.optimizer.state_storage import plain_variables
from distlr.optimizer.training_values import TrainingValues
from distlr.schedules.global_batch_schedule import GlobalBatchSchedule

__all__ = [
    "adopted_by",
    "averages",
    "batch_of",
    "begin_update",
    "has_partial_update",
    "is_adopted",
    "partial_sums",
    "rate_of",
    "read_state",
    "samples_of",
    "schedule_of",
    "slots_of",
    "strategy_of",
    "training_values_of",
    "unwrap_loss_scale",
    "write_state",
]


def unwrap_loss_scale(optimizer: Any) -> Any:
    """The optimizer that updates the weights: inside a `LossScaleOptimizer`, or itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def adopted_by(model: Any) -> list[Any]:
    """The optimizers that distlr adopted and a model has: the compiled one first, then those in attributes of its own.

    A model that trains with several (a GAN) keeps them in attributes, lists or dictionaries, in the same order on all
    ranks.
    """
    adopted: dict[int, Any] = {}
    for value in [model.optimizer, *vars(model).values()]:
        several = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
        for each in several:
            core = unwrap_loss_scale(each) if isinstance(each, keras.optimizers.Optimizer) else None
            if isinstance(core, AdoptedOptimizer):
                adopted.setdefault(id(core), core)
    return list(adopted.values())


def is_adopted(optimizer: Any) -> bool:
    """Whether distlr sets this optimizer's rate."""
    return isinstance(unwrap_loss_scale(optimizer), AdoptedOptimizer)


def strategy_of(optimizer: Any) -> tf.distribute.Strategy:
    """The `tf.distribute` strategy that an optimizer of Keras was made under."""
    return unwrap_loss_scale(optimizer)._distribution_strategy


def rate_of(optimizer: Any) -> float:
    """The rate of the next update of an optimizer, distlr's or a plain one of Keras, in whatever form it gives it."""
    rate = optimizer.learning_rate
    return float(rate if isinstance(rate, float) else rate.numpy())


def batch_of(optimizer: Any) -> GlobalBatch | None:
    """The batch that an optimizer's rate is scaled for, by `job.optimizer` or `distlr.scale`, or None."""
    core = unwrap_loss_scale(optimizer)
    if isinstance(core, AdoptedOptimizer) and core.distlr.batch is not None:
        return core.distlr.batch
    return core._learning_rate.batch if isinstance(core._learning_rate, GlobalBatchSchedule) else None


def samples_of(optimizer: Any) -> int:
    """The clock of an adopted optimizer, without asking its schedule for a rate."""
    samples: int = unwrap_loss_scale(optimizer).distlr.formula.samples_seen
    return samples


def schedule_of(optimizer: Any) -> Any:
    """What an optimizer of Keras was given as its rate: the schedule, or the number."""
    rate = unwrap_loss_scale(optimizer)._learning_rate
    return float(rate.numpy()) if isinstance(rate, keras.Variable) else rate


def training_values_of(optimizer: Any) -> TrainingValues:
    """Where the values of the training are; in their own variables where the optimizer is not distlr's."""
    core = unwrap_loss_scale(optimizer)
    return core.distlr.variables.training_values if is_adopted(core) else TrainingValues(strategy_of(core))


def averages(optimizer: Any) -> list[tuple[Any, Any]]:
    """Each weight with its moving average, of an optimizer with `use_ema` that has been built; else nothing."""
    core = unwrap_loss_scale(optimizer)
    kept = getattr(core, "_model_variables_moving_average", None) if getattr(core, "use_ema", False) else None
    return [pair for pair in zip(core._trainable_variables, kept or (), strict=False) if pair[1] is not None]


def has_partial_update(optimizer: Any) -> bool:
    """Whether gradients wait in the accumulators for the other steps of their update.

    Counted by the steps that were applied: after one that was left out an update ends a step later.
    """
    core = unwrap_loss_scale(optimizer)
    steps = core.gradient_accumulation_steps
    return steps is not None and int(core._iterations.numpy()) % steps != 0


def partial_sums(optimizer: Any) -> list[Any]:
    """The accumulators of an update that is not complete, in which each replica has its own; else nothing."""
    sums = unwrap_loss_scale(optimizer)._accumulated_gradients if has_partial_update(optimizer) else []
    return [total for total in sums if total is not None]


def begin_update(optimizer: Any, updates: int) -> None:
    """Begins the update after `updates` updates, for a state that was saved with another number of steps an update.

    Keras counts steps. With another number of steps to the update its count means another place.
    """
    core = unwrap_loss_scale(optimizer)
    core._iterations.assign(updates * (core.gradient_accumulation_steps or 1))
    for total in getattr(core, "_accumulated_gradients", ()):
        if total is not None:
            total.assign(tf.zeros_like(total))


def slots_of(optimizer: Any) -> list[Any]:
    """The variables in which an optimizer, distlr's or Keras', gathers what it has seen: not rate and iterations."""
    return plain_variables(unwrap_loss_scale(optimizer))[2]


def read_state(optimizer: Any) -> dict[str, npt.NDArray[Any]]:
    """All variables of an adopted optimizer, and of a `LossScaleOptimizer` around it, by their names in a file."""
    stores: dict[str, dict[str, npt.NDArray[Any]]] = {}
    for prefix, part in _parts(optimizer):
        part.save_own_variables(stores.setdefault(prefix, {}))
    return {prefix + name: np.asarray(value) for prefix, store in stores.items() for name, value in store.items()}


def write_state(optimizer: Any, state: Mapping[str, npt.NDArray[Any]]) -> None:
    """Gives an optimizer what `read_state` gave, built or not; see `StateStorage.load`."""
    for prefix, part in _parts(optimizer):
        inside = [name for name in state if name.startswith(prefix)]
        part.load_own_variables({name[len(prefix) :]: state[name] for name in inside})


def _parts(optimizer: Any) -> list[tuple[str, Any]]:
    core = unwrap_loss_scale(optimizer)
    return [("inner/", core), *([] if core is optimizer else [("outer/", optimizer)])]
