"""A loop of one's own on Horovod, whose tape averages the gradients; distlr sets the rate alone."""

import horovod.tensorflow as hvd
import keras
import tensorflow as tf
from sklearn.datasets import load_digits

import distlr

job = distlr.init("horovod")
images, labels = load_digits(return_X_y=True)
images = (images[:512] / 16).astype("float32")
batch = job.batch(per_replica=16, base_batch=16, samples_per_epoch=512)
data = job.shard((images, labels[:512]), batch, seed=0)

model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(10)])
schedule = keras.optimizers.schedules.CosineDecay(0.01, decay_steps=2 * 512 // 16)
optimizer = job.optimizer(keras.optimizers.Adam(schedule), batch, rule="sqrt", warmup="1ep", exchange=False)
optimizer.build(model.trainable_variables)
loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
job.broadcast(model, optimizer)


@tf.function(autograph=False)  # which would convert Horovod's code as well, for seconds
def train_step(x, y):
    with tf.GradientTape() as tape:
        loss = loss_of(y, model(x, training=True))
    tape = hvd.DistributedGradientTape(tape)
    sources = [variable.value for variable in model.trainable_variables]  # Horovod's tape knows TensorFlow's alone
    gradients = tape.gradient(loss, sources)
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    return loss


for epoch in range(2):
    mean = keras.metrics.Mean(name="loss")
    for x, y in data:
        mean.update_state(train_step(x, y))
    result = job.result([mean])["loss"]
    if job.is_root:
        print(f"epoch {epoch}: loss {result:.4f}")
    job.check(model, optimizer)
if job.is_root:
    model.save("model.keras")
