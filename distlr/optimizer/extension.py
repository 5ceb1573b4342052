"""The object behind `optimizer.distlr`: all that distlr adds to one Keras optimizer."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from distlr._utils.detached_copy import update_copy
from distlr.batch.global_batch import GlobalBatch
from distlr.errors import DistlrError
from distlr.optimizer.gradient_pipeline import GradientPipeline
from distlr.optimizer.hooks import HookContract
from distlr.optimizer.hyperparameter_values import HyperparameterValues
from distlr.optimizer.rate_formula import RateFormula
from distlr.optimizer.state_storage import StateStorage
from distlr.optimizer.state_variables import StateVariables
from distlr.schedules import GlobalBatchSchedule

__all__ = ["OptimizerExtension"]


class OptimizerExtension:
    """The formula, the gradient pipeline and the state of one adopted optimizer; it does not hold the optimizer.

    >>> import distlr, keras
    >>> job = distlr.init(environ={})
    >>> optimizer = job.optimizer(keras.optimizers.SGD(0.1), job.batch(per_replica=8, base_batch=4))
    >>> extension = optimizer.distlr
    >>> extension.formula.reading().rate == optimizer.learning_rate, extension.batch.size, extension.variables.names()
    (True, 8, ['multiplier', 'samples_seen'])

    Attributes:
        base_class: the optimizer's class before it was adopted.
        strategy: the strategy that it was made under.
        formula: computes and changes the rate.
        gradients: reduces the gradients over replicas and ranks.
        variables: the named variables that distlr added.
        storage: saves and loads these variables, and Keras' own.
        hyperparameters: what is scaled, or follows a schedule, beside the rate.
        hooks: notes that Keras still calls what distlr overrides.
        restored: whether it came with a saved model, or from a config, and no job has connected it yet.
        refusal: the error that its first step raises, found when it was made from a config.
        is_building: whether Keras builds the optimizer now.
    """

    def __init__(
        self,
        base_class: type,
        strategy: tf.distribute.Strategy,
        formula: RateFormula,
        gradients: GradientPipeline,
        variables: StateVariables,
        hyperparameters: HyperparameterValues,
    ) -> None:
        self.base_class = base_class
        self.strategy = strategy
        self.formula = formula
        self.gradients = gradients
        self.variables = variables
        self.hyperparameters = hyperparameters
        self.hooks = HookContract()
        self.storage = StateStorage(variables)
        self.restored = False
        self.refusal: DistlrError | None = None
        self.is_building = False
        # Kept: Keras tells objects that a file has twice by their ids, which must not come again.
        self._plain: Any = object.__new__(base_class)

    @property
    def batch(self) -> GlobalBatch | None:
        """The global batch that the rate is scaled for, or None."""
        return self.formula.batch

    def state(self, name: str, initial: Sequence[float]) -> Any:
        """A float64 variable of its own for a callback that decides; see `StateVariables.get`.

        >>> import distlr, keras
        >>> job = distlr.init(environ={})
        >>> optimizer = job.optimizer(keras.optimizers.SGD(0.1), job.batch(per_replica=8, base_batch=4))
        >>> best = optimizer.distlr.state("mine/best", [float("inf")])
        >>> _ = best.assign([0.25])
        >>> optimizer.distlr.state("mine/best", [float("inf")]).numpy().tolist()
        [0.25]
        """
        return self.variables.get(name, initial)

    def explain(self) -> dict[str, Any]:
        """The parts of the formula, and what else is scaled, as plain numbers.

        >>> import distlr, keras
        >>> job = distlr.init(environ={})
        >>> optimizer = job.optimizer(keras.optimizers.SGD(0.1), job.batch(per_replica=8, base_batch=4))
        >>> parts = optimizer.explain()
        >>> parts["optimizer"], parts["factor"], parts["multiplier"], parts["learning_rate"]
        ('SGD', 2.0, 1.0, 0.2)
        """
        return {**self.formula.explain(), **self.hyperparameters.explain(), "optimizer": self.base_class.__name__}

    @property
    def follows_clock(self) -> bool:
        """Whether the rate changes by itself as the clock in samples moves on: a schedule, a warmup."""
        batch_schedule = self.formula.batch_schedule
        if batch_schedule is None or batch_schedule.clock != "samples":
            return False
        schedules = [batch_schedule.schedule, *self.hyperparameters.follows.values()]
        return batch_schedule.has_warmup or any(getattr(schedule, "over_time", True) for schedule in schedules)

    @property
    def spans_processes(self) -> bool:
        """Whether several processes make each variable together."""
        multi = isinstance(self.strategy, tf.distribute.MultiWorkerMirroredStrategy)
        return multi and self.strategy.cluster_resolver.cluster_spec().as_dict() != {}

    def check_step(self) -> None:
        """Refuses a step that would make replicas or ranks differ."""
        if self.refusal is not None:
            raise self.refusal
        self.gradients.check()

    @contextlib.contextmanager
    def update(self, gradients: Sequence[Any], updates: tf.Tensor | None) -> Iterator[None]:
        """Computes the rate once for the step inside, and then records it and moves the clock on.

        Args:
            gradients: the step's.
            updates: whether the step updates the weights, or only accumulates; None where every step updates them.
        """
        formula, hyperparameters = self.formula, self.hyperparameters
        formula.in_graph = not tf.executing_eagerly()
        # Where Keras does not know the number of steps it runs one more at the data's end, and that step fails. What
        # does not wait for the data would run all the same: the clock would move, and Keras' count of steps, by which
        # gradients are accumulated. So all of the update waits for a gradient; the schedule, too, which may be a table
        # that is at its end.
        with tf.control_dependencies(_earliest(gradients)):
            samples = tf.identity(formula.samples())
            rate = tf.identity(formula.rate(samples))  # the line that sets the rate
            with formula.cache.holding(rate), hyperparameters.following(functools.partial(formula.time, samples)):
                yield
        self.gradients.record(rate, updates)
        hyperparameters.remember(rate, functools.partial(formula.time, samples), formula.batch_schedule, updates)
        formula.advance(samples, updates)

    def use(self, optimizer: Any, batch_schedule: GlobalBatchSchedule, values: Mapping[str, float]) -> None:
        """Replaces the formula by that of another batch, with what else is scaled, before the first step."""
        self.formula.use(batch_schedule)
        self.hyperparameters.use(values)
        for name, value in values.items():
            setattr(optimizer, name, value)

    def plain(self, optimizer: Any) -> Any:
        """The plain optimizer at the base batch: another object, of the user's class, with the same variables.

        What is scaled beside the rate has its values at the base batch: its config does not scale it twice.
        """
        update_copy(self._plain, optimizer, "_distlr", self.hyperparameters.base_values)
        return self._plain


def _earliest(gradients: Sequence[Any]) -> list[tf.Tensor]:
    """The gradient that back-propagation has first, of the last variable, so that the rate need not wait for all."""
    tensors = (getattr(gradient, "values", gradient) for gradient in reversed(gradients))  # IndexedSlices have values
    return [tensor for tensor in tensors if tf.is_tensor(tensor)][:1]
