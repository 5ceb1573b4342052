"""A loop of some seconds, in which worker 1 nearly always waits for worker 0, in an update or in a collective.

suspended.py DIRECTORY (updates | collectives)
"""

import sys
import time
from pathlib import Path

import keras
import tensorflow as tf

import distlr

UPDATES = 60
job = distlr.init(timeout=6)
with job.scope():
    variable = keras.Variable([1.0])
    optimizer = job.optimizer(keras.optimizers.SGD(0.01))
    optimizer.build([variable])
optimizer.distlr.gradients.has_rank_zero_state = True


@tf.function
def step(gradient):
    job.run(lambda: optimizer.apply([gradient], [variable]))


for update in range(UPDATES):
    if update == 10:
        Path(sys.argv[1], f"updates-{job.rank}").touch()
    if job.is_root:
        time.sleep(0.05)
    if sys.argv[2] == "collectives":
        job.communicator.barrier(tag=f"before update {update}")
    step(tf.ones(1) / job.strategy.num_replicas_in_sync)  # the optimizer sums over a strategy, and averages over ranks
print(f"[rank {job.rank}] all updates, at {float(variable.numpy()[0]):.4f}", flush=True)
