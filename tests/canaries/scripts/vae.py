"""A variational autoencoder in the manner of Keras' guide; on replicas its two terms go through `job.mean_loss`."""

import keras
import tensorflow as tf
from keras import ops
from sklearn.datasets import load_digits

import distlr

LATENT = 2

job = distlr.init()
images = (load_digits().images[:256] / 16).astype("float32").reshape(-1, 8, 8, 1)
batch = job.batch(per_replica=8, base_batch=8, samples_per_epoch=256)


class Sampling(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(1337)

    def call(self, inputs):
        mean, log_variance = inputs
        return mean + ops.exp(0.5 * log_variance) * keras.random.normal(ops.shape(mean), seed=self.seeds)


class Vae(keras.Model):
    def __init__(self, encoder, decoder, **kwargs):
        super().__init__(**kwargs)
        self.encoder, self.decoder = encoder, decoder
        self.trackers = [keras.metrics.Mean(name=name) for name in ("loss", "reconstruction_loss", "kl_loss")]
        self.built = True

    @property
    def metrics(self):
        return self.trackers

    def train_step(self, data):
        with tf.GradientTape() as tape:
            mean, log_variance, z = self.encoder(data)
            losses = keras.losses.binary_crossentropy(data, self.decoder(z))
            reconstruction = ops.sum(losses, axis=(1, 2))
            kl = -0.5 * (1 + log_variance - ops.square(mean) - ops.exp(log_variance))
            kl = ops.sum(kl, axis=1)
            loss = job.mean_loss(reconstruction + kl, batch)
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        for tracker, value in zip(self.trackers, (reconstruction + kl, reconstruction, kl), strict=True):
            tracker.update_state(value)
        return {tracker.name: tracker.result() for tracker in self.trackers}


layers = keras.layers
with job.scope():
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(8, 3, activation="relu", strides=2, padding="same")(inputs)
    x = layers.Dense(16, activation="relu")(layers.Flatten()(x))
    mean, log_variance = layers.Dense(LATENT)(x), layers.Dense(LATENT)(x)
    encoder = keras.Model(inputs, [mean, log_variance, Sampling()([mean, log_variance])])
    decoder = keras.Sequential(
        [
            keras.Input((LATENT,)),
            layers.Dense(4 * 4 * 8, activation="relu"),
            layers.Reshape((4, 4, 8)),
            layers.Conv2DTranspose(8, 3, activation="relu", strides=2, padding="same"),
            layers.Conv2DTranspose(1, 3, activation="sigmoid", padding="same"),
        ]
    )
    model = Vae(encoder, decoder)
    model.compile(job.optimizer(keras.optimizers.Adam(1e-3), batch, rule="sqrt"))
data = job.shard(tf.data.Dataset.from_tensor_slices(images), batch)
model.fit(data, epochs=2, shuffle=False, callbacks=job.callbacks(), verbose=2 if job.is_root else 0)
