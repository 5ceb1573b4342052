"""Counts how often something is due in a run, which may have begun in another process."""

from __future__ import annotations

from distlr.batch.duration import Duration
from distlr.batch.global_batch import GlobalBatch
from distlr.errors import ConfigurationError, received

__all__ = ["Interval"]


class Interval:
    """Counts how many times an interval has passed since the start of a run, and how many of these were handled.

    Between epochs it counts epochs; within them it counts updates of the script's batch, also in a run that began with
    another batch. Epochs are counted from 0: `epoch` is the one in which the next step is.

    >>> interval = Interval("2ba")
    >>> interval.begin(4, 0)
    >>> [interval.is_due(0, steps) for steps in (1, 2)]
    [False, True]

    Args:
        every: its length, in epochs, updates or samples.

    Raises:
        ConfigurationError: it is 0, or a share of the run.
    """

    def __init__(self, every: str | Duration) -> None:
        self.every = Duration.parse(every, "every")
        if self.every.value == 0 or self.every.unit == "dur":
            raise ConfigurationError(received("every", every, "above 0, in ep, ba or sp"))
        self._batch: GlobalBatch | None = None
        self._accumulation = 1
        self._first_update = 0.0
        self._done = 0

    @property
    def within_epochs(self) -> bool:
        """Whether it may be due in the middle of an epoch."""
        return self.every.unit != "ep" or self.every.value.denominator != 1

    def begin(
        self, iterations: int, samples: int, *, epoch: int = 0, batch: GlobalBatch | None = None, accumulation: int = 1
    ) -> None:
        """Begins to count in a process. All that was due before counts as handled.

        Args:
            iterations: Keras' steps before it.
            samples: the samples on the clock.
            epoch: the epoch with which it begins.
            batch: the script's batch, which converts the clock into its updates; None if there is none.
            accumulation: Keras' steps an update.

        Raises:
            ConfigurationError: there is no batch, and the interval is not in updates.
        """
        self._batch, self._accumulation = batch, accumulation
        self._first_update = iterations / accumulation if batch is None else float(batch.updates_at(samples))
        self.mark_done(epoch, 0)

    def mark_done(self, epoch: int, steps: int) -> None:
        """Notes that all that is due was handled, after so many of Keras' steps in this process."""
        self._done = self._times(epoch, steps)

    def is_due(self, epoch: int, steps: int, *, at_end: bool = False) -> bool:
        """Whether it is time, after so many of Keras' steps in this process; whole epochs only `at_end` of one."""
        return (at_end or self.within_epochs) and self._times(epoch, steps) > self._done

    def _times(self, epoch: int, steps: int) -> int:
        """How often it has been due since the start of the run."""
        if not self.within_epochs:
            return epoch // int(self.every.value)
        if self._batch is None and self.every.unit != "ba":
            hint = 'write every="100ba", or pass a batch to job.optimizer'
            raise ConfigurationError(received("every", str(self.every), "in updates where there is no batch", hint))
        length = (
            float(self.every.value) if self._batch is None else self._batch.to_updates(self.every, argument="every")
        )
        return int((self._first_update + steps // self._accumulation) // max(length, 1))
