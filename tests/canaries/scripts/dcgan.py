"""A GAN in the manner of Keras' guide: its own `train_step`, two networks, two optimizers, a Keras loss."""

import keras
import tensorflow as tf
from sklearn.datasets import load_digits

import distlr

LATENT = 8

job = distlr.init()
images = (load_digits().images[:256] / 16).astype("float32").reshape(-1, 8, 8, 1)
batch = job.batch(per_replica=8, base_batch=8, samples_per_epoch=256)


class Gan(keras.Model):
    def __init__(self, discriminator, generator):
        super().__init__()
        self.discriminator, self.generator = discriminator, generator
        self.seeds = keras.random.SeedGenerator(1337)
        self.built = True

    def compile(self, d_optimizer, g_optimizer, loss_fn):
        super().compile()
        self.d_optimizer, self.g_optimizer, self.loss_fn = d_optimizer, g_optimizer, loss_fn
        self.d_optimizer.build(self.discriminator.trainable_variables)
        self.g_optimizer.build(self.generator.trainable_variables)
        self.d_loss, self.g_loss = keras.metrics.Mean(name="d_loss"), keras.metrics.Mean(name="g_loss")

    @property
    def metrics(self):
        return [self.d_loss, self.g_loss]

    def train_step(self, real):
        count = tf.shape(real)[0]
        fake = self.generator(keras.random.normal((count, LATENT), seed=self.seeds))
        both = tf.concat([fake, real], axis=0)
        labels = tf.concat([tf.ones((count, 1)), tf.zeros((count, 1))], axis=0)
        labels += 0.05 * keras.random.uniform((2 * count, 1), seed=self.seeds)
        with tf.GradientTape() as tape:
            d_loss = self.loss_fn(labels, self.discriminator(both))
        weights = self.discriminator.trainable_weights
        self.d_optimizer.apply_gradients(zip(tape.gradient(d_loss, weights), weights, strict=True))

        noise = keras.random.normal((count, LATENT), seed=self.seeds)
        with tf.GradientTape() as tape:
            g_loss = self.loss_fn(tf.zeros((count, 1)), self.discriminator(self.generator(noise)))
        weights = self.generator.trainable_weights
        self.g_optimizer.apply_gradients(zip(tape.gradient(g_loss, weights), weights, strict=True))
        self.d_loss.update_state(d_loss)
        self.g_loss.update_state(g_loss)
        return {"d_loss": self.d_loss.result(), "g_loss": self.g_loss.result()}


layers = keras.layers
with job.scope():
    discriminator = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Conv2D(8, 4, strides=2), layers.LeakyReLU(), layers.Flatten(), layers.Dense(1)]
    )
    generator = keras.Sequential(
        [
            keras.Input((LATENT,)),
            layers.Dense(4 * 4 * 8),
            layers.Reshape((4, 4, 8)),
            layers.Conv2DTranspose(8, 4, strides=2, padding="same"),
            layers.LeakyReLU(),
            layers.Conv2D(1, 5, padding="same", activation="sigmoid"),
        ]
    )
    model = Gan(discriminator, generator)
    model.compile(
        d_optimizer=job.optimizer(keras.optimizers.Adam(1e-4), batch, rule="sqrt"),
        g_optimizer=job.optimizer(keras.optimizers.Adam(1e-4), batch, rule="sqrt"),
        loss_fn=keras.losses.BinaryCrossentropy(from_logits=True),
    )
data = job.shard(tf.data.Dataset.from_tensor_slices(images), batch)
model.fit(data, epochs=2, shuffle=False, callbacks=job.callbacks(), verbose=2 if job.is_root else 0)
