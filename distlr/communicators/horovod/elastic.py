"""Ranks that come and go while a job runs, over Horovod's elastic mode.

The driver, its notices and the new start of the ranks are those of Horovod's own `hvd.elastic`. Its `run` is not used:
it swallows errors that it does not know by an operation's name, so that ranks exit with 0 in mid-training, and its
states pickle and do not work with Keras 3.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, TypeVar

from distlr.communicators.horovod.communicator import HorovodCommunicator
from distlr.errors import CollectiveTimeoutError, DistributionError, RanksChanged

__all__ = ["is_elastic", "run_elastic"]

T = TypeVar("T")

_log = logging.getLogger("distlr")


def is_elastic() -> bool:
    """Whether horovodrun started this process in its elastic mode."""
    return os.environ.get("HOROVOD_ELASTIC") == "1"


class _Notices:
    """The driver's notices to a rank about the hosts."""

    def __init__(self) -> None:
        self.changed = False

    def on_hosts_updated(self, timestamp: Any, update: Any) -> None:
        """Called from Horovod's thread."""
        self.changed = True


class ElasticCommunicator(HorovodCommunicator):
    """Horovod's ranks, of one generation: it ends when any is lost, and soon after others could join."""

    may_lose_ranks = True

    def __init__(self, timeout: float, notices: _Notices) -> None:
        super().__init__(timeout)
        self._notices = notices

    @property
    def ranks_changed(self) -> bool:
        """Whether this rank was notified of hosts that were added or removed."""
        return self._notices.changed


def run_elastic(train: Callable[[HorovodCommunicator], T], *, timeout: float, resets: int) -> T:
    """Runs `train` with a communicator of its own for each generation of ranks, until it returns.

    Args:
        train: makes everything anew; raises what Horovod raises, or `RanksChanged`, where the ranks are others.
        timeout: see `HorovodCommunicator`.
        resets: how many new generations there may be.

    Raises:
        DistributionError: there were more.
        Exception: whatever else `train` raises.
    """
    import horovod.tensorflow as hvd
    from horovod.common.elastic import notification_manager

    notices = _Notices()
    hvd.init()
    notification_manager.init()
    notification_manager.register_listener(notices)
    try:
        for generation in range(resets + 1):
            try:
                return train(ElasticCommunicator(timeout, notices))
            except Exception as error:
                if not _lost_a_rank(error):
                    raise
                last = _first_line(error)  # not the error itself, whose frames hold the lost generation's model
            _log.warning("The ranks of generation %d are no more: %s", generation + 1, last)
            notices.changed = False  # not after: what comes while the new ranks form is news to them
            hvd.shutdown()
            hvd.init()
        raise DistributionError(
            f"The ranks have changed {resets + 1} times, and the limit is {resets}. The last time: {last}"
        )
    finally:
        notification_manager.remove_listener(notices)


def _lost_a_rank(error: BaseException) -> bool:
    """Whether an error means that the ranks have changed, and not that something is wrong on this one."""
    import tensorflow as tf
    from horovod.common.exceptions import HorovodInternalError

    if isinstance(error, CollectiveTimeoutError):
        return True
    if isinstance(error, tf.errors.OpError):
        return "Horovod" in error.message
    return isinstance(error, (HorovodInternalError, RanksChanged))


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}" if str(error) else type(error).__name__
