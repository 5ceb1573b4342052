"""The front door: `distlr.init()` gives the job, and the job ties the rooms together."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from distlr import data as pipelines
from distlr.batch import GlobalBatch
from distlr.callbacks import Audit, JobCallback, LearningRateLogger, SyncStatistics, ordered
from distlr.communicators import Communicator, SingleCommunicator, detect
from distlr.digest import weights_digests
from distlr.duration import Duration
from distlr.errors import ConfigurationError, ConfigurationTypeError, DistributionError, received
from distlr.optimizer import adopt, inner
from distlr.scaling import Rule
from distlr.strategies import local_gpus, simulated

__all__ = ["SIMULATE", "Job", "init"]

SIMULATE = "DISTLR_SIMULATE"
"""The environment variable that asks for simulated replicas."""

_log = logging.getLogger("distlr")


def init(
    *,
    strategy: tf.distribute.Strategy | None = None,
    simulate: int | None = None,
    environ: Mapping[str, str] | None = None,
) -> Job:
    """Finds out where the script runs and makes the job. Call it before any other TensorFlow operation.

    In this order: the `strategy` given; `simulate`, or `DISTLR_SIMULATE` in the environment; all GPUs of this
    machine; one device.

    Args:
        strategy: a `tf.distribute` strategy of your own.
        simulate: the number of simulated replicas: parts of the one GPU, or of the CPU.
        environ: the environment to read; `os.environ` by default.

    Raises:
        ConfigurationError: `strategy` beside `simulate`, or a number of replicas that is no positive integer.
        DistributionError: a launcher started several processes and no engine connects them, or replicas are to
            be simulated inside a launcher, or TensorFlow has started already.
    """
    environ = os.environ if environ is None else environ
    if strategy is not None and not isinstance(strategy, tf.distribute.Strategy):
        hint = "make it, such as strategy=tf.distribute.MirroredStrategy()"
        raise ConfigurationTypeError(received("strategy", strategy, "a tf.distribute strategy", hint))
    replicas = _asked_replicas(simulate, environ)
    if strategy is not None and simulate is not None:
        raise ConfigurationError(
            f"One of `strategy` and `simulate` can be given. Received: strategy={type(strategy).__name__} and "
            f"simulate={simulate}. To mend it: leave one of them out; a simulation makes its own strategy."
        )
    launch = detect(environ)
    if launch is not None and launch.size > 1:
        what = f"simulate {replicas} replicas in each" if replicas else "train without an engine that connects them"
        raise DistributionError(
            f"[rank {launch.rank}] {launch.launcher} started {launch.size} processes, and each would {what}: "
            f"{launch.size} separate trainings. To mend it: start the script without a launcher."
        )
    if strategy is not None:
        return Job(strategy, "tf.distribute")
    if replicas is not None:
        return Job(simulated(replicas), "simulated")
    return Job(local_gpus() or tf.distribute.get_strategy(), "local")


class Job:
    """One distributed training: its ranks, its replicas, and what must be the same on all of them.

    Made by `distlr.init`. A *rank* is a process, a *replica* a device with a copy of the model.

    Attributes:
        strategy: the `tf.distribute` strategy (TensorFlow's default one on a single device).
        communicator: what the ranks say to each other.
        backend: "local", "simulated" or "tf.distribute".
    """

    def __init__(
        self, strategy: tf.distribute.Strategy, backend: str, communicator: Communicator | None = None
    ) -> None:
        self.strategy = strategy
        self.backend = backend
        self.communicator = SingleCommunicator() if communicator is None else communicator
        self._optimizers: list[Any] = []
        self._padding = 0

    # -- where am I ----------------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        """This process' number, from 0."""
        return self.communicator.rank

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.communicator.size

    @property
    def is_root(self) -> bool:
        """Whether this is rank 0, which alone decides, prints and writes files."""
        return self.communicator.is_root

    @property
    def replicas(self) -> int:
        """Number of copies of the model in the whole job."""
        return self.size * self.local_replicas

    @property
    def local_replicas(self) -> int:
        """Number of copies of the model in this process."""
        return int(self.strategy.num_replicas_in_sync)

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Where to build the model, make the optimizer and compile."""
        scope: contextlib.AbstractContextManager[Any] = self.strategy.scope()
        return scope

    # -- what is trained with ------------------------------------------------------------------------

    def batch(
        self,
        per_replica: int | None = None,
        *,
        base_batch: int | None = None,
        total: int | None = None,
        accumulation: int = 1,
        samples_per_epoch: int | None = None,
        duration: str | Duration | None = None,
    ) -> GlobalBatch:
        """The global batch of this job; see `GlobalBatch` for the arguments.

        >>> import distlr
        >>> job = distlr.init()
        >>> job.batch(per_replica=64, base_batch=32).ratio
        2
        """
        return GlobalBatch(
            per_replica,
            total=total,
            replicas=self.replicas,
            base_batch=base_batch,
            accumulation=accumulation,
            samples_per_epoch=samples_per_epoch,
            duration=duration,
            local_replicas=self.local_replicas,
        )

    def optimizer(
        self,
        optimizer: Any,
        batch: GlobalBatch | None = None,
        *,
        rule: Rule | None = None,
        warmup: str | Duration | None = None,
        warmup_from: float | None = None,
        warmup_shape: str | None = None,
        clock: str | None = None,
    ) -> Any:
        """Adopts a Keras optimizer, written for the base batch as in the one-GPU script, and returns it.

        `lr(t) = schedule(t) * factor(k) * warmup(t) * multiplier`, with k = global batch / base batch and t
        counted in samples. Without a batch nothing is scaled, and the rate can still be cut and set.

        Args:
            optimizer: any optimizer of Keras 3, made inside `job.scope()`.
            batch: what `job.batch` gave. Handing it over asks for scaling.
            rule: "linear" (the default), "sqrt", "none" or a function `k -> factor`.
            warmup: the length of the climb: "5ep", "100ba", "60000sp" or "0.05dur".
            warmup_from: the share of the full rate at the start; by default the base rate.
            warmup_shape: "linear" (the default), "exponential", "cosine" or "polynomial".
            clock: "samples" (the default) or "steps", which leaves time as Keras counts it.

        Raises:
            ConfigurationError, ConfigurationTypeError, DistributionError: see the messages; always before
                the first step.
        """
        if batch is not None:
            self._check_batch(batch)
        current = tf.distribute.get_strategy()
        if current is not self.strategy:
            raise DistributionError(
                f"The `optimizer` must be adopted in the job's scope. Received: job.optimizer(...) under "
                f"{type(current).__name__}, where the job has {type(self.strategy).__name__} with "
                f"{self.local_replicas} replicas. To mend it: make the optimizer, and call job.optimizer, inside "
                "`with job.scope():`."
            )
        scaling = {
            "rule": rule,
            "warmup": warmup,
            "warmup_from": warmup_from,
            "warmup_shape": warmup_shape,
            "clock": clock,
        }
        adopted = adopt(optimizer, batch, **{name: value for name, value in scaling.items() if value is not None})
        self._optimizers.append(inner(adopted))
        if self.is_root:
            _log.info("%s", _start_line(self._optimizers[-1].explain(), self))
        return adopted

    def shard(
        self,
        data: Any,
        batch: GlobalBatch,
        *,
        training: bool = True,
        shuffle: bool | int = True,
        seed: int | None = None,
        remainder: str = "drop",
    ) -> tf.data.Dataset:
        """This rank's batches of a data set: for training equal numbers of full ones, otherwise every sample once.

        Args:
            data: an unbatched `tf.data.Dataset`, not sharded and not shuffled, or a tuple of arrays.
            batch: the global batch.
            training: False for validation data: not shuffled, nothing dropped.
            shuffle: see `distlr.data.training`; likewise `seed` and `remainder`.
        """
        self._check_batch(batch)
        if training:
            return pipelines.training(
                data, batch, rank=self.rank, size=self.size, shuffle=shuffle, seed=seed, remainder=remainder
            )
        dataset, padding = pipelines.validation(
            data, batch, rank=self.rank, size=self.size, local_replicas=self.local_replicas
        )
        self._padding = max(self._padding, padding)
        return dataset

    def callbacks(self, callbacks: Sequence[Any] = ()) -> list[Any]:
        """Binds the callbacks to the job, adds the audit and the rate's logger, and puts them in order.

        Checks come first, then what writes into the logs, then what decides, then what saves.
        """
        given = list(callbacks) if isinstance(callbacks, (list, tuple)) else [None]
        for callback in given:
            if not isinstance(callback, keras.callbacks.Callback):
                what = callbacks if callback is None else callback
                hint = "write job.callbacks([distlr.callbacks.ReduceLROnPlateau()]), for example"
                raise ConfigurationTypeError(received("callbacks", what, "a list of Keras callbacks", hint))
        if not any(isinstance(callback, LearningRateLogger) for callback in given):
            given.append(LearningRateLogger())
        given.append(Audit(self.strategy, self._padding))
        if self.local_replicas > 1:
            given.append(SyncStatistics(self.strategy))
        for callback in given:
            if isinstance(callback, JobCallback):
                callback.bind(self.communicator)
        return ordered(given)

    # -- without fit ---------------------------------------------------------------------------------

    def distribute(self, dataset: tf.data.Dataset) -> Any:
        """The batches of `job.shard`, split over the local replicas, for a loop of your own."""
        return dataset if self.local_replicas == 1 else self.strategy.experimental_distribute_dataset(dataset)

    def run(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a step on each local replica; call it inside a `tf.function`.

        Build the optimizer before, `optimizer.build(model.trainable_variables)` in the scope: TensorFlow cannot make
        variables inside a `tf.function` on several devices.
        """
        return self.strategy.run(step, args=arguments)

    def mean_loss(self, losses: tf.Tensor, batch: GlobalBatch) -> tf.Tensor:
        """The loss to differentiate: `sum(losses) / batch.feed`.

        Keras' optimizers sum the gradients of a process' replicas, so each replica divides by the batch of all.

        Args:
            losses: one loss a sample of this replica's batch, not reduced.
            batch: the global batch.
        """
        return tf.reduce_sum(losses) / tf.cast(batch.feed, losses.dtype)

    def result(self, metrics: Sequence[Any]) -> dict[str, float]:
        """The global value of each Keras metric by its name."""
        return {metric.name: float(metric.result()) for metric in metrics}

    def evaluate(self, model: Any, data: tf.data.Dataset) -> dict[str, float]:
        """The global result of `model.evaluate` on what `job.shard(..., training=False)` gave."""
        results: dict[str, float] = model.evaluate(data, verbose=0, return_dict=True)
        return results

    def broadcast(self, model: Any, optimizer: Any = None) -> None:
        """Gives every rank rank 0's weights and optimizer variables. Collective; nothing to do on one rank."""
        if self.size == 1:
            return
        variables = list(model.weights) + ([] if optimizer is None else list(optimizer.variables))
        for i, variable in enumerate(variables):
            value = variable.numpy()
            sent = self.communicator.broadcast(value.astype(_sendable(value.dtype)), tag=f"broadcast {i}")
            variable.assign(sent.astype(value.dtype))

    # -- what happened -------------------------------------------------------------------------------

    def explain(self) -> dict[str, Any]:
        """Everything that the rate depends on, as plain JSON values; the first adopted optimizer's formula."""
        parts = self._optimizers[0].explain() if self._optimizers else {}
        return {
            "backend": self.backend,
            "ranks": self.size,
            "replicas": self.replicas,
            **parts,
        }

    def weights_digests(self, model: Any) -> list[str]:
        """One SHA-256 of all weights a replica, in order; equal on all, or the replicas have drifted apart."""
        return self._gathered(weights_digests(model, self.strategy), "weights digests")

    def rate_digests(self, optimizer: Any) -> list[str]:
        """One digest a replica over the rate of every update; equal on all, or the replicas' rates differed."""
        return self._gathered(inner(optimizer).rate_digests(), "rate digests")

    def _check_batch(self, batch: Any) -> None:
        hint = "make it with job.batch(per_replica=..., base_batch=...)"
        if not isinstance(batch, GlobalBatch):
            raise ConfigurationTypeError(received("batch", batch, "a GlobalBatch", hint))
        if (batch.replicas, batch.local_replicas) != (self.replicas, self.local_replicas):
            expected = f"for {self.replicas} replicas, {self.local_replicas} a process"
            raise ConfigurationError(received("batch", batch, expected, hint))

    def _gathered(self, local: list[str], tag: str) -> list[str]:
        return [digest for rank in self.communicator.gather_json(local, tag=tag) for digest in rank]


def _asked_replicas(simulate: int | None, environ: Mapping[str, str]) -> int | None:
    name, value = ("simulate", simulate) if simulate is not None else (SIMULATE, environ.get(SIMULATE) or None)
    if value is None:
        return None
    try:
        replicas = int(value)
    except (TypeError, ValueError):
        replicas = 0
    if isinstance(value, (bool, float)) or not 1 <= replicas <= 1024:
        hint = f"write {name}=4 to train on four simulated replicas, or leave it out"
        raise ConfigurationError(received(name, value, "a number of replicas from 1 to 1024", hint))
    return replicas


def _sendable(dtype: Any) -> Any:
    """The type that carries a variable's value exactly over a communicator."""
    kind = tf.as_dtype(dtype)
    if kind.is_integer:
        return "int64"
    return "bool" if kind.is_bool else ("float64" if kind.size > 4 else "float32")


def _start_line(parts: Mapping[str, Any], job: Job) -> str:
    """What the rate will be, in one line that a log keeps."""
    name = parts["optimizer"]
    if "base_batch" not in parts:
        return f"{name}: the rate is not scaled (no batch was given); {job.replicas} replicas on {job.backend}."
    climb = parts["warmup"]
    warmup = "no warmup"
    if climb is not None:
        epochs = "" if climb["epochs"] is None else f"{climb['epochs']:g} epochs = "
        warmup = f"warmup over {epochs}{climb['updates']:g} updates from x{climb['from']:.4g}"
    clock = "in samples (base steps)" if parts["clock"] == "samples" else "in Keras' steps"
    return (
        f"{name}: rate {parts['base_rate']:g} x {parts['factor']:g} ({parts['rule']}) = {parts['peak_rate']:g}; "
        f"batch {parts['base_batch']} x {parts['ratio']:g} = {parts['global_batch']} on {job.replicas} replicas "
        f"({job.backend}); {warmup}; the schedule counts {clock}."
    )
