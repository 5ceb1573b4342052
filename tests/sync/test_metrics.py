"""Metrics over ranks: exact for shards of any size, and refused where they cannot be combined."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from distlr.communicators import run_ranks
from distlr.communicators.bundles import Bundle, exchange_bundles
from distlr.errors import ConfigurationError, DistributionError
from distlr.sync.metrics import GraphMetrics, check_additive, read_states, results

M = keras.metrics

BINARY = {
    "accuracy": M.BinaryAccuracy,
    "auc": M.AUC,
    "auc-pr": lambda: M.AUC(curve="PR"),
    "precision": M.Precision,
    "recall": M.Recall,
    "sensitivity": lambda: M.SensitivityAtSpecificity(0.5),
    "crossentropy": M.BinaryCrossentropy,
    "mse": M.MeanSquaredError,
    "rmse": M.RootMeanSquaredError,
    "r2": M.R2Score,
    "f1": lambda: M.F1Score(threshold=0.5),
    "iou": lambda: M.BinaryIoU(target_class_ids=[0, 1]),
    "cosine": M.CosineSimilarity,
    "false negatives": M.FalseNegatives,
}
SHARDS = {"uneven": (100, 10, 1), "one empty": (20, 0, 7)}


def shard(rank: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(rank)
    labels = generator.integers(0, 2, (count, 1)).astype("float32")
    return labels, np.clip(labels + generator.normal(0, 0.6, (count, 1)), 0, 1).astype("float32")


@pytest.mark.parametrize("case", SHARDS)
@pytest.mark.parametrize("name", BINARY)
def test_sums_of_states_are_the_metric_of_all_samples(name, case) -> None:
    shards = [shard(rank, count) for rank, count in enumerate(SHARDS[case])]
    whole = BINARY[name]()
    whole.update_state(*(np.concatenate(parts) for parts in zip(*shards, strict=True)))
    metrics = [BINARY[name]() for _ in shards]
    for metric, (labels, predictions) in zip(metrics, shards, strict=True):
        if len(labels):
            metric.update_state(labels, predictions)

    def rank(comm):
        return exchange_bundles(comm, Bundle(read_states([metrics[comm.rank]]).arrays), tag="t")

    local_result = np.asarray(metrics[0].result())
    for bundles in run_ranks(rank, len(shards)):
        combined = results([metrics[0]], bundles, lambda: {"it": metrics[0].result()})["it"]
        np.testing.assert_allclose(combined, np.asarray(whole.result()), atol=1e-6)
    np.testing.assert_array_equal(metrics[0].result(), local_result)  # the rank's own is put back


class Range(M.Metric):
    """Largest value so far: no sum."""

    def __init__(self, start: float = -np.inf) -> None:
        super().__init__(name="range")
        self.start = start
        self.largest = self.add_variable((), keras.initializers.Constant(start), name="largest")

    def update_state(self, y_true, y_pred, sample_weight=None) -> None:
        self.largest.assign(keras.ops.maximum(self.largest, keras.ops.max(y_pred)))

    def result(self):
        return self.largest

    def reset_state(self) -> None:
        self.largest.assign(self.start)


def test_a_state_that_does_not_start_at_0_is_refused_and_named() -> None:
    check_additive([M.Mean(), M.AUC(), Range(start=0.0)])
    with pytest.raises(
        ConfigurationError, match=r"'range' \(Range\).*'largest' does not start at 0.*distlr_combine = "
    ):
        check_additive([M.Mean(), Range()])


def test_a_metric_declares_how_its_states_combine() -> None:
    class Declared(Range):
        distlr_combine = "max"

    class Wrong(Range):
        distlr_combine = "mean"

    check_additive([Declared()])
    assert set(read_states([Declared()]).how.values()) == {"max"}
    with pytest.raises(ConfigurationError, match=r"Wrong\.distlr_combine` must be one of 'sum', 'max', 'min'"):
        check_additive([Wrong()])


def test_a_metric_given_to_compile_is_checked_before_the_first_batch() -> None:
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=["mae", Range()])
    with pytest.raises(ConfigurationError, match="'range'"):
        check_additive(model.metrics)


class Last(M.Metric):
    """Gives its variable itself, and an array."""

    def __init__(self, name: str = "last") -> None:
        super().__init__(name=name)
        self.value = self.add_weight(shape=(), initializer="zeros", name="value")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.value.assign(keras.ops.max(y_true))

    def result(self):
        return self.value


class Count(M.Metric):
    """A whole number, beyond what a float holds."""

    def __init__(self, name: str = "count") -> None:
        super().__init__(name=name)
        self.count = self.add_weight(shape=(2, 1), initializer="zeros", dtype="int64", name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.count.assign(self.count + 2**53 + 1)

    def result(self):
        return keras.ops.cast(self.count[0, 0] % 100, "float32")


def test_in_one_graph_as_eagerly_and_the_own_states_stay() -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", metrics=[M.MeanSquaredError(), Count(), Last(), M.F1Score(threshold=0.5)])
    model.fit(np.ones((4, 2), "float32"), np.ones((4, 1), "float32"), verbose=0)
    read = read_states(model.metrics)
    before = read.arrays
    states = {name: array + 2 for name, array in before.items()}
    expected = results(model.metrics, [Bundle(states)], model.get_metrics_result)
    graph = GraphMetrics(model)
    in_graph = graph.states()
    assert {name.partition(",")[0]: array.dtype for name, array in in_graph.items()} == {
        "sum of 9 float64": np.float64,
        "sum of 1 int64": np.int64,
    }
    assert sorted(np.concatenate([*in_graph.values()]).tolist()) == sorted(
        np.concatenate([array.ravel() for array in before.values()]).tolist()
    )
    results_in_graph = graph.results([Bundle({name: array + 2 for name, array in in_graph.items()}), Bundle({})])
    assert set(results_in_graph) == set(expected) == {"loss", "mean_squared_error", "count", "last", "f1_score"}
    assert results_in_graph["count"] == (2**53 + 3) % 100
    for name, value in expected.items():
        np.testing.assert_allclose(results_in_graph[name], value, rtol=1e-6)
    assert results_in_graph["last"] == 3
    for name, array in read_states(model.metrics).arrays.items():
        np.testing.assert_array_equal(array, before[name])
    assert graph.fits(model)
    assert not graph.fits(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
    model.compile("sgd", "mse", metrics=[M.MeanSquaredError()])
    assert not graph.fits(model)


def test_states_of_ranks_with_other_metrics_are_never_added_up() -> None:
    def graph(*metrics) -> GraphMetrics:
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse", metrics=list(metrics))
        model.fit(np.ones((4, 2), "float32"), np.ones((4, 1), "float32"), verbose=0)
        return GraphMetrics(model)

    # As many numbers, in other shapes.
    ours, theirs = graph(M.Precision(thresholds=[0.2, 0.5])), graph(M.Precision(), M.Recall())
    both = [Bundle(ours.states()), Bundle(theirs.states())]
    assert [sum(array.size for array in bundle.arrays.values()) for bundle in both] == [6, 6]
    for of_rank in (ours, theirs):
        with pytest.raises(
            DistributionError, match=r"rank 0 with \[sum of 4 .*; rank 1 with \[sum of 6 .*same metrics"
        ):
            of_rank.results(both)
