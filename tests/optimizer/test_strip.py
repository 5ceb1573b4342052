"""Giving back the plain Keras optimizer, so that what is saved needs no distlr."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr
from distlr.errors import StateError
from distlr.optimizer import adopt, is_adopted, make_loss_scale_agree, unwrap_loss_scale
from distlr.schedules import Constant

ROOT = Path(__file__).parents[2]

# Loads each model first with distlr hidden, then with it, and compares the optimizer's variables.
NEW_PROCESS = """
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "distlr":
            raise ImportError("distlr is hidden")

hide = Hide()
sys.meta_path.insert(0, hide)
try:
    import distlr
except ImportError:
    pass
else:
    raise AssertionError("distlr can be imported")
import keras, numpy as np
state, root, folder, *names = sys.argv[1:]

def load(name):
    model = keras.saving.load_model(f"{folder}/{name}.keras")
    if not name.startswith("plain"):
        distlr.optimizer.unwrap_loss_scale(model.optimizer).distlr.state(state, [np.inf, 0.0, 0.0])
    found = [*[variable.numpy() for variable in model.optimizer.variables], float(model.optimizer.learning_rate)]
    with np.load(f"{folder}/{name}.npz") as expected:
        assert len(found) == len(expected), name
        for i, value in enumerate(found):
            np.testing.assert_array_equal(value, expected[f"arr_{i}"], err_msg=name)
    return model

for name in names:
    model = load("plain " + name)
    if name == "LossScaleOptimizer-schedule":
        x, before = np.ones((8, 3), "float32"), int(model.optimizer.iterations)
        losses = model.fit(x, x[:, :2], epochs=2, verbose=0).history["loss"]
        assert losses[1] < losses[0] and int(model.optimizer.iterations) == before + 2
assert not any(module.split(".")[0] == "distlr" for module in sys.modules)
sys.meta_path.remove(hide)
sys.path.insert(0, root)
import distlr.optimizer
for name in names:
    load(name)
print("loaded:", len(names))
"""


@pytest.mark.processes
def test_every_optimizer_loads_in_a_new_process_and_stripped_without_distlr(lab, tmp_path):
    def save(model, name):
        model.save(tmp_path / f"{name}.keras")
        values = [variable.numpy() for variable in model.optimizer.variables]
        np.savez(tmp_path / f"{name}.npz", *values, float(model.optimizer.learning_rate))

    for kind, rate in lab.pairs:
        model = lab.trained(kind, rate)
        save(model, f"{kind}-{rate}")
        slots, plain = lab.slots(model.optimizer), lab.plain(kind, rate)
        assert distlr.strip(model) is model
        assert (type(model.optimizer), type(unwrap_loss_scale(model.optimizer))) == (
            type(plain),
            type(unwrap_loss_scale(plain)),
        )
        for value, expected in zip(lab.slots(model.optimizer), slots, strict=True):
            np.testing.assert_array_equal(value, expected)
        save(model, f"plain {kind}-{rate}")
    names = [f"{kind}-{rate}" for kind, rate in lab.pairs]
    out = run_python(NEW_PROCESS, lab.state_name, ROOT, tmp_path, *names, cwd=tmp_path)
    assert out == f"loaded: {len(names)}\n"


def run_python(code, *arguments, cwd, timeout=100):
    """Runs code that does not see this checkout, in a process group of its own, which ends with the test."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 0, err[-3000:]
    return out


def test_the_rate_goes_on_as_documented(lab):
    # A float: the rate at this moment, with the factor (2), the warmup (from 1/2 on, 2 epochs) and the cut (1/2).
    model = lab.trained("SGD-momentum", "float")
    warmup = 0.5 + 0.5 * 16 / 82
    distlr.strip(model)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.07 * 2 * warmup * 0.5, rel=1e-6)
    assert int(model.optimizer.iterations) == 16 // 4
    # A schedule: the user's own, at the base batch, at the base step where the clock stood.
    model = lab.trained("SGD-momentum", "schedule")
    schedule = model.optimizer._learning_rate
    distlr.strip(model)
    assert model.optimizer._learning_rate is schedule
    assert int(model.optimizer.iterations) == 4
    assert float(model.optimizer.learning_rate) == pytest.approx(0.05 * (1 + np.cos(np.pi * 4 / 50)), rel=1e-6)
    # Accumulation: Keras counts steps, of which an update takes several; in Keras' own time nothing is converted.
    model = lab.trained("SGD-momentum", "schedule", gradient_accumulation_steps=2)
    samples = model.optimizer.samples_seen
    distlr.strip(model)
    assert samples == 32
    assert int(model.optimizer._iterations) == 32 // 8 * 2
    model = lab.compiled(adopt(lab.plain(), lab.batch(), scaling={"clock": "steps"}))
    lab.train(model, 3)
    assert int(distlr.strip(model).optimizer.iterations) == 3


def test_it_trains_on_and_can_be_adopted_again(lab):
    model = lab.trained("SGD-momentum", "schedule")
    x = np.ones((8, 3), "float32")
    model.fit(x, x[:, :2] * 0, verbose=0)  # traced with distlr's rate
    samples, velocity = model.optimizer.samples_seen, lab.slots(model.optimizer)[1]
    distlr.strip(model)
    assert not is_adopted(model.optimizer)
    assert not [name for name in vars(model.optimizer) if "distlr" in name]
    # The step is traced anew, with the plain rate: the loss has a gradient of 1 for each bias.
    weights, rate = model.get_weights(), float(model.optimizer.learning_rate)
    model.fit(x, model.predict(x, verbose=0) - 1, verbose=0)
    moved = model.get_weights()[1] - weights[1]
    np.testing.assert_allclose(moved, 0.9 * velocity - rate, rtol=1e-4)
    adopted = adopt(model.optimizer, lab.batch())
    assert adopted.samples_seen == (samples // 4 + 1) * 4


def test_its_tensorflow_checkpoint_is_the_plain_ones(lab, tmp_path):
    model = lab.trained("Adam", "float")
    distlr.strip(model)
    path = tf.train.Checkpoint(optimizer=model.optimizer).save(str(tmp_path / "checkpoint"))
    assert not [name for name, _ in tf.train.list_variables(path) if "distlr" in name]
    plain = lab.compiled(lab.plain("Adam"), built=True)
    tf.train.Checkpoint(optimizer=plain.optimizer).restore(path).assert_consumed()
    for value, expected in zip(lab.slots(plain.optimizer), lab.slots(model.optimizer), strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.usefixtures("mixed_float16")
@pytest.mark.parametrize("adopted", [True, False], ids=["adopted", "plain"])
def test_a_wrapper_that_was_made_to_agree_is_keras_again(lab, adopted):
    model = lab.compiled(lab.adopted() if adopted else lab.plain(), built=True)
    make_loss_scale_agree(model.optimizer)  # as job.callbacks does
    distlr.strip(model)
    assert type(model.optimizer) is keras.optimizers.LossScaleOptimizer
    assert type(unwrap_loss_scale(model.optimizer)) is keras.optimizers.SGD
    assert not [name for name in vars(unwrap_loss_scale(model.optimizer)) if "distlr" in name]


def test_what_was_loaded_and_not_built_is_not_lost(lab, tmp_path):
    saved = lab.trained("SGD-momentum", "float")
    saved.save_weights(tmp_path / "saved.weights.h5")
    model = lab.compiled(lab.adopted())
    model.load_weights(tmp_path / "saved.weights.h5")
    with pytest.raises(StateError, match="is not built"):
        distlr.strip(model.optimizer)
    distlr.strip(model)
    np.testing.assert_array_equal(lab.slots(model.optimizer)[0], lab.slots(saved.optimizer)[0])


def test_a_plain_model_is_left_alone_and_an_own_schedule_is_announced(lab, caplog):
    model = lab.compiled(lab.plain())
    assert distlr.strip(model) is model
    assert type(model.optimizer) is keras.optimizers.SGD
    optimizer = adopt(keras.optimizers.SGD(Constant(0.1)))
    with caplog.at_level(logging.WARNING, "distlr"):
        assert distlr.strip(optimizer) is optimizer
    assert "loading still needs distlr" in caplog.text
