"""The `tf.distribute` strategies that a job can run on."""

import distlr._utils.keras_setup  # noqa: F401  (checks the installation first)
from distlr.strategies.given import check_strategy
from distlr.strategies.local import local_gpus, pin_gpu
from distlr.strategies.simulation import simulated
from distlr.strategies.watchdog import bound
from distlr.strategies.workers import connect_workers, mend, slurm_workers

__all__ = [
    "bound",
    "check_strategy",
    "connect_workers",
    "local_gpus",
    "mend",
    "pin_gpu",
    "simulated",
    "slurm_workers",
]
