"""Where in the training data a run stands: which pass over it, and how much of that pass all ranks have drawn."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from distlr.batch.global_batch import GlobalBatch

__all__ = ["EpochSteps", "Position", "matched"]

_MIX = 1_000_003
_USED = -1  # in the place of the step, which is 0 from `begin` on and 1 before
_ENDLESS = 2**32  # passes, more than one `fit` has


class Position:
    """The place of one training pipeline, which reads it whenever an iteration of the data begins.

    The order of the samples is a function of `seed` and the pass alone, so that a run that was interrupted goes on with
    the sample that would have come next. Unless `begin` sets the epoch, each iteration is that of the next one.

    Args:
        batch: the global batch.
        seed: the seed of the order.
        endless: whether one iteration lasts for a whole `fit` (`remainder="carry"`); then the pass is the number of the
            `fit`, from 0, and `offset` counts from its start.
    """

    def __init__(self, batch: GlobalBatch, seed: int, endless: bool = False) -> None:
        self.per_step = batch.per_replica * batch.replicas
        self.endless = endless
        self._variable = _outside_strategy(lambda: tf.Variable([seed, 0, 0, 1], trainable=False, dtype=tf.int64))
        self._resumed: int | None = None
        self._last: int | None = None
        self._shift = 0
        self._before: tuple[Any, ...] = ()

    @property
    def is_used(self) -> bool:
        """Whether an iteration has begun since `begin` set the epoch."""
        return int(self._variable.numpy()[3]) == _USED

    def remember(self) -> None:
        """Notes the place of the data, for `forget`."""
        self._before = self._variable.numpy(), self._resumed, self._last, self._shift

    def forget(self) -> None:
        """Returns to the place at the call of `remember`: the epochs were those of other data."""
        values, self._resumed, self._last, self._shift = self._before
        self._variable.assign(values)

    @property
    def seed(self) -> int:
        """The seed of the order of the samples."""
        return int(self._variable.numpy()[0])

    @property
    def epoch(self) -> int:
        """The pass over the data, from 0."""
        return int(self._variable.numpy()[1])

    @property
    def offset(self) -> int:
        """Samples of the pass that all ranks together had drawn when it began here: 0, or where a run was resumed."""
        return int(self._variable.numpy()[2])

    def begin(self, epoch: int, first: bool) -> None:
        """Sets the epoch of the next iteration, which begins at its start, unless `resume` has set another place.

        The pass is the epoch, or where an earlier `fit` had that one already the next that was not yet, so that a
        script that calls `fit` again and again sees another order each time.

        Args:
            epoch: Keras' epoch, from 0.
            first: whether it is the first one of a `fit`.
        """
        if self._resumed == epoch:
            self._resumed = None
        elif self.endless:
            if first:
                self._set(self.seed, 0 if self._last is None else self._last + 1, 0)
        else:
            if first:
                self._shift = 0 if self._last is None else max(0, self._last + 1 - epoch)
            self._set(self.seed, epoch + self._shift, 0)
        self._last = self.epoch

    def resume(self, epoch: int, seed: int, number: int, offset: int) -> None:
        """Says where Keras' epoch `epoch` goes on: at which pass, and where in it."""
        self._set(seed, number, offset)
        self._resumed, self._shift = epoch, number - epoch

    @contextlib.contextmanager
    def place_kept(self) -> Iterator[None]:
        """Brings the data back to where it stands now, whatever iterates over it inside."""
        before = self._variable.numpy()
        try:
            yield
        finally:
            self._variable.assign(before)

    def after(self, steps: int) -> int:
        """Samples of the pass that are drawn after so many steps from where it began here."""
        return self.offset + steps * self.per_step

    def begin_iteration(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Seed, pass and offset, for an iteration that begins; in graph."""
        seed, epoch, offset, step = tf.unstack(self._variable.read_value())
        free = step > 0  # `begin` was not called
        self._variable.assign(tf.where(free, [seed, epoch + 1, 0, 1], [seed, epoch, offset, _USED]))
        return seed, epoch, offset

    @staticmethod
    def seed_of(seed: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        """One number for the order of one pass; in graph."""
        return seed * _MIX + number

    @staticmethod
    def inner_pass(epoch: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
        """The number of one pass of an endless iteration, which makes its order differ from all others; in graph."""
        return epoch * _ENDLESS + number

    def _set(self, seed: int, epoch: int, offset: int) -> None:
        self._variable.assign([seed, epoch, offset, 0])


Place = Sequence[int]  # seed, pass and offset


def matched(positions: Sequence[Position], places: Sequence[Place]) -> list[tuple[Position, Place]] | None:
    """Matches a script's pipelines with the places of a checkpoint; None if that is ambiguous.

    A script may have more pipelines than the `fit` that wrote the checkpoint has read: those of other trainings. The
    seeds distinguish them. Several pipelines may get one place; `Position.forget` takes it from those that are not
    read.

    Args:
        positions: the positions of the script, in the order in which they were made.
        places: the places of the pipelines that the `fit` read.
    """
    if len(places) == 1:
        # The seeds do not count: a notebook's cell that is run again makes data with the next seed.
        return [(position, places[0]) for position in positions]
    by_seed = {place[0]: place for place in places}
    same = [(position, by_seed[position.seed]) for position in positions if position.seed in by_seed]
    if len(by_seed) == len(places) and {position.seed for position, _ in same} == set(by_seed):
        return same
    return list(zip(positions, places, strict=True)) if len(positions) == len(places) else None


@dataclasses.dataclass(frozen=True)
class EpochSteps:
    """Where each of Keras' steps of an epoch stands in it, in samples, on one number of replicas.

    An epoch of `V` steps ends on exactly its `S` samples, though the last, partial batch is dropped: after `s` steps it
    stands at `s * S // V`, which is what the clock shows within an epoch as long as no step is left out. Where `S` is
    not known it stands at `s * per_step`.

    Attributes:
        per_step: samples of a step, over all replicas.
        steps: steps of an epoch, `V`; None if unknown.
        samples: samples of an epoch, `S`; None if unknown.
        accumulation: steps an update.
        in_samples: whether the clock counts samples, and not updates.

    >>> one, two = EpochSteps(16, 16, 256), EpochSteps(32, 8, 256)
    >>> one.place(5), one.done(80), two.done(80), two.left(3)
    (80, 5, 3, 5)
    >>> [EpochSteps(3, 3, 10).place(steps) for steps in range(4)]
    [0, 3, 6, 10]
    """

    per_step: int
    steps: int | None
    samples: int | None = None
    accumulation: int = 1
    in_samples: bool = True

    @classmethod
    def of(cls, batch: GlobalBatch | None, *, per_step: int, steps: int | None, accumulation: int) -> EpochSteps:
        """The epoch's steps in a script.

        Args:
            batch: the batch that the rate is scaled for, or None.
            per_step: samples of a step if there is no batch.
            steps: Keras' steps of a whole epoch, if it knows them and the batch does not.
            accumulation: Keras' steps an update.
        """
        if batch is None:
            return cls(per_step, steps, None, accumulation, in_samples=False)
        per_step = batch.per_replica * batch.replicas
        if batch.samples_per_epoch is None:
            return cls(per_step, steps, None, accumulation)
        return cls(per_step, batch.steps_per_epoch, batch.samples_per_epoch, accumulation)

    def place(self, steps: int) -> int:
        """Samples of the epoch that are behind after so many steps of it."""
        if self.samples is None or self.steps is None:
            return steps * self.per_step
        return steps * self.samples // self.steps

    def drawn(self, steps: int) -> int:
        """By how much so many steps of an epoch move the clock if none of them is left out."""
        return self.place(steps) if self.in_samples else steps // self.accumulation

    def whole(self, done: int) -> int:
        """By how much an epoch moves it that ends after so many steps because no whole update fits into the rest."""
        return self.drawn(done) if self.samples is None else self.samples

    def done(self, place: int) -> int:
        """Steps that are behind at a place in the epoch, the inverse of `place`; between two steps the later one."""
        if self.samples is None or self.steps is None:
            return -(-place // self.per_step)
        return -(-place * self.steps // self.samples)

    def done_by_update(self, place: int) -> int:
        """Like `done`, for an epoch that began with other steps: the next step begins an update."""
        return -(-self.done(place) // self.accumulation) * self.accumulation

    def left(self, done: int) -> int | None:
        """Steps that are left of the epoch after so many; None where its length is not known."""
        return None if self.steps is None else max(0, self.steps - done)


def _outside_strategy(make: Callable[[], Any]) -> Any:
    """Makes a variable of this process' host, also inside the scope of a strategy, which is its thread's alone."""
    results: list[Any] = []

    def run() -> None:
        with tf.device("CPU:0"):
            results.append(make())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]
