"""From a plain Keras optimizer to an adopted one, in place, and back."""

from __future__ import annotations

import dataclasses
import functools
import logging
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distlr.batch.global_batch import GlobalBatch
from distlr.errors import ConfigurationError, ConfigurationTypeError, DistributionError, StateError, received
from distlr.optimizer.access import is_adopted, strategy_of, unwrap_loss_scale
from distlr.optimizer.adopted import AdoptedOptimizer
from distlr.optimizer.base_rate import base_rate
from distlr.optimizer.connection import fit_to_launcher
from distlr.optimizer.extension import OptimizerExtension
from distlr.optimizer.gradient_pipeline import GradientPipeline
from distlr.optimizer.hyperparameter_values import HyperparameterValues
from distlr.optimizer.hyperparameters import HyperparameterOptions
from distlr.optimizer.loss_scale import AgreedLossScaleOptimizer, make_loss_scale_agree
from distlr.optimizer.rate_formula import RateFormula
from distlr.optimizer.reduction import Reduction
from distlr.optimizer.state_variables import StateVariables, saved_name
from distlr.schedules.global_batch_schedule import GlobalBatchSchedule, options_from_config
from distlr.schedules.schedule import as_float64

__all__ = ["adopt", "adopt_from_config", "strip"]

_log = logging.getLogger("distlr")

INSTEAD_OF_MULTI = (
    "Fix: leave MultiOptimizer out. Rates by variable of one optimizer are job.optimizer(optimizer, batch, "
    "multipliers={'body/.*': 0.1}); several optimizers are adopted each by job.optimizer, kept in attributes of the "
    "model, and applied to their part of it in a train_step of your own (job.optimizer on a MultiOptimizer comes in a "
    "later version)."
)
"""What works in place of Keras' MultiOptimizer."""


def adopt(
    optimizer: Any,
    batch: GlobalBatch | None = None,
    *,
    scaling: Mapping[str, Any] | None = None,
    reduction: Reduction | None = None,
    **extras: Any,
) -> Any:
    """Adopts a Keras optimizer in place: the same object, of a class derived from its own.

    `lr(t) = schedule(t) * factor(k) * warmup(t) * multiplier`; without a batch nothing is scaled and time stays
    Keras' own, and the rate can still be set and cut.

    Args:
        optimizer: a plain optimizer of Keras 3, or a `LossScaleOptimizer` around one.
        batch: the global batch.
        scaling: the arguments of `schedules.GlobalBatchSchedule`; None stands for one that was not given.
        reduction: what the gradients of several ranks become; see `connection.connect`.
        **extras: what `optimizer.hyperparameters.HyperparameterOptions` has.

    Raises:
        ConfigurationError: it is adopted already, its schedule is scaled already, its accumulation is not the
            batch's, or it cannot work on several replicas.
        DistributionError: it was made outside the strategy that is current.
    """
    _check_optimizer(optimizer)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        adopt(optimizer.inner_optimizer, batch, scaling=scaling, reduction=reduction, **extras)
        return make_loss_scale_agree(optimizer)
    _check_strategy(optimizer)
    _check_accumulation(optimizer, batch)
    arguments = {name: value for name, value in (scaling or {}).items() if value is not None}
    options = HyperparameterOptions(**extras)
    schedule = base_rate(optimizer)
    if batch is not None:
        batch_schedule = GlobalBatchSchedule(schedule, batch, **arguments)
        rate_at: Callable[[tf.Tensor], tf.Tensor] = batch_schedule.at
    else:
        _check_unscaled({**arguments, **options.scaling()})
        # A `GlobalBatchSchedule` counts its base steps itself; its `at` would mistake Keras' steps for them.
        counts_base_steps = isinstance(schedule, GlobalBatchSchedule)
        batch_schedule, rate_at = None, schedule.at_step if counts_base_steps else as_float64(schedule)
    values = options.checked(optimizer, batch_schedule)
    strategy = tf.distribute.get_strategy()
    base_values = {name: getattr(optimizer, name) for name in values}
    hyperparameters = HyperparameterValues(options, base_values, values)
    variables = StateVariables(strategy, _tracking(optimizer))
    pipeline = GradientPipeline(strategy, reduction or Reduction(), variables)
    if options.momentum_correction:
        hyperparameters.previous_rate = variables.add("previous_rate", np.float64(0))
    extension = OptimizerExtension(
        type(optimizer),
        strategy,
        RateFormula(rate_at, batch_schedule, variables, optimizer._iterations),
        pipeline,
        variables,
        hyperparameters,
    )
    optimizer.__dict__["_distlr"] = extension
    optimizer.__class__ = derived_class(extension.base_class)
    for name, value in values.items():
        setattr(optimizer, name, value)
    return optimizer


def _tracking(optimizer: Any) -> Callable[[Any, str], None]:
    """Puts a variable among the optimizer's in TensorFlow's checkpoints; does not keep the optimizer alive."""
    track = weakref.WeakMethod(optimizer._track_trackable)

    def tracking(variable: Any, name: str) -> None:
        method = track()
        if method is None:
            raise StateError(
                f"The optimizer of the variable '{name}' was deleted. Fix: keep a reference to the optimizer."
            )
        method(variable, name, overwrite=True)

    return tracking


@keras.saving.register_keras_serializable("distlr", "Optimizer")
class _Restorable(AdoptedOptimizer):
    """An adopted optimizer that Keras can make anew from a saved model."""

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """The adopted optimizer whose `get_config` this is, scaled from the base values for where it is made.

        It belongs to no job until one connects it: `job.callbacks` in `fit`, `job.broadcast`, the drop-in. One of
        several ranks takes no step before that.
        """
        return adopt_from_config(config, custom_objects)


@functools.cache
def derived_class(base: type) -> type:
    """The class that an optimizer of class `base` gets: a subclass of it, one for each base."""
    derived = type(f"Distlr{base.__name__}", (_Restorable, base), {"__module__": AdoptedOptimizer.__module__})
    # All derived classes share one registered name: `from_config` is the same for each, and tells them
    # apart by the plain optimizer inside the config. The last registration standing is as good as any.
    registered: type = keras.saving.register_keras_serializable("distlr", "Optimizer")(derived)
    return registered


def adopt_from_config(config: dict[str, Any], custom_objects: Any = None) -> Any:
    """Makes an adopted optimizer from what `get_config` gave."""
    plain = keras.saving.deserialize_keras_object(config["optimizer"], custom_objects)
    options = {} if config["scaling"] is None else options_from_config(config["scaling"])
    names = [field.name for field in dataclasses.fields(HyperparameterOptions)]
    more: dict[str, Any] = {name: config[name] for name in names if name in config}
    for name, schedule in config.get("follows", {}).items():
        more[f"{name}_schedule"] = keras.saving.deserialize_keras_object(schedule, custom_objects)
    reduction = Reduction.from_config(config.get("reduction", {}))  # a file of an earlier version has none
    adopted = adopt(plain, options.pop("batch", None), scaling=options, reduction=reduction, **more)
    fit_to_launcher(adopted)
    return adopted


def strip(model: Any) -> Any:
    """Gives back the plain Keras optimizer, in place, so that a saved model loads without distlr.

    The slots are kept, and what `scale=` scaled is as it was. A float rate becomes the current rate; a schedule is the
    user's own again, at the base batch, with `iterations` at the base step that the clock shows, so that it goes on.

    >>> from distlr import init
    >>> job = init(environ={})
    >>> optimizer = job.optimizer(keras.optimizers.SGD(0.1), job.batch(64, base_batch=32))
    >>> float(optimizer.learning_rate)
    0.2
    >>> optimizer.multiply_rate(0.5)
    >>> type(strip(optimizer)).__name__, float(optimizer.learning_rate)
    ('SGD', 0.1)

    Args:
        model: a compiled model, or an optimizer.

    Returns:
        The same object.

    Raises:
        StateError: an optimizer with loaded state that waits for it to be built.
    """
    optimizer = model.optimizer if isinstance(model, keras.Model) else model
    if not isinstance(model, (keras.Model, keras.optimizers.Optimizer)):
        raise ConfigurationTypeError(
            received("model", model, "a Keras model, or an optimizer", "pass a compiled model: distlr.strip(model)")
        )
    if is_adopted(optimizer):
        core = unwrap_loss_scale(optimizer)
        if core.distlr.storage.has_loaded_slots:
            if not isinstance(model, keras.Model):
                raise StateError(
                    f"The optimizer '{core.name}' was loaded and is not built, so its slots would be lost. "
                    "Fix: call optimizer.build(model.trainable_variables) first, or strip the model."
                )
            optimizer.build(model.trainable_variables)
        _give_back(core)
    if isinstance(optimizer, AgreedLossScaleOptimizer):  # made so by job.callbacks around a plain optimizer, too
        optimizer.__class__ = keras.optimizers.LossScaleOptimizer
    if isinstance(model, keras.Model):
        model.train_function = None  # the traced one still computes distlr's rate
    return model


def _give_back(optimizer: Any) -> None:
    """Makes an adopted optimizer one of its own class again."""
    extension: OptimizerExtension = optimizer.distlr
    batch_schedule = extension.formula.batch_schedule
    rate, samples = extension.formula.reading().rate, extension.formula.samples_seen
    if isinstance(optimizer._learning_rate, keras.Variable):
        optimizer._learning_rate.assign(rate)
        if batch_schedule is not None and batch_schedule.factor != 1:
            _log.info(
                "The plain optimizer's rate, %g, is that of the batch of %d: %g times that of the base batch of %d.",
                rate,
                batch_schedule.batch.size,
                batch_schedule.factor,
                batch_schedule.batch.base_batch,
            )
    if batch_schedule is not None and batch_schedule.clock == "samples":
        batch = batch_schedule.batch
        optimizer._iterations.assign(round(samples / batch.base_batch) * batch.accumulation)
    for name, value in extension.hyperparameters.base_values.items():
        setattr(optimizer, name, value)
    for name in extension.variables.names():
        optimizer._delete_tracking(saved_name(name))
    del optimizer.__dict__["_distlr"]
    optimizer.__class__ = extension.base_class
    if type(optimizer._learning_rate).__module__.startswith("distlr."):
        schedule = type(optimizer._learning_rate).__name__
        _log.warning("The optimizer's schedule, %s, is distlr's own: loading still needs distlr.", schedule)


def _check_unscaled(asked: Mapping[str, Any]) -> None:
    if asked:
        raise ConfigurationError(
            f"Scaling needs to know the batch. Received: batch=None with {dict(asked)}. Fix: pass "
            "batch=job.batch(per_replica=..., base_batch=...)."
        )


def _check_optimizer(optimizer: Any) -> None:
    if isinstance(optimizer, (str, dict)):
        hint = "write keras.optimizers.SGD(0.1), for example"
        raise ConfigurationTypeError(received("optimizer", optimizer, "a Keras optimizer, made already", hint))
    if isinstance(optimizer, keras.callbacks.Callback):
        name = type(optimizer).__name__
        hint = f"give the optimizer here, and the callback to model.fit(callbacks=job.callbacks([{name}(...)]))"
        raise ConfigurationTypeError(
            received(
                "optimizer", optimizer, "a Keras optimizer, and this is a callback, which watches the training", hint
            )
        )
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        legacy = "tf_keras" in type(optimizer).__module__ or "legacy" in type(optimizer).__module__
        hint = "legacy Keras is not supported: use keras.optimizers of Keras 3" if legacy else ""
        raise ConfigurationTypeError(received("optimizer", optimizer, "an optimizer of Keras 3", hint))
    if is_adopted(optimizer):
        if unwrap_loss_scale(optimizer).distlr.restored:
            raise ConfigurationError(
                f"The optimizer '{optimizer.name}' came with a saved model, or from a config, with all that it was "
                "adopted with. Fix: leave it as it is, and let the job connect it: fit(callbacks=job.callbacks([...])) "
                "or, in a loop of your own, job.broadcast(model, optimizer). To adopt it anew, call "
                "distlr.strip(model) before."
            )
        raise ConfigurationError(
            f"The optimizer '{optimizer.name}' is adopted already; adopting it twice would scale its rate twice. "
            "Fix: call job.optimizer once for each optimizer."
        )
    if hasattr(optimizer, "optimizers"):
        raise ConfigurationError(f"{received('optimizer', optimizer, 'a single optimizer')} {INSTEAD_OF_MULTI}")


def _check_strategy(optimizer: Any) -> None:
    current, expected = tf.distribute.get_strategy(), strategy_of(optimizer)
    if expected is not current:
        raise DistributionError(
            f"The optimizer '{optimizer.name}' was made under {type(expected).__name__}, and the current strategy is "
            f"{type(current).__name__} with {current.num_replicas_in_sync} replicas. Fix: make the optimizer, "
            "and call job.optimizer, inside `with job.scope():`."
        )


def _check_accumulation(optimizer: Any, batch: GlobalBatch | None) -> None:
    steps = optimizer.gradient_accumulation_steps or 1
    if batch is not None and steps != batch.accumulation:
        raise ConfigurationError(
            f"The optimizer accumulates {steps} steps and the batch {batch.accumulation}, so the rate would be scaled "
            f"for {batch.accumulation / steps:g} times the batch that is trained. Fix: give both the same "
            "number: gradient_accumulation_steps= of the optimizer and accumulation= of the batch."
        )
