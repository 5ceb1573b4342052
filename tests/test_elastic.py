"""`distlr.elastic.run`: without an elastic launcher, and what an elastic job needs. The rest is in `distributed/`."""

from __future__ import annotations

import pytest
import tensorflow as tf

import distlr
from distlr.callbacks import Checkpoint
from distlr.communicators import SingleCommunicator
from distlr.errors import ConfigurationError, ConfigurationTypeError
from distlr.job import Job


def test_without_an_elastic_launcher_it_is_one_call(monkeypatch) -> None:
    monkeypatch.delenv("HOROVOD_ELASTIC", raising=False)
    jobs = []
    assert distlr.elastic.run(lambda job: jobs.append(job) or 7) == 7
    assert [(job.backend, job.size) for job in jobs] == [("local", 1)]
    with pytest.raises(ZeroDivisionError):
        distlr.elastic.run(lambda job: 1 / 0)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigurationTypeError, match="`train` must be a function of the job"):
        distlr.elastic.run("train.py")
    with pytest.raises(ConfigurationError, match="`resets` must be at least 1"):
        distlr.elastic.run(lambda job: None, resets=0)


def test_an_elastic_job_needs_a_checkpoint(tmp_path) -> None:
    class Elastic(SingleCommunicator):
        may_lose_ranks = True

    job = Job(tf.distribute.get_strategy(), "horovod", Elastic())
    with pytest.raises(ConfigurationError, match="In an elastic job the training begins anew whenever"):
        job.callbacks()
    assert any(isinstance(callback, Checkpoint) for callback in job.callbacks([Checkpoint(tmp_path)]))
