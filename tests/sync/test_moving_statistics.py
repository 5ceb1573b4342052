"""Moving statistics beside other arrays, in one collective."""

from __future__ import annotations

import keras
import numpy as np

from distlr.communicators.bundles import Bundle
from distlr.sync.moving_statistics import exchange_with_statistics
from distlr.testing import run_ranks


def test_they_become_their_mean_and_the_rest_comes_back_by_rank() -> None:
    def rank(comm):
        model = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])
        model.layers[0].moving_mean.assign([comm.rank, 4.0])
        bundle_of_rank = Bundle({"count": np.array(comm.rank)}, note=f"rank {comm.rank}")
        bundles = exchange_with_statistics(comm, model, bundle_of_rank, tag="t")
        received = [(bundle.note, {name: array.item() for name, array in bundle.arrays.items()}) for bundle in bundles]
        return received, model.layers[0].moving_mean.numpy().tolist(), comm.log.total

    all_ranks = [("rank 0", {"count": 0}), ("rank 1", {"count": 1})]
    assert run_ranks(rank, 2, timeout=20) == [(all_ranks, [0.5, 4.0], 1)] * 2
