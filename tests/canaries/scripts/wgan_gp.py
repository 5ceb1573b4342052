"""A Wasserstein GAN with gradient penalty: the critic learns twice where the generator learns once."""

import keras
import tensorflow as tf
from sklearn.datasets import load_digits

import distlr

LATENT, CRITIC_STEPS, PENALTY = 8, 2, 10.0

job = distlr.init()
images = (load_digits().images[:256] / 16).astype("float32").reshape(-1, 64)
batch = job.batch(per_replica=8, base_batch=8, samples_per_epoch=256)


class WGan(keras.Model):
    def __init__(self, critic, generator):
        super().__init__()
        self.critic, self.generator = critic, generator
        self.built = True

    def compile(self, critic_optimizer, generator_optimizer):
        super().compile()
        self.critic_optimizer, self.generator_optimizer = critic_optimizer, generator_optimizer
        self.critic_optimizer.build(self.critic.trainable_variables)
        self.generator_optimizer.build(self.generator.trainable_variables)

    def penalties(self, real, fake):
        alpha = tf.random.uniform((tf.shape(real)[0], 1))
        between = real + alpha * (fake - real)
        with tf.GradientTape() as tape:
            tape.watch(between)
            score = self.critic(between, training=True)
        slope = tape.gradient(score, between)
        return (tf.sqrt(tf.reduce_sum(tf.square(slope), axis=1) + 1e-12) - 1.0) ** 2

    def train_step(self, real):
        count = tf.shape(real)[0]
        for _ in range(CRITIC_STEPS):
            noise = tf.random.normal((count, LATENT))
            with tf.GradientTape() as tape:
                fake = self.generator(noise, training=True)
                cost = self.critic(fake, training=True)[:, 0] - self.critic(real, training=True)[:, 0]
                critic_loss = job.mean_loss(cost + PENALTY * self.penalties(real, fake), batch)
            weights = self.critic.trainable_variables
            gradients = tape.gradient(critic_loss, weights)
            self.critic_optimizer.apply_gradients(zip(gradients, weights, strict=True))
        with tf.GradientTape() as tape:
            fake = self.generator(tf.random.normal((count, LATENT)), training=True)
            generator_loss = job.mean_loss(-self.critic(fake, training=True)[:, 0], batch)
        weights = self.generator.trainable_variables
        gradients = tape.gradient(generator_loss, weights)
        self.generator_optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return {"critic_loss": critic_loss, "generator_loss": generator_loss}


layers = keras.layers
with job.scope():
    critic = keras.Sequential([keras.Input((64,)), layers.Dense(32), layers.LeakyReLU(), layers.Dense(1)])
    generator = keras.Sequential(
        [keras.Input((LATENT,)), layers.Dense(32), layers.LeakyReLU(), layers.Dense(64, activation="sigmoid")]
    )
    model = WGan(critic, generator)
    model.compile(
        critic_optimizer=job.optimizer(keras.optimizers.Adam(2e-4, beta_1=0.5, beta_2=0.9), batch, rule="sqrt"),
        generator_optimizer=job.optimizer(keras.optimizers.Adam(2e-4, beta_1=0.5, beta_2=0.9), batch, rule="sqrt"),
    )
data = job.shard(tf.data.Dataset.from_tensor_slices(images), batch)
model.fit(data, epochs=2, shuffle=False, callbacks=job.callbacks(), verbose=2 if job.is_root else 0)
