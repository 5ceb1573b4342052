"""The `tf.distribute` strategies that a job can run on."""

import distlr._utils.keras_setup  # noqa: F401  (checks the installation first)
from distlr.strategies.given import check_strategy
from distlr.strategies.local import local_gpus, pin_gpu
from distlr.strategies.simulation import simulated
from distlr.strategies.watchdog import limit_waits
from distlr.strategies.workers import adapt_for_keras, connect_workers, slurm_workers

__all__ = [
    "adapt_for_keras",
    "check_strategy",
    "connect_workers",
    "limit_waits",
    "local_gpus",
    "pin_gpu",
    "simulated",
    "slurm_workers",
]
