"""When is the rate cut? The policy, without TensorFlow; `synchronized` decides it on rank 0 for all ranks."""

from distlr.plateau.policy import Decision, NonFiniteMetricError, PlateauPolicy, PlateauState

__all__ = ["Decision", "NonFiniteMetricError", "PlateauPolicy", "PlateauState"]
