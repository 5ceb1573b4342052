"""The job, which ties the rooms together."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from distlr._utils.checks import whole_number
from distlr.batch.duration import Duration
from distlr.batch.global_batch import HOW_TO_MAKE, GlobalBatch, check_batch
from distlr.callbacks import PreflightCheck
from distlr.callbacks.assembly import assembled
from distlr.communicators import Communicator, SingleCommunicator
from distlr.communicators.bundles import Bundle, bundle_numbers, exchange_bundles, first_numbers, to_number
from distlr.communicators.gradient_reducer import GradientReducer
from distlr.communicators.horovod.gradients import check_compression
from distlr.communicators.topology import Topology
from distlr.data import sharding as pipelines
from distlr.data.position import Position
from distlr.errors import ConfigurationError, DistributionError, received
from distlr.optimizer import (
    AdoptedOptimizer,
    Reduction,
    adopt,
    adopted_by,
    connect,
    start_line,
    unwrap_loss_scale,
    warn_of_restored_schedule,
)
from distlr.scaling.batch_normalization import scale_moving_averages
from distlr.scaling.rules import Rule
from distlr.strategies.engine_errors import explained
from distlr.strategies.loss_reductions import check_one_loss_a_sample
from distlr.strategies.step_record import note_share
from distlr.sync.broadcast import broadcast_state
from distlr.sync.digests import compare_ranks, rank_state, weights_digests
from distlr.sync.metrics import are_distributed, read_states, results
from distlr.sync.metrics_check import check_counted, checked
from distlr.sync.moving_statistics import exchange_with_statistics, has_statistics

__all__ = ["Job"]

_log = logging.getLogger("distlr")


class Job:
    """One distributed training: its ranks, its replicas, and what must be the same on all of them.

    Made by `distlr.init`. A *rank* is a process, a *replica* a device with a copy of the model.

    >>> import distlr, keras
    >>> job = distlr.init(environ={})
    >>> batch = job.batch(per_replica=64, base_batch=32, samples_per_epoch=6_400)
    >>> with job.scope():
    ...     optimizer = job.optimizer(keras.optimizers.SGD(0.1), batch, warmup="5ep")
    >>> parts = job.explain()
    >>> parts["backend"], parts["factor"], parts["peak_rate"]
    ('local', 2.0, 0.2)

    Attributes:
        strategy: the `tf.distribute` strategy (TensorFlow's default one on a single device).
        communicator: how the ranks exchange data.
        backend: "local", "simulated", "tf.distribute", "multi-worker", "horovod" or "mpi".
    """

    def __init__(
        self, strategy: tf.distribute.Strategy, backend: str, communicator: Communicator | None = None
    ) -> None:
        self.strategy = strategy
        self.backend = backend
        self.communicator = SingleCommunicator() if communicator is None else communicator
        self._optimizers: list[weakref.ref[AdoptedOptimizer]] = []  # all of them; before a `fit` those of the job
        self._optimizer: Any = None  # the one that is or was trained with; before that the first one adopted
        self._positions: list[Position] = []
        self._padding = 0
        self._padding_is_logged = False
        self._reducers = 0

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
        return self._topology.replicas

    @property
    def _spans(self) -> bool:
        return self._topology.strategy_spans_ranks

    @property
    def local_replicas(self) -> int:
        """Number of copies of the model in this process."""
        return self._topology.local_replicas

    @property
    def _topology(self) -> Topology:
        return Topology.of(self.communicator, self.strategy.num_replicas_in_sync)

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Where to build the model, make the optimizer and compile.

        >>> import distlr
        >>> job = distlr.init(environ={})
        >>> with job.scope():
        ...     tf.distribute.get_strategy() is job.strategy
        True
        """
        scope: contextlib.AbstractContextManager[Any] = self.strategy.scope()
        return self._explained(scope) if self._spans else scope

    @contextlib.contextmanager
    def _explained(self, scope: contextlib.AbstractContextManager[Any]) -> Iterator[Any]:
        """The scope, with an error that names a worker that is lost: workers make each variable together."""
        with explained(self.communicator, "What job.scope() holds"), scope as inside:
            yield inside

    # -- the parts of a training ------------------------------------------------------------------------

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
        """The global batch of this job: a `GlobalBatch` that knows the job's replicas.

        `size = per_replica * replicas * accumulation` samples an update.

        Args:
            per_replica: samples that one replica takes in a step; this or `total`.
            base_batch: the batch, in samples, that the rate was tuned at.
            total: samples of one update, on any number of replicas.
            accumulation: steps of one update.
            samples_per_epoch: samples of the training set, over all ranks.
            duration: the length of the whole run, such as "90ep".

        Raises:
            ConfigurationError, ConfigurationTypeError: as `GlobalBatch`.

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
        scale: Sequence[str] = (),
        momentum_correction: bool = False,
        weight_decay_schedule: Any = None,
        momentum_schedule: Any = None,
        multipliers: Mapping[str, float] | None = None,
        exchange: bool = True,
        compression: str = "none",
    ) -> Any:
        """Adopts a Keras optimizer, written for the base batch as in the one-GPU script, and returns it.

        `lr(t) = schedule(t) * factor(k) * warmup(t) * multiplier`, with k = global batch / base batch and t
        counted in samples. Without a batch nothing is scaled, and the rate can still be cut and set.

        Args:
            optimizer: any optimizer of Keras 3, made inside `job.scope()`.
            batch: the result of `job.batch`. Without it nothing is scaled.
            rule: "linear" (the default), "sqrt", "none" or a function `k -> factor`.
            warmup: the length of the climb: "5ep", "100ba", "60000sp" or "0.05dur".
            warmup_from: the share of the full rate at the start; by default the base rate.
            warmup_shape: "linear" (the default), "exponential", "cosine" or "polynomial".
            clock: "samples" (the default) or "steps", which leaves time as Keras counts it.
            scale: the other values to scale: "betas" (Adam's, and epsilon, under the sqrt rule), "weight_decay" (so
                that the decay by the epoch stays), "ema" (the optimizer's); see `distlr.scaling`.
            momentum_correction: multiply SGD's velocity by the ratio of the rates while the warmup climbs.
            weight_decay_schedule: a schedule, in base steps as the rate's, in place of the optimizer's weight decay.
            momentum_schedule: such a schedule for SGD's momentum (one-cycle lets it fall while the rate climbs).
            multipliers: factors on the rate, and so on the decoupled weight decay, of the variables whose path a
                regular expression finds: `{"encoder/layer_0/": 0.1}`; the first that matches counts.
            exchange: under Horovod, False where a tape of your own (`hvd.DistributedGradientTape`) averages the
                gradients already.
            compression: under Horovod, "none", or "fp16" to send the gradients in half precision.

        Raises:
            ConfigurationError, ConfigurationTypeError, DistributionError: see the messages; always before
                the first step.

        >>> import distlr, keras
        >>> job = distlr.init(environ={})
        >>> batch = job.batch(per_replica=64, base_batch=32, samples_per_epoch=6_400)
        >>> with job.scope():
        ...     schedule = keras.optimizers.schedules.CosineDecay(0.1, decay_steps=90 * 6_400 // 32)
        ...     optimizer = job.optimizer(keras.optimizers.SGD(schedule, momentum=0.9), batch, warmup="5ep")
        >>> isinstance(optimizer, keras.optimizers.SGD), float(optimizer.learning_rate)  # the warmup begins at the base
        (True, 0.1)
        """
        if batch is not None:
            self._check_batch(batch)
        self._check_exchange()
        check_compression(compression)
        self._check_scope()
        adopted = adopt(
            optimizer,
            batch,
            scaling={
                "rule": rule,
                "warmup": warmup,
                "warmup_from": warmup_from,
                "warmup_shape": warmup_shape,
                "clock": clock,
            },
            reduction=Reduction(exchange=exchange, compression=compression),
            scale=scale,
            momentum_correction=momentum_correction,
            weight_decay_schedule=weight_decay_schedule,
            momentum_schedule=momentum_schedule,
            multipliers=multipliers,
        )
        self._connect(adopted)
        if self.is_root:
            _log.info("%s", start_line(unwrap_loss_scale(adopted).distlr.explain(), self.replicas, self.backend))
        return adopted

    def scale_moving_averages(
        self, model: Any, batch: GlobalBatch, layers: Mapping[str, str] | None = None
    ) -> dict[str, tuple[float, float]]:
        """Brings batch normalization's momentum to `momentum^k`; before the training.

        >>> import distlr, keras
        >>> job = distlr.init(environ={})
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization(momentum=0.9, name="norm")])
        >>> job.scale_moving_averages(model, job.batch(per_replica=64, base_batch=32))
        {'norm.momentum': (0.9, 0.81)}
        """
        self._check_batch(batch)
        momenta = scale_moving_averages(model, batch, layers)
        if self.is_root and momenta:
            pairs = sorted(set(momenta.values()))
            changes = ", ".join(f"{base:g} -> {scaled:.4g}" for base, scaled in pairs)
            _log.info("The momentum of %d moving averages is scaled for the batch: %s.", len(momenta), changes)
        return momenta

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

        Which samples an epoch's n-th batch has depends on the seed and the epoch alone, so that
        `callbacks.Checkpoint` goes on in the middle of an epoch with the one that would have come next.

        Args:
            data: an unbatched `tf.data.Dataset`, not sharded and not shuffled, or a tuple of arrays.
            batch: the global batch.
            training: False for validation data: not shuffled, nothing dropped. If the replicas do not divide the
                samples it ends with samples of weight 0, for each of which `model.predict` also returns a row.
            shuffle: True for all samples (of a data set whose length is unknown, a buffer of 10,000), a number for a
                buffer of that size, False for the order given.
            seed: the seed of the order. Without one rank 0 draws it (from Python's `random`, which
                `keras.utils.set_random_seed` seeds), and the call is collective.
            remainder: "drop" leaves the samples that fill no batch out of the epoch (others each epoch, when shuffled);
                "carry" takes them into the next one, and needs `fit(steps_per_epoch=batch.steps_per_epoch)`.

        Raises:
            ConfigurationError, ConfigurationTypeError: the batch is another job's, the data is batched, empty or of
                another size than `samples_per_epoch`, or an argument cannot be right.
            DistributionError: the data is sharded already.

        >>> import distlr, numpy as np
        >>> job = distlr.init(environ={})
        >>> batch = job.batch(per_replica=4, base_batch=4)
        >>> x, y = np.arange(10), np.zeros(10)
        >>> [len(x) for x, y in job.shard((x, y), batch, seed=0)]  # two samples are left out, others each epoch
        [4, 4]
        >>> [x.numpy().tolist() for x, y in job.shard((x, y), batch, training=False)]
        [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        """
        self._check_batch(batch)
        if training:
            pipelines.check_remainder(remainder)
            position = Position(batch, self._common_seed(seed), remainder == "carry")
            dataset = pipelines.training(
                data, batch, rank=self.rank, size=self.size, position=position, shuffle=shuffle
            )
            self._positions.append(position)
        else:
            dataset, paddings = pipelines.validation(
                data, batch, rank=self.rank, size=self.size, local_replicas=self.local_replicas
            )
            self._padding = max(self._padding, paddings[self.rank])
            self._log_padding(paddings)
        return pipelines.own_share(dataset) if self._spans else dataset

    def callbacks(self, callbacks: Sequence[Any] = (), *, run_dir: str | os.PathLike[str] | None = None) -> list[Any]:
        """Binds the callbacks to the job, adds what the job needs, and puts them in order.

        Checks come first, then the writers into the logs, then the deciders, then the savers. On several ranks it adds
        exact metrics (`SyncMetrics`), rank 0's state before the first step (`BroadcastState`), the comparison of ranks
        (`ReplicaGuard`), and leaves what only writes files (`ModelCheckpoint`, `BackupAndRestore`, `TensorBoard`,
        `CSVLogger`) to rank 0. A line on the console says so.

        Args:
            callbacks: your own, of distlr and of Keras.
            run_dir: a directory of this run's own. With it the run can be looked at (`distlr report`), followed
                (TensorBoard, in `run_dir/tensorboard`) and changed by hand (`distlr control`).

        Raises:
            ConfigurationError, ConfigurationTypeError: something given is no callback, or cannot work here.

        >>> import distlr
        >>> job = distlr.init(environ={})
        >>> callbacks = job.callbacks([distlr.callbacks.ReduceLROnPlateau("val_loss")], run_dir="runs/1")
        >>> [type(callback).__name__ for callback in callbacks]
        ['PreflightCheck', 'DataPositionSync', 'LearningRateLogger', 'NonFiniteGuard', 'ReduceLROnPlateau',
        'ManualControl', 'RunRecorder', 'TensorBoardScalars']
        """
        return assembled(
            callbacks,
            communicator=self.communicator,
            local_replicas=self.local_replicas,
            audit=self.audit(),
            positions=self._positions,
            run_dir=run_dir,
            explain=self.explain,
        )

    def audit(self) -> PreflightCheck:
        """The callback that refuses a run whose rate would be silently wrong; `job.callbacks` puts it first.

        In a loop of your own, once:

        >>> import distlr, keras
        >>> job = distlr.init(environ={})
        >>> batch = job.batch(per_replica=8, base_batch=4, samples_per_epoch=32)
        >>> with job.scope():
        ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        ...     model.compile(job.optimizer(keras.optimizers.SGD(0.1), batch), "mse")
        >>> job.audit().set_model(model)  # nothing to refuse
        """
        audit = PreflightCheck(
            self.strategy, lambda: self._padding, self._connect, self._remember_optimizers, self._exchanges_gradients
        )
        audit.bind(self.communicator)
        return audit

    # -- without fit ---------------------------------------------------------------------------------

    def distribute(self, dataset: tf.data.Dataset) -> Any:
        """The batches of `job.shard`, split over the local replicas, for a loop of your own.

        Args:
            dataset: the result of `job.shard`.

        Returns:
            On one replica the same data set; otherwise one of `PerReplica` values, for `job.strategy.run`.

        >>> import distlr, numpy as np
        >>> job = distlr.init(environ={})
        >>> batch = job.batch(per_replica=4, base_batch=4)
        >>> for x, y in job.distribute(job.shard((np.arange(8.0), np.zeros(8)), batch, seed=0)):
        ...     x.shape  # on one replica; on several a value for each of this process
        TensorShape([4])
        TensorShape([4])
        """
        one = self.strategy.num_replicas_in_sync == 1
        return dataset if one else self.strategy.experimental_distribute_dataset(dataset)

    @contextlib.contextmanager
    def keep_place(self) -> Iterator[None]:
        """Restores the place of a data set of `job.shard` as the block ends, whatever iterates over it inside.

        >>> import distlr, numpy as np
        >>> job = distlr.init(environ={})
        >>> data = job.shard((np.arange(8), np.zeros(8)), job.batch(per_replica=8, base_batch=8), seed=0)
        >>> first = lambda: next(iter(data))[0].numpy().tolist()
        >>> with job.keep_place():
        ...     looked_at = first()
        >>> first() == looked_at, first() == looked_at  # the pass that would have come, and the one after it
        (True, False)
        """
        with contextlib.ExitStack() as places:
            for position in self._positions:
                places.enter_context(position.place_kept())
            yield

    def run(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """Runs a step on each local replica; call it inside a `tf.function`.

        Build the optimizer before, `optimizer.build(model.trainable_variables)` in the scope: TensorFlow cannot make
        variables inside a `tf.function` on several devices.

        >>> import distlr, keras, numpy as np
        >>> job = distlr.init(environ={})
        >>> batch = job.batch(per_replica=8, base_batch=4, samples_per_epoch=32)
        >>> with job.scope():
        ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        ...     optimizer = job.optimizer(keras.optimizers.SGD(0.1), batch)
        ...     optimizer.build(model.trainable_variables)
        >>> def step(x, y):
        ...     with tf.GradientTape() as tape:
        ...         loss = job.mean_loss((model(x)[:, 0] - y) ** 2, batch)
        ...     optimizer.apply(tape.gradient(loss, model.trainable_variables))
        >>> @tf.function
        ... def train(x, y):
        ...     job.run(step, x, y)
        >>> for x, y in job.distribute(job.shard((np.ones((32, 2), "float32"), np.ones(32, "float32")), batch, seed=0)):
        ...     train(x, y)
        >>> int(optimizer.iterations), optimizer.distlr.formula.samples_seen
        (4, 32)
        """
        return self.strategy.run(step, args=arguments)

    def mean_loss(self, losses: tf.Tensor, batch: GlobalBatch) -> tf.Tensor:
        """The loss to differentiate: `sum(losses)` over the samples that a strategy's replicas take a step.

        The optimizer sums the gradients of a strategy's replicas, so each replica divides by the batch of all of them;
        over the ranks of Horovod it takes the mean.

        Args:
            losses: one loss a sample of this replica's batch, not reduced: of shape (samples,) or (samples, 1).
            batch: the global batch.

        Returns:
            A scalar of the type of `losses`.

        Raises:
            ConfigurationError: `losses` has another shape.

        >>> import distlr
        >>> job = distlr.init(environ={})
        >>> batch = job.batch(per_replica=4, base_batch=4)
        >>> float(job.mean_loss(tf.constant([1.0, 2.0, 3.0, 6.0]), batch))
        3.0
        """
        losses = tf.convert_to_tensor(losses)
        check_one_loss_a_sample(losses)
        samples = batch.local_batch * (self.size if self._spans else 1)
        loss = tf.reduce_sum(losses) / tf.cast(samples, losses.dtype)
        note_share(loss)
        return loss

    def result(self, metrics: Sequence[Any]) -> dict[str, float]:
        """The value of each Keras metric over all ranks' samples, by its name. Collective.

        The metrics' states are summed, not their results, so ranks of unequal shards give what one process would. A
        metric whose states are no sums says in its class how they combine, `distlr_combine = "max"` or "min". If a
        class that is not Keras' declares nothing this call adds its states up, with one warning.

        Args:
            metrics: Keras', that each rank has updated with its own samples; they keep their states.

        >>> from distlr.testing import run_ranks
        >>> import keras
        >>> def accuracy(comm):
        ...     metric = keras.metrics.BinaryAccuracy(name="accuracy")
        ...     metric.update_state([1.0] * (1 + 2 * comm.rank), [0.0 if comm.is_root else 1.0] * (1 + 2 * comm.rank))
        ...     return Job(tf.distribute.get_strategy(), "threads", comm).result([metric])
        >>> run_ranks(accuracy, size=2)  # one sample and wrong, three and right
        [{'accuracy': 0.75}, {'accuracy': 0.75}]
        """
        if self.replicas > 1:
            check_counted(metrics, is_root=self.is_root)
        return self._combined(metrics, lambda: {metric.name: metric.result() for metric in metrics}, "job.result")

    def evaluate(self, model: Any, data: tf.data.Dataset) -> dict[str, float]:
        """The result of `model.evaluate` over all ranks, by the metrics' names. Collective.

        Args:
            model: compiled in the job's scope.
            data: the result of `job.shard(..., training=False)`.

        Raises:
            ReplicaDivergenceError: the ranks' weights differ, so there is no one result. (Batch normalization's moving
                statistics become their mean before, as in `fit`.)

        >>> import distlr, keras, numpy as np
        >>> job = distlr.init(environ={})
        >>> batch = job.batch(per_replica=8, base_batch=8)
        >>> with job.scope():
        ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="zeros")])
        ...     model.compile(loss="mse")
        >>> job.evaluate(model, job.shard((np.ones((10, 2)), np.ones(10)), batch, training=False))
        {'loss': 1.0}
        """
        if self.size > 1 and has_statistics(model):
            # Each rank has its own; with different models there would be no one result.
            tag = "statistics for job.evaluate"
            exchange_with_statistics(self.communicator, model, Bundle({}), tag=tag)
        by_strategy = self.strategy.num_replicas_in_sync > 1
        checks = checked(model, is_root=self.is_root, by_strategy=by_strategy)
        with checks if self.replicas > 1 else contextlib.nullcontext():
            local_result: dict[str, float] = model.evaluate(data, verbose=0, return_dict=True)
        if self.size == 1:
            return local_result
        state = {"weights": weights_digests(model, self.strategy)}
        share = bundle_numbers(local_result) if self._spans else Bundle(read_states(model.metrics).arrays)
        bundles = exchange_bundles(self.communicator, Bundle(share.arrays, note=state), tag="job.evaluate")
        compare_ranks(self.communicator, [bundle.fields for bundle in bundles], model, when="job.evaluate")
        if self._spans:
            return first_numbers(bundles)
        return results(model.metrics, bundles, model.get_metrics_result)

    def broadcast(self, model: Any, optimizer: Any = None) -> None:
        """Gives every rank rank 0's weights and optimizer variables, before the first step. Collective.

        In a loop of your own; `job.callbacks` does it in `fit`. See `distlr.sync.broadcast.broadcast_state`.

        Raises:
            DistributionError: the ranks have built different models or formulas.

        >>> import distlr, keras
        >>> job = distlr.init(environ={})
        >>> with job.scope():
        ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        ...     optimizer = job.optimizer(keras.optimizers.SGD(0.1))
        >>> job.broadcast(model, optimizer)
        >>> optimizer.built
        True
        """
        self._connect(optimizer)
        broadcast_state(self.communicator, model, optimizer)

    def check(self, model: Any, optimizer: Any = None) -> None:
        """Raises `ReplicaDivergenceError` on every rank where the ranks' rates, clocks or weights differ. Collective.

        In a loop of your own, each epoch; `job.callbacks` does it in `fit`.

        >>> import distlr, keras
        >>> job = distlr.init(environ={})
        >>> batch = job.batch(per_replica=8, base_batch=4, samples_per_epoch=32)
        >>> with job.scope():
        ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        ...     model.compile(job.optimizer(keras.optimizers.SGD(0.1), batch), "mse")
        >>> job.check(model)  # every rank is as the others
        """
        state = rank_state(model, model.optimizer if optimizer is None else optimizer)
        states = self.communicator.gather_json(state, tag="job.check")
        compare_ranks(self.communicator, states, model, when="job.check")

    # -- reports -------------------------------------------------------------------------------

    def explain(self, model: Any = None) -> dict[str, Any]:
        """Everything that the rate depends on, as plain JSON values.

        Args:
            model: a compiled model or an optimizer; by default the optimizer of the `fit` that runs, or ran last, and
                before the first one the optimizer that was adopted first. Where there are several (a GAN), "optimizers"
                has the parts of each, by its place and name: of that `fit`, or of all that were adopted.

        >>> import distlr, keras
        >>> job = distlr.init(environ={})
        >>> batch = job.batch(per_replica=8, base_batch=4, samples_per_epoch=32)
        >>> with job.scope():
        ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        ...     model.compile(job.optimizer(keras.optimizers.SGD(0.1), batch), "mse")
        >>> parts = job.explain()
        >>> parts["replicas"], parts["global_batch"], parts["ratio"], parts["rule"], parts["peak_rate"]
        (1, 8, 2, 'linear', 0.2)
        """
        optimizer = self._optimizer
        if model is not None:
            adopted = adopted_by(model) if isinstance(model, keras.Model) else [unwrap_loss_scale(model)]
            optimizer = next((each for each in adopted if isinstance(each, AdoptedOptimizer)), None)
        parts = {} if optimizer is None else optimizer.distlr.explain()
        alive = [reference() for reference in self._optimizers]
        several = [each for each in alive if isinstance(each, AdoptedOptimizer)]  # another one was stripped since
        if model is None and len(several) > 1:
            parts["optimizers"] = {
                f"{place} {each.name}": each.distlr.explain() for place, each in enumerate(several, 1)
            }
        return {
            "backend": self.backend,
            "ranks": self.size,
            "replicas": self.replicas,
            **parts,
        }

    def weights_digests(self, model: Any) -> list[str]:
        """One SHA-256 of all weights a replica, in order; equal on all, or the replicas have drifted apart.

        Collective. SHA-256 as 64 hexadecimal digits, of the weights' bytes in the order of `model.weights`.

        >>> import distlr, keras
        >>> job = distlr.init(environ={})
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> [digest[:16] for digest in job.weights_digests(model)]
        ['5f2fa7795ceb5867']
        """
        return self._gather_digests(weights_digests(model, self.strategy), "weights digests")

    def rate_digests(self, optimizer: Any) -> list[str]:
        """One digest a replica over the rate of every update; equal on all, or the replicas' rates differed.

        Collective. 16 hexadecimal digits each; all zeros before the first update.

        >>> import distlr, keras
        >>> job = distlr.init(environ={})
        >>> optimizer = job.optimizer(keras.optimizers.SGD(0.1))
        >>> job.rate_digests(optimizer)
        ['0000000000000000']
        """
        return self._gather_digests(unwrap_loss_scale(optimizer).distlr.gradients.rate_digests(), "rate digests")

    def _log_padding(self, paddings: Sequence[int]) -> None:
        """Logs once that `model.predict` returns rows for padding as well: it knows no weights."""
        if not any(paddings) or self._padding_is_logged:
            return
        self._padding_is_logged = True
        if self.is_root:
            where = ", ".join(f"{count} on rank {rank}" for rank, count in enumerate(paddings) if count)
            _log.info(
                "Data of job.shard(training=False) is padded, so that the replicas share it alike: it ends with "
                "samples of weight 0 (%s). fit and evaluate do not count them, but model.predict gives a row for each: "
                "leave out as many rows at the end.",
                where if self.size > 1 else paddings[0],
            )

    def _remember_optimizers(self, optimizers: Sequence[AdoptedOptimizer]) -> None:
        self._optimizer = optimizers[0]
        self._optimizers = [weakref.ref(optimizer) for optimizer in optimizers]

    @property
    def _exchanges_gradients(self) -> bool:
        """Whether something of distlr's goes with the gradients from rank to rank."""
        return self.communicator.exchanges_gradients

    def _gradients(self, compression: str) -> GradientReducer:
        prefix = str(self._reducers)  # by the order in which the script adopts: the same on every rank
        self._reducers += 1
        return self.communicator.gradients(prefix, compression)

    def _connect(self, optimizer: Any) -> bool:
        """Connects an optimizer of the model with this job, above all a loaded one; returns whether that changed it."""
        core, topology = unwrap_loss_scale(optimizer), self._topology
        if core is not None and self.is_root:
            warn_of_restored_schedule(core, topology)
        if not isinstance(core, AdoptedOptimizer):
            return False
        self._check_exchange()
        restored = core.distlr.restored
        gradients = self._gradients if self._exchanges_gradients else None
        changed = connect(core, topology, gradients, is_root=self.is_root)
        if self._spans or self.size == 1:
            # A spanning strategy gives every new variable the first worker's value.
            core.distlr.gradients.has_rank_zero_state = True
        if self._optimizer is None:
            self._optimizer = core
        if all(reference() is not core for reference in self._optimizers):
            self._optimizers.append(weakref.ref(core))
        if not self.is_root:
            core.distlr.formula.speaks = False
        elif restored:
            _log.info("%s", start_line(core.distlr.explain(), self.replicas, self.backend))
        return changed

    def _check_exchange(self) -> None:
        if self.size > 1 and not self._exchanges_gradients:
            raise DistributionError(
                f"[rank {self.rank}] Nothing would average the gradients of {self.size} ranks: the {self.backend} "
                'engine is for control alone. Fix: distlr.init("horovod").'
            )

    def _common_seed(self, seed: int | None) -> int:
        if seed is not None:
            return whole_number("seed", seed)
        drawn = random.getrandbits(31)
        if self.size > 1:
            drawn = self.communicator.broadcast_json(drawn, tag=f"the seed of data set {len(self._positions)}")
        return drawn

    def _combined(self, metrics: Sequence[Any], compute: Callable[[], Mapping[str, Any]], tag: str) -> dict[str, float]:
        if self.size == 1 or (self._spans and are_distributed(metrics)):
            return {name: to_number(value) for name, value in compute().items()}
        bundles = exchange_bundles(self.communicator, Bundle(read_states(metrics).arrays), tag=tag)
        return results(metrics, bundles, compute)

    def _check_scope(self) -> None:
        current = tf.distribute.get_strategy()
        if current is not self.strategy:
            raise DistributionError(
                f"The `optimizer` must be adopted in the job's scope. Received: job.optimizer(...) under "
                f"{type(current).__name__}, where the job has {type(self.strategy).__name__} with "
                f"{self.local_replicas} replicas. Fix: make the optimizer, and call job.optimizer, inside "
                "`with job.scope():`."
            )

    def _check_batch(self, batch: Any) -> None:
        check_batch(batch)
        if (batch.replicas, batch.local_replicas) != (self.replicas, self.local_replicas):
            expected = f"for {self.replicas} replicas, {self.local_replicas} a process"
            raise ConfigurationError(received("batch", batch, expected, HOW_TO_MAKE))

    def _gather_digests(self, local: list[str], tag: str) -> list[str]:
        return [digest for rank in self.communicator.gather_json(local, tag=tag) for digest in rank]
