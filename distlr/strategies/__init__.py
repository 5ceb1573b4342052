"""The `tf.distribute` strategies that a job can run on."""

from distlr.strategies.given import check_strategy
from distlr.strategies.local import local_gpus, pin_gpu
from distlr.strategies.multi_worker import addresses_of, mend, multi_worker, slurm_workers
from distlr.strategies.simulated import simulated

__all__ = [
    "addresses_of",
    "check_strategy",
    "local_gpus",
    "mend",
    "multi_worker",
    "pin_gpu",
    "simulated",
    "slurm_workers",
]
