"""Keras callbacks of a distributed job, one a file."""

import distlr._utils.keras_setup  # noqa: F401  (checks the installation first)
from distlr._utils.renamed import aliases
from distlr.callbacks.broadcast import BroadcastState
from distlr.callbacks.check_metrics import CheckMetrics
from distlr.callbacks.checkpoint import Checkpoint
from distlr.callbacks.data_position_sync import DataPositionSync
from distlr.callbacks.guard import ReplicaGuard
from distlr.callbacks.job_callback import JobCallback
from distlr.callbacks.logger import LearningRateLogger
from distlr.callbacks.manual_control import ManualControl
from distlr.callbacks.non_finite_guard import NonFiniteGuard
from distlr.callbacks.plateau import ReduceLROnPlateau
from distlr.callbacks.preflight_check import PreflightCheck
from distlr.callbacks.run_recorder import RunRecorder
from distlr.callbacks.sync_metrics import SyncMetrics
from distlr.callbacks.sync_statistics import SyncStatistics
from distlr.callbacks.tensorboard_scalars import TensorBoardScalars

__all__ = [
    "BroadcastState",
    "CheckMetrics",
    "Checkpoint",
    "DataPositionSync",
    "JobCallback",
    "LearningRateLogger",
    "ManualControl",
    "NonFiniteGuard",
    "PreflightCheck",
    "ReduceLROnPlateau",
    "ReplicaGuard",
    "RunRecorder",
    "SyncMetrics",
    "SyncStatistics",
    "TensorBoardScalars",
]

__getattr__ = aliases(
    __name__,
    {
        "Audit": "PreflightCheck",
        "BadNumbers": "NonFiniteGuard",
        "FollowEpochs": "DataPositionSync",
        "Record": "RunRecorder",
        "Scalars": "TensorBoardScalars",
        "Steering": "ManualControl",
    },
)
