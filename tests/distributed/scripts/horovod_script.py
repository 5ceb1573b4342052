"""A script as Horovod's documentation for Keras tells its users to write one, with only the import changed."""

import argparse
import json
import os

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import distlr.horovod as hvd

parser = argparse.ArgumentParser()
parser.add_argument("out")
out = parser.parse_args().out

# Horovod: initialize Horovod.
hvd.init()

# Horovod: pin GPU to be used to process local rank (one GPU per process).
gpus = tf.config.list_physical_devices("GPU")
for gpu in gpus:
    tf.config.experimental.set_memory_growth(gpu, True)
if gpus:
    tf.config.set_visible_devices(gpus[hvd.local_rank()], "GPU")

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
test = np.arange(len(images)) % 5 == 0
x_train, y_train = images[~test], labels[~test]
batch_size, epochs = 16, 12

dataset = tf.data.Dataset.from_tensor_slices((x_train, y_train)).repeat().shuffle(len(x_train)).batch(batch_size)

model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.25),
        keras.layers.Dense(10, activation="softmax"),
    ]
)

# Horovod: adjust learning rate based on number of GPUs.
scaled_lr = 0.03 * hvd.size()
opt = keras.optimizers.SGD(scaled_lr, momentum=0.9)

# Horovod: add Horovod DistributedOptimizer.
opt = hvd.DistributedOptimizer(opt, backward_passes_per_step=1, average_aggregated_gradients=True)

model.compile(loss="sparse_categorical_crossentropy", optimizer=opt, metrics=["accuracy"])

callbacks = [
    # Horovod: broadcast initial variable states from rank 0 to all other processes.
    hvd.callbacks.BroadcastGlobalVariablesCallback(0),
    # Horovod: average metrics among workers at the end of every epoch.
    hvd.callbacks.MetricAverageCallback(),
    # Horovod: using `lr = 1.0 * hvd.size()` from the very beginning leads to worse final accuracy.
    hvd.callbacks.LearningRateWarmupCallback(initial_lr=scaled_lr, warmup_epochs=3, verbose=1),
    # Horovod: after the warmup reduce learning rate by 10 on the 8th epoch.
    hvd.callbacks.LearningRateScheduleCallback(scaled_lr, multiplier=1.0, start_epoch=3, end_epoch=8),
    hvd.callbacks.LearningRateScheduleCallback(scaled_lr, multiplier=1e-1, start_epoch=8),
]

# Horovod: save checkpoints only on worker 0 to prevent other workers from corrupting them.
if hvd.rank() == 0:
    callbacks.append(keras.callbacks.ModelCheckpoint(os.path.join(out, "checkpoint-{epoch}.keras")))

verbose = 2 if hvd.rank() == 0 else 0

# Horovod: adjust number of steps based on number of GPUs.
history = model.fit(
    dataset,
    steps_per_epoch=len(x_train) // batch_size // hvd.size(),
    callbacks=callbacks,
    epochs=epochs,
    validation_data=(images[test], labels[test]) if hvd.rank() == 0 else None,
    validation_batch_size=32,
    verbose=verbose,
)

weights = np.concatenate([weight.numpy().ravel() for weight in model.weights]).astype("float64")
all_ranks = hvd.allgather(np.array([[weights.sum(), (weights**2).sum()]]))
if hvd.rank() == 0:
    result = {
        "lr": history.history["lr"],
        "val_accuracy": history.history["val_accuracy"][-1],
        "sums": all_ranks.tolist(),
    }
    with open(os.path.join(out, "result.json"), "w") as file:
        json.dump(result, file)
