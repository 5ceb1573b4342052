"""`distlr.elastic.run`: without an elastic launcher, and what an elastic job needs. The rest is in `distributed/`."""

from __future__ import annotations

import gc
import sys
import types
import weakref

import pytest
import tensorflow as tf

import distlr
from distlr._utils.directory_lock import DirectoryLock
from distlr.callbacks import Checkpoint
from distlr.communicators import SingleCommunicator
from distlr.communicators.horovod.communicator import HorovodCommunicator
from distlr.communicators.horovod.elastic import run_elastic
from distlr.errors import ConfigurationError, ConfigurationTypeError, DistributionError, RanksChanged
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


@pytest.fixture
def listeners(monkeypatch) -> list[object]:
    """A stand-in for Horovod that tells its listeners of other hosts while ranks form after a `shutdown`."""
    listeners: list[object] = []
    down = []

    def init() -> None:
        if down:
            down.clear()
            listeners[0].on_hosts_updated(0, 0)

    manager = types.SimpleNamespace(
        init=lambda: None, register_listener=listeners.append, remove_listener=listeners.remove
    )
    lost = type("HorovodInternalError", (RuntimeError,), {})
    single_rank = {"rank": lambda: 0, "size": lambda: 1, "local_rank": lambda: 0, "local_size": lambda: 1}
    modules = {
        "horovod": {},
        "horovod.common": {},
        "horovod.tensorflow": {"init": init, "shutdown": lambda: down.append(True), **single_rank},
        "horovod.common.elastic": {"notification_manager": manager},
        "horovod.common.exceptions": {"HorovodInternalError": lost},
    }
    for name, contents in modules.items():
        module = types.ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("HOROVOD_STALL_CHECK_TIME_SECONDS", "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"):
        monkeypatch.setenv(name, "60")
    return listeners


def test_a_timeout_of_horovods_that_is_no_number_is_named(listeners, monkeypatch) -> None:
    for value in ("10m", "nan", "-1"):
        monkeypatch.setenv("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", value)
        with pytest.raises(ConfigurationError, match=rf"`HOROVOD_STALL_SHUTDOWN_TIME_SECONDS` must be .*={value!r}"):
            HorovodCommunicator()


def test_a_notice_that_comes_while_new_ranks_form_is_kept(listeners) -> None:
    notices = []

    def train(communicator) -> str:
        notices.append(communicator.ranks_changed)
        if len(notices) == 1:
            raise RanksChanged("other ranks wait")
        return "done"

    assert run_elastic(train, timeout=60, resets=3) == "done"
    assert notices == [False, True]
    assert listeners == []


def test_an_old_notice_is_forgotten(listeners, monkeypatch) -> None:
    notices = []

    def train(communicator) -> None:
        notices.append(communicator.ranks_changed)
        if len(notices) == 1:
            listeners[0].on_hosts_updated(0, 0)
            raise RanksChanged("other ranks wait")

    monkeypatch.setattr(sys.modules["horovod.tensorflow"], "init", lambda: None)
    run_elastic(train, timeout=60, resets=3)
    assert notices == [False, False]


def test_what_a_lost_generation_had_made_is_let_go(listeners) -> None:
    class Model:
        """Something large."""

    models: list[weakref.ref[Model]] = []
    left = []

    def train(communicator) -> None:
        gc.collect()
        left.append([model() for model in models])
        model = Model()
        models.append(weakref.ref(model))
        if len(models) == 1:
            raise RanksChanged("other ranks wait")

    run_elastic(train, timeout=60, resets=3)
    assert left == [[], [None]]


def test_too_many_generations_end_with_the_last_ones_reason(listeners) -> None:
    def train(communicator) -> None:
        raise RanksChanged("other ranks wait")

    message = r"changed 2 times, and the limit is 1\. The last time: RanksChanged: other ranks wait"
    with pytest.raises(DistributionError, match=message):
        run_elastic(train, timeout=60, resets=1)


def test_directories_are_free_for_the_next_generation_whatever_is_left_of_the_last(
    listeners, monkeypatch, tmp_path
) -> None:
    """Its rank 0 may be another process, which would wait for this one."""
    monkeypatch.setenv("HOROVOD_ELASTIC", "1")
    monkeypatch.setattr(distlr.elastic, "pin_gpu", lambda *where: None)
    locks, files = [DirectoryLock(tmp_path, name) for name in "abc"], []

    def train(job):
        files.append(sorted(path.name for path in tmp_path.iterdir()))
        locks[len(files) - 1].acquire()
        if len(files) < 3:
            raise RanksChanged("others wait to join")
        return "done"

    assert distlr.elastic.run(train) == "done"
    assert files == [[], [], []]
    assert list(tmp_path.iterdir()) == []
