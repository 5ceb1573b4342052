"""Twenty steps of two replicas, clipped and scheduled, on whatever backend: the rates' digests and the weights."""

import json
import sys

import keras
import numpy as np

import distlr

STEPS, PER_REPLICA = 20, 4
job = distlr.init(timeout=60)
keras.utils.set_random_seed(0)
samples = STEPS * PER_REPLICA * job.replicas
x = np.random.default_rng(0).normal(size=(samples, 5)).astype("float32")
batch = job.batch(per_replica=PER_REPLICA, base_batch=2, samples_per_epoch=samples)
with job.scope():
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)])
    schedule = keras.optimizers.schedules.CosineDecay(0.02, samples // 2)
    plain = keras.optimizers.SGD(schedule, momentum=0.9, global_clipnorm=0.5)
    model.compile(job.optimizer(plain, batch, warmup="0.25ep"), "mse")
data = job.shard((x, x.sum(axis=1, keepdims=True)), batch, shuffle=False)
model.fit(data, verbose=0, shuffle=False, callbacks=job.callbacks())
result = {
    "replicas": job.replicas,
    "steps": int(model.optimizer.iterations.numpy()),
    "samples": model.optimizer.samples_seen,
    "rate_digests": job.rate_digests(model.optimizer),
    "weights": [weight.numpy().tolist() for weight in model.weights],
}
if job.is_root:
    with open(sys.argv[1], "w") as file:
        json.dump(result, file)
