"""Which metrics add up: all of Keras', and of others those whose updates do, found by trying."""

from __future__ import annotations

import inspect
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from distlr.errors import ConfigurationError
from distlr.sync.additivity import is_known, try_updates
from distlr.sync.metrics import check_additive, declared_way, read_states, single_metrics
from distlr.sync.metrics_check import MetricsCheck, check_counted, checked

M = keras.metrics
ops = keras.ops

SPARSE, SAME, BINARY = ([8], [8, 3]), ([8, 3], [8, 3]), ([8, 1], [8, 1])
MADE_WITH = {
    "BinaryIoU": {"target_class_ids": [0, 1]},
    "IoU": {"num_classes": 3, "target_class_ids": [0, 1]},
    "MeanIoU": {"num_classes": 3},
    "MeanMetricWrapper": {"fn": keras.losses.mean_squared_error},
    "MeanRelativeError": {"normalizer": [1.0, 2.0, 3.0]},
    "OneHotIoU": {"num_classes": 3, "target_class_ids": [0, 1]},
    "OneHotMeanIoU": {"num_classes": 3},
    "PrecisionAtRecall": {"recall": 0.5},
    "RecallAtPrecision": {"precision": 0.5},
    "SensitivityAtSpecificity": {"specificity": 0.5},
    "SpecificityAtSensitivity": {"sensitivity": 0.5},
}
KERAS = [name for name, _ in inspect.getmembers(M, inspect.isclass) if name != "Metric"]


@pytest.mark.parametrize("name", KERAS)
def test_every_metric_of_the_installed_keras_is_known_and_adds_up(name) -> None:
    """A metric that a later Keras adds is found here: by the list, and by what its updates do."""
    metric = getattr(M, name)(**MADE_WITH.get(name, {}))
    assert is_known(metric)
    labels, predictions = BINARY if "At" in name or name == "BinaryIoU" else SAME
    if name.startswith("Sparse"):
        labels, predictions = SPARSE
    types = ("int32", "int32") if name in ("IoU", "MeanIoU") else ("float32", "float32")
    arguments = [tf.ones(labels, types[0]), tf.ones(labels if types[1] == "int32" else predictions, types[1])]
    arguments = arguments[1:] if name in ("Mean", "Sum") else arguments
    metric.update_state(*arguments)  # some make their variables here
    metric.reset_state()
    verdict = try_updates(metric, arguments, {})
    assert (verdict.sums, verdict.of_samples) == (True, True), verdict.reason
    assert not any(np.any(variable.numpy()) for variable in metric.variables)


class Scalar(M.Metric):
    """A metric of one number, `state`, beside a count of its updates in Python."""

    def __init__(self, name: str = "mine") -> None:
        super().__init__(name=name)
        self.state = self.add_variable((), "zeros", name="state")

    def result(self):
        return self.state + 0.0


class Largest(Scalar):
    def update_state(self, y_true, y_pred, sample_weight=None):
        self.state.assign(ops.maximum(self.state, ops.max(ops.abs(y_true - y_pred))))


class Smallest(Scalar):
    def update_state(self, y_true, y_pred, sample_weight=None):
        self.state.assign(ops.minimum(self.state, ops.min(y_pred - 10.0)))


class Last(Scalar):
    def update_state(self, y_true, y_pred, sample_weight=None):
        self.state.assign(ops.mean(y_pred))


class Moving(Scalar):
    def update_state(self, y_true, y_pred, sample_weight=None):
        self.state.assign(0.9 * self.state + 0.1 * ops.mean(y_pred))


class Welford(M.Metric):
    def __init__(self, name: str = "mine") -> None:
        super().__init__(name=name)
        self.count, self.mean, self.squares = (self.add_variable((), "zeros", name=n) for n in ("count", "mean", "m2"))

    def update_state(self, y_true, y_pred, sample_weight=None):
        more, mean = ops.cast(ops.size(y_pred), "float32"), ops.mean(y_pred)
        off, count = mean - self.mean, self.count + more
        self.squares.assign(self.squares + ops.sum((y_pred - mean) ** 2) + off**2 * self.count * more / count)
        self.mean.assign(self.mean + off * more / count)
        self.count.assign(count)

    def result(self):
        return self.squares / self.count


class Sums(M.Metric):
    """A variance as sums, and a flag."""

    def __init__(self, name: str = "mine") -> None:
        super().__init__(name=name)
        self.sums = self.add_variable((3,), "zeros", name="sums")
        self.used = self.add_variable((), "zeros", dtype="bool", name="used")

    def update_state(self, y_true, y_pred, sample_weight=None):
        count = ops.cast(ops.size(y_pred), "float32")
        self.sums.assign_add(ops.stack([count, ops.sum(y_pred), ops.sum(y_pred**2)]))
        self.used.assign(True)


class OfBatches(Scalar):
    def update_state(self, y_true, y_pred, sample_weight=None):
        self.state.assign_add(ops.max(y_pred))


class Overridden(M.Mean):
    """A metric as in the guides of Keras."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        super().update_state(ops.abs(y_true - y_pred), sample_weight)


class Inside(M.Metric):
    """Metrics as parts, of which one says how it combines."""

    def __init__(self, name: str = "mine") -> None:
        super().__init__(name=name)
        self.error = M.Mean()
        self.worst = DeclaredLargest("worst")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.error.update_state(y_true - y_pred)
        self.worst.update_state(y_true, y_pred)


class DeclaredLargest(Largest):
    distlr_combine = "max"


class OneOfTwo(M.Metric):
    distlr_combine = {"worst": "max"}  # noqa: RUF012

    def __init__(self, name: str = "mine") -> None:
        super().__init__(name=name)
        self.count = self.add_variable((), "zeros", name="count")
        self.worst = self.add_variable((), "zeros", name="worst")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.count.assign_add(1.0 * ops.shape(y_pred)[0])
        self.worst.assign(ops.maximum(self.worst, ops.max(y_pred)))


class Graph(Scalar):
    """Has its update as a function of TensorFlow's, as tf.keras' metrics had."""

    @tf.function
    def update_state(self, y_true, y_pred, sample_weight=None):
        self.state.assign_add(ops.sum(y_pred))


class Hidden(Scalar):
    def __init__(self, name: str = "mine") -> None:
        super().__init__(name)
        self.unseen = tf.Variable(0.0)

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.unseen.assign_add(tf.reduce_sum(y_pred))


class Picky(Scalar):
    def update_state(self, y_true, y_pred, sample_weight=None):
        self.state.assign_add(ops.sum(ops.reshape(y_pred, (8,))))


class Drawn(Scalar):
    """Adds up, of random numbers."""

    def __init__(self, name: str = "mine") -> None:
        super().__init__(name)
        self.seeds = keras.random.SeedGenerator(0)

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.state.assign_add(ops.sum(keras.random.uniform((8,), seed=self.seeds)))


ADDED = [Sums, Overridden, Inside, OneOfTwo, Graph]
REFUSED = {
    Largest: "'state' is no sum over batches .* the larger, after both",
    Smallest: "the smaller, after both",
    Last: "'state'",
    Moving: "'state'",
    Welford: "'mean'",
}
UNKNOWN = {Hidden: "tf.Variable", Picky: "InvalidArgumentError", Drawn: "other states for the same"}


def data(classes: int = 1) -> list[tf.Tensor]:
    return [tf.ones([8, classes])] * 2


@pytest.mark.parametrize("metric", ADDED, ids=lambda metric: metric.__name__)
def test_what_adds_up(metric) -> None:
    verdict = try_updates(metric(), data(), {"sample_weight": None})
    assert (verdict.sums, verdict.of_samples, verdict.reason) == (True, True, "")


def test_a_value_of_each_batch_adds_up_over_batches_alone() -> None:
    verdict = try_updates(OfBatches(), data(), {})
    assert (verdict.sums, verdict.of_samples) == (True, False)


@pytest.mark.parametrize("metric", REFUSED, ids=lambda metric: metric.__name__)
def test_what_begins_at_0_and_is_no_sum(metric) -> None:
    check_additive([metric()])  # its states begin at 0
    verdict = try_updates(metric(), data(3), {"sample_weight": tf.ones([8])})
    assert verdict.sums is False
    assert re.search(REFUSED[metric], verdict.reason), verdict.reason


@pytest.mark.parametrize("metric", UNKNOWN, ids=lambda metric: metric.__name__)
def test_a_verdict_says_why_a_metric_cannot_be_tried(metric) -> None:
    untried = metric()
    verdict = try_updates(untried, data(), {})
    assert verdict.sums is None
    assert UNKNOWN[metric] in verdict.reason
    assert float(untried.state.numpy()) == 0


def test_a_trial_leaves_no_trace_in_a_function_of_the_metric() -> None:
    metric = Graph()
    assert try_updates(metric, data(), {}).sums
    metric.update_state(*data())
    assert float(metric.result()) == 8


def test_a_part_that_says_how_it_combines_is_heard() -> None:
    metric = Inside()
    metric.update_state(*data())
    assert [*read_states([metric]).how.values()] == ["sum", "sum", "max"]
    assert [*read_states([OneOfTwo()]).how.values()] == ["sum", "max"]

    class Misspelt(OneOfTwo):
        distlr_combine = {"wrost": "max"}  # noqa: RUF012

    with pytest.raises(ConfigurationError, match=r"Misspelt.distlr_combine.*names of \['count', 'worst'\]"):
        declared_way(Misspelt(), Misspelt().variables[0])


def test_states_of_a_metric_that_has_others_are_all_read() -> None:
    class Group(M.Metric):
        def __init__(self) -> None:
            super().__init__(name="group")
            self.metrics = [M.Mean(), M.Sum()]
            self.own = self.add_variable((), "zeros", name="own")

    assert len(read_states([Group()]).arrays) == 4


def compiled(*metrics, **options):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones", use_bias=False)])
    model.compile(keras.optimizers.SGD(0.1), "mse", metrics=list(metrics), **options)
    return model


X, Y = np.ones((8, 1), "float32"), np.zeros((8, 1), "float32")


@pytest.mark.parametrize("traced", [False, True])
def test_refused_before_the_first_update(traced) -> None:
    metric = Largest()
    model = compiled("mae", metric)
    if traced:
        model.train_on_batch(X, Y)
        model.reset_metrics()
    weights = model.get_weights()
    MetricsCheck(model, is_root=True, by_strategy=False).watch()
    with pytest.raises(
        ConfigurationError, match=r"'mine' \(Largest\) .* several ranks.*Fix: .*distlr_combine = \"max\""
    ):
        model.train_on_batch(X, Y)
    np.testing.assert_array_equal(model.get_weights(), weights)
    assert float(metric.state.numpy()) == 0
    with pytest.raises(ConfigurationError, match="'mine'"):  # also the second time, without a trial
        MetricsCheck(model, is_root=True, by_strategy=False).watch()


def test_a_sum_is_tried_once_and_counts_as_before(caplog) -> None:
    metric = Overridden(name="mine")
    model = compiled("mae", metric)
    check = MetricsCheck(model, is_root=True, by_strategy=False)
    check.watch()
    check.check_reset()
    assert "update_state" in vars(metric)
    results = model.train_on_batch(X, Y, return_dict=True)
    assert results["mine"] == results["mae"] == 1
    assert "update_state" not in vars(metric)
    function = model.train_function
    check.end()
    MetricsCheck(model, is_root=True, by_strategy=False).watch()
    assert model.train_function is function  # nothing is traced anew
    assert caplog.text == ""


def test_by_hand_in_a_step_of_ones_own(caplog) -> None:
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense, self.tracker, self.never = keras.layers.Dense(1), M.Mean("tracked"), Largest("never")

        def call(self, x):
            return self.dense(x)

        def train_step(self, data):
            self.tracker.update_state(ops.mean(data[1]))
            return {"tracked": self.tracker.result()}

        @property
        def metrics(self):
            return [self.tracker, self.never]

    model = Own()
    model.compile(keras.optimizers.SGD(0.1))
    check = MetricsCheck(model, is_root=True, by_strategy=False)
    check.watch()
    model.fit(X, Y, verbose=0)
    check.end()
    (record,) = caplog.records
    assert "'never' (Largest)" in record.getMessage()
    assert "no step has called" in record.getMessage()
    assert "update_state" not in vars(model.never)


@pytest.mark.parametrize("root", [True, False])
def test_rank_0_warns_once_of_a_metric_that_could_not_be_tried(root, caplog) -> None:
    model = compiled(Picky())
    for _ in range(2):
        check = MetricsCheck(model, is_root=root, by_strategy=False)
        check.watch()
        model.train_on_batch(X, Y)
        check.end()
    assert caplog.text.count("'mine' (Picky) are sums could not be tried") == root


def test_a_mean_of_batches_is_warned_of_once(caplog) -> None:
    model = compiled(OfBatches())
    check = MetricsCheck(model, is_root=True, by_strategy=True)
    check.watch()
    model.train_on_batch(X, Y)
    assert caplog.text.count("over several replicas it is over all their batches") == 1


def test_around_an_evaluation() -> None:
    model = compiled(Largest())
    with pytest.raises(ConfigurationError, match="'mine'"), checked(model, is_root=True, by_strategy=False):
        model.evaluate(X, Y, verbose=0)


def test_what_has_counted_already(caplog) -> None:
    largest = Largest()
    check_counted([M.Mean(), DeclaredLargest(), Inside(), largest, largest], is_root=True)
    assert [record.getMessage().split("'")[1] for record in caplog.records] == ["mine", "mine"]  # Inside, Largest
    check_counted([largest], is_root=True)
    assert len(caplog.records) == 2


def test_wrappers_of_keras_are_opened() -> None:
    model = compiled("mae", Overridden(name="mine"))
    assert [metric.name for metric in single_metrics(model.metrics)] == ["loss", "mine"]  # "mae" is a name yet
    model.train_on_batch(X, Y)
    assert [metric.name for metric in single_metrics(model.metrics)] == ["loss", "mae", "mine"]
