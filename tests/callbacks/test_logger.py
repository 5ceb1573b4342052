"""The rate in the logs and in History."""

from __future__ import annotations

import numpy as np

from distlr.callbacks import ReduceLROnPlateau


def _fitted(rate_bench, adopted=True, epochs=3):
    bench = rate_bench.Bench(1)
    batch = bench.batch(4, 2, samples_per_epoch=9)
    if adopted:
        bench.adopt(batch)
    bench.compile()
    plateau = ReduceLROnPlateau("val_loss", factor=0.5, patience=1)
    callbacks = bench.job.callbacks([rate_bench.Overwrite([1.0] * 3), plateau])
    return bench, bench.fit(bench.job.shard(rate_bench.samples(9), batch), epochs, callbacks).history


def test_history_says_what_was_applied(rate_bench) -> None:
    bench, history = _fitted(rate_bench)
    np.testing.assert_allclose(history["learning_rate"], bench.rates()[1::2], rtol=1e-6)
    assert history["lr_multiplier"] == [1.0, 1.0, 0.5]
    assert history["samples_seen"] == [9, 18, 27]


def test_a_plain_optimizer_has_its_rate_alone(rate_bench) -> None:
    bench, history = _fitted(rate_bench, adopted=False)
    np.testing.assert_allclose(history["learning_rate"], bench.rates()[1::2], rtol=1e-6)
    assert "lr_multiplier" not in history
