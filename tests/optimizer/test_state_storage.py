"""The optimizer's variables in Keras' and TensorFlow's files: all of them, by name, or an error."""

from __future__ import annotations

import functools
import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

from distlr.errors import StateError
from distlr.optimizer import adopt, unwrap_loss_scale

# What the options of every optimizer add: more slots, an own course of the updates, or nothing.
OPTIONS = [
    {"use_ema": True, "ema_overwrite_frequency": 2},
    {"gradient_accumulation_steps": 2},
    {"global_clipnorm": 0.1},
]


@pytest.fixture(scope="module")
def trained(lab):
    """Trained models by kind and rate, made once; a test compares with what one is at that moment."""
    return functools.cache(lab.trained)


def round_trips(lab, path, saved, kind, rate, **options):
    """Each way to save and load, into an optimizer that is built and one that is not: (name, loaded model)."""

    target = lab.model()

    def fresh(built=False):
        return lab.compiled(lab.adopted(kind, rate, **options), built=built, model=target)

    def built(model):
        model.optimizer.build(model.trainable_variables)
        return model

    saved.save(path / "model.keras")
    saved.save_weights(path / "model.weights.h5")
    tracked = tf.train.Checkpoint(model=saved, optimizer=saved.optimizer).save(str(path / "checkpoint"))
    yield ".keras", keras.saving.load_model(path / "model.keras")
    for is_built in (False, True):
        model = fresh(is_built)
        model.load_weights(path / "model.weights.h5")
        yield f".weights.h5, built={is_built}", built(model)
        model = fresh(is_built)
        tf.train.Checkpoint(model=model, optimizer=model.optimizer).restore(tracked)
        yield f"checkpoint, built={is_built}", built(model)
    if kind in lab.fully:
        backup = keras.callbacks.BackupAndRestore(path / "backup")
        backup.set_model(saved)
        backup.on_epoch_end(0)
        model = fresh()
        restore = keras.callbacks.BackupAndRestore(path / "backup")
        restore.set_model(model)
        restore.on_train_begin()
        yield "BackupAndRestore", model


def test_every_variable_of_every_optimizer_round_trips(lab, trained, tmp_path, kind, rate):
    saved = trained(kind, rate)
    reference = lab.values(saved.optimizer)
    assert unwrap_loss_scale(saved.optimizer).samples_seen == 16
    assert unwrap_loss_scale(saved.optimizer).multiplier == 0.5
    assert reference[-1].tolist() == [0.25, 3.0, 1.0]
    for how, loaded in round_trips(lab, tmp_path, saved, kind, rate):
        assert type(unwrap_loss_scale(loaded.optimizer)) is type(unwrap_loss_scale(saved.optimizer)), how
        for value, expected in zip(lab.values(loaded.optimizer), reference, strict=True):
            assert value.dtype == expected.dtype, how
            np.testing.assert_array_equal(value, expected, err_msg=how)
    # The values arrived in the slots where they belong: the next update is the same. (A copy is trained.)
    lab.assert_equal(loaded, keras.saving.load_model(tmp_path / "model.keras"))


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: next(iter(options)))
def test_options_of_every_optimizer_round_trip(lab, tmp_path, rate, options):
    name = "LossScaleOptimizer" if rate == "schedule" else "SGD-momentum"
    saved = lab.trained(name, rate, **options)
    reference = lab.values(saved.optimizer)
    for how, loaded in round_trips(lab, tmp_path, saved, name, rate, **options):
        for value, expected in zip(lab.values(loaded.optimizer), reference, strict=True):
            np.testing.assert_array_equal(value, expected, err_msg=how)
    for _ in range(2):  # with accumulation the second one updates
        lab.assert_equal(loaded, saved)


def test_an_interrupted_run_goes_on_in_a_fresh_model(lab, tmp_path):
    x, y = np.ones((40, 3), "float32"), np.ones((40, 2), "float32")
    options = {"batch_size": 8, "shuffle": False, "verbose": 0}

    def fresh():
        model = lab.compiled(lab.adopted("SGD-momentum", "schedule"))
        model.set_weights([np.ones((3, 2), "float32"), np.zeros(2, "float32")])
        return model

    class Interrupt(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                self.model.optimizer.multiply_rate(0.5)

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1 and interrupted:
                raise KeyboardInterrupt

    interrupted = False
    whole = fresh()
    whole.fit(x, y, epochs=3, callbacks=[Interrupt()], **options)
    interrupted = True
    callbacks = [Interrupt(), keras.callbacks.BackupAndRestore(tmp_path / "backup")]
    with pytest.raises(KeyboardInterrupt):
        fresh().fit(x, y, epochs=3, callbacks=callbacks, **options)
    resumed = fresh()
    history = resumed.fit(x, y, epochs=3, callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "backup")], **options)
    assert history.epoch == [1, 2]
    assert resumed.optimizer.samples_seen == whole.optimizer.samples_seen == 3 * 41
    assert resumed.optimizer.multiplier == 0.5
    lab.assert_equal(resumed, whole)


# -- what does not fit -------------------------------------------------------------------------------

MISFITS = {
    "more slots": (("SGD", {}, 2), ("SGD-momentum", {}, 2)),
    "fewer slots": (("Adam", {}, 2), ("SGD-momentum", {}, 2)),
    "no slots any more": (("SGD-momentum", {}, 2), ("SGD", {}, 2)),
    "an average more": (("Adam", {}, 2), ("Adam", {"use_ema": True}, 2)),
    "other shapes": (("SGD-momentum", {}, 3), ("SGD-momentum", {}, 2)),
}


@pytest.mark.parametrize("from_plain", [False, True], ids=["distlr's", "plain"])
@pytest.mark.parametrize("misfit", MISFITS)
def test_a_mismatch_is_an_error_and_changes_nothing(lab, tmp_path, misfit, from_plain):
    (kind, options, units), (other, other_options, other_units) = MISFITS[misfit]
    make = lab.plain if from_plain else lab.adopted
    saved = lab.compiled(make(kind, **options), units, built=True)
    saved.optimizer.iterations.assign(7)
    saved.optimizer._learning_rate.assign(0.03)
    saved.save_weights(tmp_path / "saved.weights.h5")
    message = "has the shape" if misfit == "other shapes" else "slot variables, the optimizer"
    with tf.init_scope():
        store = read_optimizer(tmp_path / "saved.weights.h5")
    # Through the model, as people do it: Keras wraps the error and keeps the message.
    model = lab.compiled(lab.adopted(other, **other_options), other_units, built=True)
    lab.train(model, 3) if other_units == 2 else None
    before = lab.values(model.optimizer)
    if units == other_units:
        with pytest.raises(ValueError, match=message):
            model.load_weights(tmp_path / "saved.weights.h5")
    with pytest.raises(StateError, match=message):
        model.optimizer.load_own_variables(store)
    for value, expected in zip(lab.values(model.optimizer), before, strict=True):
        np.testing.assert_array_equal(value, expected)
    # Not built: it can be known only when it is.
    model = lab.compiled(lab.adopted(other, **other_options), other_units)
    model.optimizer.load_own_variables(store)
    with pytest.raises(StateError, match=message):
        model.optimizer.build(model.trainable_variables)
    assert int(model.optimizer.iterations) == 0
    assert float(model.optimizer._learning_rate) == np.float32(0.1)
    assert model.optimizer.samples_seen == 0


def read_optimizer(path):
    """The optimizer's entries in a weights file."""
    import h5py

    with h5py.File(path) as file:
        return {key: value[()] for key, value in file["optimizer/vars"].items()}


def test_other_damage_is_an_error_and_changes_nothing(lab):
    saved, model = lab.trained("SGD-momentum", "float"), lab.trained("SGD-momentum", "schedule")
    entries = {}
    saved.optimizer.save_own_variables(entries)
    before = lab.values(model.optimizer)
    state = next(key for key in entries if key.startswith("distlr_plateau"))
    for damage in (
        {"iteration": np.zeros(2)},
        {state: np.zeros(2)},
        {"distlr_multiplier": np.ones(2)},
        {"slot_1": np.ones(3)},
    ):
        with pytest.raises(StateError, match="has the shape"):
            model.optimizer.load_own_variables({**entries, **damage})
    with pytest.raises(StateError, match="neither distlr's nor Keras'"):
        model.optimizer.load_own_variables({"weights": np.ones(2)})
    for value, expected in zip(lab.values(model.optimizer), before, strict=True):
        np.testing.assert_array_equal(value, expected)
    fresh = lab.compiled(lab.adopted(), built=True)
    fresh.optimizer.load_own_variables({**entries, state: np.zeros(2)})
    with pytest.raises(StateError, match="shape"):
        fresh.optimizer.distlr.state(lab.state_name, [np.inf, 0.0, 0.0])


def test_a_model_that_refers_to_its_optimizer_twice_still_raises(lab, tmp_path):
    saved = lab.compiled(lab.plain("SGD"), built=True)
    lab.train(saved)
    saved.save_weights(tmp_path / "saved.weights.h5")
    model = lab.compiled(lab.adopted("SGD-momentum"), built=True)
    model.z_optimizer = model.optimizer  # Keras looks there as well, and finds nothing saved
    with pytest.raises(ValueError, match="slot variables, the optimizer"):
        model.load_weights(tmp_path / "saved.weights.h5")


def test_weights_without_an_optimizer_load(lab, tmp_path, caplog):
    lab.model().save_weights(tmp_path / "saved.weights.h5")
    model = lab.trained("SGD-momentum", "float")
    before = lab.values(model.optimizer)
    with caplog.at_level(logging.WARNING, "distlr"):
        model.load_weights(tmp_path / "saved.weights.h5")
    assert "holds no state of the optimizer" in caplog.text
    for value, expected in zip(lab.values(model.optimizer), before, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_the_config_changes_nothing_on_the_optimizer_meanwhile(lab):
    changes = []

    class Watched(keras.optimizers.AdamW):
        def __setattr__(self, name, value):
            changes.append((id(self), name))
            super().__setattr__(name, value)

    optimizer = adopt(Watched(0.1), lab.batch(), scaling={"rule": "sqrt"}, scale=["betas", "weight_decay"])
    scaled = optimizer.beta_1, optimizer.weight_decay
    changes.clear()
    config = optimizer.get_config()["optimizer"]["config"]
    assert [name for of, name in changes if of == id(optimizer)] == []
    assert (optimizer.beta_1, optimizer.weight_decay) == scaled
    assert (config["beta_1"], config["weight_decay"], config["learning_rate"]) == (0.9, 0.004, pytest.approx(0.1))


def test_the_config_has_the_base_values_where_a_class_keeps_them_elsewhere(lab):
    class Elsewhere(keras.optimizers.AdamW):
        __slots__ = ("own",)

        @property
        def beta_1(self):
            return self.__dict__.get("first_beta")

        @beta_1.setter
        def beta_1(self, value):
            self.__dict__["first_beta"] = value

        def get_config(self):
            return {**super().get_config(), "own": self.own}

    plain = Elsewhere(0.1)
    plain.own = "mine"
    optimizer = adopt(plain, lab.batch(), scaling={"rule": "sqrt"}, scale=["betas"])
    assert optimizer.beta_1 != 0.9
    config = optimizer.get_config()["optimizer"]["config"]
    assert (config["beta_1"], config["own"]) == (0.9, "mine")


def test_optimizers_of_one_file_are_told_apart(lab):
    """Keras takes objects of one id for one object, so that what a config is made of must not come and go."""
    optimizers = [lab.adopted() for _ in range(4)]
    assert len({id(optimizer.distlr.plain(optimizer)) for optimizer in optimizers}) == 4
    first = [id(optimizer.distlr.plain(optimizer)) for optimizer in optimizers]
    assert first == [id(optimizer.distlr.plain(optimizer)) for optimizer in optimizers]


def test_a_state_from_before_the_first_build(lab):
    entries = {}
    lab.compiled(lab.adopted()).optimizer.save_own_variables(entries)
    model = lab.compiled(lab.adopted(), built=True)
    model.optimizer.load_own_variables(entries)  # nothing happened on either side
    lab.train(model, 2)
    with pytest.raises(StateError, match="was saved before the optimizer"):
        model.optimizer.load_own_variables(entries)


# -- states ------------------------------------------------------------------------------------------


def test_states_that_nobody_asked_for_are_kept(lab):
    first, second, third = {}, {}, {}
    lab.trained("SGD-momentum", "float").optimizer.save_own_variables(first)
    middle = lab.compiled(lab.adopted(), built=True)
    middle.optimizer.load_own_variables(first)
    middle.optimizer.save_own_variables(second)
    assert second.keys() == first.keys()
    unbuilt = lab.compiled(lab.adopted())
    unbuilt.optimizer.load_own_variables(second)
    unbuilt.optimizer.save_own_variables(third)
    assert third.keys() == first.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(third[key], value)


def test_a_state_that_is_not_in_the_file_starts_afresh(lab):
    without, entries = {}, {}
    early = lab.compiled(lab.adopted())
    lab.train(early)
    early.optimizer.save_own_variables(without)
    model = lab.trained("SGD-momentum", "float")
    model.optimizer.save_own_variables(entries)
    model.optimizer.load_own_variables(without)
    assert lab.values(model.optimizer)[-1].tolist() == [np.inf, 0.0, 0.0]
    # The same where the state was loaded, and is not asked for until a second file is.
    held = lab.compiled(lab.adopted(), built=True)
    held.optimizer.load_own_variables(entries)
    held.optimizer.load_own_variables(without)
    assert lab.values(held.optimizer)[-1].tolist() == [np.inf, 0.0, 0.0]


def test_set_weights(lab, trained, kind):
    values = lab.values(trained(kind, "float").optimizer)
    model = lab.compiled(lab.adopted(kind), built=True)
    lab.values(model.optimizer)
    model.optimizer.set_weights(values)
    for value, expected in zip(lab.values(model.optimizer), values, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_set_weights_takes_a_plain_optimizers_or_refuses(lab):
    plain = lab.compiled(lab.plain())
    lab.train(plain, 3)
    model = lab.trained("SGD-momentum", "float")
    values, before = [v.numpy() for v in plain.optimizer.variables], lab.values(model.optimizer)
    with pytest.raises(StateError, match=r"7 variables, 4 of them Keras'. Received: 5 values"):
        model.optimizer.set_weights([*values, 1.0])
    with pytest.raises(StateError, match="has the shape"):
        model.optimizer.set_weights([*values[:-1], np.zeros(5)])
    for value, expected in zip(lab.values(model.optimizer), before, strict=True):
        np.testing.assert_array_equal(value, expected)
    model.optimizer.set_weights(values)
    assert (model.optimizer.samples_seen, model.optimizer.multiplier) == (3 * 4, 1.0)
    np.testing.assert_array_equal(lab.slots(model.optimizer)[0], values[2])


# -- loops without fit, two optimizers, compiling again ----------------------------------------------


def test_state_loaded_before_a_traced_first_step_is_assigned_once(lab):
    entries = {}
    saved = lab.trained("SGD-momentum", "float")
    saved.optimizer.save_own_variables(entries)
    model = lab.compiled(lab.adopted())
    model.set_weights(saved.get_weights())
    model.optimizer.load_own_variables(entries)
    step = tf.function(lambda: lab.train(model))
    for _ in range(3):
        step()
    lab.train(saved, 3)
    for value, expected in zip(lab.values(model.optimizer), lab.values(saved.optimizer), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_two_optimizers_in_one_script(lab, tmp_path):
    generator, critic = lab.adopted("Adam", "schedule"), lab.adopted("Adam", "float")
    first, second = lab.model(), lab.model()
    lab.train(first, 5, generator)
    lab.train(second, 2, critic)
    critic.multiply_rate(0.5)
    assert (generator.samples_seen, critic.samples_seen) == (41, 16)
    assert (generator.multiplier, critic.multiplier) == (1.0, 0.5)
    tracked = tf.train.Checkpoint(generator=generator, critic=critic).save(str(tmp_path / "checkpoint"))
    loaded = lab.adopted("Adam", "schedule"), lab.adopted("Adam", "float")
    tf.train.Checkpoint(generator=loaded[0], critic=loaded[1]).restore(tracked)
    for optimizer, model, expected in zip(loaded, (first, second), (generator, critic), strict=True):
        optimizer.build(model.trainable_variables)
        for value, other in zip(lab.values(optimizer), lab.values(expected), strict=True):
            np.testing.assert_array_equal(value, other)


def test_the_clock_goes_on_over_fits_and_compiles(lab):
    x, y = np.ones((40, 3), "float32"), np.ones((40, 2), "float32")
    model = lab.compiled(lab.adopted())
    model.fit(x, y, batch_size=8, verbose=0)
    model.optimizer.multiply_rate(0.5)
    model.fit(x, y, batch_size=8, verbose=0)
    model.compile(model.optimizer, "mae")
    model.fit(x, y, batch_size=8, verbose=0)
    assert model.optimizer.samples_seen == 3 * 41
    assert int(model.optimizer.iterations) == 15
    assert float(model.optimizer.learning_rate) == pytest.approx(0.1 * 2 * 0.5)
