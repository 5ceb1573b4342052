"""What a Keras optimizer gains when distlr adopts it: the formula, the clock and the state."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distlr.errors import ConfigurationError
from distlr.optimizer import saving
from distlr.optimizer.accumulation import accumulate
from distlr.optimizer.adoption import BAD_STEPS, CLIMB, NO_CLIMB, STEERED, UNSTEERED, Adoption, Steered
from distlr.optimizer.gate import agreed, are_finite, global_norm, only_if
from distlr.optimizer.rate import LearningRate, check_rate
from distlr.schedules.base import at_each
from distlr.strategies.replicas import on_replicas, sum_over_replicas

__all__ = ["ScaledOptimizer", "derived_class"]

_log = logging.getLogger("distlr")


@keras.saving.register_keras_serializable("distlr", "Optimizer")
class ScaledOptimizer:
    """Mixed in before a Keras optimizer's own class; `adopt` puts it there. Not built by hand.

    `lr(t) = schedule(t) * factor(k) * warmup(t) * multiplier`, computed once an update, in graph, in
    float64, and cast at the end.
    """

    _distlr: Adoption
    _iterations: Any
    _get_variable_index: Any
    momentums: Any
    _trainable_variables: Any
    built: bool
    gradient_accumulation_steps: int | None
    agreed_loss_scale = False  # set by loss_scale.agree

    # -- the rate ------------------------------------------------------------------------------------

    @property
    def learning_rate(self) -> Any:
        """The rate of the next update. Assigning sets the rate *now*; the schedule keeps its shape.

        Outside a graph it is a float that also has `assign` and `numpy`; in a graph it is a tensor.
        """
        adoption = self._distlr
        computed = adoption.rate_cache.get()
        if computed is not None:
            return computed
        rate = self._formula()
        return LearningRate(rate.numpy(), self) if tf.executing_eagerly() else rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        check_rate(value)
        if not tf.executing_eagerly():
            full = self._without_multiplier(None)
            with tf.control_dependencies([tf.debugging.assert_positive(full, "the schedule is 0 here")]):
                self._distlr.multiplier.assign(tf.cast(value, tf.float64) / full)
            return
        self.set_rate(float(value))
        if self.in_warmup:
            _log.info(
                "The rate was set to %g during warmup; it goes on climbing with the warmup from there.",
                float(value),
            )

    def set_rate(self, value: float) -> None:
        """As assigning to `learning_rate`, outside of a graph and without a word about a warmup.

        Raises:
            ConfigurationError: the schedule is 0 now.
        """
        full = float(self._without_multiplier(None))
        if full == 0.0:
            raise ConfigurationError(
                f"The rate cannot be set to {value:g} now: the schedule is 0 at this point, and distlr keeps "
                "its shape by multiplying. To mend it: set the rate before the schedule reaches 0, or give the "
                "schedule a floor (for example `alpha` of CosineDecay)."
            )
        self._distlr.multiplier.assign(value / full)

    def multiply_rate(self, factor: float) -> None:
        """Multiplies the rate from the next update on; plateau cuts and changes by hand go through here."""
        multiplier = self._distlr.multiplier
        multiplier.assign(float(multiplier.numpy()) * factor)

    @property
    def steered(self) -> Steered:
        """Which changes by hand the run has had, and whether they paused plateaus."""
        variable = self._distlr.named.get(STEERED)
        return UNSTEERED if variable is None else Steered(*(int(value) for value in variable.numpy()))

    def steer(self, steered: Steered | None = None) -> None:
        """Notes a change by hand in the optimizer's variables, so that a restart goes on with it; None makes them."""
        variable = self.state(STEERED, UNSTEERED)
        if steered is not None:
            variable.assign([float(value) for value in steered])

    def climb(self, share: float, samples: int) -> None:
        """Lets the rate go from `share` of the formula's to all of it, linearly, over the next so many samples.

        A factor of its own on the formula, for the time after a change of the batch, whose rate is another at once. It
        is kept in the optimizer's variables, so that a restart goes on with it.
        """
        if self._distlr.batch is None:
            raise ConfigurationError("A climb is counted in samples, and the optimizer has no batch.")
        start = [float(self.samples_seen), float(samples), float(share)]
        self.state(CLIMB, NO_CLIMB).assign(start)

    @property
    def multiplier(self) -> float:
        """The only part of the formula that changes during a run; 1 at the start."""
        return float(self._distlr.multiplier.numpy())

    @property
    def samples_seen(self) -> int:
        """The clock: samples of the data set passed by applied updates."""
        return int(self._samples().numpy())

    @property
    def in_warmup(self) -> bool:
        """Whether the rate still climbs."""
        scaled = self._distlr.scaled
        return scaled is not None and scaled.in_warmup(float(self._time()))

    @property
    def batch(self) -> Any:
        """The `GlobalBatch` that the rate is scaled for, or None."""
        return self._distlr.batch

    @property
    def schedule(self) -> Any:
        """The `schedules.Scaled` that gives the rate without the multiplier, or None without a batch."""
        return self._distlr.scaled

    def explain(self) -> dict[str, Any]:
        """The parts of the formula as plain numbers."""
        adoption = self._distlr
        parts = adoption.scaled.explain() if adoption.scaled is not None else {"factor": 1.0, "clock": "steps"}
        return {
            **parts,
            "scaled": {name: [base, getattr(self, name)] for name, base in adoption.bases.items()},
            "momentum_correction": adoption.previous_rate is not None,
            "optimizer": adoption.base_class.__name__,
            "multiplier": self.multiplier,
            "samples_seen": self.samples_seen,
            "learning_rate": float(self.learning_rate),
        }

    def rate_digests(self) -> list[str]:
        """One digest a replica on this process, over the bits of the rate of every update so far.

        Each replica folds the rate that it applied into a number of its own, which is never synchronized;
        equal digests prove that the replicas applied the same rates in the same order.
        """
        adoption = self._distlr
        local = adoption.strategy.experimental_local_results(adoption.digest)
        return [f"{int(value.numpy()) & (2**64 - 1):016x}" for value in local]

    @property
    def replica_variables(self) -> list[Any]:
        """What each replica keeps for itself, and no file has: the digest, and the norm where it is watched."""
        return [variable for variable in (self._distlr.digest, self._distlr.norm) if variable is not None]

    def rates_at(self, samples: Sequence[int] | np.ndarray) -> np.ndarray:
        """What the formula gives at these clocks without the multiplier, in float64, for a picture of the run."""
        return at_each(self._without_multiplier, np.asarray(samples, np.int64))

    def _formula(self, samples: tf.Tensor | None = None) -> tf.Tensor:
        multiplier = tf.cast(self._distlr.multiplier, tf.float64)
        return tf.cast(self._without_multiplier(samples) * multiplier, keras.config.floatx())

    def _without_multiplier(self, samples: tf.Tensor | None) -> tf.Tensor:
        adoption = self._distlr
        rate = adoption.law(self._time(samples))
        if CLIMB in adoption.named:
            start, length, share = tf.unstack(tf.cast(adoption.named[CLIMB], tf.float64))
            passed = tf.cast(self._samples() if samples is None else samples, tf.float64) - start
            rate *= tf.where(passed < length, share + (1.0 - share) * passed / tf.maximum(length, 1.0), 1.0)
        return rate

    def _time(self, samples: tf.Tensor | None = None) -> tf.Tensor:
        scaled = self._distlr.scaled
        step = tf.convert_to_tensor(self._iterations)
        if scaled is None:
            return tf.cast(step, tf.float64)
        return scaled.time(step, self._samples() if samples is None else samples)

    def _samples(self) -> tf.Tensor:
        adoption = self._distlr
        samples = tf.convert_to_tensor(adoption.samples_seen)
        if adoption.batch is None:
            return samples
        # A checkpoint of a plain Keras optimizer has updates but no clock: it ran at the base batch.
        updates = tf.cast(self._iterations, tf.int64) // adoption.batch.accumulation
        return tf.where(samples > 0, samples, updates * adoption.batch.base_batch)

    # -- one update ----------------------------------------------------------------------------------

    def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
        """As in Keras, with the rate computed once before it, and the digest and the clock moved on after it.

        Where the gradients are watched (`watch`) all replicas and ranks leave a step out where one has one that is not
        finite.
        """
        if len(grads) == 0:
            return  # Keras applies nothing either, so the clock stands still
        adoption = self._distlr
        adoption.check_current_strategy(self.agreed_loss_scale)
        if adoption.bad_steps is None or self.agreed_loss_scale:
            self._step(grads, trainable_variables)
            return
        if trainable_variables is not None and not self.built:
            with tf.init_scope():
                self.build(trainable_variables)
        finite = agreed(are_finite(grads), adoption.exchange)
        count = adoption.bad_steps
        only_if(finite, self._step, lambda: count.assign(count + 1.0), (list(grads), trainable_variables))

    def _step(self, grads: Sequence[Any], trainable_variables: Any) -> None:
        adoption = self._distlr
        samples = self._samples()
        rate = self._formula(samples)
        updates = self._updates()
        # Where Keras does not know the number of steps it runs one more at the data's end. That step fails, but what
        # does not wait for the data may run before: Keras' `iterations` counts it, and the clock must not.
        with tf.control_dependencies(_earliest(grads)):
            samples, rate = tf.identity(samples), tf.identity(rate)
        with adoption.rate_cache.holding(rate), adoption.follow(functools.partial(self._time, samples)):
            super().apply(grads, trainable_variables)  # type: ignore[misc]
        adoption.record(rate, updates)
        if adoption.previous_rate is not None:
            adoption.remember(rate, self._time(samples), updates)
        if adoption.batch is not None:
            after = adoption.batch.advance(samples)
            adoption.samples_seen.assign(after if updates is None else tf.where(updates, after, samples))

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """As in Keras, at the variable's own rate, from a velocity for the new rate and momentum, where asked for."""
        adoption = self._distlr
        factor = adoption.velocity_factor(learning_rate, getattr(self, "momentum", 0.0))
        if factor is not None:
            velocity = self.momentums[self._get_variable_index(variable)]
            super().assign(velocity, velocity * tf.cast(factor, velocity.dtype))  # type: ignore[misc]
        if adoption.multipliers is not None:
            learning_rate *= adoption.multipliers.of(self._path(variable))
        super().update_step(gradient, variable, learning_rate)  # type: ignore[misc]

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        """As in Keras, by the variables' own rates."""
        adoption = self._distlr
        rate = adoption.rate_cache.get()
        if adoption.multipliers is None or rate is None:
            super()._apply_weight_decay(variables)  # type: ignore[misc]
            return
        groups: dict[float, list[Any]] = {}
        for variable in variables:
            groups.setdefault(adoption.multipliers.of(self._path(variable)), []).append(variable)
        for factor, group in groups.items():
            with adoption.rate_cache.holding(rate * factor):
                super()._apply_weight_decay(group)  # type: ignore[misc]

    def _path(self, variable: Any) -> str:
        """The path of a variable, which may come as one device's copy of it."""
        return str(self._trainable_variables[self._get_variable_index(variable)].path)

    @property
    def weight_decay(self) -> Any:
        """Keras' weight decay; during an update what its schedule gives, where it has one."""
        if "_distlr" in self.__dict__ and self._distlr.decay_cache.get() is not None:
            return self._distlr.decay_cache.get()
        return self.__dict__.get("weight_decay")

    @weight_decay.setter
    def weight_decay(self, value: Any) -> None:
        self.__dict__["weight_decay"] = value

    def watch(self) -> bool:
        """Lets all replicas and ranks leave out a step where a gradient is not finite; False where they do already."""
        adoption = self._distlr
        if adoption.bad_steps is not None:
            return False
        adoption.bad_steps = self.state(BAD_STEPS, [0.0])
        return True

    @property
    def bad_steps(self) -> int:
        """How many steps were left out, where the gradients are watched."""
        count = self._distlr.bad_steps
        return 0 if count is None else int(count.numpy()[0])

    def watch_norm(self) -> bool:
        """Lets each update keep the norm of its gradients; False where it does already."""
        return self._distlr.watch_norm()

    @property
    def gradient_norm(self) -> float:
        """The global norm of the last update's gradients, averaged and before they are clipped; 0 if not watched."""
        norm = self._distlr.norm
        return 0.0 if norm is None else float(self._distlr.strategy.experimental_local_results(norm)[0].numpy())

    def _updates(self) -> tf.Tensor | None:
        """Whether this step updates the weights; None where every step does."""
        steps = self.gradient_accumulation_steps
        return None if not steps else tf.equal((tf.cast(self._iterations, tf.int64) + 1) % steps, 0)

    def __setattr__(self, name: str, value: Any) -> None:
        # Keras' LossScaleOptimizer assigns None when it wraps an optimizer, and nothing else does. As shipped it looks
        # at the gradients of one replica alone, so `apply` waits for a wrapper that asks all of them, a new one each
        # time. (A property would not see it: Keras skips the assignment of what an attribute is already.)
        if name == "loss_scale_factor" and value is None and "_distlr" in self.__dict__:
            self._distlr.waits_for_agreement = True
            self.agreed_loss_scale = False
        super().__setattr__(name, value)

    # -- the exchange with other ranks -----------------------------------------------------------------

    @property
    def exchange(self) -> Any:
        """What averages the gradients over the ranks, or None where nothing has to."""
        return self._distlr.exchange

    def connect(self, exchange: Any) -> None:
        """Gives an optimizer that a saved model came with the exchange of its job, unless it has one or wants none."""
        adoption = self._distlr
        if adoption.exchange is None and adoption.wants_exchange:
            adoption.exchange = exchange()

    def refuse_exchange(self) -> None:
        """Leaves the gradients as they come: something of the user's own averages them."""
        self._distlr.wants_exchange = False

    def mark_broadcast(self) -> None:
        """Allows the first step: every rank has rank 0's state now."""
        self._distlr.broadcast = True

    def _backend_apply_gradients(self, grads: Sequence[Any], trainable_variables: Sequence[Any]) -> None:
        # By place, not by name: a rank that built another model first has other names for the same variables.
        adoption = self._distlr
        adoption.exchanged = [str(self._get_variable_index(variable)) for variable in trainable_variables]
        if self.gradient_accumulation_steps and on_replicas():
            accumulate(self, grads, trainable_variables)
        else:
            super()._backend_apply_gradients(grads, trainable_variables)  # type: ignore[misc]

    def _clip_gradients(self, grads: Sequence[Any]) -> Sequence[Any]:
        """Averages over ranks and replicas, then clips as Keras does; reached once an update, accumulated or not.

        Keras itself clips what each replica has, and sums after that: with clipping, another update than one device's.
        """
        adoption = self._distlr
        if not grads:
            return grads
        if adoption.exchange is not None:
            grads = adoption.exchange.average(grads, adoption.exchanged)
        else:
            grads = sum_over_replicas(grads)
        if adoption.norm is not None:
            adoption.norm.assign(global_norm(grads))
        return super()._clip_gradients(grads)  # type: ignore[misc]

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        return grads_and_vars  # `_clip_gradients` has summed them

    # -- state ---------------------------------------------------------------------------------------

    @property
    def variables(self) -> list[Any]:
        return super().variables + self._distlr.variables  # type: ignore[misc]

    def build(self, variables: Sequence[Any]) -> None:
        """As in Keras, and what was loaded before is put into the new slots."""
        was_built, adoption = self.built, self._distlr
        adoption.building = True
        try:
            super().build(variables)  # type: ignore[misc]
        finally:
            adoption.building = False
        self.built = True
        if adoption.multipliers is not None:
            adoption.multipliers.check([variable.path for variable in self._trainable_variables])
        if not was_built:
            saving.load_held(self)

    def assign(self, variable: Any, value: Any) -> None:
        """As in Keras, but a build does not overwrite what a TensorFlow checkpoint gave a slot as it was made."""
        if not (self._distlr.building and getattr(variable, "_update_uid", -1) >= 0):
            super().assign(variable, value)  # type: ignore[misc]

    def set_weights(self, weights: Sequence[Any]) -> None:
        plain, own = saving.split_weights(self, weights)
        super().set_weights(plain)  # type: ignore[misc]
        for variable, value in zip(self._distlr.variables, own, strict=True):
            variable.assign(value)

    def state(self, name: str, initial: Sequence[float]) -> Any:
        """A float64 optimizer variable of its own for a callback that decides, made when first asked for.

        It is saved, loaded and broadcast with the optimizer. One loaded before it was asked for is kept.
        """
        return self._distlr.state(self, name, np.asarray(initial, np.float64))

    def states(self) -> dict[str, list[float]]:
        """The states of deciders by name, with what each begins with: those that were asked for, and those loaded."""
        return self._distlr.states()

    def own_variables(self) -> dict[str, Any]:
        """The variables that distlr added, by name: the multiplier, the clock, and what `state` made."""
        return dict(sorted(self._distlr.named.items()))

    def save_own_variables(self, store: Any) -> None:
        saving.save(self, store)

    def load_own_variables(self, store: Any) -> None:
        saving.load(self, store)
        for name, initial in ((CLIMB, NO_CLIMB), (STEERED, UNSTEERED)):
            if name in self._distlr.held_states and not self._distlr.spans_processes:
                self.state(name, initial)  # the formula or a plateau needs it; nobody else will ask for it

    def get_config(self) -> dict[str, Any]:
        """The plain optimizer, as Keras serializes it, and the arguments of its scaling."""
        adoption = self._distlr
        derived, scaled = type(self), {name: getattr(self, name) for name in adoption.bases}
        try:
            for name, base in adoption.bases.items():  # never the scaled values, or a reload would scale them again
                setattr(self, name, base)
            self.__class__ = adoption.base_class  # so that Keras serializes the plain optimizer
            plain = keras.saving.serialize_keras_object(self)
        finally:
            self.__class__ = derived
            for name, value in scaled.items():
                setattr(self, name, value)
        return {
            "optimizer": plain,
            "scaling": None if adoption.scaled is None else adoption.scaled.options(),
            "scale": adoption.scale,
            "momentum_correction": adoption.previous_rate is not None,
            "follows": {name: keras.saving.serialize_keras_object(s) for name, s in adoption.follows.items()},
            "multipliers": None if adoption.multipliers is None else adoption.multipliers.patterns,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        from distlr.optimizer.conversion import adopt_from_config

        return adopt_from_config(config, custom_objects)


def _earliest(grads: Sequence[Any]) -> list[tf.Tensor]:
    """The gradient that back-propagation has first, of the last variable, so that the rate need not wait for all."""
    tensors = (getattr(grad, "values", grad) for grad in reversed(grads))  # IndexedSlices have values
    return [tensor for tensor in tensors if tf.is_tensor(tensor)][:1]


@functools.cache
def derived_class(base: type) -> type:
    """The class that an optimizer of class `base` gets: a subclass of it, one for each base."""
    name = f"Distlr{base.__name__}"
    derived = type(name, (ScaledOptimizer, base), {"__module__": ScaledOptimizer.__module__})
    # All derived classes share one registered name: `from_config` is the same for each, and tells them
    # apart by the plain optimizer inside the config. The last registration standing is as good as any.
    return keras.saving.register_keras_serializable("distlr", "Optimizer")(derived)
