"""What loggers read of the rate: as of Keras' own variable, and no training ends by it."""

from __future__ import annotations

import copy
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr
from distlr import GlobalBatch
from distlr.optimizer import adopt

to_numpy = keras.src.backend.convert_to_numpy


def by_weights_and_biases(rate):
    """As `WandbMetricsLogger` reads it."""
    if isinstance(rate, (tf.Variable, tf.Tensor)) or (hasattr(rate, "shape") and rate.shape == ()):
        return float(rate.numpy().item())
    return float(rate(step=0).numpy().item())


WAYS = {
    "W&B": by_weights_and_biases,
    "Keras' TensorBoard, LearningRateScheduler, ReduceLROnPlateau": lambda rate: float(to_numpy(rate)),
    "MLflow": lambda rate: float(rate.numpy()) if hasattr(rate, "numpy") else float(rate),
    "Comet": lambda rate: float(tf.keras.backend.get_value(rate)),
    "tf.summary.scalar": lambda rate: float(tf.cast(rate, tf.float32)),
    "float": float,
    "int of its shape": lambda rate: len(rate.shape),
    "dtype": lambda rate: rate.dtype,
    "ndim": lambda rate: rate.ndim,
    "type of numpy": lambda rate: type(rate.numpy()),
    "value": lambda rate: float(rate.value),
    "numpy of value": lambda rate: rate.value.numpy().item(),
    "value == 0.01": lambda rate: bool(rate.value == 0.01),
    "value < 0.01": lambda rate: bool(rate.value < 0.01),
    "== 0.01": lambda rate: bool(rate == 0.01),
    "!= 0.01": lambda rate: bool(rate != 0.01),
    "< 0.01": lambda rate: bool(rate < 0.01),
    "<= 0.01": lambda rate: bool(rate <= 0.01),
    "> 0.01": lambda rate: bool(rate > 0.01),
    ">= 0.01": lambda rate: bool(rate >= 0.01),
    "== a tensor": lambda rate: bool(rate == tf.constant(0.01)),
    "== a number of numpy's": lambda rate: bool(rate == np.float32(0.01)),
    "+ 0": lambda rate: float(rate + 0),
    "times a tensor": lambda rate: (rate * tf.constant(2.0)).numpy().item(),
    "keras.ops.convert_to_tensor": lambda rate: keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(rate)).item(),
    "tf.identity": lambda rate: (tf.identity(rate).dtype, tf.identity(rate).numpy().item()),
    "tf.convert_to_tensor": lambda rate: tf.convert_to_tensor(rate).dtype,
    "np.asarray": lambda rate: (np.asarray(rate).shape, np.asarray(rate).item()),
    "formatted": lambda rate: f"{float(rate):.4f} {rate.numpy():.4f}",
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_read_the_rate_gives_what_keras_variable_gives(way) -> None:
    plain, adopted = keras.optimizers.SGD(0.01), adopt(keras.optimizers.SGD(0.01))
    assert WAYS[way](adopted.learning_rate) == WAYS[way](plain.learning_rate)


def test_it_is_a_float_as_well() -> None:
    rate = adopt(keras.optimizers.SGD(0.01)).learning_rate
    assert f"{rate:.3f} {rate:g}" == "0.010 0.01"
    assert json.dumps({"lr": rate}) == '{"lr": 0.009999999776482582}'
    assert type(copy.copy(rate)) is float
    assert rate == pytest.approx(0.01)
    assert (rate == "0.01", rate is None, {rate: 1}[rate]) == (False, False, 1)
    assert sorted([rate, 0.001]) == [0.001, rate]


# -- a schedule that ends with the run ---------------------------------------------------------------------

STEPS = 8


@keras.saving.register_keras_serializable("tests")
class Table(keras.optimizers.schedules.LearningRateSchedule):
    """One rate a step, and none for a step more."""

    def __call__(self, step):
        return tf.gather(tf.constant([0.1 * (i + 1) for i in range(STEPS)], tf.float32), tf.cast(step, tf.int64))

    def get_config(self):
        return {}


class InPython(Table):
    """The same, of what Python holds."""

    def __call__(self, step):
        return [0.1 * (i + 1) for i in range(STEPS)][int(step)]


LAST = np.float32(0.1 * STEPS)


def trained(job, optimizer, callbacks=(), epochs=2, data=None, **options):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer, "mse", **options)
    x = np.ones((4 * STEPS // epochs, 2), "float32")
    data = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(4) if data is None else data
    return model, model.fit(data, epochs=epochs, verbose=0, shuffle=False, callbacks=job.callbacks(callbacks))


@pytest.mark.parametrize("scaled", [True, False])
def test_a_table_as_long_as_the_run_ends_it_with_all_that_is_written(scaled, tmp_path) -> None:
    job = distlr.init(environ={})
    batch = job.batch(per_replica=4, base_batch=4, samples_per_epoch=2 * STEPS) if scaled else None
    saver = keras.callbacks.ModelCheckpoint(tmp_path / "m.keras")
    optimizer = job.optimizer(keras.optimizers.SGD(Table()), batch)
    callbacks = [saver, distlr.callbacks.ReduceLROnPlateau("loss")]
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer, "mse")
    x = np.ones((2 * STEPS, 2), "float32")
    history = model.fit(
        x, x[:, :1], batch_size=4, epochs=2, verbose=0, shuffle=False,
        callbacks=job.callbacks(callbacks, run_dir=tmp_path / "run"),
    ).history  # fmt: skip
    assert history["learning_rate"] == pytest.approx([0.1 * (STEPS // 2 + 1), LAST])  # the next one's, and the last's
    assert (tmp_path / "m.keras").exists()
    assert int(optimizer.iterations) == STEPS
    assert optimizer.distlr.formula.reading().rate == LAST
    assert float(optimizer.learning_rate) == LAST
    optimizer.learning_rate = float(LAST) / 2  # as Keras' own plateau does at the last epoch's end
    assert (optimizer.multiplier, float(optimizer.learning_rate)) == (0.5, LAST / 2)
    if scaled:
        assert optimizer.distlr.formula.rates_at([0, 2 * STEPS, 4 * STEPS]).tolist() == pytest.approx(
            [0.1, 0.5, 0.8], rel=1e-6
        )
        lines = [json.loads(line) for line in (tmp_path / "run" / "epochs.jsonl").read_text().splitlines()]
        assert lines[-1]["curve"][-1][1] == pytest.approx(LAST)


def test_a_table_in_python_is_read_eagerly() -> None:
    job = distlr.init(environ={})
    optimizer = job.optimizer(keras.optimizers.SGD(InPython()))
    _, fitted = trained(job, optimizer, run_eagerly=True)
    assert fitted.history["learning_rate"][-1] == pytest.approx(LAST)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_last_update_is_found_by_the_clock_alone(accumulation) -> None:
    batch = GlobalBatch(4, replicas=2, base_batch=4 * accumulation, accumulation=accumulation, samples_per_epoch=43)
    steps = accumulation if accumulation > 1 else None
    optimizer = adopt(keras.optimizers.SGD(Table(), gradient_accumulation_steps=steps), batch)
    variable, applied = keras.Variable([0.0]), []
    while True:
        try:
            before = float(variable.numpy()[0])
            optimizer.apply([tf.constant([1.0])], [variable])
        except tf.errors.InvalidArgumentError:
            break
        if float(variable.numpy()[0]) != before:
            applied.append(before - float(variable.numpy()[0]))
    assert optimizer.distlr.formula.reading().rate == pytest.approx(applied[-1], rel=1e-5)


def test_a_schedule_that_fails_before_the_first_update_fails() -> None:
    class Broken(Table):
        def __call__(self, step):
            if int(step) >= 0 and self.broken:
                raise RuntimeError("broken")
            return tf.constant(0.1)

    schedule = Broken()
    schedule.broken = False
    optimizer = adopt(keras.optimizers.SGD(schedule))
    schedule.broken = True
    with pytest.raises(RuntimeError, match="broken"):
        optimizer.distlr.formula.reading()
    variable = keras.Variable([0.0])
    schedule.broken = False
    optimizer.apply([tf.constant([1.0])], [variable])
    schedule.broken = True
    with pytest.raises(RuntimeError, match="broken"):
        optimizer.distlr.formula.reading()


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_data_of_unknown_length_ends_with_the_table() -> None:
    job = distlr.init(environ={})
    specs = (tf.TensorSpec((4, 2)), tf.TensorSpec((4, 1)))
    batches = [(np.ones((4, 2), "float32"), np.ones((4, 1), "float32"))] * STEPS
    data = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=specs)
    _, fitted = trained(job, job.optimizer(keras.optimizers.SGD(Table())), epochs=1, data=data)
    assert len(fitted.history["loss"]) == 1
