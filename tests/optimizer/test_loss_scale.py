"""An overflow under mixed precision: on one replica only, and all replicas skip the step."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr
from distlr.errors import DistributionError
from distlr.optimizer import adopt, make_loss_scale_agree, unwrap_loss_scale
from distlr.strategies.mirrored import mirrored

REPLICAS = 4
SCALE = 2.0**15  # Keras' initial one


@pytest.fixture(scope="module")
def job(four_cpus):
    return distlr.init(strategy=mirrored(four_cpus), environ={})


@pytest.fixture
def batch(job):
    return job.batch(per_replica=2, base_batch=4, samples_per_epoch=24)


@pytest.fixture(scope="module")
def data():
    """Three global batches; in the second one the samples of the third replica overflow."""
    x = np.random.default_rng(0).normal(size=(24, 3)).astype("float32") * 0.1
    y = x[:, :2] * 0.5
    x[8 + 4 : 8 + 6] = np.inf
    return x, y


def build(job, lab, make):
    with job.scope():
        model = lab.model()
        model.set_weights([np.ones((3, 2), "float32"), np.zeros(2, "float32")])
        model.compile(make(keras.optimizers.SGD(0.01, momentum=0.9)), "mse")
    return model


def fit(model, data, callbacks=()):
    model.fit(*data, batch_size=8, shuffle=False, verbose=0, callbacks=list(callbacks))


def assert_one_step_was_skipped(job, model, scale=SCALE):
    optimizer = model.optimizer
    assert int(optimizer.iterations.numpy()) == 2
    assert unwrap_loss_scale(optimizer).samples_seen == 16
    assert float(optimizer.dynamic_scale.numpy()) == scale / 2
    for variable in (*model.trainable_variables, *optimizer.variables):
        values = [value.numpy() for value in job.strategy.experimental_local_results(variable.value)]
        for value in values:
            assert np.isfinite(value).all(), variable.path
            np.testing.assert_array_equal(value, values[0], err_msg=variable.path)
    assert len(set(job.weights_digests(model))) == len(set(job.rate_digests(optimizer))) == 1
    assert not np.array_equal(model.get_weights()[0], np.ones((3, 2)))


@pytest.mark.usefixtures("mixed_float16")
def test_plain_keras_ruins_the_weights(job, lab, data):
    model = build(job, lab, lambda optimizer: optimizer)
    assert type(model.optimizer) is keras.optimizers.LossScaleOptimizer
    fit(model, data)
    assert not np.isfinite(model.get_weights()[0]).all()
    assert int(model.optimizer.iterations.numpy()) == 2  # the overflow was applied, what came after it skipped


@pytest.mark.replicas
@pytest.mark.usefixtures("mixed_float16")
def test_all_replicas_skip_when_compile_wraps(job, lab, batch, data):
    model = build(job, lab, lambda optimizer: job.optimizer(optimizer, batch))
    with pytest.raises(DistributionError, match="looks for overflows on one replica alone"):
        fit(model, data)  # without job.callbacks
    fit(model, data, job.callbacks())
    assert_one_step_was_skipped(job, model)
    # Compiled again, Keras wraps it in a new one, that looks at one replica alone.
    assert unwrap_loss_scale(model.optimizer).distlr.gradients.loss_scale_agrees
    with job.scope():
        model.compile(unwrap_loss_scale(model.optimizer), "mse")
    assert not unwrap_loss_scale(model.optimizer).distlr.gradients.loss_scale_agrees


@pytest.mark.replicas
@pytest.mark.usefixtures("mixed_float16")
def test_all_replicas_skip_when_the_user_wraps(job, lab, batch, data, tmp_path):
    def wrapped(optimizer):
        wrapper = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=64.0)
        assert job.optimizer(wrapper, batch) is wrapper
        return wrapper

    model = build(job, lab, wrapped)
    assert model.optimizer.inner_optimizer.learning_rate == pytest.approx(0.02)
    fit(model, data)  # without job.callbacks: it agrees by itself
    assert_one_step_was_skipped(job, model, scale=64.0)
    # A saved one agrees as well.
    model.save(tmp_path / "model.keras")
    with job.scope():
        loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert_one_step_was_skipped(job, loaded, scale=64.0)
    assert type(loaded.optimizer) is type(model.optimizer)
    assert loaded.optimizer.inner_optimizer.distlr.gradients.loss_scale_agrees


@pytest.mark.usefixtures("mixed_float16")
@pytest.mark.parametrize("by", ["compile", "user"])
def test_one_device_skips(lab, data, by):
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    if by == "user":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    model = lab.compiled(adopt(optimizer, lab.batch()))
    fit(model, data)
    assert (int(model.optimizer.iterations.numpy()), unwrap_loss_scale(model.optimizer).samples_seen) == (2, 16)
    assert float(model.optimizer.dynamic_scale.numpy()) == SCALE / 2
    assert np.isfinite(model.get_weights()[0]).all()


@pytest.mark.replicas
def test_every_replica_has_a_say(job):
    """Without a model: the gradients of some replicas are not finite."""
    factors = tf.Variable([1.0] * REPLICAS)
    with job.scope():
        variable = keras.Variable([1.0, 2.0])
        optimizer = make_loss_scale_agree(
            keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5), initial_scale=64.0)
        )
        optimizer.build([variable])

    def step():
        index = tf.distribute.get_replica_context().replica_id_in_sync_group
        optimizer.apply([tf.constant([16.0, 32.0]) * factors[index]], [variable])

    steps = tf.function(lambda: job.run(step))
    scale, expected = 64.0, np.array([1.0, 2.0])
    for overflows in ([0], [], [3], [1, 2], [0, 1, 2, 3], []):
        factors.assign([float("nan") if i in overflows else 1.0 for i in range(REPLICAS)])
        steps()
        if overflows:
            scale /= 2
        else:
            expected -= 0.5 * REPLICAS * np.array([16.0, 32.0]) / scale
        for value in job.strategy.experimental_local_results(variable.value):
            np.testing.assert_allclose(value.numpy(), expected, rtol=1e-6)
        assert float(optimizer.dynamic_scale.numpy()) == scale
        assert int(optimizer.step_counter.numpy()) == (0 if overflows else 1)


def test_it_is_built_once_and_keeps_what_was_loaded(lab):
    model = lab.compiled(lab.adopted("LossScaleOptimizer"))
    lab.train(model, 3)
    number = len(model.optimizer.variables)
    model.optimizer.build(model.trainable_variables)
    assert len(model.optimizer.variables) == number
    first, second = {}, {}
    model.optimizer.save_own_variables(first)
    assert {key: float(value) for key, value in first.items()} == {"step_counter": 1, "dynamic_scale": 16.0}
    waiting = lab.compiled(lab.adopted("LossScaleOptimizer"))
    waiting.optimizer.save_own_variables(second)
    assert second == {}  # there is nothing yet
    waiting.optimizer.load_own_variables(first)
    waiting.optimizer.save_own_variables(second)
    assert second == first
    waiting.optimizer.build(waiting.trainable_variables)
    assert float(waiting.optimizer.dynamic_scale.numpy()) == 16.0


def test_a_plain_wrapper_that_was_saved_unbuilt_changes_nothing(lab):
    entries = {}
    lab.plain("LossScaleOptimizer").save_own_variables(entries)
    assert len(entries) == 4  # the third and fourth are the inner optimizer's
    model = lab.compiled(lab.adopted("LossScaleOptimizer"), built=True)
    model.optimizer.load_own_variables(entries)
    assert float(model.optimizer.dynamic_scale.numpy()) == 8.0


def test_the_names_of_the_optimizer_inside_are_those_of_the_loss_scale(job, batch):
    with job.scope():
        optimizer = job.optimizer(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5)), batch)
        plain = make_loss_scale_agree(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5)))
    optimizer.multiply_rate(0.5)
    assert (optimizer.multiplier, optimizer.samples_seen) == (0.5, 0)
    assert optimizer.distlr is optimizer.inner_optimizer.distlr
    assert optimizer.explain() == optimizer.inner_optimizer.explain()
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        optimizer.nothing  # noqa: B018
    assert not hasattr(plain, "samples_seen")
    assert not hasattr(plain, "distlr")
