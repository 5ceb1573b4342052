"""Horovod's way to train longer: warmup, then steps down, augmented data, validation in shares, a score at the end."""

import math

import keras
import tensorflow as tf
from sklearn.datasets import load_digits

import distlr.horovod as hvd

BATCH, EPOCHS = 16, 5

hvd.init()
images, labels = load_digits(return_X_y=True)
images = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
train = tf.data.Dataset.from_tensor_slices((images[:512], labels[:512])).shard(hvd.size(), hvd.rank())
test = tf.data.Dataset.from_tensor_slices((images[512:640], labels[512:640])).shard(hvd.size(), hvd.rank())


def augment(image, label):
    image = tf.image.resize_with_crop_or_pad(image, 10, 10)
    return tf.image.random_crop(image, (8, 8, 1)), label


train = train.shuffle(512).map(augment).repeat().batch(BATCH)
steps = math.ceil(512 / BATCH / hvd.size())

model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(8, 3, padding="same", activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dense(10),
    ]
)
rate = 0.05 * hvd.size()
model.compile(
    optimizer=hvd.DistributedOptimizer(keras.optimizers.SGD(rate, momentum=0.9)),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)

callbacks = [
    hvd.callbacks.BroadcastGlobalVariablesCallback(0),
    hvd.callbacks.MetricAverageCallback(),
    hvd.callbacks.LearningRateWarmupCallback(rate, warmup_epochs=2, steps_per_epoch=steps, verbose=1),
    hvd.callbacks.LearningRateScheduleCallback(rate, start_epoch=2, end_epoch=3, multiplier=1.0),
    hvd.callbacks.LearningRateScheduleCallback(rate, start_epoch=3, end_epoch=4, multiplier=1e-1),
    hvd.callbacks.LearningRateScheduleCallback(rate, start_epoch=4, multiplier=1e-2),
    keras.callbacks.ReduceLROnPlateau(patience=10, verbose=1),
]
if hvd.rank() == 0:
    callbacks.append(keras.callbacks.ModelCheckpoint("checkpoint-{epoch}.keras"))
    callbacks.append(keras.callbacks.CSVLogger("log.csv"))

model.fit(
    train,
    steps_per_epoch=steps,
    epochs=EPOCHS,
    callbacks=callbacks,
    validation_data=test.batch(BATCH),
    verbose=1 if hvd.rank() == 0 else 0,
)
score = hvd.allreduce(model.evaluate(test.batch(BATCH), verbose=0))
if hvd.rank() == 0:
    print("Test loss:", score[0], "Test accuracy:", score[1])
