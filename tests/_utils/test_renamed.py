"""Old public names are aliases that warn, and give what has the new name."""

from __future__ import annotations

import importlib

import pytest

import distlr

RENAMED = [
    ("distlr.callbacks", "Audit", "PreflightCheck"),
    ("distlr.callbacks", "BadNumbers", "NonFiniteGuard"),
    ("distlr.callbacks", "FollowEpochs", "DataPositionSync"),
    ("distlr.callbacks", "Record", "RunRecorder"),
    ("distlr.callbacks", "Scalars", "TensorBoardScalars"),
    ("distlr.callbacks", "Steering", "ManualControl"),
    ("distlr.communicators", "Launch", "LauncherInfo"),
    ("distlr.communicators", "alone", "single_process_communicator"),
    ("distlr.communicators.rank_zero", "from_root", "compute_on_root"),
    ("distlr.optimizer", "ScaledOptimizer", "AdoptedOptimizer"),
    ("distlr.optimizer", "inner", "unwrap_loss_scale"),
    ("distlr.schedules", "Scale", "Multiply"),
    ("distlr.schedules", "Scaled", "GlobalBatchSchedule"),
]


@pytest.mark.parametrize(("module", "old", "new"), RENAMED)
def test_an_old_name_warns_and_gives_the_new_one(module, old, new):
    namespace = importlib.import_module(module)
    with pytest.warns(DeprecationWarning, match=rf"{old} is called {module}\.{new} now") as warned:
        value = getattr(namespace, old)
    assert value is getattr(namespace, new)
    assert warned[0].filename == __file__


def test_the_old_name_of_the_local_batch_warns_and_gives_it():
    batch = distlr.GlobalBatch(64, replicas=8, base_batch=256, local_replicas=4)
    with pytest.warns(DeprecationWarning, match=r"GlobalBatch\.feed is called GlobalBatch\.local_batch now") as warned:
        assert batch.feed == batch.local_batch == 256
    assert warned[0].filename == __file__


def test_a_name_that_never_was_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'distlr\.callbacks' has no attribute 'Nothing'"):
        importlib.import_module("distlr.callbacks").Nothing  # noqa: B018
