"""Pure schedules: functions of time in base steps, computed in float64. They know no rank and no optimizer."""

from distlr.schedules.base import Schedule
from distlr.schedules.constant import Constant
from distlr.schedules.per_epoch import PerEpoch
from distlr.schedules.scaled import Scaled, scale
from distlr.schedules.warmup import Warmup

__all__ = ["Constant", "PerEpoch", "Scaled", "Schedule", "Warmup", "scale"]
