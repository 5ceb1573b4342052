"""Refuses a metric that cannot be computed over ranks or replicas, before its first update."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from distlr.errors import ConfigurationError
from distlr.optimizer import is_adopted, unwrap_loss_scale
from distlr.strategies.loss_reductions import reduction_warnings
from distlr.sync.additivity import Verdict, is_known, try_updates
from distlr.sync.metrics import COMBINE, check_additive, declared_way, single_metrics, state_owners

__all__ = ["MetricsCheck", "check_counted", "checked"]

_log = logging.getLogger("distlr")

_VERDICT = "_distlr_verdict"  # on a metric that was tried


class MetricsCheck:
    """Refuses a metric that is no sum before its first update, and warns once about metrics that it could not try.

    A metric of Keras, or one that says how it combines, costs nothing. Any other is tried when it is called for the
    first time, which is while a step is traced: a few updates of other states, with random numbers of the types and
    shapes that it was called with. After that it is called as ever.

    Args:
        model: compiled.
        is_root: whether to warn about metrics that could not be tried.
        by_strategy: whether a `tf.distribute` strategy adds the states up, which can do nothing else with them.
    """

    def __init__(self, model: Any, *, is_root: bool, by_strategy: bool) -> None:
        self._model, self._is_root, self._by_strategy = model, is_root, by_strategy
        self._over = "replicas" if by_strategy else "ranks"
        self._waiting: list[Any] = []
        self._reset_checked = False

    def watch(self) -> None:
        """Arranges that metrics are tried when they are called, before Keras makes the functions of its steps."""
        for metric in single_metrics(self._model.metrics):
            if getattr(getattr(metric, "update_state", None), _VERDICT, False):  # watched by a run that was ended
                del metric.update_state
            if is_known(metric):
                continue
            verdict = getattr(metric, _VERDICT, None)
            if verdict is None:
                self._watch(metric)
            elif verdict.sums is False:
                raise self._refusal(metric, verdict)
        if self._waiting:
            self._model.train_function = self._model.test_function = None  # a traced function would not call them again

    def warn_of_reductions(self, ranks: int = 1) -> None:
        """Warns about losses whose reduction gives another number here than on one device; see `reduction_warnings`.

        Args:
            ranks: the number of ranks over which gradients are averaged.
        """
        if self._is_root:
            core = unwrap_loss_scale(self._model.optimizer)
            factor = core.distlr.formula.factor if is_adopted(core) else 1.0
            for warning in reduction_warnings(getattr(self._model, "loss", None), ranks, factor):
                _log.warning("%s", warning)

    def check_reset(self) -> None:
        """Refuses metrics whose states after a reset cannot be sums; it looks once."""
        if not self._reset_checked:
            check_additive(self._model.metrics, self._by_strategy)
            self._reset_checked = True

    def end(self) -> None:
        """Stops watching, and names the metrics that were never called."""
        waiting, self._waiting = self._waiting, []
        for metric in waiting:
            del metric.update_state
            called = "no step has called its `update_state`"
            self._warn_on_root(metric, called if metric.variables else "it has no state that Keras knows")

    def _watch(self, metric: Any) -> None:
        update = metric.update_state

        def update_state(*arguments: Any, **named: Any) -> Any:
            # Without variables it makes them in this call; and another replica's step may have been here before.
            if metric.variables and any(metric is other for other in self._waiting):
                self._waiting = [other for other in self._waiting if other is not metric]
                del metric.update_state
                self._apply_verdict(metric, try_updates(metric, arguments, named))
            return update(*arguments, **named)

        setattr(update_state, _VERDICT, True)
        metric.update_state = update_state
        self._waiting.append(metric)

    def _apply_verdict(self, metric: Any, verdict: Verdict) -> None:
        setattr(metric, _VERDICT, verdict)
        if verdict.sums is False:
            raise self._refusal(metric, verdict)
        if verdict.sums is None:
            self._warn_on_root(metric, verdict.reason)
        elif not verdict.of_samples and self._is_root:
            _log.warning(
                "The metric '%s' (%s) adds up a value of each batch: over several %s it is over all their batches, "
                "each of which counts alike. So a smaller last batch counts too much, and a mean is exact only where "
                "all batches have one size. Fix: for a mean over samples derive it from keras.metrics.Mean and give "
                "the values of the samples to its update_state; or say that it is meant so, with "
                '%s = "sum" in the class.',
                metric.name,
                type(metric).__name__,
                self._over,
                COMBINE,
            )

    def _refusal(self, metric: Any, verdict: Verdict) -> ConfigurationError:
        fix = (
            f'give the class an attribute that says how its states combine, {COMBINE} = "max" (or "min", or a '
            'dictionary with the way of each state that is no sum, such as {"largest": "max"}); where none is right, '
            "as of a moving average or of Welford's variance, keep states that are sums: the count, the sum, the sum "
            "of squares."
        )
        if self._by_strategy:
            fix = (
                "a tf.distribute strategy can do nothing but add them up, so keep states that are sums, or compute "
                "this metric in a callback of your own, or use Horovod with one replica a rank."
            )
        return ConfigurationError(
            f"The metric '{metric.name}' ({type(metric).__name__}) cannot be computed over several {self._over}, which "
            f"add its states up: {verdict.reason}. Fix: {fix}"
        )

    def _warn_on_root(self, metric: Any, reason: str) -> None:
        if self._is_root:
            _warn(metric, self._over, reason)


@contextlib.contextmanager
def checked(model: Any, *, is_root: bool, by_strategy: bool) -> Iterator[None]:
    """Checks a model's metrics around an evaluation, which resets them.

    Args:
        model: compiled.
        is_root: see `MetricsCheck`, as for `by_strategy`.
    """
    check = MetricsCheck(model, is_root=is_root, by_strategy=by_strategy)
    check.watch()
    model.reset_metrics()
    check.check_reset()
    yield
    check.end()


def check_counted(metrics: Sequence[Any], *, is_root: bool) -> None:
    """Checks metrics that have counted already and cannot be tried: it warns once about each unknown one.

    Raises:
        ConfigurationError: a metric is known to be no sum, or starts elsewhere than at 0.

    >>> import keras
    >>> class Smallest(keras.metrics.Metric):
    ...     def __init__(self):
    ...         super().__init__(name="smallest")
    ...         self.smallest = self.add_variable((), keras.initializers.Constant(9.0), name="smallest")
    ...     def update_state(self, values):
    ...         self.smallest.assign(keras.ops.minimum(self.smallest, keras.ops.min(values)))
    ...     def reset_state(self):
    ...         self.smallest.assign(9.0)
    >>> try:
    ...     check_counted([Smallest()], is_root=True)
    ... except ConfigurationError as error:
    ...     print(str(error).partition(".")[0])
    The states of the metric 'smallest' (Smallest) start at other values than 0, so they are no sums
    """
    for metric in single_metrics(metrics):
        verdict = getattr(metric, _VERDICT, None)
        if is_known(metric) or (verdict is not None and verdict.sums is not False):
            continue
        undeclared = [variable for owner, variable in state_owners(metric) if declared_way(owner, variable) is None]
        if not undeclared and metric.variables:
            continue
        name = f"the metric '{metric.name}' ({type(metric).__name__})"
        fix = f'Fix: say in its class how those of the ranks combine, {COMBINE} = "max" or "min".'
        if verdict is not None:
            raise ConfigurationError(f"The states of {name} cannot be added up over ranks: {verdict.reason}. {fix}")
        if _starts_elsewhere(metric, undeclared):
            raise ConfigurationError(f"The states of {name} start at other values than 0, so they are no sums. {fix}")
        setattr(metric, _VERDICT, Verdict(None))
        if is_root:
            _warn(metric, "ranks", "it has counted already")


def _starts_elsewhere(metric: Any, variables: Sequence[Any]) -> bool:
    try:
        start = dict(zip(map(id, metric.variables), metric.stateless_reset_state(), strict=True))
        return any(np.any(np.asarray(start[id(variable)])) for variable in variables)
    except Exception:  # a reset of the user's own that does more than assign
        return False


def _warn(metric: Any, over: str, reason: str) -> None:
    _log.warning(
        "Whether the states of the metric '%s' (%s) are sums could not be tried: %s. They are added up over the %s, "
        "which is wrong for a maximum or a moving average. Fix: say in its class how they combine, "
        '%s = "sum", "max" or "min".',
        metric.name,
        type(metric).__name__,
        reason,
        over,
        COMBINE,
    )
