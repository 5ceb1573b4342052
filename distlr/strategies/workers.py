"""`MultiWorkerMirroredStrategy` as Keras 3 needs it: several processes, each with one device or more."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context

from distlr.communicators import Communicator
from distlr.errors import DistributionError
from distlr.strategies.batches import split_batches
from distlr.strategies.engine_errors import explained

__all__ = ["MultiWorker", "adapt_for_keras", "connect_workers", "slurm_workers"]

_SLURM_PORTS = range(12_000, 32_000)  # below the range from which systems give ports away

_LONGEST_SUSPENSION = 30 * 24 * 3600  # seconds

_OFF = tf.data.experimental.AutoShardPolicy.OFF


class MultiWorker(tf.distribute.MultiWorkerMirroredStrategy):
    """TensorFlow's strategy, with the features that Keras 3's `fit`, `evaluate` and `predict` need.

    Keras reduces a whole batch, a structure, to learn its shapes, and each step's logs, scalars, along an axis that
    they do not have. In TensorFlow's class both raise. Here the first returns this worker's batch, and the second the
    mean over this worker's replicas, so that a step has no collective but its gradients'. All other reductions are
    TensorFlow's own, over all workers.

    A data set that is a worker's own share already (`job.shard` turns TensorFlow's sharding of it off) is given to the
    worker's devices as it is, without asking the other workers at each step whether theirs goes on.

    Attributes:
        communicator: the job's, once there is one; it names the workers in an error.
    """

    communicator: Communicator | None = None

    def reduce(self, reduce_op: Any, value: Any, axis: int | None = None) -> Any:
        """As in TensorFlow; of a structure the first local replica's value, of scalars along an axis the local mean."""
        if isinstance(value, (tuple, list, dict)):
            return tf.nest.map_structure(lambda part: self.experimental_local_results(part)[0], value)
        local = self.experimental_local_results(value)
        if axis is not None and getattr(local[0], "shape", None) is not None and local[0].shape.rank == 0:
            return tf.add_n(list(local)) / tf.cast(len(local), local[0].dtype)
        with contextlib.nullcontext() if self.communicator is None else explained(self.communicator, "A reduction"):
            return super().reduce(reduce_op, value, axis=axis)

    def experimental_distribute_dataset(self, dataset: Any, options: Any = None) -> Any:
        """As in TensorFlow; a worker's own share goes to its devices without an exchange with the others."""
        if dataset.options().experimental_distribute.auto_shard_policy != _OFF:
            return super().experimental_distribute_dataset(dataset, options)
        if int(dataset.cardinality()) == 0:
            return _Empty(dataset.element_spec)
        devices = self.extended.worker_devices
        if len(devices) == 1:
            on_gpu = tf.DeviceSpec.from_string(devices[0]).device_type == "GPU"
            return dataset.apply(tf.data.experimental.prefetch_to_device(devices[0])) if on_gpu else dataset
        local_batches = split_batches(dataset, len(devices))
        extended = self.extended
        partial = extended.experimental_enable_get_next_as_optional
        extended.experimental_enable_get_next_as_optional = False
        try:
            return super().distribute_datasets_from_function(lambda _: local_batches, options)
        finally:
            extended.experimental_enable_get_next_as_optional = partial


class _Empty:
    """The data set of a worker that has no validation data.

    `evaluate` iterates twice: first it reads one batch for its shapes, which has no samples here; then comes the loop.
    """

    def __init__(self, spec: Any) -> None:
        self._blank = tf.nest.map_structure(
            lambda part: tf.zeros([0, *(size or 1 for size in part.shape[1:])], part.dtype), spec
        )
        self._in_loop = True

    def __iter__(self) -> Iterator[Any]:
        self._in_loop = not self._in_loop
        if not self._in_loop:
            yield self._blank
        raise tf.errors.OutOfRangeError(None, None, "This worker has no data.")


def connect_workers(addresses: Sequence[str], rank: int, timeout: float) -> tf.distribute.Strategy:
    """The strategy of this worker, connected with the others; all call it at about the same time.

    Collectives go over NCCL between GPUs, and over TensorFlow's ring otherwise. A collective that waits longer than
    `timeout` seconds ends with an error.

    Args:
        addresses: "host:port" of each worker, the same list on all.
        rank: this worker's place in it.
        timeout: seconds.

    Raises:
        DistributionError: TensorFlow has started already.
    """
    kinds = tf.distribute.experimental.CommunicationImplementation
    gpus = tf.config.get_visible_devices("GPU")
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(addresses)}),
        task_type="worker",
        task_id=rank,
        num_accelerators={"GPU": len(gpus)},
        rpc_layer="grpc",
    )
    _tolerate_suspension(addresses)
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=kinds.NCCL if gpus else kinds.RING, timeout_seconds=timeout
    )
    try:
        return MultiWorker(cluster_resolver=resolver, communication_options=options)
    except RuntimeError as error:
        raise DistributionError(
            f"[rank {rank}] TensorFlow had started before it could be told of the other workers ({error}). Fix: "
            "call distlr.init before the first TensorFlow operation."
        ) from error


def _tolerate_suspension(addresses: Sequence[str]) -> None:
    """Keeps TensorFlow from declaring a worker lost that has sent no heartbeat for ten seconds.

    Schedulers suspend jobs (SIGSTOP) for hours, and at SIGCONT the first worker may look before the others have sent
    one. A worker that has ended is detected by its closed connections, and one that hangs by the collectives that wait
    for it, which have a limit of their own.
    """
    # The module of this message differs by TensorFlow's version.
    jobs = tf.compat.v1.ConfigProto().experimental.coordination_config.coordinated_job_list
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader="/job:worker/replica:0/task:0",
        coordinated_jobs=[jobs.add(name="worker", num_tasks=len(addresses))],
        heartbeat_timeout_in_ms=_LONGEST_SUSPENSION * 1000,
    )


def adapt_for_keras(strategy: tf.distribute.Strategy) -> tf.distribute.Strategy:
    """Changes the class of a plain `MultiWorkerMirroredStrategy`, in place, so that Keras 3 can train with it."""
    if type(strategy) is tf.distribute.MultiWorkerMirroredStrategy:
        strategy.__class__ = MultiWorker
    return strategy


def slurm_workers(tasks: int, environ: Mapping[str, str] = os.environ) -> list[str]:
    """The addresses of the tasks of the Slurm step, in the order of its ranks.

    The ports are a digest of the numbers of job, restart and step. Two jobs on one node have different ports, except
    for one pair in some hundreds, where one job ends with an error that says so.

    Args:
        tasks: how many there are.
        environ: the environment, with Slurm's variables.
    """
    # It lists a node's tasks by their GPUs; as many as tasks, so that none is left out. It sets nothing here.
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
        {"worker": tasks},
        port_base=first_slurm_port(tasks, environ),
        gpus_per_node=tasks,
        gpus_per_task=1,
        auto_set_gpu=False,
    )
    workers: list[str] = resolver.cluster_spec().as_dict()["worker"]
    return workers


def first_slurm_port(tasks: int, environ: Mapping[str, str]) -> int:
    """The first of the ports that a node's tasks count up from, the same on all nodes of the step.

    Args:
        tasks: the tasks of the step: as many as there may be on one node.
        environ: with Slurm's variables.
    """
    names = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")
    digest = hashlib.sha256(" ".join(environ.get(name, "0") for name in names).encode()).digest()
    blocks = max(1, len(_SLURM_PORTS) // tasks)
    return _SLURM_PORTS[int.from_bytes(digest[:8], "big") % blocks * tasks]
