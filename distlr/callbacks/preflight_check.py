"""The check of a run against its batch: before the first step if that is possible, otherwise after one epoch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from distlr.callbacks.job_callback import JobCallback
from distlr.callbacks.other_optimizers import OtherOptimizers
from distlr.callbacks.stage import Stage
from distlr.callbacks.step_check import StepCheck, how_to_feed
from distlr.errors import ConfigurationError, DistributionError
from distlr.optimizer import AdoptedOptimizer, adopted_by, make_loss_scale_agree, strategy_of, unwrap_loss_scale
from distlr.optimizer.conversion import INSTEAD_OF_MULTI
from distlr.scaling.batch_normalization import averaging_layers, is_scaled
from distlr.strategies.step_record import overrides_train_step

__all__ = ["PreflightCheck"]

_log = logging.getLogger("distlr")

_MANY = 4  # from so many base steps a step on, moving averages that are not scaled cause a hint


class PreflightCheck(JobCallback):
    """Refuses a run whose rate would be silently wrong; `job.callbacks` puts it first.

    It checks the model's strategy against the job's, Keras' steps per epoch against the batch's, and features that
    plain Keras lacks on several devices; under `mixed_float16` it makes all replicas agree on an overflow.

    Args:
        strategy: the job's strategy.
        padding: returns, as a fit begins, how many samples of weight 0 the job's validation data contains.
        connect: connects an optimizer with the job, above all a loaded one; returns whether that changed it.
        trains_with: is called with the optimizers that a `fit` trains with, the compiled one first.
        exchanges: whether something of distlr's goes with the gradients from rank to rank.

    >>> import distlr, keras, numpy as np
    >>> job = distlr.init(environ={})
    >>> batch = job.batch(per_replica=8, base_batch=8, samples_per_epoch=64)
    >>> with job.scope():
    ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    ...     model.compile(job.optimizer(keras.optimizers.SGD(0.1), batch), "mse")
    >>> x = np.ones((64, 2), "float32")
    >>> try:
    ...     model.fit(x, x[:, :1], batch_size=16, callbacks=job.callbacks(), verbose=0)
    ... except distlr.errors.ConfigurationError as error:
    ...     print(str(error).partition(",")[0])
    fit runs 4 steps an epoch and the batch says 8
    """

    stage = Stage.CHECK
    stops_with_all_ranks = True

    # Keras waits for the device after every step where a callback looks at the batches, unless it says this:
    # then it calls from another thread, in order, and the step is not held up.
    async_safe = True

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        padding: Callable[[], int] = lambda: 0,
        connect: Callable[[Any], bool] | None = None,
        trains_with: Callable[[Sequence[AdoptedOptimizer]], None] | None = None,
        exchanges: bool = False,
    ) -> None:
        super().__init__()
        self.strategy = strategy
        self.padding = padding
        self.connect = connect
        self.trains_with = trains_with
        self.exchanges = exchanges
        self.others: Sequence[Any] = ()
        self._steps = 0
        self._are_steps_checked = False
        self._step_check: StepCheck | None = None

    def set_model(self, model: Any) -> None:
        """Runs all checks that are possible once the model is compiled."""
        super().set_model(model)
        _refuse_multi_optimizer(model)
        self._check_strategy(model)
        self._check_engine(model)
        self._check_exchange(model)
        make_loss_scale_agree(model.optimizer)
        self._hint_at_moving_averages(model)
        padding = self.padding()
        if padding and _unweighted_metrics(model):
            _log.warning(
                "The validation data is padded with %d samples of weight 0, and Keras computes what is given as "
                "`metrics=` without weights, so those count the padding. For exact values write compile("
                "weighted_metrics=[...]), or validate on a multiple of %d samples.",
                padding,
                self.strategy.num_replicas_in_sync,
            )

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Compares the steps per epoch, where Keras knows them, and has the training step recorded."""
        self._are_steps_checked = False
        steps = (self.params or {}).get("steps")
        others = OtherOptimizers(self.model, self.communicator, self.others)
        self._step_check = StepCheck(
            self.model, self.communicator, steps, self._check_steps, self._check_averaged, others
        )
        adopted = adopted_by(self.model)
        if adopted and self.trains_with is not None:
            self.trains_with(adopted)
        if steps is not None and not self._is_left_to_the_clock(steps):
            self._check_steps(steps)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._steps = 0
        if self._step_check is not None:
            self._step_check.begin_epoch()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts; `batch` is the last one done, of several with `steps_per_execution`."""
        self._steps = batch + 1
        expected = self._expected()
        is_over = not self._are_steps_checked and expected is not None and self._steps > expected
        if is_over and not (self._step_check is not None and self._step_check.is_own_step):
            self._check_steps(self._steps, so_far=True)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Compares the epoch's clock with its steps, and these with the batch if they were unknown before."""
        if self._step_check is not None:
            self._step_check.end_epoch(self._steps)
        if not self._are_steps_checked and not self.model.stop_training and not self._is_left_to_the_clock(self._steps):
            self._check_steps(self._steps)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Restores the model to its state before the `fit`."""
        if self._step_check is not None:
            self._step_check.end()
            self._step_check = None

    def _is_left_to_the_clock(self, steps: int) -> bool:
        """Whether a step may hold several updates, or a part of one, so that the clock alone shows what is right."""
        expected = self._expected()
        if self._step_check is None or not self._step_check.is_own_step or not expected or steps == expected:
            return False
        left = bool(steps) and (expected % steps == 0 or steps % expected == 0)
        self._are_steps_checked |= left
        return left

    def _expected(self) -> int | None:
        batch = self.batch
        return None if batch is None or batch.samples_per_epoch is None else int(batch.steps_per_epoch)

    def _check_steps(self, steps: int, so_far: bool = False) -> None:
        expected = self._expected()
        self._are_steps_checked = True
        if expected is None or steps == expected:
            return
        batch = self.batch
        assert batch is not None  # it is what is expected
        raise ConfigurationError(
            f"fit runs {steps}{' or more' if so_far else ''} steps an epoch and the batch says {expected}, so the "
            f"schedule would run {steps / expected:.4g} times as fast as the data. Found: {batch!r}. Fix: feed "
            f"the model with {how_to_feed(batch, self.topology)}; drop the remainder, check samples_per_epoch, "
            "and leave out fit(steps_per_epoch=)."
        )

    def _check_strategy(self, model: Any) -> None:
        model_strategy = model.distribute_strategy
        replicas, expected = model_strategy.num_replicas_in_sync, self.strategy.num_replicas_in_sync
        if model_strategy is not self.strategy and (replicas, expected) != (1, 1):
            raise DistributionError(
                f"The model was built under {type(model_strategy).__name__} with {replicas} replicas and the job has "
                f"{expected}: the model would train on {replicas} at the rate of {expected}. Fix: build and "
                "compile the model inside `with job.scope():`."
            )

        optimizer = self.core
        made_under = strategy_of(optimizer)
        if made_under is not model_strategy and replicas > 1:
            # Each replica would count the one `iterations`: a schedule would run `replicas` times too fast.
            raise DistributionError(
                f"The optimizer '{optimizer.name}' was made under {type(made_under).__name__} "
                f"and the model under {type(model_strategy).__name__} with {replicas} replicas. Fix: make the "
                "optimizer, too, inside `with job.scope():`."
            )

    def _check_engine(self, model: Any) -> None:
        replicas = self.strategy.num_replicas_in_sync
        if replicas == 1 and not self.exchanges:
            return
        jit_compile = (model.get_compile_config() or {}).get("jit_compile")
        where, why = f"{self.communicator.size} ranks ({self.communicator.name})", "does not compile"
        if replicas > 1:
            where, why = (
                f"{replicas} replicas of {type(self.strategy).__name__}",
                "has its variables on several devices",
            )
        if jit_compile is True:
            raise ConfigurationError(
                f"jit_compile=True cannot work on {where}: Keras compiles the step with the exchange, which {why}. "
                "Fix: leave jit_compile out."
            )
        if model.jit_compile:
            model.jit_compile = False
            model.train_function = None
            if self.communicator.is_root:
                _log.info("jit_compile='auto' is switched off on %s.", where)
        if replicas == 1:
            return
        if model.steps_per_execution > 1 and _on_cpu(self.strategy):
            raise ConfigurationError(
                f"steps_per_execution={model.steps_per_execution} cannot work on {replicas} mirrored CPUs: Keras' "
                "compiled loop holds the exchange. Fix: leave steps_per_execution out."
            )

    def _hint_at_moving_averages(self, model: Any) -> None:
        batch = self.batch
        if batch is None or batch.ratio / batch.accumulation < _MANY or not self.communicator.is_root:
            return
        # Those of a frozen layer stand still: Keras runs it as in inference.
        lagging = [layer for layer, _ in averaging_layers(model) if layer.trainable and not is_scaled(layer)]
        if lagging:
            _log.warning(
                "The moving averages of %d layers (%s) are not scaled for a batch %g times the base batch: they lag "
                "behind the weights, which costs more accuracy than anything else. Fix: "
                "job.scale_moving_averages(model, batch), before compile.",
                len(lagging),
                lagging[0].name,
                batch.ratio,
            )

    def _check_exchange(self, model: Any) -> None:
        if self.connect is not None:
            changed = [self.connect(optimizer) for optimizer in adopted_by(model) or [self.core]]
            if any(changed):
                model.train_function = None  # one that was traced before does not have it
        if not overrides_train_step(model):  # else it may be one that is never applied, as Keras' default is in a GAN
            self._check_averaged(self.core)

    def _check_averaged(self, optimizer: Any) -> None:
        """Refuses an optimizer of Keras' own where ranks exchange gradients."""
        if not self.exchanges or isinstance(optimizer, AdoptedOptimizer):
            return
        if self.topology.ranks == 1 or self.topology.strategy_spans_ranks:
            return  # there is nothing to average, or the strategy does
        if type(optimizer).__module__.split(".")[0] == "keras":
            raise DistributionError(
                f"[rank {self.communicator.rank}] Nothing averages the gradients of '{optimizer.name}': a plain Keras "
                f"optimizer trains {self.communicator.size} models on {self.communicator.size} ranks, and so does "
                "hvd.DistributedOptimizer on Keras 3. Fix: optimizer = job.optimizer(optimizer, batch), inside "
                "`with job.scope():`."
            )


def _refuse_multi_optimizer(model: Any) -> None:
    """Refuses Keras' MultiOptimizer, which has no rate and no clock of its own: neither is there for callbacks."""
    optimizer = unwrap_loss_scale(model.optimizer)
    if not hasattr(optimizer, "optimizers"):
        return
    adopted = [each.name for each in optimizer.optimizers if isinstance(unwrap_loss_scale(each), AdoptedOptimizer)]
    inside = f", made of adopted ones ({', '.join(adopted)})" if adopted else ""
    raise ConfigurationError(
        f"The model is compiled with a {type(optimizer).__name__}{inside}, and job.callbacks cannot train with one: it "
        f"has no rate of its own to log, to cut or to save. {INSTEAD_OF_MULTI}"
    )


def _unweighted_metrics(model: Any) -> bool:
    config = model.get_compile_config() or {}
    return bool(config.get("metrics"))


def _on_cpu(strategy: tf.distribute.Strategy) -> bool:
    return all("CPU" in device.upper() for device in strategy.extended.worker_devices)
