"""The learning-rate range test, on all replicas and ranks of a job, which afterwards is as it was before."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distlr.checkpoint.snapshot import TrainingStateSnapshot
from distlr.errors import ConfigurationError, ConfigurationTypeError, received
from distlr.job import Job
from distlr.optimizer import AdoptedOptimizer, schedule_of, strategy_of, unwrap_loss_scale
from distlr.schedules import GlobalBatchSchedule
from distlr.sync.broadcast import broadcast_state
from distlr.tools.lr_finder.curve import RangeTest, Sweep

__all__ = ["Progress", "RangeTest", "find_lr"]

Progress = Callable[[int, float, float], None]


def find_lr(
    job: Job,
    model: Any,
    data: tf.data.Dataset,
    *,
    low: float = 1e-7,
    high: float = 10.0,
    steps: int = 100,
    smoothing: float = 0.9,
    stop_at: float = 4.0,
    progress: Progress | None = None,
) -> RangeTest:
    """Trains for a moment at rates from `low` to `high`, looks where the loss falls, and restores everything.

    The range test of Smith 2017, arXiv 1506.01186, section 3.3, with rates that grow exponentially: update i of `steps`
    is at `low * (high / low) ** (i / (steps - 1))`, in float32. That is the rate which is applied to the global batch,
    whatever schedule, warmup and multiplier the optimizer has; divided by `factor` it is the rate at the base batch,
    which the script contains (`RangeTest.base`).

    Steps are Keras' own compiled ones, so the measured steps are those of `fit`: mixed precision, clipping,
    regularization, the exchange of gradients. The loss of an update is that of its own batch, of several steps where
    gradients are accumulated, averaged over replicas and ranks, and smoothed by a bias-corrected exponential mean:

        m_i = smoothing * m_(i-1) + (1 - smoothing) * loss_i        smoothed_i = m_i / (1 - smoothing ** (i + 1))

    The test ends after `steps` rates, or where the loss is not finite, or its smoothed value is above `stop_at` times
    its best (above `best + (stop_at - 1) |best|`, where losses may be negative). All ranks stop at the same update
    without another exchange: they decide by the sum over the ranks alone, which has the same bits on each.

    Afterwards everything is as it was, to the bit, also after an error or an interrupt: weights, moving statistics,
    slots, iterations, clock, multiplier, states of deciders, loss scale, digests of the rates, seeds of dropout, and
    the place in the data of `job.shard`, so that a `fit` that follows is the one that there would have been. Metrics
    are reset; the model and its optimizer are built; ranks have rank 0's state, which `fit` gives them first. (A
    data set of your own that shuffles anew each time goes on in its order.)

    Collective: every rank calls, with the same arguments.

    Args:
        job: the job of `distlr.init`.
        model: compiled in the job's scope with an optimizer of `job.optimizer`, with or without a batch; on one process
            a plain Keras optimizer with a float rate will do.
        data: the result of `job.shard(train, batch)`, or any data set of batches of this rank's own; it is read again
            from the start where it ends.
        low: the first rate.
        high: the last one.
        steps: number of rates, one an update.
        smoothing: the weight of the past in the mean, in [0, 1); 0 for none.
        stop_at: a multiple of the best smoothed loss, above 1; infinity to go on to the end.
        progress: called after each update with the number of updates so far, the rate and the smoothed loss.

    Raises:
        ConfigurationError, ConfigurationTypeError, DistributionError: before the first step, what `fit` would refuse
            and arguments out of range. ConfigurationError also where the optimizer's schedule is 0: distlr sets a rate
            by multiplying. Schedule and warmup play no part in the test, so give it the optimizer without them.

    >>> import distlr
    >>> keras.utils.set_random_seed(0)
    >>> job = distlr.init()
    >>> batch = job.batch(per_replica=32, base_batch=16, samples_per_epoch=256)
    >>> with job.scope():
    ...     model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    ...     model.compile(job.optimizer(keras.optimizers.SGD(0.1), batch), "mse")
    >>> x = np.random.default_rng(0).normal(size=(256, 4)).astype("float32")
    >>> found = find_lr(job, model, job.shard((x, x[:, :1]), batch, seed=0), low=1e-4, high=10, steps=40)
    >>> bool(0.001 < found.suggestion < 1), found.factor, found.base(0.5)
    (True, 2.0, 0.25)
    """
    sweep = Sweep(low, high, steps, smoothing, stop_at)
    _check(job, model, data)
    job.audit().set_model(model)
    _build(model, data)
    with job.keep_place(), contextlib.closing(_endless(job, data)) as rest:
        first = next(rest, None)
        if job.size > 1:
            arguments = {"low": low, "high": high, "steps": steps, "smoothing": smoothing, "stop_at": stop_at}
            terms = {"the range test's arguments": arguments, "having a batch": first is not None}
            broadcast_state(job.communicator, model, model.optimizer, terms)
        if first is None:
            raise ConfigurationError(received("data", "no batch", "at least one batch", "look for a filter or a path"))
        before = TrainingStateSnapshot(model)
        try:
            model.make_train_function()
            _run(job, model, itertools.chain([first], rest), sweep, progress)
        finally:
            before.restore()
            model.reset_metrics()
    return sweep.result(_factor(model.optimizer))


def _check(job: Any, model: Any, data: Any) -> None:
    if not isinstance(job, Job):
        raise ConfigurationTypeError(received("job", job, "a Job", "write job = distlr.init()"))
    if not isinstance(model, keras.Model):
        raise ConfigurationTypeError(received("model", model, "a Keras model"))
    if getattr(model, "optimizer", None) is None:
        hint = "model.compile(optimizer, loss), inside `with job.scope():`"
        raise ConfigurationError(received("model", model.name, "compiled", hint))
    if not isinstance(data, tf.data.Dataset):
        hint = "write job.shard((x, y), batch); the test splits it over the replicas itself"
        raise ConfigurationTypeError(received("data", type(data).__name__, "a tf.data.Dataset of batches", hint))
    optimizer = unwrap_loss_scale(model.optimizer)
    if not isinstance(optimizer, AdoptedOptimizer) and not isinstance(schedule_of(optimizer), float):
        raise ConfigurationError(
            received(
                "learning_rate",
                type(schedule_of(optimizer)).__name__,
                "a float where the optimizer is a plain one of Keras, whose schedule cannot be set",
                "optimizer = job.optimizer(optimizer, batch), or give the optimizer a number for the test",
            )
        )


def _build(model: Any, data: tf.data.Dataset) -> None:
    """Builds all that `fit` would build at its first step, so that all of it can be kept."""
    with model.distribute_strategy.scope():
        if not model.built or model.distribute_strategy.num_replicas_in_sync > 1:
            # As Keras does it in `fit`: a step cannot make variables, those of metrics too, on several devices.
            model._symbolic_build(data_batch=data.element_spec)
    if not model.optimizer.built:
        with strategy_of(model.optimizer).scope():
            model.optimizer.build(model.trainable_variables)


def _endless(job: Job, data: tf.data.Dataset) -> Generator[Any]:
    """The batches of this rank, from the start again where they end; none where there is none."""
    if int(data.cardinality()) == 0:
        return  # distributed, it would begin with a batch of no samples
    dataset = job.distribute(data)
    while True:
        batch = None
        for batch in dataset:
            yield batch
        if batch is None:
            return


def _run(job: Job, model: Any, batches: Iterator[Any], sweep: Sweep, progress: Progress | None) -> None:
    for number, rate in enumerate(sweep.rates, start=1):
        _set_rate(model.optimizer, rate, number)
        local_loss = np.float64(_update(model, batches))
        # These are the same bits on each rank, and the only input of the decision: so no rank goes on, or stops, alone.
        total = job.communicator.allreduce(local_loss, tag=f"the loss of update {number} of a range test")
        goes_on = sweep.add(float(total) / job.size)
        if progress is not None and len(sweep.smoothed) == number:
            progress(number, rate, sweep.smoothed[-1])
        if not goes_on:
            return


def _set_rate(optimizer: Any, rate: float, number: int) -> None:
    core = unwrap_loss_scale(optimizer)
    if not isinstance(core, AdoptedOptimizer):
        core.learning_rate = rate
        return
    try:
        core.distlr.formula.set_rate(rate)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"The schedule is 0 at update {number} of the range test, and distlr sets a rate by multiplying. "
            "Fix: give the test an optimizer with a number for its rate and no warmup; neither would play a part in it."
        ) from error


def _update(model: Any, batches: Iterator[Any]) -> float:
    """One update, of several steps where gradients are accumulated; the mean of its steps' losses on this rank."""
    optimizer = unwrap_loss_scale(model.optimizer)
    done, losses = int(optimizer.iterations.numpy()), []
    for _ in range(optimizer.gradient_accumulation_steps or 1):
        batch = next(batches, None)
        if batch is None:
            raise ConfigurationError(received("data", "no batch any more", "a data set that can be read again"))
        model.reset_metrics()  # or the loss would be the mean of all steps so far
        # One batch, so that it is one step whatever `steps_per_execution`; and none that has no data, at which Keras
        # would count an iteration.
        logs = model.train_function(iter([batch]))
        if "loss" not in logs:
            hint = "return {'loss': ...} from your train_step"
            raise ConfigurationError(received("logs", sorted(logs), "with a 'loss'", hint))
        losses.append(float(logs["loss"]))
        if int(optimizer.iterations.numpy()) != done:  # sooner where an earlier run has left a part of an update
            break
    return sum(losses) / len(losses)


def _factor(optimizer: Any) -> float:
    core = unwrap_loss_scale(optimizer)
    batch_schedule = core.distlr.formula.batch_schedule if isinstance(core, AdoptedOptimizer) else None
    if batch_schedule is None and isinstance(schedule_of(core), GlobalBatchSchedule):
        batch_schedule = schedule_of(core)  # by distlr.scale
    return 1.0 if batch_schedule is None else float(batch_schedule.factor)
