"""One update: the rate computed once for it, gradients reduced and clipped, the clock moved on."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from distlr.communicators.gradient_reducer import GradientReducer
from distlr.optimizer.accumulation import accumulate, overwrite_with_averages
from distlr.optimizer.adoption import BAD_STEPS
from distlr.optimizer.formula import FormulaRate
from distlr.optimizer.gate import agreed, are_finite, global_norm, only_if
from distlr.optimizer.reduction import Reduction
from distlr.strategies.replicas import on_replicas, sum_over_replicas
from distlr.strategies.step_record import applying

__all__ = ["FormulaUpdate"]


class FormulaUpdate(FormulaRate):
    """Updates the weights as the Keras optimizer behind it does, at the formula's rate."""

    _get_variable_index: Any
    momentums: Any
    _accumulated_gradients: Any
    _trainable_variables: Any
    built: bool
    name: str
    build: Any
    gradient_accumulation_steps: int | None
    use_ema: bool
    ema_overwrite_frequency: int | None
    agreed_loss_scale = False  # set by loss_scale.agree

    def apply(self, grads: Sequence[Any], trainable_variables: Any = None) -> None:
        """As in Keras, with the rate computed once before it, and the digest and the clock moved on after it.

        Where the gradients are watched (`watch`) all replicas and ranks leave a step out where one has one that is not
        finite.
        """
        # In a `tf.function` of the user's own AutoGraph would convert all of it for ten seconds, and change nothing.
        tf.autograph.experimental.do_not_convert(self._apply)(grads, trainable_variables)

    def _apply(self, grads: Sequence[Any], trainable_variables: Any) -> None:
        self._distlr.hooks.passed("apply")
        if len(grads) == 0:
            return  # Keras applies nothing either, so the clock stands still
        with applying(self):
            self._apply_where_finite(grads, trainable_variables)

    def _apply_where_finite(self, grads: Sequence[Any], trainable_variables: Any) -> None:
        adoption = self._distlr
        adoption.check_current_strategy(self.agreed_loss_scale)
        if trainable_variables is not None and not self.built:
            with tf.init_scope():  # a variable whose first value waits for a gradient cannot be made before the step
                self.build(trainable_variables)
        if adoption.bad_steps is None or self.agreed_loss_scale:
            self._step(grads, trainable_variables)
            return
        finite = agreed(are_finite(grads), adoption.gradient_reducer)
        count = adoption.bad_steps
        only_if(finite, self._step, lambda: count.assign(count + 1.0), (list(grads), trainable_variables))

    def _step(self, grads: Sequence[Any], trainable_variables: Any) -> None:
        adoption = self._distlr
        adoption.in_graph = not tf.executing_eagerly()
        updates = self._updates()
        # Where Keras does not know the number of steps it runs one more at the data's end, and that step fails. What
        # does not wait for the data would run all the same: the clock would move, and Keras' count of steps, by which
        # gradients are accumulated. So all of the update waits for a gradient; the schedule, too, which may be a table
        # that is at its end.
        with tf.control_dependencies(_earliest(grads)):
            samples = tf.identity(self._samples())
            rate = tf.identity(self._formula(samples))
            with adoption.rate_cache.holding(rate), adoption.follow(functools.partial(self._time, samples)):
                super().apply(grads, trainable_variables)  # type: ignore[misc]
        adoption.hooks.check(self._hooks(updates))
        adoption.record(rate, updates)
        if adoption.previous_rate is not None:
            adoption.remember(rate, self._time(samples), updates)
        if adoption.batch is not None:
            after = adoption.batch.advance(samples)
            adoption.samples_seen.assign(after if updates is None else tf.where(updates, after, samples))

    def apply_gradients(self, grads_and_vars: Any) -> Any:
        """As in Keras."""
        result = super().apply_gradients(grads_and_vars)  # type: ignore[misc]
        self._distlr.hooks.check(["apply"])
        return result

    def _hooks(self, updates: tf.Tensor | None) -> list[str]:
        """What Keras must have called in a step; `updates` is whether the step updates the weights, None for yes."""
        if all(getattr(variable, "overwrite_with_gradient", False) for variable in self._trainable_variables):
            return []  # Keras copies such gradients (the scales of float8) and updates nothing
        hooks = ["_backend_apply_gradients"]
        if updates is not None and tf.executing_eagerly() and not bool(updates):
            return hooks
        hooks += ["learning_rate", "_clip_gradients", "_apply_weight_decay", "update_step"]
        if on_replicas():
            hooks.append("_all_reduce_sum_gradients")
        return hooks + (["weight_decay"] if "weight_decay" in self._distlr.follows else [])

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """As in Keras, at the variable's own rate, from a velocity for the new rate and momentum, where asked for."""
        adoption = self._distlr
        adoption.hooks.passed("update_step")
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
        adoption.hooks.passed("_apply_weight_decay")
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
            self._distlr.hooks.passed("weight_decay")
            return self._distlr.decay_cache.get()
        return self.__dict__.get("weight_decay")

    @weight_decay.setter
    def weight_decay(self, value: Any) -> None:
        self.__dict__["weight_decay"] = value

    @property
    def rate_follows_clock(self) -> bool:
        """Whether the rate changes by itself as the clock in samples moves on: a schedule, a warmup."""
        adoption = self._distlr
        if adoption.scaled is None or adoption.scaled.clock != "samples":
            return False
        schedules = [adoption.scaled.schedule, *adoption.follows.values()]
        return adoption.scaled.has_warmup or any(getattr(schedule, "over_time", True) for schedule in schedules)

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

    @property
    def has_partial_update(self) -> bool:
        """Whether gradients wait in the accumulators for the other steps of their update.

        Counted by the steps that were applied: after one that was left out an update ends a step later.
        """
        steps = self.gradient_accumulation_steps
        return steps is not None and int(self._iterations.numpy()) % steps != 0

    @property
    def partial_sums(self) -> list[Any]:
        """The accumulators of an update that is not complete, in which each replica has its own; else nothing."""
        sums = self._accumulated_gradients if self.has_partial_update else []
        return [total for total in sums if total is not None]

    def begin_update(self, updates: int) -> None:
        """Begins an update after so many, for a state that was saved with another number of steps an update.

        Keras' count is of steps, so that in another number of them to the update it means another place.
        """
        self._iterations.assign(updates * (self.gradient_accumulation_steps or 1))
        for total in getattr(self, "_accumulated_gradients", ()):
            if total is not None:
                total.assign(tf.zeros_like(total))

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
        """As in Keras, and notes that a loss scale wraps the optimizer."""
        # Keras' LossScaleOptimizer assigns None when it wraps an optimizer, and nothing else does. As shipped it looks
        # at the gradients of one replica alone, so `apply` waits for a wrapper that asks all of them, a new one each
        # time. (A property would not see it: Keras skips the assignment of what an attribute is already.)
        if name == "loss_scale_factor" and value is None and "_distlr" in self.__dict__:
            self._distlr.waits_for_agreement = True
            self.agreed_loss_scale = False
        super().__setattr__(name, value)

    # -- the gradients of other ranks ------------------------------------------------------------------

    @property
    def gradient_reducer(self) -> GradientReducer | None:
        """What reduces the gradients over the ranks, or None where nothing has to."""
        return self._distlr.gradient_reducer

    @property
    def reduction(self) -> Reduction:
        """What the gradients of several ranks, and of several backward passes, become; set before the first step."""
        return self._distlr.reduction

    @reduction.setter
    def reduction(self, reduction: Reduction) -> None:
        self._distlr.reduction = reduction

    @property
    def restored(self) -> bool:
        """Whether it came with a saved model, or from a config, and no job has connected it yet."""
        return self._distlr.restored

    def mark_broadcast(self) -> None:
        """Allows the first step: every rank has rank 0's state now."""
        self._distlr.broadcast = True

    def _backend_apply_gradients(self, grads: Sequence[Any], trainable_variables: Sequence[Any]) -> None:
        # By place, not by name: a rank that built another model first has other names for the same variables.
        adoption = self._distlr
        adoption.hooks.passed("_backend_apply_gradients")
        adoption.gradient_names = [str(self._get_variable_index(variable)) for variable in trainable_variables]
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            if tf.is_tensor(gradient) and not isinstance(gradient, tf.IndexedSlices):
                gradient.set_shape(variable.shape)  # which a function of the user's own may have lost
        if self.gradient_accumulation_steps and on_replicas():
            accumulate(self, grads, trainable_variables)
            return
        super()._backend_apply_gradients(grads, trainable_variables)  # type: ignore[misc]
        if self.use_ema and self.ema_overwrite_frequency and on_replicas():
            overwrite_with_averages(self)

    def _overwrite_model_variables_with_average_value(self, trainable_variables: Sequence[Any]) -> None:
        if not on_replicas():  # else `overwrite_with_averages` follows
            super()._overwrite_model_variables_with_average_value(trainable_variables)  # type: ignore[misc]

    def _clip_gradients(self, grads: Sequence[Any]) -> Sequence[Any]:
        """Averages over ranks and replicas, then clips as Keras does; reached once an update, accumulated or not.

        Keras itself clips what each replica has, and sums after that: with clipping, another update than one device's.
        """
        adoption = self._distlr
        adoption.hooks.passed("_clip_gradients")
        if not grads:
            return grads
        if adoption.gradient_reducer is not None:
            grads = adoption.gradient_reducer.average(grads, adoption.gradient_names)
        else:
            grads = sum_over_replicas(grads)
        if on_replicas():
            grads = _kept_apart(grads)
        grads = adoption.reduction.applied(grads, adoption.ranks)
        if adoption.norm is not None:
            adoption.norm.assign(global_norm(grads))
        clipped: Sequence[Any] = super()._clip_gradients(grads)  # type: ignore[misc]
        return clipped

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        self._distlr.hooks.passed("_all_reduce_sum_gradients")
        return grads_and_vars  # `_clip_gradients` has summed them


def _earliest(grads: Sequence[Any]) -> list[tf.Tensor]:
    """The gradient that back-propagation has first, of the last variable, so that the rate need not wait for all."""
    tensors = (getattr(grad, "values", grad) for grad in reversed(grads))  # IndexedSlices have values
    return [tensor for tensor in tensors if tf.is_tensor(tensor)][:1]


def _kept_apart(grads: Sequence[Any]) -> list[Any]:
    """The gradients behind an operation that no optimization of the graph moves anything across.

    TensorFlow 2.16 rewrites the sum over the replicas together with one replica's clipping, and not with the others':
    their weights differed in the last bit (with `global_clipnorm`, on four CPUs).
    """

    def kept(gradient: Any) -> Any:
        return tf.raw_ops.Snapshot(input=gradient) if tf.is_tensor(gradient) else gradient

    return [tf.nest.map_structure(kept, gradient, expand_composites=True) for gradient in grads]
