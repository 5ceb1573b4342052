"""Half precision: the loss scaled by Keras' optimizer for it, gradients are clipped, the data is arrays."""

import keras
from sklearn.datasets import load_digits

import distlr

job = distlr.init()
keras.mixed_precision.set_global_policy("mixed_float16")
images, labels = load_digits(return_X_y=True)
share = slice(job.rank, 320, job.size)
x, y = (images[share] / 16).astype("float32"), labels[share]
batch = job.batch(per_replica=8, base_batch=8, samples_per_epoch=256, duration="3ep")

with job.scope():
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(10),
            keras.layers.Activation("softmax", dtype="float32"),
        ]
    )
    schedule = keras.optimizers.schedules.CosineDecay(0.05, decay_steps=3 * 256 // 8)
    plain = keras.optimizers.SGD(schedule, momentum=0.9, global_clipnorm=1.0)
    optimizer = job.optimizer(keras.optimizers.LossScaleOptimizer(plain), batch, warmup="1ep")
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(), weighted_metrics=["accuracy"])
model.fit(
    x,
    y,
    batch_size=batch.local_batch,
    epochs=3,
    validation_split=0.2,
    callbacks=job.callbacks([distlr.callbacks.ReduceLROnPlateau("val_loss", patience=5)]),
    verbose=2 if job.is_root else 0,
)
