"""The base of distlr's callbacks."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NoReturn

import keras

from distlr.batch.global_batch import GlobalBatch
from distlr.callbacks.stage import Stage
from distlr.communicators import Communicator, single_process_communicator
from distlr.communicators.gradient_reducer import GradientReducer
from distlr.communicators.step_signals import StepSignals
from distlr.communicators.topology import Topology
from distlr.errors import ConfigurationTypeError
from distlr.optimizer import AdoptedOptimizer, rate_of, unwrap_loss_scale
from distlr.runlog.directory import now
from distlr.runlog.journal import Journal, JournalEntry

__all__ = ["JobCallback"]


class JobCallback(keras.callbacks.Callback):
    """A callback that knows the job's ranks and keeps its journal; `job.callbacks` binds it.

    A callback that is not bound regards itself as the only rank, and refuses to run where a launcher says otherwise.

    **Writing a callback.** Rank 0 decides, and all ranks apply the decision: use `compute_on_root` of
    `distlr.communicators.rank_zero`, or a collective with the epoch in its tag, called by every rank or by none. A
    state that must survive a restart is in `self.core.distlr.state(name, initial)`, requested in `on_train_begin` on
    every rank. `self.core.multiply_rate` changes the rate, and `decided` writes that to the run's journal, with the
    clock and the rate. A change of the graph of a step (`self.core.distlr.gradients.watch_norm()`) comes in
    `set_model`, with `model.train_function = None` after it. Keras waits for the device after each batch if a callback
    has batch hooks and not `async_safe = True`. If it stops the training in such a hook, all ranks stop at the next
    batch.

    >>> import distlr, keras, numpy as np
    >>> class Halve(JobCallback):
    ...     def on_epoch_end(self, epoch, logs=None):
    ...         self.model.optimizer.multiply_rate(0.5)
    ...         self.decided("mine", epoch, "every epoch", multiplier=0.5)
    >>> job = distlr.init(environ={})
    >>> with job.scope():
    ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    ...     model.compile(job.optimizer(keras.optimizers.SGD(0.5)), "mse")
    >>> halve = Halve()
    >>> _ = model.fit(np.ones((8, 2)), np.ones(8), epochs=2, callbacks=job.callbacks([halve]), verbose=0)
    >>> [(entry.epoch, entry.learning_rate, entry.reason) for entry in halve.journal.entries]
    [(0, 0.25, 'every epoch'), (1, 0.125, 'every epoch')]
    """

    stage: ClassVar[Stage] = Stage.DECIDE
    """When it has its turn; on every rank the same."""
    decides_by: ClassVar[tuple[str, ...]] = ()
    """Attributes that must be the same on every rank."""
    stops_with_all_ranks: ClassVar[bool] = False
    """Whether what the class writes into the hooks of batches never stops one rank alone; not inherited."""

    @property
    def acts_on_rate(self) -> bool:
        """Whether it changes the rate of `model.optimizer`, and so is of no use where that one is never applied."""
        return False

    @property
    def leaves_out_other_optimizers(self) -> str | None:
        """Its effect on `model.optimizer` alone, although a model may train with several; None if there is none."""
        return None

    def __init__(self) -> None:
        super().__init__()
        self._communicator: Communicator | None = None
        self.journal = Journal()

    def bind(self, communicator: Communicator, journal: Journal | None = None) -> None:
        """Gives the ranks and the journal to the callback; called by `job.callbacks`.

        Args:
            communicator: the job's.
            journal: the journal that the job's callbacks share; by default the callback's own stays.
        """
        self._communicator = communicator
        self.journal = journal or self.journal

    @property
    def communicator(self) -> Communicator:
        """The job's communicator, or that of a single process."""
        if self._communicator is None:
            self._communicator = single_process_communicator(
                type(self).__name__, "model.fit(callbacks=job.callbacks([...]))"
            )
        return self._communicator

    @property
    def topology(self) -> Topology:
        """The numbers of ranks and replicas, and whether the model's strategy spans the ranks."""
        return Topology.of(self.communicator, self.model.distribute_strategy.num_replicas_in_sync)

    @property
    def core(self) -> Any:
        """The model's optimizer, without the loss scale around it."""
        return unwrap_loss_scale(self.model.optimizer)

    @property
    def batch(self) -> GlobalBatch | None:
        """The batch that the rate is scaled for; None for a plain optimizer, and where none was given."""
        return self.core.distlr.batch if isinstance(self.core, AdoptedOptimizer) else None

    @property
    def gradient_reducer(self) -> GradientReducer | None:
        """The gradient reducer; None on one rank, or if the engine reduces the gradients by itself."""
        return self.core.distlr.gradients.reducer if isinstance(self.core, AdoptedOptimizer) else None

    @property
    def step_signals(self) -> StepSignals | None:
        """The signals that travel with the gradients; None where there is no gradient reducer."""
        return None if self.gradient_reducer is None else self.gradient_reducer.signals

    @property
    def accumulation(self) -> int:
        """Keras' steps an update."""
        return self.core.gradient_accumulation_steps or 1

    @property
    def clock(self) -> int:
        """The place of a run, also after a change of the ranks: samples seen, or updates if there is no batch."""
        return int(self.core.iterations.numpy()) if self.batch is None else self.core.distlr.formula.counts()[1]

    @property
    def drawn(self) -> int:
        """How far the data is: the clock as if no step had been left out (for a NaN, or an overflow)."""
        return self.clock if self.journal.drawn is None else self.journal.drawn()

    def decided(
        self,
        kind: str,
        epoch: int,
        reason: str,
        *,
        multiplier: float | None = None,
        by: str = "distlr",
        between: bool = True,
        **details: Any,
    ) -> None:
        """Writes to the journal what was just decided.

        Args:
            kind: see `JournalEntry`.
            epoch: the epoch, from 0.
            reason: the reason, in a few words.
            multiplier: the factor on the rate, if there was one.
            by: the name of the callback or person that decided.
            between: whether it was at the epoch's end, or before it began, and not after one of its batches.
            **details: other JSON values.
        """
        batch, clock, drawn, rate = self.batch, self.clock, self.drawn, rate_of(self.model.optimizer)
        per_epoch = None if batch is None else batch.samples_per_epoch
        self.journal.add(
            JournalEntry(
                kind=kind,
                epoch=epoch,
                at=drawn / per_epoch if per_epoch else float(epoch + between),
                between=between,
                clock=clock,
                drawn=drawn,
                samples_seen=None if batch is None else clock,
                multiplier=multiplier,
                learning_rate=rate if math.isfinite(rate) else None,
                reason=reason,
                by=by,
                time=now(),
                details=details,
            )
        )

    def __call__(self, *_: Any) -> NoReturn:
        """Raises an error: Keras accepts any callable as a rate, so this mistake would be silent."""
        name = type(self).__name__
        raise ConfigurationTypeError(
            f"{name} is a callback and was given as a rate. Received: learning_rate={self!r}. Fix: write a "
            f"float or a schedule there, and give the callback to model.fit(callbacks=job.callbacks([{name}(...)]))."
        )
