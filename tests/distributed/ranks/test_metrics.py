"""Plateau under fire: the metric is that of all data in one process, the decision is rank 0's, and nothing hangs."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest

import distlr
from distlr.errors import ConfigurationError, DistlrError, NonFiniteError

FEATURES = 3


def samples(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, FEATURES)).astype("float32")
    return x, (x.sum(axis=1, keepdims=True) + generator.normal(size=(count, 1)) > 0).astype("float32")


def build(optimizer, normalized: bool):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.BatchNormalization()] if normalized else []
    model = keras.Sequential(
        [keras.Input((FEATURES,)), *layers, keras.layers.Dense(4, "relu"), keras.layers.Dense(1, "sigmoid")]
    )
    metrics = ["accuracy", keras.metrics.AUC(name="auc"), keras.metrics.Precision(name="precision")]
    model.compile(optimizer, "binary_crossentropy", metrics=metrics)
    return model


def compiled(job, *, normalized: bool = False):
    with job.scope():
        batch = job.batch(per_replica=4, base_batch=4, samples_per_epoch=8 * job.size)
        return build(job.optimizer(keras.optimizers.SGD(0.1), batch), normalized)


def in_one_process(model, arrays, normalized: bool = False):
    """The result of a model with these weights on all data, without any other rank."""
    single = build("sgd", normalized)
    single.set_weights([weight.numpy() for weight in model.weights])
    return single.evaluate(*arrays, batch_size=len(arrays[0]), verbose=0, return_dict=True)


def shard_sizes(job, case: str) -> list[int]:
    """The number of validation samples of each rank."""
    if case == "uneven":
        return [100, *[10] * (job.size - 1)]
    if case == "one empty":
        return [*[12] * (job.size - 1), 0]
    return [12] * job.size  # "equal"


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # Keras, of an empty shard
@pytest.mark.parametrize(
    ("case", "normalized", "eagerly"),
    [
        ("equal", True, False),
        *(("uneven", normalized, eagerly) for normalized in (True, False) for eagerly in (True, False)),
        *((case, n, False) for case in ("one empty", "one without", "root without") for n in (True, False)),
    ],
)
def test_the_metrics_are_those_of_one_process_on_all_data(job, local_data, same_on_all, case, normalized, eagerly):
    sizes = shard_sizes(job, case)
    absent = {"one without": job.size - 1, "root without": 0}.get(case)
    shards = [samples(count, seed=10 + rank) for rank, count in enumerate(sizes)]
    model = compiled(job, normalized=normalized)
    model.run_eagerly = eagerly
    plateau = distlr.callbacks.ReduceLROnPlateau("val_auc", factor=0.5, patience=1, min_delta=10.0)
    options = {} if job.rank == absent else {"validation_data": local_data(shards[job.rank], 4)}
    train = samples(8, seed=job.rank)
    history = model.fit(
        local_data(train, 4), epochs=3, verbose=0, shuffle=False, callbacks=job.callbacks([plateau]), **options
    ).history
    # One process, all data, the weights that every rank has now; the last epoch's validation came after its last step.
    present_shards = [shard for rank, shard in enumerate(shards) if rank != absent]
    whole = tuple(np.concatenate(parts) for parts in zip(*present_shards, strict=True))
    expected = in_one_process(model, whole, normalized)
    for name, value in expected.items():
        assert history[f"val_{name}"][-1] == pytest.approx(value, abs=1e-6), name
    # No epoch is better by 10, so the second and the third one are cut.
    assert [decision["epoch"] for decision in plateau.decisions] == [1, 2]
    assert model.optimizer.multiplier == 0.25
    same_on_all([history, plateau.decisions, model.optimizer.rate_digests()])


def test_training_metrics_are_over_all_ranks_and_statistics_are_their_mean(job, local_data, same_on_all) -> None:
    keras.utils.set_random_seed(0)
    with job.scope():
        layers = [keras.layers.BatchNormalization(momentum=0.5), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((1,)), *layers])
        model.compile(job.optimizer(keras.optimizers.SGD(0.0)), "mse", metrics=["mae"])
    data = local_data((np.full((4, 1), float(job.rank), "float32"), np.ones((4, 1), "float32")), 4)
    history = model.fit(data, verbose=0, shuffle=False, callbacks=job.callbacks()).history
    same_on_all([history["loss"], history["mae"]])
    # One step: each rank's moving mean is 0.5 * rank, and the mean over the ranks is the same on each.
    moving = model.layers[0].moving_mean.numpy().item()
    assert moving == pytest.approx(0.5 * (job.size - 1) / 2)


@pytest.mark.parametrize(("ignore", "error"), [([], "NonFiniteError"), (["val_loss"], "NonFiniteMetricError")])
def test_a_nan_metric_on_one_rank_is_every_ranks(job, local_data, same_on_all, ignore, error) -> None:
    model = compiled(job)
    x, y = samples(8, seed=5)
    if job.rank == job.size - 1:
        y[0, 0] = math.nan  # of the input: some processors' relu makes 0 of a NaN
    numbers = distlr.callbacks.NonFiniteGuard(ignore=ignore)
    plateau = distlr.callbacks.ReduceLROnPlateau("val_loss", patience=1)
    raised = None
    try:
        model.fit(
            local_data(samples(8, seed=job.rank), 4),
            epochs=2,
            verbose=0,
            shuffle=False,
            validation_data=local_data((x, y), 4),
            callbacks=job.callbacks([plateau, numbers]),
        )
    except DistlrError as refused:
        raised = type(refused).__name__
    assert raised == error
    same_on_all([raised, model.optimizer.multiplier])


def test_the_decision_is_rank_0s_whatever_the_others_see(job, local_data, same_on_all) -> None:
    class Local(keras.callbacks.Callback):
        """A metric of the script's own, which nobody synchronizes."""

        def on_epoch_end(self, epoch, logs=None):
            logs["mine"] = [5.0, 4.0, 3.0, 2.0][epoch] if job.rank == 0 else 1.0

    model = compiled(job)
    plateau = distlr.callbacks.ReduceLROnPlateau("mine", factor=0.5, patience=1, mode="min")
    train = local_data(samples(8, seed=job.rank), 4)
    model.fit(train, epochs=4, verbose=0, shuffle=False, callbacks=job.callbacks([Local(), plateau]))
    assert plateau.decisions == []  # rank 0's improves every epoch
    same_on_all(model.optimizer.multiplier)


def test_a_metric_that_is_no_sum_says_how_it_combines_or_is_refused(job, local_data, spans) -> None:
    class Largest(keras.metrics.Metric):
        def __init__(self) -> None:
            super().__init__(name="largest")
            self.value = self.add_variable((), keras.initializers.Constant(-1e9), name="value")

        def update_state(self, y_true, y_pred, sample_weight=None):
            self.value.assign(keras.ops.maximum(self.value, keras.ops.max(y_true)))

        def result(self):
            return self.value

        def reset_state(self):
            self.value.assign(-1e9)

    class Declared(Largest):
        distlr_combine = "max"

    def fit(metric):
        with job.scope():
            model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
            model.compile(job.optimizer(keras.optimizers.SGD(0.01)), "mse", metrics=[metric()])
        x = np.ones((4, 1), "float32")
        return model.fit(local_data((x, x * job.rank), 2), verbose=0, shuffle=False, callbacks=job.callbacks())

    with pytest.raises(ConfigurationError, match=r"'largest' \(Largest\) cannot be computed over several ranks"):
        fit(Largest)
    if spans:
        with pytest.raises(ConfigurationError, match=r"'largest' \(Declared\) combine by their max"):
            fit(Declared)
    else:
        assert fit(Declared).history["largest"] == [job.size - 1]


def test_a_metric_that_begins_at_0_and_is_no_sum(job, local_data, spans) -> None:
    class Largest(keras.metrics.Metric):
        def __init__(self) -> None:
            super().__init__(name="largest")
            self.value = self.add_variable((), "zeros", name="value")

        def update_state(self, y_true, y_pred, sample_weight=None):
            self.value.assign(keras.ops.maximum(self.value, keras.ops.max(y_true)))

        def result(self):
            return self.value + 0.0

    class Declared(Largest):
        distlr_combine = "max"

    def built(metric):
        with job.scope():
            model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
            model.compile(job.optimizer(keras.optimizers.SGD(0.01)), "mse", metrics=[metric()])
        return model

    x = np.ones((4, 1), "float32")
    data = local_data((x, x * (job.rank + 1)), 2)
    model = built(Largest)
    with pytest.raises(ConfigurationError, match=r"'largest' \(Largest\) cannot be computed .* 'value' is no sum"):
        model.fit(data, verbose=0, shuffle=False, callbacks=job.callbacks())
    assert int(model.optimizer.iterations.numpy()) == 0
    with pytest.raises(ConfigurationError, match="'value' is no sum"):
        job.evaluate(built(Largest), data)
    if not spans:
        model = built(Declared)
        history = model.fit(data, verbose=0, shuffle=False, validation_data=data, callbacks=job.callbacks()).history
        assert history["val_largest"] == [job.size]
        assert job.evaluate(model, data)["largest"] == job.size


def test_evaluate_and_result_are_over_all_ranks(job, same_on_all) -> None:
    model = compiled(job)
    batch = job.batch(per_replica=4, base_batch=4)
    whole = samples(4 * job.size + 3, seed=2)
    result = job.evaluate(model, job.shard(whole, batch, training=False))
    expected = in_one_process(model, whole)
    assert result == pytest.approx(expected, abs=1e-6)
    metric = keras.metrics.Mean(name="mean")
    metric.update_state([job.rank] * (job.rank + 1))
    expected_mean = sum(rank * (rank + 1) for rank in range(job.size)) / sum(rank + 1 for rank in range(job.size))
    assert job.result([metric])["mean"] == pytest.approx(expected_mean)
    assert float(metric.result()) == job.rank  # its own again


def test_a_metric_of_several_values_is_an_array(job, local_data, same_on_all) -> None:
    def build(optimizer):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(2, "sigmoid")])
        f1 = keras.metrics.F1Score(average=None, threshold=0.5, name="f1")
        model.compile(optimizer, "binary_crossentropy", metrics=[f1])
        return model

    def of_two_classes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = samples(count, seed)
        return x, np.hstack([y, x[:, :1] > 0]).astype("float32")

    with job.scope():
        batch = job.batch(per_replica=4, base_batch=4, samples_per_epoch=8 * job.size)
        model = build(job.optimizer(keras.optimizers.SGD(0.1), batch))
    shards = [of_two_classes(12, seed=10 + rank) for rank in range(job.size)]
    options = {"validation_data": local_data(shards[job.rank], 4), "callbacks": job.callbacks()}
    history = model.fit(local_data(of_two_classes(8, job.rank), 4), verbose=0, shuffle=False, **options).history
    whole = tuple(np.concatenate(parts) for parts in zip(*shards, strict=True))
    single = build("sgd")
    single.set_weights([weight.numpy() for weight in model.weights])
    expected = single.evaluate(*whole, batch_size=len(whole[0]), verbose=0, return_dict=True)["f1"]
    assert expected.shape == (2,)
    np.testing.assert_allclose(history["val_f1"][-1], expected, atol=1e-6)
    result = job.evaluate(model, job.shard(whole, batch, training=False))
    np.testing.assert_allclose(result["f1"], expected, atol=1e-6)
    same_on_all([result["loss"], result["f1"].tolist()])


@pytest.mark.parametrize("metrics", [1, 20])
@pytest.mark.parametrize("statistics", [True, False])
def test_at_most_four_collectives_at_an_epochs_end(job, local_data, metrics, statistics) -> None:
    with job.scope():
        inner = keras.layers.BatchNormalization() if statistics else keras.layers.Identity()
        model = keras.Sequential([keras.Input((1,)), inner, keras.layers.Dense(1)])
        metric_list = [keras.metrics.MeanAbsoluteError(name=f"mae{i}") for i in range(metrics)]
        model.compile(job.optimizer(keras.optimizers.SGD(0.01)), "mse", metrics=metric_list)
    x = np.ones((4, 1), "float32")
    data = local_data((x, x), 2)
    totals: list[int] = []

    class Count(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            totals.append(job.communicator.log.total)

        def on_train_end(self, logs=None):
            totals.append(job.communicator.log.total)

    plateau = distlr.callbacks.ReduceLROnPlateau("val_loss")
    callbacks = [Count(), *job.callbacks([plateau])]  # first: the comparison as `fit` ends is not an epoch's
    model.fit(data, epochs=3, verbose=0, shuffle=False, validation_data=data, callbacks=callbacks)
    strategy = job.strategy.num_replicas_in_sync > 1  # which must know that all ranks read their metrics
    assert np.diff(totals).tolist() == [4 if statistics or strategy else 3] * 3


class Beside(keras.Model):
    """Returns something beside the metrics, which differs by rank."""

    value = 0.0

    def train_step(self, data):
        return {**super().train_step(data), "mine": keras.ops.convert_to_tensor(self.value)}

    def test_step(self, data):
        return {**super().test_step(data), "mine": keras.ops.convert_to_tensor(2 * self.value)}


def beside(job, value: float):
    with job.scope():
        inputs = keras.Input((FEATURES,))
        model = Beside(inputs, keras.layers.Dense(1)(inputs))
        model.value = value
        model.compile(job.optimizer(keras.optimizers.SGD(0.1)), "mse")
    return model


@pytest.mark.parametrize("validated", [False, True])
def test_what_a_step_returns_beside_the_metrics_is_the_ranks_mean(job, same_on_all, validated) -> None:
    model = beside(job, float(job.rank))
    x, y = samples(8, job.rank)
    options = {"validation_data": (x, y)} if validated else {}
    history = model.fit(x, y, batch_size=4, verbose=0, callbacks=job.callbacks(), **options).history
    same_on_all(history)
    mean = (job.size - 1) / 2
    assert history["mine"] == [mean]
    assert not validated or history["val_mine"] == [2 * mean]


def test_a_number_that_is_not_finite_on_one_rank_ends_all(job) -> None:
    model = beside(job, math.nan if job.is_root else 0.0)
    with pytest.raises(NonFiniteError, match="mine is nan"):
        model.fit(*samples(8, job.rank), batch_size=4, verbose=0, callbacks=job.callbacks())
    job.communicator.barrier(tag="all have ended")
