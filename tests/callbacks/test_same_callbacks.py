"""The callbacks that must be the same on every rank, and those that may stop within an epoch."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr
from distlr.callbacks.deciders import configurations, may_stop_within_epoch
from distlr.callbacks.guard import ReplicaGuard
from distlr.callbacks.same_callbacks import SameCallbacks
from distlr.communicators import run_ranks
from distlr.errors import DistributionError, ReplicaDivergenceError
from distlr.job import Job

K = keras.callbacks


class Printer(K.Callback):
    def on_train_batch_end(self, batch, logs=None):
        print(batch)


def _begin(by_rank: list[list[Any]]) -> list[Any]:
    """The result of each rank as the training begins: its error, or whether its guard looks after each step."""

    def begin(comm: Any) -> Any:
        guard = ReplicaGuard()
        guard.set_model(models[comm.rank])
        same = SameCallbacks([*by_rank[comm.rank], guard])
        same.bind(comm)
        guard.bind(comm)
        try:
            same.on_train_begin()
        except DistributionError as error:
            return str(error)
        return guard._others_may_stop, guard.stops_within_epoch

    models = _models(len(by_rank))
    return run_ranks(begin, len(by_rank), timeout=20.0)


@pytest.mark.replicas
def test_a_decider_on_one_rank_is_named_on_all() -> None:
    for rank, error in enumerate(_begin([[K.EarlyStopping("loss", patience=7)], [], []])):
        assert error.startswith(f"[rank {rank}]")
        assert 'callbacks: rank 0 with {"EarlyStopping":' in error
        assert "ranks 1-2 with none" in error
        assert "the same list on every rank" in error


def test_another_configuration_is_named_with_both_values() -> None:
    stopping = [K.EarlyStopping("loss", patience=7), K.EarlyStopping("loss", patience=2)]
    (error, _) = _begin([[callback] for callback in stopping])
    assert '"patience": 7' in error
    assert '"patience": 2' in error


def test_what_one_rank_may_have_alone() -> None:
    allowed = [Printer(), K.CSVLogger("log.csv"), K.LambdaCallback(on_epoch_end=lambda epoch, logs: None)]
    assert _begin([allowed, []]) == [(False, True), (True, False)]  # rank 1 looks, since rank 0's printer may stop
    assert _begin([allowed[1:], []]) == [(False, False)] * 2
    verbose = [K.EarlyStopping("loss", verbose=1 - rank) for rank in range(2)]
    assert _begin([[callback] for callback in verbose]) == [(False, False)] * 2


def test_subclasses_count_and_a_second_one_of_a_class_does() -> None:
    class Mine(K.EarlyStopping):
        pass

    by_name = configurations([Mine("loss"), K.ReduceLROnPlateau("a"), K.ReduceLROnPlateau("b"), Printer()])
    assert list(by_name) == ["Mine", "ReduceLROnPlateau", "ReduceLROnPlateau (2)"]
    assert [by_name[name]["monitor"] for name in by_name] == ["loss", "a", "b"]


def test_distlrs_own_are_compared_by_what_they_decide_by() -> None:
    one, other = (distlr.callbacks.ReduceLROnPlateau("loss", patience=patience) for patience in (3, 4))
    assert configurations([one]) != configurations([other])
    assert configurations([one]) == configurations([distlr.callbacks.ReduceLROnPlateau("loss", patience=3, verbose=1)])


@pytest.mark.parametrize(
    ("callback", "may_stop"),
    [
        (K.LambdaCallback(on_train_batch_end=lambda batch, logs: None), True),
        (K.LambdaCallback(on_epoch_end=lambda epoch, logs: None), False),
        (Printer(), True),
        (K.TensorBoard("logs"), False),
        (K.ModelCheckpoint("a.keras", save_freq=10), False),
    ],
)
def test_who_may_stop_within_an_epoch(callback, may_stop) -> None:
    assert may_stop_within_epoch(callback) is may_stop


def _models(count: int) -> list[Any]:
    models = [keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)]) for _ in range(count)]
    for model in models:
        model.set_weights([np.array([[2.0]], "float32")])
        model.compile("sgd", "mse", run_eagerly=True)
    return models


@pytest.mark.parametrize("weight", [2.0, 2.5])
def test_evaluate_gives_the_result_of_one_model_or_none(weight) -> None:
    """Errors of 2 x 3 on rank 0's sample, and on rank 1's two."""
    models = _models(2)
    models[1].set_weights([np.array([[weight]], "float32")])
    data = [tf.data.Dataset.from_tensor_slices((3.0 * np.ones((n, 1)), np.zeros((n, 1)))).batch(2) for n in (1, 2)]

    def evaluate(comm: Any) -> Any:
        job = Job(tf.distribute.get_strategy(), "threads", comm)
        try:
            return job.evaluate(models[comm.rank], data[comm.rank])["loss"]
        except ReplicaDivergenceError as error:
            return str(error)

    values = run_ranks(evaluate, 2, timeout=60.0)
    if weight == 2.0:
        assert values == [pytest.approx(36.0)] * 2
    else:
        assert all("job.evaluate" in error and "weights: rank 0 with" in error for error in values)
