"""Pure schedules: functions of time in base steps, computed in float64. They know no rank and no optimizer.

Keras' own (`ExponentialDecay`, `PolynomialDecay`, `InverseTimeDecay`, ...) are used as they are, wherever one is taken.
"""

import distlr._utils.keras_setup  # noqa: F401  (checks the installation first)
from distlr._utils.renamed import aliases
from distlr.schedules.compose import Floor, Join, Multiply, Repeat, Shift
from distlr.schedules.constant import Constant
from distlr.schedules.cosine import Cosine
from distlr.schedules.cosine_restarts import CosineRestarts
from distlr.schedules.cyclic import Cyclic
from distlr.schedules.global_batch_schedule import GlobalBatchSchedule, scale
from distlr.schedules.interpolated import Interpolated
from distlr.schedules.inverse_sqrt import InverseSqrt
from distlr.schedules.multi_step import MultiStep
from distlr.schedules.of_progress import OfProgress
from distlr.schedules.one_cycle import OneCycle
from distlr.schedules.per_epoch import PerEpoch
from distlr.schedules.registry import fill_names, get, to_dict
from distlr.schedules.schedule import Schedule
from distlr.schedules.tanh import Tanh
from distlr.schedules.warmup import Warmup
from distlr.schedules.warmup_stable_decay import WarmupStableDecay

__all__ = [
    "Constant",
    "Cosine",
    "CosineRestarts",
    "Cyclic",
    "Floor",
    "GlobalBatchSchedule",
    "Interpolated",
    "InverseSqrt",
    "Join",
    "MultiStep",
    "Multiply",
    "OfProgress",
    "OneCycle",
    "PerEpoch",
    "Repeat",
    "Schedule",
    "Shift",
    "Tanh",
    "Warmup",
    "WarmupStableDecay",
    "get",
    "scale",
    "to_dict",
]

fill_names(globals()[name] for name in __all__)

__getattr__ = aliases(__name__, {"Scale": "Multiply", "Scaled": "GlobalBatchSchedule"})
