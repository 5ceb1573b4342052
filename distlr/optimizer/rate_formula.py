"""The formula of an optimizer's rate: its value at any clock, and the ways to change it."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from distlr.batch.global_batch import GlobalBatch
from distlr.errors import ConfigurationError
from distlr.optimizer.climb import CLIMB, NO_CLIMB, climb_factor, explain_climb
from distlr.optimizer.learning_rate import LearningRate, RateCache, check_rate
from distlr.optimizer.state_variables import StateVariables
from distlr.schedules import GlobalBatchSchedule
from distlr.schedules.schedule import at_each

__all__ = ["RateFormula", "Reading"]

_log = logging.getLogger("distlr")

_SCHEDULE_IS_ZERO = (
    "The rate cannot be set to {:g} now: the schedule is 0 at this point, and distlr keeps its shape by multiplying. "
    "Fix: set the rate before the schedule reaches 0, or give the schedule a floor (for example `alpha` of "
    "CosineDecay)."
)

T = TypeVar("T")


class Reading(NamedTuple):
    """The formula's values for the next update, all at one moment.

    Attributes:
        rate: the rate of the next update, or of the last one where the schedule ends with that.
        multiplier: the product of all cuts and changes by hand; 1 at the start.
        samples_seen: the clock.
        iterations: Keras' own count of steps.
        in_warmup: whether the rate still climbs.
    """

    rate: float
    multiplier: float
    samples_seen: int
    iterations: int
    in_warmup: bool


class RateFormula:
    """Computes and changes the rate `lr(t) = schedule(t) * factor(k) * warmup(t) * multiplier`.

    It is computed in graph, in float64, and cast at the end. After a change of the batch a climb may be one factor
    more, for a while (`climb`).

    Args:
        rate_at: the function time -> rate, without the multiplier; float64 in and out.
        batch_schedule: the schedule for the global batch, or None without a batch.
        variables: hold the multiplier, the clock and the climb.
        iterations: Keras' own count of steps, an int variable.

    Attributes:
        cache: the rate of the update in progress.
        in_graph: whether the last update was in a graph.
        samples_behind: how far the clock is behind the data, for steps that were left out: in samples, without a batch
            in updates. `DataPositionSync` keeps it, in this process alone; no rate depends on it.
        speaks: whether this process logs what is done to the rate.

    >>> from distlr.schedules import Cosine
    >>> variables = StateVariables(tf.distribute.get_strategy(), lambda variable, name: None)
    >>> batch_schedule = GlobalBatchSchedule(Cosine(0.5, steps=100), GlobalBatch(8, replicas=1, base_batch=4))
    >>> formula = RateFormula(batch_schedule.at, batch_schedule, variables, keras.Variable(0, dtype="int64"))
    >>> formula.multiply_rate(0.5)
    >>> formula.reading()
    Reading(rate=0.5, multiplier=0.5, samples_seen=0, iterations=0, in_warmup=False)
    """

    def __init__(
        self,
        rate_at: Callable[[tf.Tensor], tf.Tensor],
        batch_schedule: GlobalBatchSchedule | None,
        variables: StateVariables,
        iterations: Any,
    ) -> None:
        self.rate_at = rate_at
        self.batch_schedule = batch_schedule
        self.iterations = iterations
        self.cache = RateCache()
        self.in_graph = False
        self.samples_behind = 0
        self.speaks = True
        self._variables = variables
        self._has_logged_units = False
        self._reading_graphs: dict[tuple[bool, bool], Any] = {}

    # -- reading ---------------------------------------------------------------------------------------

    @property
    def batch(self) -> GlobalBatch | None:
        """The global batch that the rate is scaled for, or None."""
        return None if self.batch_schedule is None else self.batch_schedule.batch

    @property
    def factor(self) -> float:
        """The scaling rule's factor; 1 without a batch."""
        return 1.0 if self.batch_schedule is None else self.batch_schedule.factor

    @property
    def multiplier(self) -> float:
        """The product of all cuts and changes by hand; 1 at the start."""
        return float(self._variables.multiplier.numpy())

    @property
    def samples_seen(self) -> int:
        """The clock: the samples of the data set that applied updates have passed."""
        return self.counts()[1]

    @property
    def in_warmup(self) -> bool:
        """Whether the rate still climbs."""
        return self.reading().in_warmup

    @property
    def base_rate(self) -> float:
        """The rate of the next update in units of the base batch: `schedule(t) * multiplier`, as on one device.

        >>> import distlr
        >>> job = distlr.init(environ={})
        >>> optimizer = job.optimizer(keras.optimizers.SGD(0.5), job.batch(per_replica=8, base_batch=4))
        >>> optimizer.base_rate, float(optimizer.learning_rate)
        (0.5, 1.0)
        """
        return self._schedule_value() * self.multiplier

    def counts(self) -> tuple[int, int]:
        """Keras' own count of steps, and the clock; without the rate, which a schedule may not have any more."""
        steps, samples = int(self.iterations.numpy()), int(self._variables.samples_seen.numpy())
        if samples == 0 and self.batch is not None:  # see `samples`
            samples = steps // self.batch.accumulation * self.batch.base_batch
        return steps, samples

    def reading(self) -> Reading:
        """The formula's values now; where the updates are in a graph they are computed in a graph, too.

        The rate is that of the next update. A schedule of the user's own, such as a table, may end with the run and
        fail when it is asked for one update more: then it is that of the last update.
        """
        return self._next_or_last(self._read)

    def rates_at(self, samples: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """The formula's rates at these clocks without the multiplier, for a picture of the run.

        Where time is counted in steps (`clock="steps"`, or no batch) each of them is the rate of now.

        Args:
            samples: whole numbers, of any shape.

        Returns:
            The rates, float64, of that shape.

        >>> import distlr
        >>> job = distlr.init(environ={})
        >>> optimizer = job.optimizer(keras.optimizers.SGD(0.1), job.batch(per_replica=8, base_batch=4))
        >>> optimizer.distlr.formula.rates_at([0, 8, 16]).round(6).tolist()
        [0.2, 0.2, 0.2]
        """
        with tf.device("CPU:0"):  # as in `_next_or_last`
            return at_each(self._at_or_before, np.asarray(samples, np.int64))

    def explain(self) -> dict[str, Any]:
        """The parts of the formula as plain numbers."""
        parts = {"factor": 1.0, "clock": "steps"} if self.batch_schedule is None else self.batch_schedule.explain()
        reading = self.reading()
        return {
            **parts,
            "multiplier": reading.multiplier,
            "climb": explain_climb(self._variables.find(CLIMB)),
            "samples_seen": reading.samples_seen,
            "learning_rate": reading.rate,
        }

    # -- changing --------------------------------------------------------------------------------------

    def assign(self, value: Any) -> None:
        """Sets the rate of the next update, after scaling; the schedule keeps its shape.

        Raises:
            ConfigurationError: `value` is negative or not finite, or the schedule is 0 now.
            ConfigurationTypeError: `value` is no number.
        """
        check_rate(value)
        if not tf.executing_eagerly():
            full = self.without_multiplier(None)
            with tf.control_dependencies([tf.debugging.assert_positive(full, "the schedule is 0 here")]):
                self._variables.multiplier.assign(tf.cast(value, tf.float64) / full)
            return
        if isinstance(value, LearningRate) and float(value) == self.reading().rate:
            return  # a reading of the present rate, in fewer digits than the multiplier has
        self.set_rate(float(value))
        self._log_units(float(value))
        if self.speaks and self.in_warmup:
            _log.info(
                "The rate was set to %g during warmup; it goes on climbing with the warmup from there.",
                float(value),
            )

    def set_rate(self, value: float) -> None:
        """Sets the rate as `assign` does, outside of a graph and without a log line.

        Raises:
            ConfigurationError: the schedule is 0 now.
        """
        full = self._next_or_last(lambda last: float(self.without_multiplier(*self._moment(last))))
        if full == 0.0:
            raise ConfigurationError(_SCHEDULE_IS_ZERO.format(value))
        self._variables.multiplier.assign(value / full)

    def set_base_rate(self, value: float) -> None:
        """Sets the rate in units of the base batch: `value * factor(k) * warmup(t)` is applied, and the warmup goes on.

        Args:
            value: at least 0.

        Raises:
            ConfigurationError: the schedule is 0 now.

        >>> import distlr
        >>> job = distlr.init(environ={})
        >>> optimizer = job.optimizer(keras.optimizers.SGD(0.5), job.batch(per_replica=8, base_batch=4))
        >>> optimizer.set_base_rate(0.25)
        >>> float(optimizer.learning_rate)
        0.5
        """
        check_rate(value)
        base = self._schedule_value()
        if base == 0.0:
            raise ConfigurationError(_SCHEDULE_IS_ZERO.format(value))
        self._variables.multiplier.assign(value / base)

    def multiply_rate(self, factor: float) -> None:
        """Multiplies the rate from the next update on; plateau cuts and changes by hand use it.

        Args:
            factor: above 0.

        >>> import distlr
        >>> job = distlr.init(environ={})
        >>> optimizer = job.optimizer(keras.optimizers.SGD(0.1), job.batch(per_replica=8, base_batch=4))
        >>> optimizer.multiply_rate(0.1)
        >>> float(optimizer.learning_rate), optimizer.multiplier
        (0.02, 0.1)
        """
        self._variables.multiplier.assign(self.multiplier * factor)

    def climb(self, share: float, samples: int) -> None:
        """Lets the rate go from `share` of the formula's to all of it, linearly, over the next `samples` samples.

        The climb is a factor of its own on the formula, for the time after a change of the batch, which changes the
        rate at once. It is kept in the optimizer's variables, so that a restart goes on with it.

        Args:
            share: the share of the formula's rate at the beginning, above 0; above 1 the rate falls.
            samples: the length, at least 1.

        Raises:
            ConfigurationError: the optimizer has no batch, or its updates are in a graph that has no climb.

        >>> import distlr
        >>> job = distlr.init(environ={})
        >>> optimizer = job.optimizer(keras.optimizers.SGD(0.1), job.batch(per_replica=8, base_batch=4))
        >>> optimizer.distlr.formula.climb(0.5, samples=80)
        >>> optimizer.distlr.formula.rates_at([0, 40, 80]).round(6).tolist()
        [0.1, 0.15, 0.2]
        """
        if self.batch is None:
            raise ConfigurationError("A climb is counted in samples, and the optimizer has no batch.")
        if self.in_graph and CLIMB not in self._variables:
            raise ConfigurationError(
                "The optimizer's updates are in a graph already, which was made without a climb and would go on "
                "without one. Fix: let it climb before the first step, or compile with a new optimizer."
            )
        start = [float(self.samples_seen), float(samples), float(share)]
        self._variables.get(CLIMB, NO_CLIMB).assign(start)

    def use(self, batch_schedule: GlobalBatchSchedule) -> None:
        """Replaces the schedule by that of another batch, before the first step."""
        self.batch_schedule, self.rate_at = batch_schedule, batch_schedule.at
        self._reading_graphs.clear()

    # -- in a graph ------------------------------------------------------------------------------------

    def samples(self) -> tf.Tensor:
        """The clock, an int64 tensor."""
        samples = tf.convert_to_tensor(self._variables.samples_seen)
        if self.batch is None:
            return samples
        # A checkpoint of a plain Keras optimizer has updates but no clock: it ran at the base batch.
        updates = tf.cast(self.iterations, tf.int64) // self.batch.accumulation
        return tf.where(samples > 0, samples, updates * self.batch.base_batch)

    def time(self, samples: tf.Tensor | None = None, step: tf.Tensor | None = None) -> tf.Tensor:
        """The time that the schedule is asked at, float64: at a clock and a step, by default those of now."""
        step = tf.convert_to_tensor(self.iterations) if step is None else step
        if self.batch_schedule is None:
            return tf.cast(step, tf.float64)
        return self.batch_schedule.time(step, self.samples() if samples is None else samples)

    def rate(self, samples: tf.Tensor | None = None, step: tf.Tensor | None = None) -> tf.Tensor:
        """The rate at a clock and a step, in Keras' float type."""
        multiplier = tf.cast(self._variables.multiplier, tf.float64)
        return tf.cast(self.without_multiplier(samples, step) * multiplier, keras.config.floatx())

    def without_multiplier(self, samples: tf.Tensor | None, step: tf.Tensor | None = None) -> tf.Tensor:
        """`schedule(t) * factor(k) * warmup(t)`, and the climb where there is one; float64."""
        rate = self.rate_at(self.time(samples, step))
        climb = self._variables.find(CLIMB)
        if climb is not None:
            rate *= climb_factor(climb, self.samples() if samples is None else samples)
        return rate

    def advance(self, samples: tf.Tensor, updates: tf.Tensor | None) -> None:
        """Moves the clock on by one update from `samples`, where `updates` is true (None: always)."""
        if self.batch is not None:
            after = self.batch.advance(samples)
            self._variables.samples_seen.assign(after if updates is None else tf.where(updates, after, samples))

    # --------------------------------------------------------------------------------------------------

    def _read(self, last: bool) -> Reading:
        compute = functools.partial(self._reading_tensors, last)
        if self.in_graph:  # a schedule that was never in a graph may look at its numbers in Python
            kind = (last, CLIMB in self._variables)  # each kind of formula has its own graph
            if kind not in self._reading_graphs:
                self._reading_graphs[kind] = tf.function(compute, autograph=False).get_concrete_function()
            compute = self._reading_graphs[kind]
        return Reading(*(value.numpy().item() for value in compute()))

    def _reading_tensors(self, last: bool) -> tuple[tf.Tensor, ...]:
        """The tensors of a `Reading`, with the rate of the next update or of the last one."""
        samples = self.samples()
        climbs = tf.constant(False) if self.batch_schedule is None else self.batch_schedule.climbs(self.time(samples))
        values = (self.rate(*self._moment(last)), self._variables.multiplier, samples, self.iterations, climbs)
        return tuple(tf.identity(tf.convert_to_tensor(value)) for value in values)

    def _next_or_last(self, compute: Callable[[bool], T]) -> T:
        """A value of the formula for the next update; for the last one where the schedule has none for the next.

        Args:
            compute: gives the value, of the last update if called with True. It depends on the variables alone, so that
                all ranks get the same.
        """
        with tf.device("CPU:0"):  # where a gather past a table's end is an error, and no rate of 0 as on a GPU
            try:
                return compute(False)
            except Exception:  # anything that a user's schedule may raise
                if int(self.iterations.numpy()) > 0:
                    with contextlib.suppress(Exception):
                        return compute(True)
                raise

    def _at_or_before(self, samples: tf.Tensor) -> tf.Tensor:
        """The rate at one clock, or at many; where the schedule ends with an update, one later has that one's."""
        try:
            return self.without_multiplier(samples)
        except Exception:
            if self.batch is None or samples.shape.rank or int(samples) == 0:
                raise
            with contextlib.suppress(Exception):
                return self.without_multiplier(self._before(samples))
            raise

    def _schedule_value(self) -> float:
        """The schedule alone, without factor, warmup and multiplier, now."""

        def compute(last: bool) -> float:
            moment = self._moment(last)
            if self.batch_schedule is None:
                return float(self.without_multiplier(*moment))
            return float(self.batch_schedule.base_at(self.time(*moment)))

        return self._next_or_last(compute)

    def _moment(self, last: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """The clock and Keras' step of the next update, or of the last one that was applied."""
        samples, step = self.samples(), tf.convert_to_tensor(self.iterations)
        return (self._before(samples), step - 1) if last else (samples, step)

    def _before(self, samples: tf.Tensor) -> tf.Tensor:
        """The clock one update earlier."""
        return samples if self.batch is None else self.batch.samples_at(self.batch.updates_at(samples) - 1)

    def _log_units(self, value: float) -> None:
        """Says once that a rate that is assigned is not scaled."""
        if self.factor == 1.0 or not self.speaks or self._has_logged_units:
            return
        self._has_logged_units = True
        _log.info(
            "learning_rate was set to %g: the rate as it is applied now, which is %g for the base batch. A rate that "
            "was written for the base batch is set by optimizer.learning_rate = rate * %g.",
            value,
            self.base_rate,
            self.factor,
        )
