"""The class of an adopted optimizer: Keras' own hooks, each handed to what distlr adds."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from distlr.optimizer.accumulation import apply_accumulated, overwrite_with_averages
from distlr.optimizer.climb import CLIMB, NO_CLIMB
from distlr.optimizer.extension import OptimizerExtension
from distlr.optimizer.hooks import expected_hooks
from distlr.optimizer.learning_rate import LearningRate
from distlr.optimizer.manual_control_state import MANUAL_CONTROL, ManualControlState
from distlr.strategies.replicas import on_replicas
from distlr.strategies.step_record import applying

__all__ = ["SHORTCUTS", "AdoptedOptimizer"]

SHORTCUTS = {
    "base_rate": "formula.base_rate",
    "explain": "explain",
    "multiplier": "formula.multiplier",
    "multiply_rate": "formula.multiply_rate",
    "rate_digests": "gradients.rate_digests",
    "samples_seen": "formula.samples_seen",
    "set_base_rate": "formula.set_base_rate",
}
"""The documented names that an adopted optimizer has beside Keras', by their places in `optimizer.distlr`."""

_RENAMED = {
    "bad_steps": "gradients.bad_steps",
    "batch": "batch",
    "behind": "formula.samples_behind",
    "climb": "formula.climb",
    "counts": "formula.counts",
    "gradient_norm": "gradients.norm",
    "gradient_reducer": "gradients.reducer",
    "in_warmup": "formula.in_warmup",
    "own_variables": "variables.by_name",
    "rate_follows_clock": "follows_clock",
    "rates_at": "formula.rates_at",
    "reading": "formula.reading",
    "reduction": "gradients.reduction",
    "replica_variables": "gradients.replica_variables",
    "restored": "restored",
    "schedule": "formula.batch_schedule",
    "set_rate": "formula.set_rate",
    "state": "state",
    "states": "variables.decider_states",
    "watch": "gradients.leave_out_bad_steps",
    "watch_norm": "gradients.watch_norm",
}
"""Names that it had in the version before: each is an alias that warns for one release."""

_ASSIGNABLE = ("behind", "reduction")
"""Those of them that could be assigned."""


class AdoptedOptimizer:
    """Stands before a Keras optimizer's own class in an adopted optimizer; `job.optimizer` puts it there.

    `lr(t) = schedule(t) * factor(k) * warmup(t) * multiplier`, computed once an update, in graph, in float64, and cast
    at the end. `optimizer.distlr` has all that distlr adds. A few names of it are on the optimizer, too, unless the
    user's class has such an attribute itself: `multiplier`, `samples_seen`, `base_rate`, `set_base_rate`,
    `multiply_rate`, `explain` and `rate_digests`.

    >>> import distlr
    >>> job = distlr.init(environ={})
    >>> optimizer = job.optimizer(keras.optimizers.SGD(0.1), job.batch(per_replica=8, base_batch=4))
    >>> isinstance(optimizer, AdoptedOptimizer), isinstance(optimizer, keras.optimizers.SGD)
    (True, True)
    >>> variable = keras.Variable([1.0])
    >>> optimizer.apply([keras.ops.ones(1)], [variable])
    >>> float(variable.numpy()[0]), optimizer.samples_seen
    (0.8, 8)
    """

    # Its own methods begin with two underscores, so that Python gives them names that no user's class has.

    _distlr: OptimizerExtension
    _accumulated_gradients: list[Any]
    _backend_increment_gradient_accumulators: Any
    _backend_update_step: Any
    _get_variable_index: Any
    _iterations: Any
    _trainable_variables: list[Any]
    _update_model_variables_moving_average: Any
    built: bool
    ema_overwrite_frequency: int | None
    gradient_accumulation_steps: int | None
    iterations: Any
    momentums: Any
    name: str
    use_ema: bool

    @property
    def distlr(self) -> OptimizerExtension:
        """All that distlr adds to the optimizer."""
        return self._distlr

    def __getattr__(self, name: str) -> Any:
        """The shortcuts, where the optimizer has no attribute of this name itself."""
        # Within a build or an update the user's class asks, which may look whether it has an attribute yet.
        path = None if self.__runs_users_code() else SHORTCUTS.get(name, _RENAMED.get(name))
        users = getattr(super(), "__getattr__", None)
        if users is not None:
            with contextlib.nullcontext() if path is None else contextlib.suppress(AttributeError):
                return users(name)
        if hasattr(type(self), name):
            return object.__getattribute__(self, name)  # a property that raised AttributeError: with its own message
        if path is None or "_distlr" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if name in _RENAMED:
            _warn_of_old_name(name)
        return functools.reduce(getattr, path.split("."), self._distlr)

    def __dir__(self) -> list[str]:
        """The attributes, with the shortcuts."""
        return sorted({*super().__dir__(), *SHORTCUTS})

    def __setattr__(self, name: str, value: Any) -> None:
        """As in Keras; also notes that a loss scale wraps the optimizer."""
        extension = self.__dict__.get("_distlr")
        if extension is not None:
            is_ours = not hasattr(extension.base_class, name) and name not in self.__dict__
            if is_ours and name in _ASSIGNABLE and not self.__runs_users_code():
                place, attribute = _RENAMED[name].split(".")
                _warn_of_old_name(name)
                setattr(getattr(extension, place), attribute, value)
                return
            if is_ours and name in SHORTCUTS and not self.__runs_users_code():
                raise AttributeError(
                    f"`{name}` of an adopted optimizer cannot be assigned. Fix: set optimizer.learning_rate, or call "
                    "optimizer.multiply_rate(factor). If it is an attribute of your own class, set it in __init__."
                )
            if is_ours and (name in SHORTCUTS or name in _RENAMED):
                self.__dict__[name] = None  # Keras reads an attribute before it sets it; from now on it is the user's
            extension.hyperparameters.note(name, value)
            # Keras' LossScaleOptimizer assigns None when it wraps an optimizer, and nothing else does. As shipped it
            # looks at the gradients of one replica alone, so `apply` waits for a wrapper that asks all of them, a new
            # one each time. (A property would not see it: Keras skips the assignment of an attribute's present value.)
            if name == "loss_scale_factor" and value is None:
                extension.gradients.needs_agreeing_loss_scale = True
                extension.gradients.loss_scale_agrees = False
        super().__setattr__(name, value)

    def __runs_users_code(self) -> bool:
        extension = self.__dict__.get("_distlr")
        return extension is not None and (extension.is_building or extension.formula.cache.get() is not None)

    # -- the rate --------------------------------------------------------------------------------------

    @property
    def learning_rate(self) -> Any:
        """The rate of the next update. Assigning sets the rate *now*; the schedule keeps its shape.

        `lr(t) = schedule(t) * factor(k) * warmup(t) * multiplier`. Assigning `x` changes the multiplier so that the
        rate is `x`, as it is applied, after scaling (`set_base_rate` takes a rate for the base batch).
        Outside a graph it is a float that also has what Keras' variable has (`learning_rate.LearningRate`), and the
        rate of the last update where the schedule has none for a next one; in a graph a tensor of Keras' float type.

        Raises:
            ConfigurationError: the assigned value is negative or not finite, or the schedule is 0 now.
            ConfigurationTypeError: it is no number.

        >>> import distlr
        >>> job = distlr.init(environ={})
        >>> optimizer = job.optimizer(keras.optimizers.SGD(0.1), job.batch(per_replica=8, base_batch=4))
        >>> float(optimizer.learning_rate)
        0.2
        >>> optimizer.learning_rate = 0.05
        >>> float(optimizer.learning_rate), optimizer.multiplier
        (0.05, 0.25)
        """
        rate_of_update = self._distlr.formula.cache.get()
        if rate_of_update is not None:
            self._distlr.hooks.passed("learning_rate")
            return rate_of_update
        formula = self._distlr.formula
        return LearningRate(formula.reading().rate, self) if tf.executing_eagerly() else formula.rate()

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self._distlr.formula.assign(value)

    @property
    def weight_decay(self) -> Any:
        """Keras' weight decay; during an update the value of its schedule, where it has one."""
        extension: OptimizerExtension | None = self.__dict__.get("_distlr")
        if extension is None or extension.hyperparameters.weight_decay is None:
            return self.__dict__.get("weight_decay")
        extension.hooks.passed("weight_decay")
        return extension.hyperparameters.weight_decay

    @weight_decay.setter
    def weight_decay(self, value: Any) -> None:
        self.__dict__["weight_decay"] = value

    # -- an update -------------------------------------------------------------------------------------

    def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
        """As in Keras, at the rate that is computed once for it; then the digest and the clock move on.

        Where bad steps are left out, all replicas and ranks leave a step out if one of them has a gradient that is not
        finite.
        """
        # In a `tf.function` of the user's own AutoGraph would convert all of it for ten seconds, and change nothing.
        tf.autograph.experimental.do_not_convert(self.__apply)(grads, trainable_variables)

    def __apply(self, grads: Sequence[Any], trainable_variables: Any) -> None:
        extension = self._distlr
        extension.hooks.passed("apply")
        if len(grads) == 0:
            return  # Keras applies nothing either, so the clock stands still
        with applying(self):
            extension.check_step()
            if trainable_variables is not None and not self.built:
                with tf.init_scope():  # a variable whose first value waits for a gradient cannot be made in the step
                    self.build(trainable_variables)
            extension.gradients.run_where_finite(self.__step, grads, trainable_variables)

    def __step(self, grads: Sequence[Any], trainable_variables: Any) -> None:
        steps = self.gradient_accumulation_steps
        updates = None if not steps else tf.equal((tf.cast(self._iterations, tf.int64) + 1) % steps, 0)
        with self._distlr.update(grads, updates):
            super().apply(grads, trainable_variables)  # type: ignore[misc]
            follows = "weight_decay" in self._distlr.hyperparameters.follows
            self._distlr.hooks.check(expected_hooks(self._trainable_variables, updates, follows_weight_decay=follows))

    def apply_gradients(self, grads_and_vars: Any) -> Any:
        """As in Keras."""
        result = super().apply_gradients(grads_and_vars)  # type: ignore[misc]
        self._distlr.hooks.check(["apply"])
        return result

    def _backend_apply_gradients(self, grads: Sequence[Any], trainable_variables: Sequence[Any]) -> None:
        extension, steps = self._distlr, self.gradient_accumulation_steps
        extension.hooks.passed("_backend_apply_gradients")
        # Not by name: a rank that built another model first has other names for the same variables.
        extension.gradients.places = [str(self._get_variable_index(variable)) for variable in trainable_variables]
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            if tf.is_tensor(gradient) and not isinstance(gradient, tf.IndexedSlices):
                gradient.set_shape(variable.shape)  # which a function of the user's own may have lost
        if not (steps and on_replicas()):
            super()._backend_apply_gradients(grads, trainable_variables)  # type: ignore[misc]
        else:
            sums = [self._accumulated_gradients[self._get_variable_index(variable)] for variable in trainable_variables]
            self._backend_increment_gradient_accumulators(grads, sums)
            update_weights = functools.partial(self.__update_weights, trainable_variables)
            apply_accumulated(sums, steps, self._iterations, update_weights)
            if self.use_ema:  # at every step, as in Keras
                self._update_model_variables_moving_average(self._trainable_variables)
        if self.use_ema and self.ema_overwrite_frequency and on_replicas():
            overwrite = super()._overwrite_model_variables_with_average_value  # type: ignore[misc]
            overwrite_with_averages(
                self.ema_overwrite_frequency, self.iterations, lambda: overwrite(self._trainable_variables)
            )

    def __update_weights(self, variables: Sequence[Any], gradients: list[Any]) -> None:
        """The steps of Keras' update, in its order."""
        gradients = list(self._clip_gradients(gradients))
        self._apply_weight_decay(variables)
        self._backend_update_step(gradients, list(variables), self.learning_rate)

    def _overwrite_model_variables_with_average_value(self, trainable_variables: Sequence[Any]) -> None:
        if not on_replicas():  # else `overwrite_with_averages` does it
            super()._overwrite_model_variables_with_average_value(trainable_variables)  # type: ignore[misc]

    def _clip_gradients(self, grads: Sequence[Any]) -> Sequence[Any]:
        self._distlr.hooks.passed("_clip_gradients")
        if not grads:
            return grads
        clipped: Sequence[Any] = super()._clip_gradients(self._distlr.gradients.reduce(grads))  # type: ignore[misc]
        return clipped

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        self._distlr.hooks.passed("_all_reduce_sum_gradients")
        return grads_and_vars  # `_clip_gradients` has summed them

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """As in Keras, at the variable's own rate; before it the velocity is corrected where that is asked for."""
        hyperparameters = self._distlr.hyperparameters
        self._distlr.hooks.passed("update_step")
        factor = hyperparameters.velocity_factor(learning_rate, getattr(self, "momentum", 0.0))
        if factor is not None:
            velocity = self.momentums[self._get_variable_index(variable)]
            super().assign(velocity, velocity * tf.cast(factor, velocity.dtype))  # type: ignore[misc]
        if hyperparameters.multipliers is not None:
            learning_rate *= hyperparameters.multipliers.of(self.__path(variable))
        super().update_step(gradient, variable, learning_rate)  # type: ignore[misc]

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        self._distlr.hooks.passed("_apply_weight_decay")
        cache, multipliers = self._distlr.formula.cache, self._distlr.hyperparameters.multipliers
        rate = cache.get()
        if multipliers is None or rate is None:
            super()._apply_weight_decay(variables)  # type: ignore[misc]
            return
        groups: dict[float, list[Any]] = {}
        for variable in variables:
            groups.setdefault(multipliers.of(self.__path(variable)), []).append(variable)
        for factor, group in groups.items():
            with cache.holding(rate * factor):
                super()._apply_weight_decay(group)  # type: ignore[misc]

    def __path(self, variable: Any) -> str:
        """The path of a variable, which may come as one device's copy of it."""
        return str(self._trainable_variables[self._get_variable_index(variable)].path)

    # -- the state -------------------------------------------------------------------------------------

    @property
    def variables(self) -> list[Any]:
        """Keras' own variables, in its order, and after them those that distlr added."""
        plain: list[Any] = super().variables  # type: ignore[misc]
        return [*plain, *self._distlr.variables]

    def build(self, variables: Sequence[Any]) -> None:
        """As in Keras; slots that were loaded before are assigned."""
        was_built, extension = self.built, self._distlr
        extension.is_building = True
        try:
            super().build(variables)  # type: ignore[misc]
        finally:
            extension.is_building = False
        self.built = True
        if extension.hyperparameters.multipliers is not None:
            extension.hyperparameters.multipliers.check([variable.path for variable in self._trainable_variables])
        if not was_built:
            extension.storage.assign_loaded_slots(self)

    def assign(self, variable: Any, value: Any) -> None:
        """As in Keras, but a build does not overwrite a slot's value that came from a TensorFlow checkpoint."""
        if not (self._distlr.is_building and getattr(variable, "_update_uid", -1) >= 0):
            super().assign(variable, value)  # type: ignore[misc]

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """As in Keras; averages that a callback has put into the model stay there, and are not exchanged once more."""
        training_values = self._distlr.variables.training_values
        if training_values:
            training_values.keep()
        else:
            super().finalize_variable_values(var_list)  # type: ignore[misc]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """As in Keras, in the order of `variables`; also takes the values of a plain optimizer, without distlr's.

        Raises:
            StateError: their number or a shape does not fit; nothing has changed then.
        """
        plain, added = self._distlr.storage.split_weights(self, weights)
        super().set_weights(plain)  # type: ignore[misc]
        self._distlr.variables.assign(added)

    def save_own_variables(self, store: Any) -> None:
        """As in Keras, with names in place of numbers, and distlr's variables among them."""
        self._distlr.storage.save(self, store)

    def load_own_variables(self, store: Any) -> None:
        """Loads saved state, also that of a plain Keras optimizer: its multiplier is 1, and its clock derived.

        Raises:
            StateError: it belongs to another optimizer or another model.
        """
        variables = self._distlr.variables
        self._distlr.storage.load(self, store)
        for name, initial in ((CLIMB, NO_CLIMB), (MANUAL_CONTROL, ManualControlState())):
            if name in variables.loaded and not self._distlr.spans_processes:
                variables.get(name, initial)  # the formula or a plateau needs it; nobody else will ask for it

    def get_config(self) -> dict[str, Any]:
        """The plain optimizer, as Keras serializes it, the arguments of its scaling, and how gradients are reduced."""
        extension = self._distlr
        batch_schedule, options = extension.formula.batch_schedule, extension.hyperparameters.options
        follows = extension.hyperparameters.follows
        return {
            "optimizer": keras.saving.serialize_keras_object(extension.plain(self)),
            "scaling": None if batch_schedule is None else batch_schedule.options(),
            "scale": list(options.scale),
            "momentum_correction": options.momentum_correction,
            "follows": {name: keras.saving.serialize_keras_object(schedule) for name, schedule in follows.items()},
            "multipliers": getattr(extension.hyperparameters.multipliers, "patterns", None),
            "reduction": extension.gradients.reduction.config(),
        }


def _warn_of_old_name(name: str) -> None:
    text = f"optimizer.{name} is optimizer.distlr.{_RENAMED[name]} now, and the old name goes with the next release."
    warnings.warn(text, DeprecationWarning, stacklevel=3)
