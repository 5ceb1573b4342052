"""Worker 1 ends after the training; worker 0 goes on with what is its own: it calls the model, and saves it.

ends_first.py DIRECTORY
"""

import sys
import time

import keras
import numpy as np

import distlr

job = distlr.init(timeout=60)
x = np.random.default_rng(0).normal(size=(32, 2)).astype("float32")
batch = job.batch(8, base_batch=8, samples_per_epoch=32)
with job.scope():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(job.optimizer(keras.optimizers.SGD(0.01), batch), "mse")
model.fit(job.shard((x, x[:, :1]), batch, seed=0), verbose=0, shuffle=False, callbacks=job.callbacks())
if job.is_root:
    time.sleep(5)  # the others have ended by then, and this one has heard of it
    predictions = model(x)
    model.save(f"{sys.argv[1]}/model.keras")
    loaded = keras.models.load_model(f"{sys.argv[1]}/model.keras", compile=False)
    np.testing.assert_allclose(loaded(x), predictions, rtol=1e-5)
    print("[rank 0] all done", flush=True)
