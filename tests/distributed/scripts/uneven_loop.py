"""A loop in which rank 1 takes one step less, and then goes to distlr's next collective, or to one of its own."""

import sys
import time

import keras
import tensorflow as tf

import distlr

mode = sys.argv[1]
job = distlr.init() if mode == "uneven" else distlr.init(timeout=6)
variable = keras.Variable([1.0])
optimizer = job.optimizer(keras.optimizers.SGD(0.1))
optimizer.build([variable])
optimizer.mark_broadcast()
step = tf.function(lambda: optimizer.apply([tf.constant([1.0])], [variable]))
try:
    for _ in range(3 - job.rank):
        step()
    if mode == "elsewhere" and job.rank == 1:
        import horovod.tensorflow as hvd

        hvd.allreduce(tf.ones(1), name="mine")
    job.communicator.barrier(tag="done")
except Exception as error:
    print(f"[rank {job.rank}] ended with {type(error).__name__}: {str(error).splitlines()[0][:300]}", flush=True)
    time.sleep(1)  # the other rank says it too before the launcher hears of this one
    sys.exit(3)
