"""When is the rate cut? The policy, without TensorFlow; `synchronized` decides it on rank 0 for all ranks."""

from distlr.errors import NonFiniteMetricError
from distlr.plateau.policy import Decision, PlateauPolicy, PlateauState

__all__ = ["Decision", "NonFiniteMetricError", "PlateauPolicy", "PlateauState"]
