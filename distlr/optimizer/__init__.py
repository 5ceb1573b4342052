"""The one place that extends a Keras optimizer."""

import distlr._utils.keras_setup  # noqa: F401  (checks the installation first)
from distlr.optimizer.access import (
    adopted_by,
    averages,
    batch_of,
    inner,
    is_adopted,
    rate_of,
    samples_of,
    schedule_of,
    strategy_of,
    training_values_of,
)
from distlr.optimizer.adoption import ManualControlState
from distlr.optimizer.comparison import differences, formula_of
from distlr.optimizer.connection import connect, warn_of_restored_schedule
from distlr.optimizer.conversion import adopt, strip
from distlr.optimizer.description import resume_line, start_line
from distlr.optimizer.loss_scale import agree
from distlr.optimizer.mixin import ScaledOptimizer
from distlr.optimizer.rate_handle import RateHandle, handle
from distlr.optimizer.reduction import Reduction
from distlr.optimizer.saving import read_state, slots_of, write_state
from distlr.optimizer.training_values import TrainingValues

__all__ = [
    "ManualControlState",
    "RateHandle",
    "Reduction",
    "ScaledOptimizer",
    "TrainingValues",
    "adopt",
    "adopted_by",
    "agree",
    "averages",
    "batch_of",
    "connect",
    "differences",
    "formula_of",
    "handle",
    "inner",
    "is_adopted",
    "rate_of",
    "read_state",
    "resume_line",
    "samples_of",
    "schedule_of",
    "slots_of",
    "start_line",
    "strategy_of",
    "strip",
    "training_values_of",
    "warn_of_restored_schedule",
    "write_state",
]
