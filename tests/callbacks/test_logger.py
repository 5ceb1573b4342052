"""The rate in the logs, in History and in the run directory."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

import distlr
from distlr.callbacks import LearningRateLogger, ReduceLROnPlateau


def _fitted(recording, tmp_path, adopted=True, epochs=3):
    bench = recording.Bench(1)
    batch = bench.batch(4, 2, samples_per_epoch=9)
    if adopted:
        bench.adopt(batch)
    bench.compile()
    plateau = ReduceLROnPlateau("val_loss", factor=0.5, patience=1)
    callbacks = bench.job.callbacks([recording.Overwrite([1.0] * 3), plateau, LearningRateLogger(tmp_path / "a" / "b")])
    return bench, bench.fit(bench.job.shard(recording.samples(9), batch), epochs, callbacks).history


def test_history_and_file_say_what_was_applied(recording, tmp_path) -> None:
    bench, history = _fitted(recording, tmp_path)
    applied = bench.rates()
    np.testing.assert_allclose(history["learning_rate"], applied[1::2], rtol=1e-6)
    assert history["lr_multiplier"] == [1.0, 1.0, 0.5]
    assert history["samples_seen"] == [9, 18, 27]
    lines = (tmp_path / "a" / "b" / LearningRateLogger.FILE).read_text().splitlines()
    names = ("learning_rate", "lr_multiplier", "samples_seen")
    expected = [{"epoch": epoch, **{name: history[name][epoch] for name in names}} for epoch in range(3)]
    assert [json.loads(line) for line in lines] == expected


def test_a_plain_optimizer_has_its_rate_alone(recording, tmp_path) -> None:
    bench, history = _fitted(recording, tmp_path, adopted=False)
    np.testing.assert_allclose(history["learning_rate"], bench.rates()[1::2], rtol=1e-6)
    assert "lr_multiplier" not in history


def test_a_second_fit_appends(recording, tmp_path) -> None:
    bench, _ = _fitted(recording, tmp_path, epochs=1)
    logger = LearningRateLogger(tmp_path / "a" / "b")
    logger.set_model(bench.model)
    logger.on_train_begin()
    logger.on_epoch_end(1)
    lines = (tmp_path / "a" / "b" / LearningRateLogger.FILE).read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1]


def test_a_run_that_is_continued_takes_back_what_it_trains_again(recording, tmp_path) -> None:
    file = tmp_path / LearningRateLogger.FILE
    file.write_text("".join(json.dumps({"epoch": epoch}) + "\n" for epoch in (0, 1, 0, 1, 2, 3)))
    logger = LearningRateLogger(tmp_path)
    logger.set_model(SimpleNamespace(optimizer=recording.Bench(1).adopt()))
    logger.on_train_begin()
    for epoch in (2, 3):
        logger.on_epoch_begin(epoch)
        logger.on_epoch_end(epoch)
    assert [json.loads(line)["epoch"] for line in file.read_text().splitlines()] == [0, 1, 0, 1, 2, 3]
    assert "learning_rate" in file.read_text().splitlines()[-2]


def test_rank_0_alone_writes(recording, tmp_path) -> None:
    optimizer = recording.Bench(1).adopt()

    def rank(comm):
        logger = LearningRateLogger(tmp_path / str(comm.rank))
        logger.bind(comm)
        logger.set_model(SimpleNamespace(optimizer=optimizer))
        logger.on_train_begin()
        logs = {}
        logger.on_epoch_end(0, logs)
        return logs

    logs = distlr.communicators.run_ranks(rank, 3, timeout=5)
    assert logs == [{"learning_rate": pytest.approx(0.1), "lr_multiplier": 1.0, "samples_seen": 0}] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


def test_the_job_adds_one_logger_and_no_second(recording) -> None:
    job = recording.Bench(1).job
    own = LearningRateLogger()
    assert [c for c in job.callbacks([own]) if isinstance(c, LearningRateLogger)] == [own]
    assert sum(isinstance(c, LearningRateLogger) for c in job.callbacks()) == 1
