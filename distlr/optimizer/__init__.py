"""The one place that extends a Keras optimizer."""

import distlr._utils.keras_setup  # noqa: F401  (checks the installation first)
from distlr._utils.renamed import aliases
from distlr.optimizer.access import (
    adopted_by,
    averages,
    batch_of,
    begin_update,
    has_partial_update,
    is_adopted,
    partial_sums,
    rate_of,
    read_state,
    samples_of,
    schedule_of,
    slots_of,
    strategy_of,
    training_values_of,
    unwrap_loss_scale,
    write_state,
)
from distlr.optimizer.adopted import AdoptedOptimizer
from distlr.optimizer.comparison import differences, formula_of
from distlr.optimizer.connection import connect, warn_of_restored_schedule
from distlr.optimizer.conversion import adopt, strip
from distlr.optimizer.description import resume_line, start_line
from distlr.optimizer.loss_scale import make_loss_scale_agree
from distlr.optimizer.manual_control_state import ManualControlState, read_manual_control, write_manual_control
from distlr.optimizer.rate_handle import RateHandle, handle
from distlr.optimizer.reduction import Reduction
from distlr.optimizer.training_values import TrainingValues

__all__ = [
    "AdoptedOptimizer",
    "ManualControlState",
    "RateHandle",
    "Reduction",
    "TrainingValues",
    "adopt",
    "adopted_by",
    "averages",
    "batch_of",
    "begin_update",
    "connect",
    "differences",
    "formula_of",
    "handle",
    "has_partial_update",
    "is_adopted",
    "make_loss_scale_agree",
    "partial_sums",
    "rate_of",
    "read_manual_control",
    "read_state",
    "resume_line",
    "samples_of",
    "schedule_of",
    "slots_of",
    "start_line",
    "strategy_of",
    "strip",
    "training_values_of",
    "unwrap_loss_scale",
    "warn_of_restored_schedule",
    "write_manual_control",
    "write_state",
]

__getattr__ = aliases(__name__, {"ScaledOptimizer": "AdoptedOptimizer", "inner": "unwrap_loss_scale"})
