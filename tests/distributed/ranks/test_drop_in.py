"""`distlr.horovod`: Horovod's names with Horovod's meanings."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr.horovod as hvd
from distlr.errors import ConfigurationError, DistributionError, ReplicaDivergenceError


@pytest.fixture(autouse=True)
def _initialized(job):
    hvd.init()


def adopted(values, **options):
    variable = keras.Variable(values)
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0), **options)
    optimizer.build([variable])
    optimizer.distlr.gradients.has_rank_zero_state = True
    return variable, optimizer


def test_numbers(job) -> None:
    assert (hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size()) == (job.rank, job.size, job.rank, job.size)
    assert hvd.is_initialized()


def test_before_init_it_says_what_to_call(monkeypatch) -> None:
    monkeypatch.setattr("distlr.horovod._process._job", None)
    with pytest.raises(DistributionError, match=r"hvd\.init\(\)"):
        hvd.rank()


def test_the_rate_is_what_was_given() -> None:
    _, optimizer = adopted([0.0])
    assert float(optimizer.learning_rate) == 1.0


@pytest.mark.parametrize("op", [hvd.Average, hvd.Sum])
def test_gradients_are_averaged_or_summed(op) -> None:
    variable, optimizer = adopted([0.0], op=op)
    optimizer.apply([tf.constant([float(hvd.rank() + 1)])], [variable])
    total = hvd.size() * (hvd.size() + 1) / 2
    np.testing.assert_allclose(variable.numpy(), [-(total if op == hvd.Sum else total / hvd.size())])


@pytest.mark.parametrize("mean", [False, True])
def test_accumulated_gradients_are_summed_unless_their_mean_is_requested(mean) -> None:
    variable, optimizer = adopted([0.0], backward_passes_per_step=2, average_aggregated_gradients=mean)
    for value in (1.0, 2.0):
        optimizer.apply([tf.constant([value])], [variable])
    np.testing.assert_allclose(variable.numpy(), [-1.5 if mean else -3.0])


def test_collectives_on_values() -> None:
    ranks = np.arange(hvd.size())
    assert hvd.allreduce(float(hvd.rank())).item() == ranks.mean()
    assert hvd.allreduce(np.float32([hvd.rank()]), op=hvd.Sum).tolist() == [ranks.sum()]
    assert hvd.allreduce(hvd.rank(), average=False).item() == ranks.sum()
    assert hvd.allgather(np.full((1, 2), hvd.rank())).tolist() == [[rank, rank] for rank in ranks]
    last = hvd.size() - 1
    assert hvd.broadcast(np.array([hvd.rank()]), root_rank=last).tolist() == [last]
    variable = tf.Variable([float(hvd.rank() + 5)])
    hvd.broadcast_variables([variable], root_rank=0)
    assert variable.numpy().tolist() == [5.0]


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: hvd.broadcast_variables([], root_rank=1),
        lambda: hvd.callbacks.BroadcastGlobalVariablesCallback(1),
        lambda: hvd.callbacks.LearningRateWarmupCallback(None),
        lambda: adopted([0.0], op="adasum"),
    ],
)
def test_what_cannot_be_had_is_refused(mistake) -> None:
    with pytest.raises(ConfigurationError, match="Received: "):
        mistake()


def test_without_the_broadcast_callback_nothing_is_trained() -> None:
    model = linear(hvd.DistributedOptimizer(keras.optimizers.SGD(0.1)))
    with pytest.raises(DistributionError, match="never broadcast"):
        model.fit(np.ones((2, 1)), np.ones((2, 1)), verbose=0)


def test_warmup_and_momentum_correction() -> None:
    """Each batch's rate, and the momentum that is multiplied by the ratio of the new rate to the old one."""
    steps, epochs, peak = 4, 2, 0.8
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.compile(hvd.DistributedOptimizer(keras.optimizers.SGD(peak, momentum=0.5)), "mse")
    seen: list[tuple[float, float, float]] = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            before = self.momentum() if seen else 0.0
            warmup.real(batch)
            seen.append((float(self.model.optimizer.learning_rate), before, self.momentum()))

        def momentum(self) -> float:
            return float(self.model.optimizer.momentums[0].numpy().item())

    warmup = hvd.callbacks.LearningRateWarmupCallback(peak, warmup_epochs=epochs, verbose=0)
    warmup.real, warmup.on_train_batch_begin = warmup.on_train_batch_begin, lambda *_, **__: None
    x = np.ones((2 * steps, 1), "float32")
    callbacks = [hvd.callbacks.BroadcastGlobalVariablesCallback(0), warmup, Look()]
    history = model.fit(x, x * 3, batch_size=2, epochs=epochs, verbose=0, shuffle=False, callbacks=callbacks)
    n = hvd.size()
    expected = [peak / n * ((i + 1) / steps * (n - 1) / epochs + 1) for i in range(steps * epochs)]
    rates = [rate for rate, _, _ in seen]
    np.testing.assert_allclose(rates, expected, rtol=1e-6)
    assert rates[-1] == pytest.approx(peak)
    np.testing.assert_allclose(history.history["lr"], [expected[steps - 1], expected[-1]], rtol=1e-6)
    for (old, *_), (new, before, after) in itertools.pairwise(seen[1:]):
        np.testing.assert_allclose(after, before * new / old, rtol=1e-5)


def linear(optimizer):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(optimizer, "mse")
    return model


@pytest.mark.parametrize("adopt", [lambda optimizer: optimizer, hvd.DistributedOptimizer])
def test_a_saved_model_is_loaded_with_its_exchange(tmp_path, same_on_all, adopt) -> None:
    model = linear(adopt(keras.optimizers.SGD(0.1)))
    model.save(tmp_path / "model.keras")
    loaded = hvd.load_model(tmp_path / "model.keras", compression=hvd.Compression.fp16)
    assert "fp16" in loaded.optimizer.distlr.gradients.reducer.terms
    x = np.full((4, 1), 1.0 + hvd.rank(), "float32")
    callbacks = [hvd.callbacks.BroadcastGlobalVariablesCallback(0), hvd.callbacks.MetricAverageCallback()]
    history = loaded.fit(x, x, batch_size=2, verbose=0, shuffle=False, callbacks=callbacks)
    same_on_all([history.history["loss"], [weight.numpy().tolist() for weight in loaded.weights]])


def test_a_loaded_optimizer_that_averages_otherwise_is_refused(tmp_path) -> None:
    model = linear(hvd.DistributedOptimizer(keras.optimizers.SGD(0.1), op=hvd.Sum))
    if hvd.rank() == 0:  # as scripts for Horovod resume
        model.save(tmp_path / "model.keras")
        model = hvd.load_model(tmp_path / "model.keras")
    else:
        model = linear(hvd.DistributedOptimizer(keras.optimizers.SGD(0.1)))
    x = np.ones((4, 1), "float32")
    with pytest.raises(DistributionError, match=r"differ in exchange of gradients: .*\bsum of .*\bmean of"):
        model.fit(x, x, verbose=0, callbacks=[hvd.callbacks.BroadcastGlobalVariablesCallback(0)])


@pytest.mark.parametrize("options", [{}, {"op": hvd.Average}, {"average_aggregated_gradients": True}])
def test_what_the_reduction_was_told_comes_back_with_the_model(tmp_path, options) -> None:
    """Two passes, of the gradients 1 + rank and twice that: their sum over passes and ranks, unless told otherwise."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    plain = keras.optimizers.SGD(1.0)
    model.compile(hvd.DistributedOptimizer(plain, op=hvd.Sum, backward_passes_per_step=2), "mse")
    model.save(tmp_path / "model.keras")
    loaded = hvd.load_model(tmp_path / "model.keras", **options)
    variables = loaded.trainable_variables
    loaded.optimizer.distlr.gradients.has_rank_zero_state = True
    for passes in (1.0, 2.0):
        loaded.optimizer.apply([tf.constant([[passes * (1.0 + hvd.rank())]])], variables)
    expected = 3.0 * sum(1.0 + rank for rank in range(hvd.size()))
    if "op" in options:
        expected /= hvd.size()
    if "average_aggregated_gradients" in options:
        expected /= 2
    np.testing.assert_allclose(loaded.get_weights()[0].item(), -expected, rtol=1e-6)


def test_a_copy_by_its_config_takes_no_step_of_its_own() -> None:
    original = hvd.DistributedOptimizer(keras.optimizers.SGD(1.0))
    for copy in (original.from_config(original.get_config()), type(original).from_config(original.get_config())):
        assert copy.get_config() == original.get_config()
        variable = keras.Variable([0.0])
        with pytest.raises(DistributionError, match="average nothing over the"):
            copy.apply([tf.constant([1.0 + hvd.rank()])], [variable])
        assert variable.numpy().tolist() == [0.0]


def test_gradients_accumulate_inside_a_loss_scale() -> None:
    variable = keras.Variable([0.0])
    wrapped = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0), initial_scale=1.0)
    optimizer = hvd.DistributedOptimizer(wrapped, backward_passes_per_step=2)
    optimizer.build([variable])
    optimizer.inner_optimizer.distlr.gradients.has_rank_zero_state = True
    for value in (1.0, 2.0):
        optimizer.apply([tf.constant([value])], [variable])
    np.testing.assert_allclose(variable.numpy(), [-3.0])


# -- on one rank alone -------------------------------------------------------------------------------------


def _fit(callbacks, *, normalized: bool = False, epochs: int = 4):
    """Three steps an epoch; Horovod's callbacks first, as in its examples."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.BatchNormalization()] if normalized else []
    model = keras.Sequential([keras.Input((2,)), *layers, keras.layers.Dense(1)])
    model.compile(hvd.DistributedOptimizer(keras.optimizers.SGD(0.01)), "mse")
    x = np.random.default_rng(hvd.rank()).normal(size=(6, 2)).astype("float32")
    first = hvd.callbacks.BroadcastGlobalVariablesCallback(0)
    history = model.fit(
        x, x[:, :1], batch_size=2, epochs=epochs, verbose=0, shuffle=False, callbacks=[first, *callbacks]
    )
    return model, history


class _StopsAfter(keras.callbacks.Callback):
    def __init__(self, epoch: int, restores: bool = False) -> None:
        super().__init__()
        self.epoch, self.restores = epoch, restores

    def on_train_begin(self, logs=None):
        self.weights = self.model.get_weights()

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = epoch == self.epoch

    def on_train_end(self, logs=None):
        if self.restores:
            self.model.set_weights(self.weights)


def test_a_stop_on_one_rank_alone_stops_all(same_on_all) -> None:
    model, history = _fit([_StopsAfter(1)] if hvd.rank() == 0 else [])
    assert same_on_all([len(history.epoch), int(model.optimizer.iterations.numpy())]) == [2, 6]
    assert "on_epoch_end" not in vars(history)


def test_weights_that_one_rank_alone_restores_are_found() -> None:
    with pytest.raises(ReplicaDivergenceError, match=r"(?s)end of fit.*weights: "):
        _fit([_StopsAfter(1, restores=True)] if hvd.rank() == 0 else [])


def test_moving_statistics_of_each_ranks_own_are_no_divergence(same_on_all) -> None:
    model, _ = _fit([], normalized=True)
    same_on_all([weight.numpy().tolist() for weight in model.trainable_weights])
