"""Transfer learning: a head is trained on a frozen base, then all of it at a tenth of the rate, compiled once more."""

import keras
from sklearn.datasets import load_digits

import distlr

job = distlr.init()
keras.utils.set_random_seed(0)
images, labels = load_digits(return_X_y=True)
images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
train = images[:256], labels[:256]
batch = job.batch(per_replica=8, base_batch=8, samples_per_epoch=256)


def compile_at(rate):
    model.compile(
        optimizer=job.optimizer(keras.optimizers.Adam(rate), batch, rule="sqrt"),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
    )


def fit():
    model.fit(
        job.shard(train, batch),
        epochs=2,
        shuffle=False,
        callbacks=job.callbacks(),
        verbose=2 if job.is_root else 0,
    )


layers = keras.layers
with job.scope():
    base = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Conv2D(8, 3, use_bias=False), layers.BatchNormalization(), layers.ReLU()],
        name="base",
    )
    base.trainable = False
    inputs = keras.Input((8, 8, 1))
    x = layers.GlobalAveragePooling2D()(base(inputs, training=False))
    model = keras.Model(inputs, layers.Dense(10)(layers.Dropout(0.2)(x)))
    compile_at(1e-2)
frozen = [weight.numpy().copy() for weight in base.weights]
fit()
assert all((before == after.numpy()).all() for before, after in zip(frozen, base.weights, strict=True))

with job.scope():
    base.trainable = True
    compile_at(1e-3)
fit()
assert any((before != after.numpy()).any() for before, after in zip(frozen, base.weights, strict=True))
