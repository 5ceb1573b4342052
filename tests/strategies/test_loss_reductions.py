"""Reductions of a loss whose gradient on several replicas is not one device's: which are named, and by how much."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import distlr
from distlr.strategies.loss_reductions import reduction_warnings

pytestmark = pytest.mark.replicas

L = keras.losses.MeanSquaredError


@pytest.mark.parametrize(
    ("loss", "ranks", "factor", "expected"),
    [
        ("mse", 4, 8, []),
        (L(), 4, 8, []),
        ({"a": L(reduction="mean"), "b": None}, 4, 8, []),
        (L(reduction="mean_with_sample_weight"), 1, 1, ["divides by the weights of its own samples"]),
        (L(reduction="sum"), 4, 8, ["is 1/4 of one device's"]),
        (L(reduction="sum"), 1, 8, ["grows with the batch by itself, and the rate is scaled by 8"]),
        (L(reduction="sum"), 1, 1, []),
        ([L(reduction=None), "mse", L(reduction="none")], 2, 1, ["reduction=None", "reduction='none'"]),
    ],
)
def test_the_warnings(loss, ranks, factor, expected) -> None:
    warnings = reduction_warnings(loss, ranks, factor)
    assert len(warnings) == len(expected)
    assert all(words in warning for words, warning in zip(expected, warnings, strict=True))


X = np.arange(1.0, 9.0, dtype="float32").reshape(8, 1)
W = np.array([1, 1, 2, 2, 4, 4, 0.5, 0.5], "float32")


def moved(job, reduction, weights) -> float:
    """By how much one step on all samples moves the only weight, from 0 towards targets of 1."""
    with job.scope():
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="zeros", use_bias=False)])
        model.compile(job.optimizer(keras.optimizers.SGD(0.01)), L(reduction=reduction))
    parts = (X, np.ones_like(X)) if weights is None else (X, np.ones_like(X), weights)
    data = job.shard(parts, job.batch(total=8, base_batch=8), shuffle=False, seed=0)
    model.fit(data, verbose=0, shuffle=False)
    return float(model.weights[0].numpy()[0, 0])


@pytest.mark.parametrize("weights", [None, W], ids=["plain", "weighted"])
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean", "sum", "none", "mean_with_sample_weight"])
def test_the_gradient_of_one_device_and_of_four_replicas(four_cpus, reduction, weights) -> None:
    gradients = 2 * X[:, 0] * (1.0 if weights is None else weights)  # of each sample's loss, the error being 1
    over = {"sum": 1, "none": 1, "mean_with_sample_weight": 8 if weights is None else weights.sum()}.get(reduction, 8)
    assert moved(distlr.init(environ={}), reduction, weights) == pytest.approx(0.01 * gradients.sum() / over, rel=1e-5)
    expected = gradients.sum() / over
    if reduction == "mean_with_sample_weight" and weights is not None:  # the mean of four means, as the warning says
        expected = np.mean(gradients.reshape(4, 2).sum(axis=1) / weights.reshape(4, 2).sum(axis=1))
    replicas = moved(distlr.init(simulate=4, environ={}), reduction, weights)
    assert replicas == pytest.approx(0.01 * expected, rel=1e-5)
