"""A plain Keras optimizer's files load into distlr's, and a schedule's into a float rate's."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from distlr.optimizer import adopt, unwrap_loss_scale


def test_a_plain_optimizers_checkpoint_loads(lab, tmp_path, kind, rate):
    saved = lab.compiled(lab.plain(kind, rate))
    lab.train(saved, 4)
    if rate == "float":
        saved.optimizer.learning_rate = 0.02  # cut in the plain run
    slots = lab.slots(saved.optimizer)
    saved.save_weights(tmp_path / "plain.weights.h5")
    tracked = tf.train.Checkpoint(model=saved, optimizer=saved.optimizer).save(str(tmp_path / "checkpoint"))
    target = lab.model()
    for built in (False, True):
        for how in ("weights", "checkpoint"):
            if kind not in lab.fully and (built == (how == "weights")) == (rate == "float"):
                continue
            model = lab.compiled(lab.adopted(kind, rate), built=built, model=target)
            if how == "weights":
                model.load_weights(tmp_path / "plain.weights.h5")
            else:
                tf.train.Checkpoint(model=model, optimizer=model.optimizer).restore(tracked)
            model.optimizer.build(model.trainable_variables)
            optimizer = unwrap_loss_scale(model.optimizer)
            assert int(optimizer.iterations) == 4
            assert (optimizer.samples_seen, optimizer.multiplier) == (4 * 4, 1.0)
            for value, expected in zip(lab.slots(optimizer), slots, strict=True):
                np.testing.assert_array_equal(value, expected, err_msg=f"{how}, built={built}")
            warmup = 0.5 + 0.5 * (16 / 82)  # from the base rate to twice that, over 2 epochs of 41 samples
            base = 0.02 if rate == "float" else 0.1 * 0.5 * (1 + np.cos(np.pi * 4 / 50))
            assert float(optimizer.learning_rate) == pytest.approx(base * 2 * warmup, rel=1e-6)
            if kind == "LossScaleOptimizer":
                assert float(model.optimizer.dynamic_scale) == float(saved.optimizer.dynamic_scale) == 32.0
            lab.train(model)
            assert optimizer.samples_seen == 24


def test_a_scalar_slot_is_not_taken_for_the_rate(lab, tmp_path):
    def compiled(optimizer):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Rescaling(1.0), Scale()])
        model.compile(optimizer, "mse")
        return model

    class Scale(keras.layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(), initializer="ones")

        def call(self, inputs):
            return inputs * self.scale

    for rate in ("float", "schedule"):
        saved = compiled(lab.plain("Adam", rate))
        saved.optimizer.apply([tf.constant(0.5)], saved.trainable_variables)
        saved.save_weights(tmp_path / "plain.weights.h5")
        for target in ("float", "schedule"):
            for built in (False, True):
                model = compiled(lab.adopted("Adam", target))
                if built:
                    model.optimizer.build(model.trainable_variables)
                model.load_weights(tmp_path / "plain.weights.h5")
                model.optimizer.build(model.trainable_variables)
                assert lab.slots(model.optimizer) == lab.slots(saved.optimizer)
                if target == "float":
                    assert float(model.optimizer._learning_rate) == np.float32(0.1)


@pytest.mark.parametrize("target", ["float", "schedule"])
def test_a_float_rate_and_a_schedule_exchange_their_slots(lab, tmp_path, rate, target):
    saved = lab.trained("Adam", rate)
    saved.save_weights(tmp_path / "saved.weights.h5")
    model = lab.compiled(lab.adopted("Adam", target))
    model.load_weights(tmp_path / "saved.weights.h5")
    model.optimizer.build(model.trainable_variables)
    for value, expected in zip(lab.slots(model.optimizer), lab.slots(saved.optimizer), strict=True):
        np.testing.assert_array_equal(value, expected)
    assert (model.optimizer.samples_seen, model.optimizer.multiplier) == (16, 0.5)


def test_adopting_a_used_optimizer_derives_its_clock(lab):
    plain = lab.plain()
    model = lab.compiled(plain)
    lab.train(model, 4)
    slots = lab.slots(plain)
    adopted = adopt(plain, lab.batch())
    assert adopted.samples_seen == 16
    np.testing.assert_array_equal(lab.slots(adopted)[0], slots[0])
    lab.train(model)
    assert adopted.samples_seen == 24
