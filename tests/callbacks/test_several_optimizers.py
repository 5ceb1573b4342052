"""A model with several optimizers, and several trainings in one script: what is trained with is known by use."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr
from distlr.callbacks import Checkpoint, NonFiniteGuard, ReduceLROnPlateau
from distlr.errors import ConfigurationError, StateError

pytestmark = pytest.mark.replicas

X = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")


class Pair(keras.Model):
    """A GAN's way: an optimizer for each part."""

    def __init__(self, uses_compiled=False):
        super().__init__()
        self.parts = [keras.layers.Dense(1, kernel_initializer="ones") for _ in range(2)]
        for part in self.parts:
            part.build((None, 4))
        self.built = True
        self.uses_compiled = uses_compiled

    def compile(self, first, second):
        super().compile(**({"optimizer": first} if self.uses_compiled else {}))
        self.first, self.second = first, second

    def train_step(self, data):
        for part, optimizer in zip(self.parts, (self.first, self.second), strict=True):
            with tf.GradientTape() as tape:
                loss = keras.losses.MeanSquaredError()(data[:, :1], part(data))
            gradients = tape.gradient(loss, part.trainable_variables)
            optimizer.apply_gradients(zip(gradients, part.trainable_variables, strict=True))
        return {"loss": loss}


def _pair(uses_compiled=False, rates=(0.1, 0.2), job=None):
    job = job or distlr.init(environ={})
    batch = job.batch(total=16, base_batch=4, samples_per_epoch=32)
    with job.scope():
        model = Pair(uses_compiled)
        model.compile(*(job.optimizer(keras.optimizers.SGD(rate), batch) for rate in rates))
    return job, job.shard(tf.data.Dataset.from_tensor_slices(X), batch, seed=0), model


def _fit(job, data, model, callbacks=(), **options):
    all_callbacks = job.callbacks(list(callbacks), **options)
    return model.fit(data, epochs=2, shuffle=False, callbacks=all_callbacks, verbose=0).history


def test_two_adopted_optimizers_train_and_each_rate_is_in_the_logs() -> None:
    history = _fit(*_pair())
    rates = {name: values[-1] for name, values in history.items() if name.startswith("learning_rate")}
    np.testing.assert_allclose(sorted(rates.values()), [0.4, 0.8], rtol=1e-6)
    assert all(name.lower().startswith("learning_rate_sgd") for name in rates)
    assert [values for name, values in history.items() if name.startswith("samples_seen")] == [[32, 64]] * 2
    assert _fit(*_pair(uses_compiled=True))["learning_rate"] == pytest.approx([0.4, 0.4])


@pytest.mark.parametrize(
    "callback",
    [
        lambda: ReduceLROnPlateau("loss"),
        lambda: keras.callbacks.ReduceLROnPlateau("loss"),
        lambda: keras.callbacks.LearningRateScheduler(lambda epoch: 0.1),
    ],
)
def test_what_would_cut_an_optimizer_that_is_never_applied_is_refused_by_name(callback) -> None:
    job, data, model = _pair()
    before = [weight.copy() for weight in model.get_weights()]
    with pytest.raises(
        ConfigurationError, match=r"changes the rate of model\.optimizer, 'rm_?sprop.*never applies.*Fix:"
    ):
        _fit(job, data, model, [callback()])
    np.testing.assert_array_equal(before[0], model.get_weights()[0])
    _fit(*_pair(uses_compiled=True), [callback()])


@pytest.mark.parametrize(
    "callback",
    [
        lambda path: Checkpoint(path),
        lambda path: NonFiniteGuard("skip"),
        lambda path: ReduceLROnPlateau("loss", restore_best=True),
    ],
)
def test_what_keeps_one_optimizer_alone_is_refused_before_the_first_update(tmp_path, callback) -> None:
    job, data, model = _pair(uses_compiled=True)
    before = [weight.copy() for weight in model.get_weights()]
    with pytest.raises(
        ConfigurationError, match=r"model\.optimizer alone, and the train_step applies '(?i:sgd).*Fix: leave"
    ):
        _fit(job, data, model, [callback(tmp_path / "ck")])
    np.testing.assert_array_equal(before[0], model.get_weights()[0])
    job, data, model = _pair(uses_compiled=True)
    _fit(job, data, model)
    with pytest.raises(ConfigurationError, match=r"model\.optimizer alone"):  # of a step that is traced already
        _fit(job, data, model, [ReduceLROnPlateau("loss", restore_best=True)])


def test_keras_backup_keeps_each_optimizer_of_the_model(tmp_path) -> None:
    class End(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch:
                raise KeyboardInterrupt

    whole = _pair(uses_compiled=True)
    _fit(*whole)
    job, data, model = _pair(uses_compiled=True)
    with pytest.raises(KeyboardInterrupt):
        _fit(job, data, model, [keras.callbacks.BackupAndRestore(tmp_path / "backup"), End()])
    job, data, model = _pair(uses_compiled=True)
    _fit(job, data, model, [keras.callbacks.BackupAndRestore(tmp_path / "backup")])
    for optimizer, other in ((model.first, whole[2].first), (model.second, whole[2].second)):
        assert (optimizer.samples_seen, int(optimizer.iterations)) == (other.samples_seen, int(other.iterations))


def test_a_multi_optimizer_is_refused_before_the_first_step_with_what_works() -> None:
    optimizers = keras.optimizers
    if not hasattr(optimizers, "MultiOptimizer"):
        return  # of a Keras before 3.14
    job = distlr.init(environ={})
    batch = job.batch(total=16, base_batch=4)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, name="head")])
    plain = optimizers.MultiOptimizer(optimizers.OptimizerMap(optimizers.SGD(0.1)))
    with pytest.raises(ConfigurationError, match=r"single optimizer.*Fix: leave MultiOptimizer out.*multipliers="):
        job.optimizer(plain, batch)
    inner = [job.optimizer(optimizers.SGD(0.1), batch) for _ in range(2)]
    for made_of in (
        optimizers.OptimizerMap(inner[0], {"head/.*": inner[1]}),
        optimizers.OptimizerMap(optimizers.SGD(0.1)),
    ):
        model.compile(optimizers.MultiOptimizer(made_of), "mse")
        with pytest.raises(ConfigurationError, match=r"MultiOptimizer.*Fix: leave MultiOptimizer out"):
            model.fit(X, X[:, :1], batch_size=16, callbacks=job.callbacks(), verbose=0)


# -- several trainings in one script -------------------------------------------------------------------


def _single(job, rate, base, rule):
    batch = job.batch(total=16, base_batch=base, samples_per_epoch=32)
    with job.scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile(job.optimizer(keras.optimizers.SGD(rate), batch, rule=rule), "mse")
    return model, job.shard((X, X[:, :1]), batch, seed=0)


def test_each_run_s_record_has_its_own_formula(tmp_path) -> None:
    job = distlr.init(environ={})
    models = []
    for number, (rate, base, rule, peak) in enumerate(((0.01, 4, "linear", 0.04), (0.002, 1, "sqrt", 0.008))):
        model, data = _single(job, rate, base, rule)
        _fit(job, data, model, run_dir=tmp_path / str(number))
        record = json.loads((tmp_path / str(number) / "run.json").read_text())["job"]
        assert (record["base_batch"], record["rule"], record["peak_rate"]) == (base, rule, pytest.approx(peak))
        assert job.explain()["base_batch"] == base
        models.append(model)
    assert job.explain(models[0])["base_batch"] == 4
    assert job.explain(models[1].optimizer)["base_batch"] == 1


class Seen(keras.callbacks.Callback):
    """Ends at a step of an epoch, where it is told to; keeps the weight after each step."""

    def __init__(self, end_at=None):
        super().__init__()
        self.end_at, self.weights = end_at, []

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.end_at:
            raise KeyboardInterrupt

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append(float(self.model.get_weights()[0][0, 0]))


def _search(directory, trials, every, end_at=None, up_front=False, seeds=(10, 11), shard_of=(0, 1)):
    """Trains some of two models, whose data differ in their order alone; gives the last weight of the last one."""
    job = distlr.init(environ={})
    x = np.arange(96, dtype="float32")[:, None]
    batch = job.batch(total=16, base_batch=16, samples_per_epoch=96)
    data = {number: job.shard((x, x), batch, seed=seeds[number]) for number in shard_of} if up_front else {}
    seen = Seen()
    for trial in trials:
        with job.scope():
            model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="zeros")])
            model.compile(job.optimizer(keras.optimizers.SGD(1e-5), batch), "mse")
        trial_data = data[trial] if up_front else job.shard((x, x), batch, seed=seeds[trial])
        seen = Seen(end_at if trial == 1 else None)
        all_callbacks = job.callbacks([Checkpoint(directory / str(trial), every=every), seen])
        model.fit(trial_data, epochs=3, shuffle=False, callbacks=all_callbacks, verbose=0)
    return seen.weights[-1]


@pytest.mark.parametrize("up_front", [False, True])
@pytest.mark.parametrize(("every", "end_at"), [("2ba", (1, 4)), ("1ep", (2, 0))])
@pytest.mark.parametrize("seeds", [(10, 11), (7, 7)])
def test_the_second_training_resumed_alone_goes_on_in_the_order_of_its_own_data(
    tmp_path, up_front, every, end_at, seeds
) -> None:
    whole = _search(tmp_path / "whole", (0, 1), every, up_front=up_front, seeds=seeds)
    resumed = _search(tmp_path / "alone", (1,), every, up_front=up_front, seeds=seeds)
    assert resumed == whole  # bit for bit: what another training has read counts for nothing
    with pytest.raises(KeyboardInterrupt):
        _search(tmp_path / "cut", (0, 1), every, end_at, up_front=up_front, seeds=seeds)
    assert _search(tmp_path / "cut", (1,), every, up_front=up_front, seeds=seeds) == whole


def test_a_checkpoint_over_several_data_sets_asks_for_the_same_ones(tmp_path) -> None:
    from distlr.callbacks.data_position_sync import DataPositionSync
    from distlr.data.position import Position

    batch = distlr.GlobalBatch(16, base_batch=16)
    follow = DataPositionSync([Position(batch, seed) for seed in (1, 2, 3)])
    follow.on_train_begin()
    with pytest.raises(StateError, match=r"read 2 data sets.*seeds \[4, 5\].*has made 3, with \[1, 2, 3\].*Fix:"):
        follow.choose([[4, 0, 0], [5, 0, 0]])
    assert follow.choose([[3, 1, 0], [1, 2, 16]]) == [[1, 2, 16], [3, 1, 0]]
    assert [position.seed for position in follow.positions] == [1, 3]
