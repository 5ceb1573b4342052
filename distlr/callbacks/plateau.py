"""`ReduceLROnPlateau`, decided on rank 0."""

from __future__ import annotations

import warnings
from typing import Any

from distlr.callbacks.job_callback import JobCallback
from distlr.checkpoint.snapshot import Snapshot
from distlr.plateau.policy import Decision, PlateauPolicy
from distlr.plateau.synchronized import Plateau

__all__ = ["ReduceLROnPlateau"]


class ReduceLROnPlateau(JobCallback):
    """Keras' `ReduceLROnPlateau`, deciding once for all ranks, and over a schedule too.

    The arguments, their order and their defaults are Keras'. Rank 0 decides on the global metric and
    broadcasts the decision; every rank applies what it received. The state (best, wait, cooldown) is
    kept in the optimizer and survives a restart, where Keras starts over at each `fit`.

    Args:
        monitor: the metric in the epoch's logs.
        factor: the rate is multiplied by it, in (0, 1).
        patience: epochs without improvement before a cut.
        verbose: 0 for silence; otherwise each decision is a line (rank 0).
        mode: "auto", "min" or "max".
        min_delta: the least change that counts as an improvement, absolute or (threshold_mode="rel") a share of the
            best.
        cooldown: epochs after a cut in which none are counted.
        min_lr: the rate is not cut below it. It is the rate that is applied, after scaling.
        threshold_mode: "abs" or "rel".
        on_nan: the effect of a metric that is not finite: "raise", "worse" or "ignore".
        warmup_patience: whether epochs count while the rate still climbs.
        restore_best: at each cut return to the weights and slots of the best epoch, on every rank. They are kept in
            memory: after a restart they are those of the first epoch that beats the best before it.

    >>> import distlr, keras, numpy as np
    >>> job = distlr.init(environ={})
    >>> with job.scope():
    ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    ...     model.compile(job.optimizer(keras.optimizers.SGD(0.1)), "mse")
    >>> x = np.ones((32, 2), "float32")
    >>> plateau = ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1000.0)
    >>> _ = model.fit(x, x[:, :1], epochs=2, callbacks=job.callbacks([plateau]), verbose=0)
    >>> [(cut["epoch"], cut["multiplier"], round(cut["learning_rate"], 6)) for cut in plateau.decisions]
    [(1, 0.5, 0.05)]
    """

    decides_by = ("policy", "restore_best")

    @property
    def acts_on_rate(self) -> bool:
        """Always: it cuts the rate."""
        return True

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        verbose: int = 0,
        mode: str = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
        *,
        threshold_mode: str = "abs",
        on_nan: str = "raise",
        warmup_patience: bool = False,
        restore_best: bool = False,
    ) -> None:
        super().__init__()
        self.policy = PlateauPolicy(
            monitor=monitor,
            factor=factor,
            patience=patience,
            mode=mode,
            min_delta=min_delta,
            cooldown=cooldown,
            min_lr=min_lr,
            threshold_mode=threshold_mode,
            on_nan=on_nan,
            warmup_patience=warmup_patience,
        )
        self.verbose = verbose
        self.restore_best = restore_best
        self._best: Snapshot | None = None
        self._plateau: Plateau | None = None

    @property
    def leaves_out_other_optimizers(self) -> str | None:
        """A cut may concern one optimizer alone, but restored weights need the slots of all optimizers."""
        return "with restore_best=True brings back the slots of model.optimizer alone" if self.restore_best else None

    @property
    def decisions(self) -> list[dict[str, Any]]:
        """The cuts of this run: epoch (from 0), multiplier, reason and the rate after it."""
        return [] if self._plateau is None else self._plateau.decisions

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Refuses an optimizer whose rate cannot be cut, before the first step."""
        earlier = self.decisions
        self._plateau = Plateau(self.model.optimizer, policy=self.policy, communicator=self.communicator)
        self._plateau.decisions.extend(earlier)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Decides on a cut. Collective: every rank of the job calls it."""
        assert self._plateau is not None, "on_train_begin comes first"
        logs = {} if logs is None else logs
        value = logs.get(self.policy.monitor)
        if value is None:
            self._warn_missing(logs)
        # A rank without the metric takes part all the same; the value of rank 0 counts.
        decision = self._plateau.step(value, epoch=epoch)
        if decision.cut:
            self.decided("plateau", epoch, decision.reason, multiplier=decision.multiplier)
        if self.restore_best:
            self._restore_best(decision)

    def _restore_best(self, decision: Decision) -> None:
        if self._best is None or self._best.model is not self.model:
            self._best = Snapshot(self.model)
        if decision.improved:
            self._best.copy_if_finite()
        elif decision.cut and self._best:
            self._best.restore()

    def _warn_missing(self, logs: dict[str, Any]) -> None:
        warnings.warn(
            f"ReduceLROnPlateau watches '{self.policy.monitor}', which the epoch's logs do not have. Available: "
            f"{', '.join(sorted(logs)) or 'none'}. The rate stays.",
            stacklevel=3,
        )
