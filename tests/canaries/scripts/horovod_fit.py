"""Digits by `fit`, as Horovod's users write it: each rank draws batches of its own, and rank 0 alone saves."""

import keras
import tensorflow as tf
from sklearn.datasets import load_digits

import distlr.horovod as hvd

hvd.init()
gpus = tf.config.list_physical_devices("GPU")
for gpu in gpus:
    tf.config.experimental.set_memory_growth(gpu, True)
if gpus:
    tf.config.set_visible_devices(gpus[hvd.local_rank()], "GPU")

images, labels = load_digits(return_X_y=True)
images = (images[:512] / 16).astype("float32").reshape(-1, 8, 8, 1)
dataset = tf.data.Dataset.from_tensor_slices((images, labels[:512].astype("int64")))
dataset = dataset.repeat().shuffle(512).batch(16)

model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(8, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Dropout(0.25),
        keras.layers.Flatten(),
        keras.layers.Dense(32, activation="relu"),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(10, activation="softmax"),
    ]
)

scaled_rate = 0.001 * hvd.size()
optimizer = hvd.DistributedOptimizer(
    keras.optimizers.Adam(scaled_rate), backward_passes_per_step=1, average_aggregated_gradients=True
)
model.compile(
    loss=keras.losses.SparseCategoricalCrossentropy(),
    optimizer=optimizer,
    metrics=["accuracy"],
)

callbacks = [
    hvd.callbacks.BroadcastGlobalVariablesCallback(0),
    hvd.callbacks.MetricAverageCallback(),
    hvd.callbacks.LearningRateWarmupCallback(initial_lr=scaled_rate, warmup_epochs=3, verbose=1),
]
if hvd.rank() == 0:
    callbacks.append(keras.callbacks.ModelCheckpoint("checkpoint-{epoch}.keras"))

model.fit(
    dataset,
    steps_per_epoch=16 // hvd.size(),
    epochs=4,
    callbacks=callbacks,
    verbose=2 if hvd.rank() == 0 else 0,
)
