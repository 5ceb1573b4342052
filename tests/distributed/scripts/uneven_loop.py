"""A loop in which rank 1 takes fewer steps, and goes to distlr's next collective, to one of its own, or to sleep."""

import sys
import time

import keras
import tensorflow as tf

import distlr

mode = sys.argv[1]
job = distlr.init() if mode == "uneven" else distlr.init(timeout=6)
with job.scope():
    variable = keras.Variable([1.0])
    optimizer = job.optimizer(keras.optimizers.SGD(0.1))
    optimizer.build([variable])
optimizer.distlr.gradients.has_rank_zero_state = True


@tf.function
def step(gradient):  # not a constant, of which TensorFlow would compute the mean once
    job.run(lambda: optimizer.apply([gradient], [variable]))


try:
    for _ in range(3 - job.rank):
        step(tf.ones(1))
    while mode == "much longer" and job.rank == 0:
        step(tf.ones(1))
        time.sleep(0.1)
    if mode == "elsewhere" and job.rank == 1:
        import horovod.tensorflow as hvd

        hvd.allreduce(tf.ones(1), name="mine")
    if mode == "asleep" and job.rank == 1:
        time.sleep(15)
    job.communicator.barrier(tag="done")
except Exception as error:
    lines = str(error).splitlines()
    words = next((line for line in lines if f"[rank {job.rank}] " in line), lines[0])
    print(f"[rank {job.rank}] ended with {type(error).__name__}: {words[:300]}", flush=True)
    time.sleep(1)  # the other rank says it too before the launcher hears of this one
    sys.exit(3)
