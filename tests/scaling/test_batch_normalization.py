"""The momentum of a model's moving averages: scaled from the base, hinted at where it is not."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import distlr
from distlr.errors import ConfigurationError, ConfigurationTypeError
from distlr.scaling.batch_normalization import averaging_layers, scale_moving_averages

BATCH = distlr.GlobalBatch(32, base_batch=8)  # k = 4


@keras.saving.register_keras_serializable("tests")
class Smoothed(keras.layers.Layer):
    """A layer with a moving average of its own."""

    def __init__(self, decay: float = 0.9, **options) -> None:
        super().__init__(**options)
        self.decay = decay

    def call(self, inputs):
        return inputs

    def get_config(self):
        return {**super().get_config(), "decay": self.decay}


def model():
    inner = keras.Sequential([keras.layers.Dense(3), keras.layers.BatchNormalization(momentum=0.8, name="inside")])
    layers = [keras.layers.BatchNormalization(momentum=0.9, name="outside"), inner, Smoothed(name="smoothed")]
    return keras.Sequential([keras.Input((2,)), *layers])


def momenta(of):
    return of.get_layer("outside").momentum, of.layers[1].get_layer("inside").momentum, of.get_layer("smoothed").decay


def test_the_job_says_so_on_rank_0(caplog) -> None:
    with caplog.at_level("INFO", "distlr"):
        job = distlr.init(environ={})
        job.scale_moving_averages(model(), job.batch(32, base_batch=8))
    assert "The momentum of 2 moving averages is scaled for the batch: 0.8 -> 0.4096, 0.9 -> 0.6561." in caplog.text


def test_the_momentum_to_the_kth_power_however_often_it_is_asked_for() -> None:
    scaled = model()
    for _ in range(3):
        changed = scale_moving_averages(scaled, BATCH)
    assert momenta(scaled) == (pytest.approx(0.9**4), pytest.approx(0.8**4), 0.9)
    assert changed == {
        "outside.momentum": (0.9, pytest.approx(0.9**4)),
        "inside.momentum": (0.8, pytest.approx(0.8**4)),
    }
    scale_moving_averages(scaled, distlr.GlobalBatch(8, base_batch=8))
    assert momenta(scaled) == (0.9, 0.8, 0.9)


def test_accumulated_steps_move_the_average_each() -> None:
    scaled = model()
    scale_moving_averages(scaled, distlr.GlobalBatch(8, base_batch=8, accumulation=4))
    assert momenta(scaled)[0] == 0.9


def test_layers_that_are_named_are_scaled_too() -> None:
    scaled = model()
    scale_moving_averages(scaled, BATCH, {"smoothed": "decay"})
    assert momenta(scaled)[2] == pytest.approx(0.9**4)


def test_a_saved_model_holds_the_base(tmp_path) -> None:
    scaled = model()
    scale_moving_averages(scaled, BATCH, {"smoothed": "decay"})
    scaled.save(tmp_path / "m.keras")
    reloaded = keras.models.load_model(tmp_path / "m.keras")
    assert momenta(reloaded) == (0.9, 0.8, 0.9)
    scale_moving_averages(reloaded, BATCH, {"smoothed": "decay"})
    assert momenta(reloaded) == momenta(scaled)
    assert momenta(keras.models.clone_model(scaled)) == (0.9, 0.8, 0.9)


def test_a_config_holds_the_base_under_a_name_of_its_own() -> None:
    class Smoothed(keras.layers.Layer):
        def __init__(self, rate, **options):
            super().__init__(**options)
            self.decay = 1.0 - rate

        def call(self, x):
            return x

        def get_config(self):
            return {**super().get_config(), "rate": 1.0 - self.decay}

    scaled = keras.Sequential([keras.Input((1,)), Smoothed(0.25, name="smoothed")])
    scale_moving_averages(scaled, BATCH, {"smoothed": "decay"})
    assert scaled.layers[0].decay == 0.75**4
    reloaded = Smoothed.from_config(scaled.layers[0].get_config())  # no scaled value, and no argument that it has not
    assert reloaded.decay == 0.75


def test_the_statistics_move_by_the_scaled_momentum() -> None:
    scaled = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization(momentum=0.5), keras.layers.Dense(1)])
    scaled.compile("sgd", "mse")
    x = np.full((4, 1), 8.0, "float32")
    scaled.train_on_batch(x, x)  # traced with the momentum that was
    scaled.layers[0].moving_mean.assign([0.0])
    scale_moving_averages(scaled, BATCH)
    scaled.train_on_batch(x, x)
    np.testing.assert_allclose(scaled.layers[0].moving_mean.numpy(), [8 * (1 - 0.5**4)])


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        (("x", BATCH), ConfigurationTypeError, "a Keras model"),
        ((model(), BATCH, {"absent": "decay"}), ConfigurationError, "named after layers: .*outside"),
        ((model(), BATCH, {"smoothed": "name"}), ConfigurationError, r"smoothed.name is 'smoothed'"),
    ],
)
def test_bad_arguments(arguments, kind, text) -> None:
    with pytest.raises(kind, match=text):
        scale_moving_averages(*arguments)


@pytest.mark.parametrize(
    ("per_step", "scale", "frozen", "hint"),
    [(32, False, False, True), (32, True, False, False), (24, False, False, False), (32, False, True, False)],
)
def test_a_hint_where_they_move_and_are_not_scaled(caplog, per_step, scale, frozen, hint) -> None:
    job = distlr.init(environ={})
    batch = job.batch(per_step, base_batch=8)
    trained = model()
    for layer, _ in averaging_layers(trained):
        layer.trainable = not frozen
    if scale:
        job.scale_moving_averages(trained, batch)
    trained.compile(job.optimizer(keras.optimizers.SGD(0.1), batch), "mse")
    x, y = np.ones((per_step, 2)), np.ones((per_step, 3))
    trained.fit(x, y, batch_size=per_step, verbose=0, shuffle=False, callbacks=job.callbacks())
    assert ("The moving averages of 2 layers (outside) are not scaled" in caplog.text) is hint


def test_the_config_changes_nothing_on_the_layer_meanwhile() -> None:
    changes = []

    class Watched(Smoothed):
        def __setattr__(self, name, value):
            changes.append((id(self), name))
            super().__setattr__(name, value)

    of_one = keras.Sequential([keras.Input((2,)), Watched(name="watched")])
    scale_moving_averages(of_one, BATCH, {"watched": "decay"})
    changes.clear()
    layer = of_one.get_layer("watched")
    assert layer.get_config()["decay"] == 0.9
    assert [name for of, name in changes if of == id(layer)] == []
