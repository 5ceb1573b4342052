"""The `tf.distribute` strategies that a job can run on."""

from distlr.strategies.local import local_gpus, pin_gpu
from distlr.strategies.simulated import simulated

__all__ = ["local_gpus", "pin_gpu", "simulated"]
