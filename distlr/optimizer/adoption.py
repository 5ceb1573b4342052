"""What distlr keeps beside an adopted Keras optimizer."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import keras
import numpy as np
import tensorflow as tf

from distlr._utils.detached_copy import update_copy
from distlr.batch.global_batch import GlobalBatch
from distlr.communicators.gradient_reducer import GradientReducer
from distlr.errors import DistlrError, DistributionError, StateError
from distlr.optimizer.hooks import HookContract
from distlr.optimizer.hyperparameters import HyperparameterOptions, Multipliers
from distlr.optimizer.rate import RateCache
from distlr.optimizer.reduction import Reduction
from distlr.optimizer.training_values import TrainingValues
from distlr.schedules import Scaled
from distlr.schedules.schedule import as_float64

__all__ = [
    "BAD_STEPS",
    "CLIMB",
    "NO_CLIMB",
    "PREFIX",
    "STEERED",
    "UNSTEERED",
    "Adoption",
    "ManualControlState",
    "name_of",
    "saved_name",
]

PREFIX = "distlr_"
"""Begins the name of each variable of distlr's in a saved file and in a TensorFlow checkpoint."""

BAD_STEPS = "bad_steps"
"""Names the state that counts the steps that were left out for a gradient that is not finite."""
CLIMB = "climb"
"""Names the state of a climb: where it began and its length, in samples, and the share of the rate it began at."""
NO_CLIMB = (0.0, 0.0, 1.0)
STEERED = "steered"
"""Names the state of changes by hand, a `ManualControlState`."""


class ManualControlState(NamedTuple):
    """Which changes by hand a run has had: all up to a place, and so many of those at that place.

    Attributes:
        paused: whether plateaus are not to cut.
        clock: where the last one was made, as the run counts.
        moment: when there, a `changes.Moment`.
        made: how many there.
    """

    paused: int = 0
    clock: int = 0
    moment: int = 0
    made: int = 0


UNSTEERED = ManualControlState()

_FNV_PRIME = 1_099_511_628_211


def saved_name(name: str) -> str:
    """What a variable of distlr's is called in a file, where a slash would open a group."""
    return PREFIX + quote(name, safe="")


def name_of(saved: str) -> str:
    """The name that `saved_name` was made from."""
    return unquote(saved[len(PREFIX) :])


class Adoption:
    """The formula, and the variables that distlr adds to one optimizer.

    A plain object, so that neither Keras' nor TensorFlow's attribute tracking sees into it: the
    optimizer's own list of variables stays as Keras made it, position by position, and a TensorFlow
    checkpoint of the plain optimizer restores into it.
    """

    def __init__(self, optimizer: Any, law: Callable[[tf.Tensor], tf.Tensor], scaled: Scaled | None) -> None:
        self.base_class: type = type(optimizer)
        # Kept: Keras tells objects that a file has twice by their ids, which must not come again.
        self._plain: Any = object.__new__(self.base_class)
        self.strategy = tf.distribute.get_strategy()
        self.training_values = TrainingValues(self.strategy)
        self.law = law
        self.scaled = scaled
        self.hooks = HookContract()
        self.rate_cache = RateCache()
        self.gradient_reducer: GradientReducer | None = None  # where something goes from rank to rank with gradients
        self.reduction = Reduction()
        self.ranks = 1
        self.restored = False  # made from a config, and connected to no job yet
        self.refusal: DistlrError | None = None  # what `connection.settle` found, for the first step
        self.gradient_names: list[str] = []  # the names of the gradients of the update in progress
        self.broadcast = False
        self.extras = HyperparameterOptions()
        self.bases: dict[str, float] = {}  # what else is scaled, as it was at the base batch, by attribute
        self.bad_steps: Any = None  # where steps with a gradient that is not finite are left out
        self.norm: Any = None  # of the gradients, where somebody wants to know it
        self.previous_rate: Any = None  # where the momentum is corrected
        self.follows: dict[str, Any] = {}  # schedules of weight_decay and momentum
        self.follow_factors: dict[str, float] = {}
        self.decay_cache = RateCache()
        self.momentum_cache = RateCache()
        self.multipliers: Multipliers | None = None
        self.waits_for_agreement = False
        self.in_graph = False  # whether the last update was in a graph
        self.behind = 0  # how far the clock is behind the data
        self.readings: dict[tuple[bool, bool], Any] = {}  # its graphs that read the formula
        self.speaks = True  # whether this process says what is done to the rate
        self.said_units = False
        self.building = False
        self.held: Any = None  # what `saving` loaded before the optimizer was built
        self.held_states: dict[str, np.ndarray] = {}
        self.refused: StateError | None = None
        self.named: dict[str, Any] = {}
        self.initial: dict[str, np.ndarray] = {}
        self.multiplier = self._add(optimizer, "multiplier", np.float64(1))
        self.samples_seen = self._add(optimizer, "samples_seen", np.int64(0))
        # Written by each replica for itself and never synchronized: it is the proof, not part of the state.
        self.digest = _own(tf.int64)

    @property
    def batch(self) -> GlobalBatch | None:
        """The batch that the rate is scaled for, or None without scaling."""
        return None if self.scaled is None else self.scaled.batch

    @property
    def variables(self) -> list[Any]:
        """The variables that distlr added, in the order in which they were made."""
        return list(self.named.values())

    def state(self, optimizer: Any, name: str, initial: np.ndarray) -> Any:
        """The variable called `name`; made when first asked for, with what was loaded for it if anything was."""
        if name not in self.named:
            value = self.held_states.get(name, initial)
            if value.shape != initial.shape:
                raise StateError(
                    f"The loaded state '{name}' has shape {value.shape} and not {initial.shape}. Fix: load what "
                    "this version of distlr saved."
                )
            with self.strategy.scope():
                self._add(optimizer, name, value)
            self.initial[name] = initial
            self.held_states.pop(name, None)
        return self.named[name]

    def states(self) -> dict[str, list[float]]:
        """What `state` has made, and what was loaded for it, with what each begins with."""
        made = {name: self.initial[name] for name in self.named if name not in ("multiplier", "samples_seen")}
        loaded = {name: value for name, value in self.held_states.items() if value.ndim == 1}
        return {
            name: np.asarray(initial).tolist()
            for name, initial in sorted({**loaded, **made}.items())
            if np.ndim(initial) == 1
        }

    @property
    def spans_processes(self) -> bool:
        """Whether several processes make each variable together."""
        multi = isinstance(self.strategy, tf.distribute.MultiWorkerMirroredStrategy)
        return multi and self.strategy.cluster_resolver.cluster_spec().as_dict() != {}

    def watch_norm(self) -> bool:
        """Keeps the norm of each update's gradients, as they are averaged and before they are clipped."""
        if self.norm is not None:
            return False
        with self.strategy.scope():
            self.norm = _own(tf.float32)
        return True

    def take(self, optimizer: Any, extras: HyperparameterOptions, values: Mapping[str, float]) -> None:
        """Keeps what else is asked for, of a plain optimizer whose attributes will get these values."""
        self.extras = extras
        self.bases = {name: getattr(optimizer, name) for name in values}
        self.follows = extras.follows()
        self._follow(values)
        self.multipliers = None if extras.multipliers is None else Multipliers(extras.multipliers)
        if extras.momentum_correction:  # of the update before, whose rate the velocity holds
            self.previous_rate = self._add(optimizer, "previous_rate", np.float64(0))

    def use(self, optimizer: Any, scaled: Scaled, values: Mapping[str, float]) -> None:
        """Takes the formula for another batch, and the values of what else is scaled, before the first step."""
        self.scaled, self.law = scaled, scaled.at
        self.readings.clear()
        self._follow(values)
        for name, value in values.items():
            setattr(optimizer, name, value)

    def plain(self, optimizer: Any) -> Any:
        """The plain optimizer at the base batch: another object, of the user's class, with the same variables.

        What is scaled beside the rate has its values at the base batch: its config does not scale it twice.
        """
        update_copy(self._plain, optimizer, "_distlr", self.bases)
        return self._plain

    def _follow(self, values: Mapping[str, float]) -> None:
        self.follow_factors = {name: values[name] / self.bases[name] for name in values if name in self.follows}

    def remember(self, rate: tf.Tensor, t: tf.Tensor, updates: tf.Tensor | None) -> None:
        """Keeps the rate of this update for the next one, while the warmup climbs; then 0."""
        assert self.scaled is not None
        kept = tf.where(self.scaled.climbs(t), tf.cast(rate, tf.float64), 0.0)
        self.previous_rate.assign(kept if updates is None else tf.where(updates, kept, self.previous_rate))

    def momentum_factor(self, rate: tf.Tensor) -> tf.Tensor:
        """What the velocity is multiplied by before an update at `rate`: rate / previous rate, 1 before the first."""
        previous = tf.cast(self.previous_rate, tf.float64)
        return tf.where(previous > 0, tf.cast(rate, tf.float64) / tf.where(previous > 0, previous, 1.0), 1.0)

    def follow(self, time: Callable[[], tf.Tensor]) -> contextlib.AbstractContextManager[Any]:
        """Holds what the schedules of weight decay and momentum give now, for the update in progress."""
        holding = contextlib.ExitStack()
        for name, cache in (("weight_decay", self.decay_cache), ("momentum", self.momentum_cache)):
            if name in self.follows:
                value = as_float64(self.follows[name])(time())
                holding.enter_context(cache.holding(value * self.follow_factors.get(name, 1.0)))
        return holding

    def velocity_factor(self, rate: tf.Tensor, momentum: float) -> tf.Tensor | None:
        """What SGD's velocity is multiplied by before Keras multiplies it by `momentum`; None for nothing."""
        factors = [] if self.previous_rate is None else [self.momentum_factor(rate)]
        scheduled = self.momentum_cache.get()
        if scheduled is not None:
            factors.append(scheduled / momentum)
        return functools.reduce(tf.multiply, factors) if factors else None

    def untrack(self, optimizer: Any) -> None:
        """Takes the variables of distlr out of the optimizer's TensorFlow checkpoints."""
        for name in self.named:
            optimizer._delete_tracking(saved_name(name))

    def record(self, rate: tf.Tensor, updates: tf.Tensor | None) -> None:
        """Folds the bits of an applied rate into this replica's digest (FNV: multiply, then add)."""
        bits = tf.cast(tf.bitcast(tf.cast(rate, tf.float32), tf.int32), tf.int64)
        folded = self.digest * _FNV_PRIME + bits
        self.digest.assign(folded if updates is None else tf.where(updates, folded, self.digest))

    def check_current_strategy(self, agreed: bool) -> None:
        """Refuses an update under another strategy than the optimizer's, of no job, or on one replica's word alone."""
        if self.refusal is not None:
            raise self.refusal
        found = tf.distribute.get_strategy()
        expected = self.strategy
        if found is not expected:
            raise DistributionError(
                f"The optimizer belongs to {type(expected).__name__} with {expected.num_replicas_in_sync} replicas, "
                f"but the model applies gradients under {type(found).__name__} with {found.num_replicas_in_sync}. One "
                "of them was built outside job.scope(), so one device would train at the rate of all. Fix: "
                "build the model, make the optimizer and call compile inside `with job.scope():`."
            )
        if self.gradient_reducer is not None and not self.broadcast:
            raise DistributionError(
                "The ranks would take the first step from different weights: rank 0's state was never broadcast. "
                "Fix: train with fit(callbacks=job.callbacks([...])), or call job.broadcast(model, optimizer) "
                "before the first step of a loop of your own."
            )
        several = expected.num_replicas_in_sync > 1 or self.gradient_reducer is not None
        if self.waits_for_agreement and not agreed and several:
            raise DistributionError(
                "Keras' LossScaleOptimizer wraps the optimizer (compile does it by itself under mixed_float16) and "
                "looks for overflows on one replica alone; with an overflow on another one the weights become -inf. "
                "Fix: train with fit(callbacks=job.callbacks([...])), or wrap before adopting: "
                "job.optimizer(keras.optimizers.LossScaleOptimizer(optimizer), batch)."
            )

    def _add(self, optimizer: Any, name: str, value: Any) -> Any:
        value = np.asarray(value)
        variable = keras.Variable(
            lambda shape, dtype: tf.constant(value, dtype),
            shape=value.shape,
            dtype=value.dtype.name,
            trainable=False,
            aggregation="only_first_replica",
            name=PREFIX + name.replace("/", "_"),
        )
        self.named[name], self.initial[name] = variable, value
        # TensorFlow's checkpoints find it by this name, whatever the order in which callbacks came.
        optimizer._track_trackable(variable, saved_name(name), overwrite=True)
        return variable


def _own(dtype: tf.DType) -> tf.Variable:
    """A number that each replica writes for itself, and that is never synchronized."""
    return tf.Variable(
        tf.zeros((), dtype),
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.NONE,
    )
