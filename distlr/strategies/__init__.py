"""The `tf.distribute` strategies that a job can run on."""

from distlr.strategies.given import check_strategy
from distlr.strategies.local import local_gpus, pin_gpu
from distlr.strategies.multi_worker import addresses_of, connect_workers, mend, slurm_workers
from distlr.strategies.simulation import simulated
from distlr.strategies.watchdog import bound

__all__ = [
    "addresses_of",
    "bound",
    "check_strategy",
    "connect_workers",
    "local_gpus",
    "mend",
    "pin_gpu",
    "simulated",
    "slurm_workers",
]
