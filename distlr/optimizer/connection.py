"""The job that an optimizer trains in: what of the optimizer depends on it, and how a loaded one learns of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from distlr._utils.checks import counted
from distlr.communicators.topology import Topology
from distlr.errors import ConfigurationError, DistributionError
from distlr.schedules import GlobalBatchSchedule
from distlr.startup.launcher import detect

__all__ = ["connect", "fit_to_launcher", "warn_of_restored_schedule"]

_log = logging.getLogger("distlr")


def connect(optimizer: Any, topology: Topology, gradients: Callable[[str], Any] | None, *, is_root: bool) -> bool:
    """Makes an adopted optimizer one of a job: the batch, all that is scaled for it, and the exchange of gradients.

    An optimizer that was loaded, or made by `from_config`, describes the job that saved it until then.

    Args:
        optimizer: adopted, without a loss scale around it.
        topology: of the job.
        gradients: makes the gradient reducer over the ranks, of the compression that it is given; None where the job
            has none.
        is_root: whether this is rank 0, which says what changes.

    Returns:
        Whether anything has changed, so that a step that was traced before would not have it.

    Raises:
        ConfigurationError: what was saved cannot be had on so many replicas.
        DistributionError: the optimizer belongs to a job with another number of replicas.
    """
    extension, pipeline = optimizer.distlr, optimizer.distlr.gradients
    changed: bool = _fit(optimizer, topology, is_root=is_root)
    if pipeline.reducer is None and gradients is not None and pipeline.reduction.exchange:
        pipeline.reducer = gradients(pipeline.reduction.compression)
        changed = True
    if pipeline.ranks != topology.ranks:
        pipeline.ranks = topology.ranks
        changed |= pipeline.reduction.sums
    extension.restored, extension.refusal = False, None
    return changed


def fit_to_launcher(optimizer: Any) -> None:
    """Fits an optimizer that was just made from a config to what the launcher and the current strategy say.

    So its rate reads right at once. One of several ranks, whose gradients nothing would average yet, and what cannot be
    had on so many replicas, keeps the reason for its first step: a model may be loaded to be used, not to be trained.
    """
    extension = optimizer.distlr
    extension.restored = True
    try:
        spanned, launch = _workers(extension.strategy), None
        if not spanned:
            launch = detect(os.environ)
        ranks = spanned or (1 if launch is None else launch.size)
        replicas = int(extension.strategy.num_replicas_in_sync)
        local = replicas // (spanned or 1)
        is_root = _is_first_worker(extension.strategy) if spanned else launch is None or launch.rank == 0
        extension.gradients.ranks = ranks
        _fit(optimizer, Topology(ranks, local), is_root=is_root)
    except ConfigurationError as error:
        extension.refusal = error
        return
    if launch is not None and ranks > 1 and extension.gradients.reduction.exchange:
        extension.refusal = DistributionError(
            f"[rank {launch.rank}] The optimizer '{optimizer.name}' came with a saved model, or from a config, and no "
            f"job has connected it, so it would average nothing over the {ranks} ranks ({launch.launcher}), and rank "
            "0's state was never broadcast. Fix: train with fit(callbacks=job.callbacks([...])), or call "
            "job.broadcast(model, optimizer) before the first step of a loop of your own; with distlr.horovod, train "
            "with fit(callbacks=[hvd.callbacks.BroadcastGlobalVariablesCallback(0)]). To train on this rank alone, "
            "call distlr.strip(model)."
        )


def warn_of_restored_schedule(optimizer: Any, topology: Topology) -> None:
    """Says that a `distlr.scale` that came from a file is scaled for another number of replicas.

    Nothing is recomputed: its batch was written by hand, and what the model is fed with now may be of that size.
    """
    rate = getattr(optimizer, "_learning_rate", None)
    if not isinstance(rate, GlobalBatchSchedule) or not rate.restored or "total" in rate.batch.to_dict():
        return
    if rate.batch.replicas not in (1, topology.replicas):
        _log.warning(
            "The rate of '%s' came from a file and is scaled for %s: for the batch of %d, by %g. Here are %s. Fix: if "
            "the model is not fed with %d samples an update, set optimizer.learning_rate = distlr.scale(schedule, "
            "batch) for the batch that it is fed with.",
            optimizer.name,
            counted(rate.batch.replicas, "replica"),
            rate.batch.size,
            rate.factor,
            counted(topology.replicas, "replica"),
            rate.batch.size,
        )


def _fit(optimizer: Any, topology: Topology, *, is_root: bool) -> bool:
    """Recomputes the batch, and from the base all that is scaled for it; whether anything had to be."""
    extension = optimizer.distlr
    batch, before = extension.batch, extension.formula.batch_schedule
    if batch is None or (batch.replicas, batch.local_replicas) == (topology.replicas, topology.local_replicas):
        return False
    saved, here = counted(batch.replicas, "replica"), counted(topology.replicas, "replica")
    if not extension.restored or extension.formula.in_graph:
        raise DistributionError(
            f"The optimizer '{optimizer.name}' is one of a job of {saved}, {batch.local_replicas} a process, and this "
            f"job has {here}, {topology.local_replicas} a process. Found: {batch!r}. Fix: make batch and optimizer "
            "with the job that trains: job.optimizer(optimizer, job.batch(...))."
        )
    try:
        batch_schedule = before.for_batch(
            batch.replace(replicas=topology.replicas, local_replicas=topology.local_replicas)
        )
        values = extension.hyperparameters.options.checked(extension.plain(optimizer), batch_schedule)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"The optimizer '{optimizer.name}' was saved on {saved}, as {batch!r}, and cannot train on {here}: {error}"
        ) from error
    changes = {
        "per replica": (batch.per_replica, batch_schedule.batch.per_replica),
        "batch": (batch.size, batch_schedule.batch.size),
        "factor": (before.factor, batch_schedule.factor),
        **{name: (getattr(optimizer, name), value) for name, value in values.items()},
    }
    extension.use(optimizer, batch_schedule, values)
    if is_root:
        different = [f"{name} {old:.6g} -> {new:.6g}" for name, (old, new) in changes.items() if old != new]
        _log.info("%s: saved for %s, here %s: %s.", optimizer.name, saved, here, ", ".join(different) or "no change")
    return True


def _workers(strategy: tf.distribute.Strategy) -> int:
    """How many processes a strategy spans; 0 where it spans none."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 0
    tasks: dict[str, Any] = strategy.cluster_resolver.cluster_spec().as_dict()
    return sum(len(tasks.get(kind, ())) for kind in ("chief", "worker"))


def _is_first_worker(strategy: tf.distribute.Strategy) -> bool:
    resolver = strategy.cluster_resolver
    chief = resolver.cluster_spec().as_dict().get("chief")
    return resolver.task_type == "chief" or (not chief and resolver.task_id == 0)
