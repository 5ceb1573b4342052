"""The check of a strategy that the user has made."""

from __future__ import annotations

import logging

import tensorflow as tf

from distlr.errors import ConfigurationError, received

__all__ = ["check_strategy"]

_log = logging.getLogger("distlr")

_TESTED = ("DefaultStrategy", "_DefaultDistributionStrategy", "OneDeviceStrategy", "MirroredStrategy")
_MULTI_WORKER = "MultiWorkerMirroredStrategy"


def check_strategy(strategy: tf.distribute.Strategy) -> None:
    """Refuses a strategy under which no rate can be right, and warns of one that distlr was never run on.

    Raises:
        ConfigurationError: the workers of a parameter server update the weights each at its own time: there is no one
            clock.
    """
    names = {kind.__name__ for kind in type(strategy).__mro__}
    if any("ParameterServer" in name for name in names):
        hint = "use tf.distribute.MultiWorkerMirroredStrategy, or distlr.init('multi-worker')"
        expected = "one whose replicas take each step together (a parameter server's workers do not)"
        raise ConfigurationError(received("strategy", strategy, expected, hint))
    if not names & {*_TESTED, _MULTI_WORKER}:
        _log.warning(
            "distlr was never tested on %s: compare job.weights_digests(model) and job.rate_digests(optimizer) after a "
            "few steps.",
            type(strategy).__name__,
        )
