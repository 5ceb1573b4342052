"""The formula on an optimizer: its rate, and the clock that it is asked at. This file sets the rate."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import keras
import numpy as np
import tensorflow as tf

from distlr.errors import ConfigurationError
from distlr.optimizer.adoption import CLIMB, NO_CLIMB, STEERED, UNSTEERED, Adoption, ManualControlState
from distlr.optimizer.rate import LearningRate, check_rate
from distlr.schedules.schedule import at_each

__all__ = ["FormulaRate", "Reading"]

_log = logging.getLogger("distlr")

_SCHEDULE_IS_ZERO = (
    "The rate cannot be set to {:g} now: the schedule is 0 at this point, and distlr keeps its shape by multiplying. "
    "Fix: set the rate before the schedule reaches 0, or give the schedule a floor (for example `alpha` of "
    "CosineDecay)."
)

T = TypeVar("T")


class Reading(NamedTuple):
    """What an optimizer's formula says of the next update, all at one moment.

    Attributes:
        rate: of the update; of the last one that was applied, where the schedule ends with that.
        multiplier: what cuts and changes by hand have made of it; 1 at the start.
        samples_seen: the clock.
        iterations: Keras' own count of steps.
        in_warmup: whether the rate still climbs.
    """

    rate: float
    multiplier: float
    samples_seen: int
    iterations: int
    in_warmup: bool


class FormulaRate:
    """Reads and sets a rate that is `lr(t) = schedule(t) * factor(k) * warmup(t) * multiplier`.

    Computed in graph, in float64, and cast at the end. After a change of the batch a climb may be a factor more, for a
    while (`climb`).
    """

    _distlr: Adoption
    _iterations: Any

    @property
    def learning_rate(self) -> Any:
        """The rate of the next update. Assigning sets the rate *now*; the schedule keeps its shape.

        `lr(t) = schedule(t) * factor(k) * warmup(t) * multiplier`, and assigning `x` makes `multiplier` what gives `x`:
        `x` is the rate as it is applied, after scaling (`set_base_rate` takes one for the base batch).
        Outside a graph it is a float that also has what Keras' variable has (`rate.LearningRate`), and the rate of the
        last update where the schedule has none for a next one; in a graph a tensor of Keras' float type.

        Raises:
            ConfigurationError: what is assigned is negative or not finite, or the schedule is 0 now.
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
        adoption = self._distlr
        computed = adoption.rate_cache.get()
        if computed is not None:
            adoption.hooks.passed("learning_rate")
            return computed
        return LearningRate(self.reading().rate, self) if tf.executing_eagerly() else self._formula()

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        check_rate(value)
        if not tf.executing_eagerly():
            full = self._without_multiplier(None)
            with tf.control_dependencies([tf.debugging.assert_positive(full, "the schedule is 0 here")]):
                self._distlr.multiplier.assign(tf.cast(value, tf.float64) / full)
            return
        if isinstance(value, LearningRate) and float(value) == self.reading().rate:
            return  # a reading of what it is already, in fewer digits than the multiplier has
        self.set_rate(float(value))
        self._say_units(float(value))
        if self.in_warmup and self._distlr.speaks:
            _log.info(
                "The rate was set to %g during warmup; it goes on climbing with the warmup from there.",
                float(value),
            )

    def set_rate(self, value: float) -> None:
        """As assigning to `learning_rate`, outside of a graph and without a word about a warmup.

        Raises:
            ConfigurationError: the schedule is 0 now.

        >>> import distlr
        >>> job = distlr.init(environ={})
        >>> optimizer = job.optimizer(keras.optimizers.SGD(0.1), job.batch(per_replica=8, base_batch=4))
        >>> optimizer.set_rate(0.05)
        >>> optimizer.multiplier
        0.25
        """
        full = self._next_or_last(lambda last: float(self._without_multiplier(*self._moment(last))))
        if full == 0.0:
            raise ConfigurationError(_SCHEDULE_IS_ZERO.format(value))
        self._distlr.multiplier.assign(value / full)

    @property
    def base_rate(self) -> float:
        """The rate of the next update in units of the base batch: `schedule(t) * multiplier`, as on one device.

        >>> import distlr
        >>> job = distlr.init(environ={})
        >>> optimizer = job.optimizer(keras.optimizers.SGD(0.5), job.batch(per_replica=8, base_batch=4))
        >>> optimizer.base_rate, float(optimizer.learning_rate)
        (0.5, 1.0)
        """
        return self._base_schedule() * self.multiplier

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
        base = self._base_schedule()
        if base == 0.0:
            raise ConfigurationError(_SCHEDULE_IS_ZERO.format(value))
        self._distlr.multiplier.assign(value / base)

    def multiply_rate(self, factor: float) -> None:
        """Multiplies the rate from the next update on; plateau cuts and changes by hand go through here.

        Args:
            factor: above 0.

        >>> import distlr
        >>> job = distlr.init(environ={})
        >>> optimizer = job.optimizer(keras.optimizers.SGD(0.1), job.batch(per_replica=8, base_batch=4))
        >>> optimizer.multiply_rate(0.1)
        >>> float(optimizer.learning_rate), optimizer.multiplier
        (0.02, 0.1)
        """
        multiplier = self._distlr.multiplier
        multiplier.assign(float(multiplier.numpy()) * factor)

    @property
    def steered(self) -> ManualControlState:
        """Which changes by hand the run has had, and whether they paused plateaus."""
        variable = self._distlr.named.get(STEERED)
        return UNSTEERED if variable is None else ManualControlState(*(int(value) for value in variable.numpy()))

    def steer(self, steered: ManualControlState | None = None) -> None:
        """Notes a change by hand in the optimizer's variables, so that a restart goes on with it; None makes them."""
        variable = self.state(STEERED, UNSTEERED)
        if steered is not None:
            variable.assign([float(value) for value in steered])

    def climb(self, share: float, samples: int) -> None:
        """Lets the rate go from `share` of the formula's to all of it, linearly, over the next so many samples.

        A factor of its own on the formula, for the time after a change of the batch, whose rate is another at once. It
        is kept in the optimizer's variables, so that a restart goes on with it.

        Args:
            share: of the formula's rate at the beginning, above 0; above 1 the rate falls.
            samples: the length, at least 1.

        Raises:
            ConfigurationError: the optimizer has no batch, or its updates are in a graph that has no climb.

        >>> import distlr
        >>> job = distlr.init(environ={})
        >>> optimizer = job.optimizer(keras.optimizers.SGD(0.1), job.batch(per_replica=8, base_batch=4))
        >>> optimizer.climb(0.5, samples=80)
        >>> optimizer.rates_at([0, 40, 80]).round(6).tolist()
        [0.1, 0.15, 0.2]
        """
        if self._distlr.batch is None:
            raise ConfigurationError("A climb is counted in samples, and the optimizer has no batch.")
        if self._distlr.in_graph and CLIMB not in self._distlr.named:
            raise ConfigurationError(
                "The optimizer's updates are in a graph already, which was made without a climb and would go on "
                "without one. Fix: let it climb before the first step, or compile with a new optimizer."
            )
        start = [float(self.samples_seen), float(samples), float(share)]
        self.state(CLIMB, NO_CLIMB).assign(start)

    @property
    def multiplier(self) -> float:
        """What cuts and changes by hand have made of the rate; 1 at the start."""
        return float(self._distlr.multiplier.numpy())

    @property
    def samples_seen(self) -> int:
        """The clock: samples of the data set passed by applied updates."""
        return self.reading().samples_seen

    def counts(self) -> tuple[int, int]:
        """Keras' own count of steps, and the clock; without the rate, which a schedule may not have any more.

        >>> import distlr
        >>> job = distlr.init(environ={})
        >>> job.optimizer(keras.optimizers.SGD(0.5), job.batch(per_replica=8, base_batch=4)).counts()
        (0, 0)
        """
        adoption = self._distlr
        steps, samples = int(self._iterations.numpy()), int(adoption.samples_seen.numpy())
        if samples == 0 and adoption.batch is not None:  # see `_samples`
            samples = steps // adoption.batch.accumulation * adoption.batch.base_batch
        return steps, samples

    @property
    def behind(self) -> int:
        """How far the clock is behind the data, for steps that were left out: in samples, without a batch in updates.

        `DataPositionSync` keeps it, in this process alone; nothing of the formula depends on it.
        """
        return self._distlr.behind

    @behind.setter
    def behind(self, value: int) -> None:
        self._distlr.behind = value

    @property
    def in_warmup(self) -> bool:
        """Whether the rate still climbs."""
        return self.reading().in_warmup

    def reading(self) -> Reading:
        """What the formula gives now, and of what; where the updates are in a graph, in one call of a graph as well.

        The rate is that of the next update. A schedule of the user's own, such as a table, may end with the run and
        fail when it is asked for an update more: then it is that of the last update.

        >>> import distlr
        >>> job = distlr.init(environ={})
        >>> job.optimizer(keras.optimizers.SGD(0.5), job.batch(per_replica=8, base_batch=4)).reading()
        Reading(rate=1.0, multiplier=1.0, samples_seen=0, iterations=0, in_warmup=False)
        """
        return self._next_or_last(self._read)

    def _read(self, last: bool) -> Reading:
        adoption, now = self._distlr, functools.partial(self._now, last)
        if adoption.in_graph:  # a schedule that has been in none may look at its numbers in Python
            formula = (last, CLIMB in adoption.named)  # which change it
            if formula not in adoption.readings:
                adoption.readings[formula] = tf.function(now, autograph=False).get_concrete_function()
            now = adoption.readings[formula]
        return Reading(*(value.numpy().item() for value in now()))

    def _next_or_last(self, ask: Callable[[bool], T]) -> T:
        """What the formula gives for the next update; where its schedule has nothing for one, for the last one.

        Args:
            ask: computes it, of the last update where it is given True. It depends on the variables alone, so that all
                ranks get the same.
        """
        with tf.device("CPU:0"):  # where a gather past a table's end is an error, and no rate of 0 as on a GPU
            try:
                return ask(False)
            except Exception:  # anything that a user's schedule may raise
                if int(self._iterations.numpy()) > 0:
                    with contextlib.suppress(Exception):
                        return ask(True)
                raise

    @property
    def batch(self) -> Any:
        """The `GlobalBatch` that the rate is scaled for, or None."""
        return self._distlr.batch

    @property
    def schedule(self) -> Any:
        """The `schedules.Scaled` that gives the rate without the multiplier, or None without a batch."""
        return self._distlr.scaled

    def explain(self) -> dict[str, Any]:
        """The parts of the formula as plain numbers.

        >>> import distlr
        >>> job = distlr.init(environ={})
        >>> optimizer = job.optimizer(keras.optimizers.SGD(0.1), job.batch(per_replica=8, base_batch=4))
        >>> parts = optimizer.explain()
        >>> parts["optimizer"], parts["factor"], parts["multiplier"], parts["learning_rate"]
        ('SGD', 2.0, 1.0, 0.2)
        """
        adoption = self._distlr
        parts = adoption.scaled.explain() if adoption.scaled is not None else {"factor": 1.0, "clock": "steps"}
        return {
            **parts,
            "scaled": {name: [base, getattr(self, name)] for name, base in adoption.bases.items()},
            "momentum_correction": adoption.previous_rate is not None,
            "optimizer": adoption.base_class.__name__,
            "multiplier": self.multiplier,
            "climb": self._climb(),
            "samples_seen": self.samples_seen,
            "learning_rate": float(self.learning_rate),
        }

    def _climb(self) -> dict[str, float] | None:
        """After a change of the batch: where the climb began and its length, in samples, and the share it began at."""
        climb = self._distlr.named.get(CLIMB)
        names = ("from_sample", "samples", "share")
        return None if climb is None else dict(zip(names, climb.numpy().tolist(), strict=True))

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
        """What the formula gives at these clocks without the multiplier, in float64, for a picture of the run.

        Where time is counted in steps (`clock="steps"`, or no batch) it is that of now at each of them.

        Args:
            samples: whole numbers, of any shape.

        Returns:
            The rates, float64, of that shape.

        >>> import distlr
        >>> job = distlr.init(environ={})
        >>> optimizer = job.optimizer(keras.optimizers.SGD(0.1), job.batch(per_replica=8, base_batch=4))
        >>> optimizer.rates_at([0, 8, 16]).round(6).tolist()
        [0.2, 0.2, 0.2]
        """
        with tf.device("CPU:0"):  # as in `_next_or_last`
            return at_each(self._at_or_before, np.asarray(samples, np.int64))

    def _at_or_before(self, samples: tf.Tensor) -> tf.Tensor:
        """The rate at one clock, or at many; where the schedule ends with an update, one later has that one's."""
        try:
            return self._without_multiplier(samples)
        except Exception:
            if self._distlr.batch is None or samples.shape.rank or int(samples) == 0:
                raise
            with contextlib.suppress(Exception):
                return self._without_multiplier(self._before(samples))
            raise

    def state(self, name: str, initial: Sequence[float]) -> Any:
        """A float64 optimizer variable of its own for a callback that decides, made when first asked for.

        It is saved, loaded and broadcast with the optimizer. One loaded before it was asked for is kept.

        Args:
            name: told apart by it from other deciders' states.
            initial: its values at the start; one dimension.

        Raises:
            StateError: what was loaded under this name has another length.

        >>> import distlr
        >>> job = distlr.init(environ={})
        >>> optimizer = job.optimizer(keras.optimizers.SGD(0.1), job.batch(per_replica=8, base_batch=4))
        >>> best = optimizer.state("mine/best", [float("inf")])
        >>> _ = best.assign([0.25])
        >>> optimizer.state("mine/best", [float("inf")]).numpy().tolist()
        [0.25]
        """
        return self._distlr.state(self, name, np.asarray(initial, np.float64))

    def states(self) -> dict[str, list[float]]:
        """The states of deciders by name, with what each begins with: those that were asked for, and those loaded."""
        return self._distlr.states()

    def own_variables(self) -> dict[str, Any]:
        """The variables that distlr added, by name: the multiplier, the clock, and what `state` made."""
        return dict(sorted(self._distlr.named.items()))

    def say_nothing(self) -> None:
        """Leaves what is to be said of the rate to rank 0."""
        self._distlr.speaks = False

    def _base_schedule(self) -> float:
        """The schedule alone, now."""
        scaled = self._distlr.scaled

        def ask(last: bool) -> float:
            moment = self._moment(last)
            return float(self._without_multiplier(*moment) if scaled is None else scaled.base_at(self._time(*moment)))

        return self._next_or_last(ask)

    def _say_units(self, value: float) -> None:
        """Says once that a rate that is assigned is not scaled."""
        adoption = self._distlr
        if adoption.scaled is None or adoption.scaled.factor == 1.0 or not adoption.speaks or adoption.said_units:
            return
        adoption.said_units = True
        _log.info(
            "learning_rate was set to %g: the rate as it is applied now, which is %g for the base batch. A rate that "
            "was written for the base batch is set by optimizer.learning_rate = rate * %g.",
            value,
            self.base_rate,
            adoption.scaled.factor,
        )

    def _now(self, last: bool) -> tuple[tf.Tensor, ...]:
        """The tensors of a `Reading`, with the rate of the next update or of the last one."""
        adoption, samples = self._distlr, self._samples()
        climbs = tf.constant(False) if adoption.scaled is None else adoption.scaled.climbs(self._time(samples))
        values = (self._formula(*self._moment(last)), adoption.multiplier, samples, self._iterations, climbs)
        return tuple(tf.identity(tf.convert_to_tensor(value)) for value in values)

    def _moment(self, last: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """The clock and Keras' step of the next update, or of the last one that was applied."""
        samples, step = self._samples(), tf.convert_to_tensor(self._iterations)
        return (self._before(samples), step - 1) if last else (samples, step)

    def _before(self, samples: tf.Tensor) -> tf.Tensor:
        """The clock one update earlier."""
        batch = self._distlr.batch
        return samples if batch is None else batch.samples_at(batch.updates_at(samples) - 1)

    def _formula(self, samples: tf.Tensor | None = None, step: tf.Tensor | None = None) -> tf.Tensor:
        multiplier = tf.cast(self._distlr.multiplier, tf.float64)
        return tf.cast(self._without_multiplier(samples, step) * multiplier, keras.config.floatx())

    def _without_multiplier(self, samples: tf.Tensor | None, step: tf.Tensor | None = None) -> tf.Tensor:
        adoption = self._distlr
        rate = adoption.law(self._time(samples, step))
        if CLIMB in adoption.named:
            start, length, share = tf.unstack(tf.cast(adoption.named[CLIMB], tf.float64))
            passed = tf.cast(self._samples() if samples is None else samples, tf.float64) - start
            rate *= tf.where(passed < length, share + (1.0 - share) * passed / tf.maximum(length, 1.0), 1.0)
        return rate

    def _time(self, samples: tf.Tensor | None = None, step: tf.Tensor | None = None) -> tf.Tensor:
        scaled = self._distlr.scaled
        step = tf.convert_to_tensor(self._iterations) if step is None else step
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
