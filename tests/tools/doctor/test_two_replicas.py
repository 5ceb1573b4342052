"""Whether a script's own loss is one that replicas may add up, measured on one update of one replica and of two."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from distlr.tools.doctor import two_replicas
from distlr.tools.doctor.processes import Ended

SCRIPT = """
import keras
import numpy as np
import tensorflow as tf

import beside  # as the script's own folder is on the path where it is run


class Net(keras.Model):
    def __init__(self):
        super().__init__()
        self.norm, self.dense = keras.layers.BatchNormalization(), keras.layers.Dense(1)

    def call(self, x, training=False):
        return self.dense(self.norm(x, training=training))

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            prediction = self(x, training=True)
            loss = LOSS
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables))
        return {"loss": loss}


def setup(the_job):
    global job, batch
    job = the_job
    batch = job.batch(SIZE, base_batch=4, samples_per_epoch=64)
    with job.scope():
        model = Net()
        model.compile(job.optimizer(keras.optimizers.Adam(0.1), batch))
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    return model, job.shard((x, x.sum(axis=1, keepdims=True)), batch, seed=0)
"""
MEAN = "tf.reduce_mean((prediction - y) ** 2)"
LOSSES = {
    MEAN: 2,
    "job.mean_loss((prediction - y) ** 2, batch)": 1,
    "keras.losses.MeanSquaredError()(y, prediction)": 1,
}


def written(folder: Path, loss: str, size: str = "per_replica=8") -> Path:
    (folder / "beside.py").touch()
    path = folder / "a_script.py"
    path.write_text(SCRIPT.replace("LOSS", loss).replace("SIZE", size))
    return path


@pytest.mark.replicas
@pytest.mark.parametrize("size", ["per_replica=8", "total=16"])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_update_of_two_replicas_is_measured(tmp_path, monkeypatch, four_cpus, loss, size) -> None:
    """Neither batch normalization, whose statistics are each replica's own, nor an adaptive optimizer hides it."""
    from distlr.tools.doctor import splitting

    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", [*sys.argv])
    monkeypatch.setattr(sys, "modules", {**sys.modules})
    result = splitting._compared(written(tmp_path, loss, size))
    assert result["factor"] == pytest.approx(LOSSES[loss], rel=1e-5)
    assert result["left"] < 1e-5
    assert not result["noisy"]


@pytest.mark.processes
def test_a_mean_loss_is_found_by_a_process_that_ends(tmp_path) -> None:
    finding = two_replicas.check(written(tmp_path, MEAN), os.environ)
    assert finding.status == "error", finding
    assert "2 times that on one replica" in finding.found
    assert "job.mean_loss(losses, batch)" in finding.to_do


@pytest.mark.parametrize("text", ["", "def other(job): ...", "class A:\n    def setup(self): ...", "if x:", "x = \0"])
def test_a_script_without_setup_is_not_run(tmp_path, text) -> None:
    path = tmp_path / "train.py"
    path.write_text(text)
    assert not two_replicas.has_setup(path)
    path.write_text("def setup(job): ...")
    assert two_replicas.has_setup(path)


def measured(factor: float, left: float = 1e-7, noisy: bool = False) -> dict[str, object]:
    return {"replicas": 2, "factor": factor, "left": left, "noisy": noisy}


@pytest.mark.parametrize(
    ("result", "status", "words"),
    [
        (measured(1.00001), "OK", "It is that on one replica, of the same samples."),
        (measured(2.0), "error", "2 times that on one replica"),
        (measured(2.0, left=0.3), "warning", "It is not that on one replica"),
        (measured(1.0, left=0.3), "warning", "It is not that on one replica"),
        (measured(0.5), "warning", "it is 0.5 times it"),
        (measured(float("nan"), left=float("nan")), "warning", "It is not that"),
        (measured(1.1, left=0.5, noisy=True), "OK", "random numbers"),
        (measured(1.9, left=0.5, noisy=True), "error", "1.9 times that on one replica"),
        (measured(1.4, left=0.5, noisy=True), "warning", "nothing can be said"),
        ({"error": "TypeError: setup() takes 0"}, "warning", "could not be made by its setup(job): TypeError: setup()"),
        ({}, "warning", "did not end in time"),
        (
            {"refused": "A loss is none for replicas. Fix: write job.mean_loss."},
            "error",
            "A loss is none for replicas.",
        ),
    ],
)
def test_the_finding_on_an_update(result, status, words) -> None:
    finding = two_replicas.compared("train.py", result, Ended(None, "", ""))
    assert (finding.name, finding.status) == ("train.py: one update on two replicas", status)
    assert words in finding.found
    assert bool(finding.to_do) == (status != "OK")
