"""One weight goes to 1 by gradient descent; worker 1 comes, and all go on after the first epoch, when they are let.

among_strangers.py DIRECTORY
"""

import json
import os
import sys
import time
from pathlib import Path

import keras
import numpy as np

import distlr

DIRECTORY = Path(sys.argv[1])


def wait_for(name: str) -> None:
    deadline = time.monotonic() + 60
    while not (DIRECTORY / name).exists() and time.monotonic() < deadline:
        time.sleep(0.02)


class WaitAfterTheFirst(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 0:
            (DIRECTORY / f"trains-{job.rank}").touch()
            wait_for("go on")


if json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 1:
    wait_for("come")
job = distlr.init(timeout=60)
batch = job.batch(per_replica=4, base_batch=8, samples_per_epoch=80)
with job.scope():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    model.compile(job.optimizer(keras.optimizers.SGD(0.05), batch), "mse")
data = job.shard((np.ones((80, 1), "float32"), np.ones((80, 1), "float32")), batch, seed=0)
model.fit(data, epochs=2, verbose=0, callbacks=job.callbacks([WaitAfterTheFirst()]))
(DIRECTORY / f"weight-{job.rank}").write_text(str(float(model.weights[0].numpy()[0, 0])))
