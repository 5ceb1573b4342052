"""Files that an earlier version wrote load into this one, and training goes on where it was (`saved_run.py`)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr.optimizer  # noqa: F401  (Keras finds the class of a saved optimizer)

HERE = Path(__file__).parent
KINDS = ("momentum", "loss scale")


@pytest.fixture(scope="module")
def run(load_helper):
    return load_helper(HERE / "saved_run.py")


def expected(run, kind):
    return json.loads((run.folder(kind) / "expected.json").read_text("utf-8"))


def assert_state(state, other):
    for name in ("samples_seen", "multiplier", "iterations"):
        assert state[name] == other[name], name
    assert state["learning_rate"] == pytest.approx(other["learning_rate"], rel=1e-6)
    for name in ("weights", "slots"):
        for value, saved in zip(state[name], other[name], strict=True):
            np.testing.assert_allclose(value, saved, rtol=2e-5, atol=1e-7, err_msg=name)


def load(run, kind, how):
    """A model, compiled with its optimizer, that one of the files was read into."""
    where = run.folder(kind)
    if how == "model.keras":
        return keras.saving.load_model(where / how)
    model, _, _ = run.parts(kind)
    if how == "model.weights.h5":
        model.load_weights(where / how)
    else:
        tf.train.Checkpoint(model=model, optimizer=model.optimizer).restore(str(where / how)).assert_nontrivial_match()
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.mark.parametrize("how", ["model.keras", "model.weights.h5", "tracked"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_saved_by_an_earlier_version_is_the_same(run, kind, how):
    assert_state(run.state(load(run, kind, how)), expected(run, kind)["saved"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_from_the_checkpoint_of_an_earlier_version(run, kind, tmp_path):
    shutil.copytree(run.folder(kind) / "checkpoints", tmp_path / "checkpoints")
    model, job, batch = run.parts(kind)
    run.train(model, job, batch, run.EPOCHS + 1, tmp_path / "checkpoints")
    assert_state(run.state(model), expected(run, kind)["after_one_more_epoch"])
