"""How large is an update, and what time is it? No TensorFlow."""

from distlr.batch.duration import Duration
from distlr.batch.global_batch import HOW_TO_MAKE, GlobalBatch, check_batch

__all__ = ["HOW_TO_MAKE", "Duration", "GlobalBatch", "check_batch"]
