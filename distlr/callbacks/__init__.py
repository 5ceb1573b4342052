"""Keras callbacks of a distributed job, one a file."""

import distlr._utils.keras_setup  # noqa: F401  (checks the installation first)
from distlr.callbacks.audit import Audit
from distlr.callbacks.bad_numbers import BadNumbers
from distlr.callbacks.broadcast import BroadcastState
from distlr.callbacks.check_metrics import CheckMetrics
from distlr.callbacks.checkpoint import Checkpoint
from distlr.callbacks.follow import FollowEpochs
from distlr.callbacks.guard import ReplicaGuard
from distlr.callbacks.job_callback import JobCallback
from distlr.callbacks.logger import LearningRateLogger
from distlr.callbacks.plateau import ReduceLROnPlateau
from distlr.callbacks.record import Record
from distlr.callbacks.scalars import Scalars
from distlr.callbacks.steering import Steering
from distlr.callbacks.sync_metrics import SyncMetrics
from distlr.callbacks.sync_statistics import SyncStatistics

__all__ = [
    "Audit",
    "BadNumbers",
    "BroadcastState",
    "CheckMetrics",
    "Checkpoint",
    "FollowEpochs",
    "JobCallback",
    "LearningRateLogger",
    "Record",
    "ReduceLROnPlateau",
    "ReplicaGuard",
    "Scalars",
    "Steering",
    "SyncMetrics",
    "SyncStatistics",
]
