"""A loss that is the mean over one replica's batch, on replicas whose gradients are summed."""

from __future__ import annotations

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr
from distlr.errors import ConfigurationError
from distlr.strategies.mirrored import mirrored

pytestmark = pytest.mark.replicas

ONE = np.ones((16, 1), "float32")
TIMES_TOO_LARGE = r"each update is 2 times as large"


class Net(keras.Model):
    """One weight, at 0, whose loss is (w - 1)^2: its gradient is -2, so one update at 0.1 gives 0.2."""

    def __init__(self, loss_of=None, job=None, batch=None):
        super().__init__()
        self.dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
        self.dense.build((None, 1))
        self.built = True
        self.loss_of, self.job, self.batch = loss_of, job, batch

    def call(self, x):
        return self.dense(x)


class OwnStep(Net):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.loss_of(self, y, self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


class OwnComputeLoss(Net):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return self.loss_of(self, y, y_pred)


@pytest.fixture(scope="module")
def strategy(four_cpus):
    return mirrored(four_cpus[:2])


def _trained(strategy, make, compile_with=None):
    job = distlr.init(environ={}) if strategy is None else distlr.init(strategy=strategy, environ={})
    batch = job.batch(total=16, base_batch=16)
    with job.scope():
        model = make(job, batch)
        model.compile(job.optimizer(keras.optimizers.SGD(0.1), batch), **(compile_with or {}))
    data = job.shard((ONE, ONE), batch, seed=0)
    model.fit(data, shuffle=False, callbacks=job.callbacks(), verbose=0)
    return float(model.get_weights()[0][0, 0])


def _squares(y, y_pred):
    return tf.reduce_sum(tf.square(y_pred - y), axis=-1)


def _mean(model, y, y_pred):
    return keras.ops.mean(keras.ops.square(y_pred - y))


def _mean_of_keras_function(model, y, y_pred):
    return tf.reduce_mean(keras.losses.mean_squared_error(y, y_pred))


def _mean_by_hand(model, y, y_pred):
    return tf.reduce_sum(_squares(y, y_pred)) / tf.cast(tf.shape(y)[0], tf.float32)


def _mean_by_a_number(model, y, y_pred):
    return tf.reduce_sum(_squares(y, y_pred)) / 8.0


def _masked_mean(model, y, y_pred):
    mask = tf.cast(y > 0, tf.float32)
    return tf.reduce_sum(_squares(y, y_pred) * mask[:, 0]) / tf.reduce_sum(mask)


def _root(model, y, y_pred):
    return tf.sqrt(_mean(model, y, y_pred))


def _mean_within_a_sum(model, y, y_pred):
    return tf.reduce_sum(tf.reduce_mean(tf.square(y_pred - y), axis=0))


WRONG = [_mean, _mean_of_keras_function, _mean_by_hand, _mean_by_a_number, _masked_mean, _root, _mean_within_a_sum]


@pytest.mark.replicas
@pytest.mark.parametrize("kind", [OwnStep, OwnComputeLoss])
@pytest.mark.parametrize("loss_of", WRONG)
def test_a_mean_of_one_s_own_is_refused_on_replicas_and_right_on_one_device(strategy, kind, loss_of) -> None:
    with pytest.raises(ConfigurationError, match=TIMES_TOO_LARGE + r".*Fix: .*job\.mean_loss\(losses, batch\)"):
        _trained(strategy, lambda job, batch: kind(loss_of))
    if loss_of is not _root:
        assert _trained(None, lambda job, batch: kind(loss_of)) == pytest.approx(
            0.2 if loss_of is not WRONG[3] else 0.4
        )


def test_it_is_refused_before_the_first_update_and_eagerly(strategy) -> None:
    for eager in (False, True):
        models = []

        def make(job, batch, models=models):
            models.append(OwnStep(_mean))
            return models[0]

        with pytest.raises(ConfigurationError, match=TIMES_TOO_LARGE):
            _trained(strategy, make, {"run_eagerly": eager})
        assert float(models[0].get_weights()[0][0, 0]) == 0


def scalar_loss(y, y_pred):
    return tf.reduce_mean(tf.square(y_pred - y))


def test_a_loss_function_that_returns_a_mean_is_refused(strategy) -> None:
    """Keras divides what has a value a sample, and leaves a scalar as it is."""
    with pytest.raises(ConfigurationError, match="return one value a sample"):
        _trained(strategy, lambda job, batch: Net(), {"loss": scalar_loss})
    weight = _trained(strategy, lambda job, batch: Net(), {"loss": _squares})
    assert weight == pytest.approx(0.2)


def _keras_loss(model, y, y_pred):
    return keras.losses.MeanSquaredError()(y, y_pred)


def _two_keras_losses(model, y, y_pred):
    return (keras.losses.MeanSquaredError()(y, y_pred) + keras.losses.MeanSquaredError()(y, y_pred)) / 2


def _compute_loss(model, y, y_pred):
    return model.compute_loss(y=y, y_pred=y_pred)


def _mean_loss(model, y, y_pred):
    return model.job.mean_loss(_squares(y, y_pred), model.batch)


def _average_loss(model, y, y_pred):
    return tf.nn.compute_average_loss(_squares(y, y_pred), global_batch_size=16)


def _average_loss_of_unknown_batch(model, y, y_pred):
    return tf.nn.compute_average_loss(_squares(y, y_pred))


def _unreduced_by_hand(model, y, y_pred):
    return tf.reduce_sum(keras.losses.MeanSquaredError(reduction="none")(y, y_pred)) * (1.0 / 16)


def _divided_by_replicas(model, y, y_pred):
    return _mean(model, y, y_pred) / tf.distribute.get_strategy().num_replicas_in_sync


def _weighted(model, y, y_pred):
    return 0.5 * _mean_loss(model, y, y_pred) + tf.constant(0.5) * _keras_loss(model, y, y_pred)


RIGHT = [
    _keras_loss,
    _two_keras_losses,
    _compute_loss,
    _mean_loss,
    _average_loss,
    _average_loss_of_unknown_batch,
    _unreduced_by_hand,
    _divided_by_replicas,
    _weighted,
]


@pytest.mark.replicas
@pytest.mark.parametrize("loss_of", RIGHT)
def test_a_loss_divided_by_the_whole_batch_is_right_and_causes_no_warning(strategy, caplog, loss_of) -> None:
    with caplog.at_level(logging.WARNING, "distlr"):
        weight = _trained(strategy, lambda job, batch: OwnStep(loss_of, job, batch), {"loss": "mse"})
    assert weight == pytest.approx(0.2)
    assert "The loss of this step" not in caplog.text
    assert "Whether the loss" not in caplog.text


def test_a_sum_is_the_sum_of_all_replicas_and_an_added_loss_is_keras_own(strategy, caplog) -> None:
    def added(job, batch):
        inputs = keras.Input((1,))
        outputs = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros", kernel_regularizer="l2")(inputs)
        return keras.Model(inputs, outputs)

    weight = _trained(strategy, lambda job, batch: OwnStep(lambda m, y, p: tf.reduce_sum(_squares(y, p))))
    assert weight == pytest.approx(0.2 * 16)
    assert _trained(strategy, added, {"loss": "mse"}) == pytest.approx(0.2)
    loss = keras.losses.MeanSquaredError(reduction="sum")
    assert _trained(strategy, lambda job, batch: Net(), {"loss": loss}) == pytest.approx(0.2 * 16)
    assert "The loss of this step" not in caplog.text


def _with_a_mean_of_its_own(model, y, y_pred):
    return _keras_loss(model, y, y_pred) + 0.1 * tf.reduce_mean(tf.square(y_pred))


def _with_a_penalty_on_the_weights(model, y, y_pred):
    return _keras_loss(model, y, y_pred) + 0.01 * tf.reduce_sum(tf.square(model.trainable_variables[0].value))


@pytest.mark.parametrize("loss_of", [_with_a_mean_of_its_own, _with_a_penalty_on_the_weights])
def test_another_term_beside_keras_loss_is_warned_of_once(strategy, caplog, loss_of) -> None:
    """A VAE's own divergence, for example."""
    with caplog.at_level(logging.WARNING, "distlr"):
        _trained(strategy, lambda job, batch: OwnStep(loss_of, job, batch))
    assert caplog.text.count("that term counts 2 times as much") == 1


def test_mixed_precision_and_accumulation_pass(strategy, caplog) -> None:
    job = distlr.init(strategy=strategy, environ={})
    batch = job.batch(per_replica=4, accumulation=2, base_batch=16)
    with job.scope():
        model = OwnStep(_keras_loss)
        optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
        model.compile(job.optimizer(keras.optimizers.LossScaleOptimizer(optimizer), batch))

    def train_step(data):
        with tf.GradientTape() as tape:
            loss = _keras_loss(model, data[1], model(data[0]))
            scaled = model.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, model.trainable_variables)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return {"loss": loss}

    model.train_step = train_step
    model.fit(job.shard((ONE, ONE), batch, seed=0), shuffle=False, callbacks=job.callbacks(), verbose=0)
    assert float(model.get_weights()[0][0, 0]) == pytest.approx(0.2)
    assert "loss of this step" not in caplog.text


def test_a_sum_over_the_batch_within_a_mean_is_a_sum(strategy) -> None:
    """With 16 samples, each with the gradient -2, one update at 0.1 gives 3.2, on one device and on two replicas."""

    def loss_of(model, y, y_pred):
        return tf.reduce_mean(tf.reduce_sum(tf.square(y_pred - y), axis=0))

    for places in (None, strategy):
        assert _trained(places, lambda job, batch: OwnStep(loss_of)) == pytest.approx(3.2)


class ShowsItsLoss(OwnStep):
    """Shows a mean of the losses, as in keras.io's examples."""

    def __init__(self, loss_of, times=1.0):
        super().__init__(loss_of)
        self.shown, self.times = keras.metrics.Mean(name="shown"), times

    @property
    def metrics(self):
        return [self.shown]

    def train_step(self, data):
        loss = super().train_step(data)["loss"]
        self.shown.update_state(loss if self.times == 1 else loss * self.times)
        return {"shown": self.shown.result()}


@pytest.mark.parametrize(("times", "shows", "warns"), [(1.0, 0.5, True), (2.0, 1.0, False)])
def test_a_mean_of_a_loss_that_is_divided_by_the_replicas_is_warned_of(strategy, caplog, times, shows, warns) -> None:
    models = []

    def make(job, batch):
        models.append(ShowsItsLoss(_keras_loss, times))
        return models[0]

    assert _trained(strategy, make) == pytest.approx(0.2)
    assert float(models[0].shown.result()) == pytest.approx(shows)
    assert ("What these metrics show is 1/2 of the mean loss: shown." in caplog.text) is warns
