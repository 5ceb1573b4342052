"""Gradients between back-propagation and the update: averaged, measured, and left out on all replicas and ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from distlr.communicators.gradient_reducer import GradientReducer
from distlr.errors import DistributionError
from distlr.optimizer.all_or_none import are_finite, global_norm, run_if, true_everywhere
from distlr.optimizer.reduction import Reduction
from distlr.optimizer.state_variables import BAD_STEPS, StateVariables
from distlr.strategies.replicas import on_replicas, sum_over_replicas

__all__ = ["GradientPipeline"]

_FNV_PRIME = 1_099_511_628_211


class GradientPipeline:
    """Averages one optimizer's gradients over replicas and ranks, and keeps the digest of the rates that were applied.

    Args:
        strategy: the strategy that the optimizer was made under.
        reduction: how the gradients of several ranks, and of several backward passes, are combined.
        variables: hold the count of steps that were left out.

    Attributes:
        reducer: averages the gradients over the ranks; None where no ranks have to exchange any.
        reduction: may be replaced before the first step.
        ranks: the number of ranks.
        has_rank_zero_state: whether rank 0's weights and state were broadcast, which allows the first step.
        places: of the gradients of the update in progress among the optimizer's variables; the same on all ranks.
        loss_scale_agrees: whether a loss scale that asks all replicas wraps the optimizer.
        needs_agreeing_loss_scale: whether a loss scale of Keras' own, which asks one replica alone, wraps it.

    >>> strategy = tf.distribute.get_strategy()
    >>> variables = StateVariables(strategy, lambda variable, name: None)
    >>> pipeline = GradientPipeline(strategy, Reduction(sums=True), variables)
    >>> pipeline.ranks = 2
    >>> pipeline.watch_norm()
    True
    >>> [gradient.numpy().tolist() for gradient in pipeline.reduce([tf.constant([3.0, 4.0])])], pipeline.norm
    ([[6.0, 8.0]], 10.0)
    """

    def __init__(self, strategy: tf.distribute.Strategy, reduction: Reduction, variables: StateVariables) -> None:
        self.reducer: GradientReducer | None = None
        self.reduction = reduction
        self.ranks = 1
        self.has_rank_zero_state = False
        self.places: list[str] = []
        self.loss_scale_agrees = False
        self.needs_agreeing_loss_scale = False
        self._strategy = strategy
        self._variables = variables
        self._bad_steps: Any = None
        self._norm: Any = None
        self._digest = _per_replica(tf.int64)

    def check(self) -> None:
        """Refuses a step under another strategy, before rank 0's state was broadcast, or on one replica's word alone.

        Raises:
            DistributionError: the step would make replicas or ranks differ.
        """
        current, expected = tf.distribute.get_strategy(), self._strategy
        if current is not expected:
            raise DistributionError(
                f"The optimizer belongs to {type(expected).__name__} with {expected.num_replicas_in_sync} replicas, "
                f"but the model applies gradients under {type(current).__name__} with {current.num_replicas_in_sync}. "
                "One of them was built outside job.scope(), so one device would train at the rate of all. Fix: "
                "build the model, make the optimizer and call compile inside `with job.scope():`."
            )
        if self.reducer is not None and not self.has_rank_zero_state:
            raise DistributionError(
                "The ranks would take the first step from different weights: rank 0's state was never broadcast. "
                "Fix: train with fit(callbacks=job.callbacks([...])), or call job.broadcast(model, optimizer) "
                "before the first step of a loop of your own."
            )
        several = expected.num_replicas_in_sync > 1 or self.reducer is not None
        if self.needs_agreeing_loss_scale and not self.loss_scale_agrees and several:
            raise DistributionError(
                "Keras' LossScaleOptimizer wraps the optimizer (compile does it by itself under mixed_float16) and "
                "looks for overflows on one replica alone; with an overflow on another one the weights become -inf. "
                "Fix: train with fit(callbacks=job.callbacks([...])), or wrap before adopting: "
                "job.optimizer(keras.optimizers.LossScaleOptimizer(optimizer), batch)."
            )

    def run_where_finite(self, step: Callable[..., None], gradients: Sequence[Any], variables: Any) -> None:
        """Runs a step; where bad steps are left out, all replicas and ranks leave it out if one of them has to."""
        if self._bad_steps is None or self.loss_scale_agrees:
            step(gradients, variables)
            return
        count = self._bad_steps
        run_if(
            true_everywhere(are_finite(gradients), self.reducer),
            step,
            lambda: count.assign(count + 1.0),
            (list(gradients), variables),
        )

    def reduce(self, gradients: Sequence[Any]) -> Sequence[Any]:
        """Averages over ranks and replicas; called once an update, accumulated or not, before Keras clips.

        Keras itself clips each replica's gradients and sums after that. With clipping this is not the update that one
        device makes.
        """
        if self.reducer is not None:
            gradients = self.reducer.average(gradients, self.places)
        else:
            gradients = sum_over_replicas(gradients)
        if on_replicas():
            gradients = _kept_apart(gradients)
        gradients = self.reduction.applied(gradients, self.ranks)
        if self._norm is not None:
            self._norm.assign(global_norm(gradients))
        return gradients

    # -- steps that are left out -----------------------------------------------------------------------

    def leave_out_bad_steps(self) -> bool:
        """Lets all replicas and ranks leave out a step where a gradient is not finite; False if they do already."""
        if self._bad_steps is not None:
            return False
        self._bad_steps = self._variables.get(BAD_STEPS, [0.0])
        return True

    @property
    def bad_steps(self) -> int:
        """How many steps were left out."""
        return 0 if self._bad_steps is None else int(self._bad_steps.numpy()[0])

    # -- the norm --------------------------------------------------------------------------------------

    def watch_norm(self) -> bool:
        """Keeps the norm of each update's gradients from now on; False if it is kept already."""
        if self._norm is not None:
            return False
        with self._strategy.scope():
            self._norm = _per_replica(tf.float32)
        return True

    @property
    def norm(self) -> float:
        """The global norm of the last update's gradients, averaged and before they are clipped; 0 if not watched."""
        return 0.0 if self._norm is None else float(self._local_values(self._norm)[0])

    # -- the digest ------------------------------------------------------------------------------------

    def record(self, rate: tf.Tensor, updates: tf.Tensor | None) -> None:
        """Folds the bits of an applied rate into this replica's digest (FNV: multiply, then add)."""
        bits = tf.cast(tf.bitcast(tf.cast(rate, tf.float32), tf.int32), tf.int64)
        folded = self._digest * _FNV_PRIME + bits
        self._digest.assign(folded if updates is None else tf.where(updates, folded, self._digest))

    def rate_digests(self) -> list[str]:
        """One digest for each replica on this process, over the bits of the rate of every update so far.

        Each replica folds the rate that it applied into a number of its own, which is never synchronized: equal digests
        prove that the replicas applied the same rates in the same order. They are no part of the state.
        """
        return [f"{int(value) & (2**64 - 1):016x}" for value in self._local_values(self._digest)]

    @property
    def replica_variables(self) -> list[Any]:
        """The variables that each replica keeps for itself, and no file has: the digest, and the norm if watched."""
        return [variable for variable in (self._digest, self._norm) if variable is not None]

    def _local_values(self, variable: tf.Variable) -> list[Any]:
        return [copy.numpy() for copy in self._strategy.experimental_local_results(variable)]


def _kept_apart(gradients: Sequence[Any]) -> list[Any]:
    """The gradients behind an operation that no optimization of the graph moves anything across.

    TensorFlow 2.16 rewrites the sum over the replicas together with one replica's clipping, and not with the others':
    their weights differed in the last bit (with `global_clipnorm`, on four CPUs).
    """

    def kept(gradient: Any) -> Any:
        return tf.raw_ops.Snapshot(input=gradient) if tf.is_tensor(gradient) else gradient

    return [tf.nest.map_structure(kept, gradient, expand_composites=True) for gradient in gradients]


def _per_replica(dtype: tf.DType) -> tf.Variable:
    """A number that each replica writes for itself, and that is never synchronized."""
    return tf.Variable(
        tf.zeros((), dtype),
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.NONE,
    )
