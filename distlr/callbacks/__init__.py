"""Keras callbacks of a distributed job, one a file."""

from distlr.callbacks.audit import Audit
from distlr.callbacks.base import JobCallback
from distlr.callbacks.logger import LearningRateLogger
from distlr.callbacks.order import ordered
from distlr.callbacks.plateau import ReduceLROnPlateau
from distlr.callbacks.sync_statistics import SyncStatistics

__all__ = ["Audit", "JobCallback", "LearningRateLogger", "ReduceLROnPlateau", "SyncStatistics", "ordered"]
