"""Savers come after deciders, and checks before all."""

from __future__ import annotations

from typing import Any

import keras
import pytest
import tensorflow as tf

from distlr.callbacks import (
    BroadcastState,
    CheckMetrics,
    Checkpoint,
    DataPositionSync,
    LearningRateLogger,
    ManualControl,
    NonFiniteGuard,
    PreflightCheck,
    ReduceLROnPlateau,
    ReplicaGuard,
    RunRecorder,
    SyncMetrics,
    SyncStatistics,
    TensorBoardScalars,
)
from distlr.callbacks.base_rates import BaseRates
from distlr.callbacks.cut_validation import CutValidation
from distlr.callbacks.deciders import may_stop_within_epoch
from distlr.callbacks.job_callback import JobCallback
from distlr.callbacks.order import for_ranks, ordered
from distlr.callbacks.same_callbacks import SameCallbacks
from distlr.communicators import run_ranks
from distlr.errors import ConfigurationError

K = keras.callbacks


class Decider(K.Callback):
    """A user's own, of which nothing is known."""


class Saver(K.ModelCheckpoint):
    """A user's own that derives from a saver."""


def _stages(tmp_path: Any) -> list[list[Any]]:
    strategy = tf.distribute.get_strategy()
    return [
        [PreflightCheck(strategy), DataPositionSync([]), SameCallbacks([]), BaseRates([])],
        [CheckMetrics(), SyncMetrics(), SyncStatistics()],
        [CutValidation(Checkpoint(tmp_path))],
        [LearningRateLogger()],
        [NonFiniteGuard()],
        [
            ReduceLROnPlateau(),
            K.ReduceLROnPlateau(),
            K.LearningRateScheduler(lambda epoch: 0.1),
            K.EarlyStopping(),
            K.TerminateOnNaN(),
            Decider(),
            ManualControl(tmp_path),
        ],
        [ReplicaGuard()],
        [
            K.ModelCheckpoint(tmp_path / "a.keras"),
            K.BackupAndRestore(tmp_path / "backup"),
            Saver(tmp_path / "b.keras"),
        ],
        [
            RunRecorder(tmp_path),
            TensorBoardScalars(tmp_path),
            K.TensorBoard(tmp_path),
            K.CSVLogger(tmp_path / "log.csv"),
        ],
        [Checkpoint(tmp_path)],
        [BroadcastState()],
    ]


def test_every_callback_comes_after_those_of_the_stages_before_it(tmp_path) -> None:
    stages = _stages(tmp_path)
    stage_of = {id(callback): number for number, stage in enumerate(stages) for callback in stage}
    everything = [callback for stage in stages for callback in stage]
    for permutation in (everything, everything[::-1], everything[5:] + everything[:5]):
        in_order = ordered(permutation)
        assert sorted(map(id, in_order)) == sorted(map(id, permutation))
        numbers = [stage_of[id(callback)] for callback in in_order]
        assert numbers == sorted(numbers)


def test_within_a_stage_the_order_given_stays(tmp_path) -> None:
    deciders = _stages(tmp_path)[4]
    assert ordered(deciders) == deciders
    assert ordered(deciders[::-1]) == deciders[::-1]


def test_a_saver_saves_the_cut_of_its_epoch(rate_bench, tmp_path) -> None:
    bench = rate_bench.Bench(1)
    batch = bench.batch(4, 4, samples_per_epoch=4)
    bench.adopt(batch)
    bench.compile()
    saver = K.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True)
    plateau = ReduceLROnPlateau("val_loss", factor=0.5, patience=1)
    callbacks = bench.job.callbacks([saver, rate_bench.Overwrite([1.0, 1.0]), plateau])
    bench.fit(bench.job.shard(rate_bench.samples(4), batch), 2, callbacks)
    assert bench.optimizer.multiplier == 0.5
    for epoch, multiplier in ((1, 1.0), (2, 0.5)):
        bench.model.load_weights(tmp_path / f"{epoch}.weights.h5")
        assert bench.optimizer.multiplier == multiplier
        assert bench.optimizer.samples_seen == 4 * epoch


def test_two_plateaus_on_one_metric_are_refused(rate_bench) -> None:
    """They would share one state, and cut after half the patience."""
    job = rate_bench.Bench(1).job
    with pytest.raises(ConfigurationError, match=r"2 ReduceLROnPlateau watch val_loss/min.*leave all but one out"):
        job.callbacks([ReduceLROnPlateau("val_loss", patience=4), ReduceLROnPlateau("val_loss", patience=100)])
    job.callbacks([ReduceLROnPlateau("val_loss"), ReduceLROnPlateau("loss")])


def _on_two_ranks(callbacks: list[Any]) -> list[list[Any]]:
    """The callbacks that each of two ranks trains with."""
    return run_ranks(lambda comm: for_ranks(callbacks, comm), 2, timeout=5.0)


def test_several_ranks_get_what_they_need_and_rank_0_alone_writes_files(tmp_path) -> None:
    writers = [K.ModelCheckpoint(tmp_path / "a.keras"), K.CSVLogger(tmp_path / "log.csv"), K.TensorBoard(tmp_path)]
    first, second = _on_two_ranks([*writers, Decider()])
    assert [type(callback) for callback in first[:4]] == [*map(type, writers), Decider]
    assert [type(callback) for callback in second[:1]] == [Decider]
    for callbacks in (first[4:], second[1:]):
        assert [type(callback) for callback in callbacks] == [SyncMetrics, ReplicaGuard, BroadcastState, SameCallbacks]


def test_a_guard_of_the_users_is_the_one(tmp_path) -> None:
    guard = ReplicaGuard(every=10)
    for callbacks in _on_two_ranks([guard]):
        assert [callback for callback in callbacks if isinstance(callback, ReplicaGuard)] == [guard]
    assert guard.async_safe is False


class Stops(JobCallback):
    """A user's own, of distlr's kind."""

    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = True


@pytest.mark.parametrize(
    ("user_callbacks", "may_stop"),
    [
        ([K.EarlyStopping()], False),
        ([K.TerminateOnNaN()], True),
        ([Stops()], True),
        ([PreflightCheck(tf.distribute.get_strategy())], False),
    ],
)
def test_batches_are_watched_only_where_a_callback_may_stop_in_an_epoch(user_callbacks, may_stop) -> None:
    for callbacks in _on_two_ranks(user_callbacks):
        (guard,) = [callback for callback in callbacks if isinstance(callback, ReplicaGuard)]
        assert guard.stops_within_epoch is may_stop
        assert guard.async_safe is not may_stop


class StopsAndSaves(K.EarlyStopping, K.ModelCheckpoint):
    """Decides, so it has its turn before what only saves."""

    def __init__(self):
        K.ModelCheckpoint.__init__(self, "unused.keras")


class SavesForTheJob(JobCallback, K.ModelCheckpoint):
    def __init__(self):
        K.ModelCheckpoint.__init__(self, "unused.keras")
        self._communicator = None


def test_a_callback_of_two_kinds_has_the_stage_of_the_one_that_says_more():
    guard, stops, saves = ReplicaGuard(), StopsAndSaves(), SavesForTheJob()
    assert ordered([saves, guard, stops]) == [stops, guard, saves]


def test_what_is_derived_from_a_saver_may_stop_a_rank():
    class Own(K.ModelCheckpoint):
        def _save_model(self, epoch, batch, logs):
            self.model.stop_training = True

    assert not may_stop_within_epoch(K.ModelCheckpoint("unused.keras", save_freq=2))
    assert may_stop_within_epoch(Own("unused.keras", save_freq=2))
