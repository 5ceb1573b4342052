"""The agreement of the ranks around the steps: state, divergence, stops, files; and half of distlr on several ranks."""

from __future__ import annotations

import json
import math
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import distlr
from distlr.data.sharding import own_share
from distlr.errors import ConfigurationError, DistributionError, ReplicaDivergenceError

EPOCHS = 3


def build_model(job, *, adopt: bool = True, rate=0.1, dropout: float = 0.0, **options):
    """A small compiled model, different on each rank until rank 0's state is broadcast."""
    keras.utils.set_random_seed(job.rank)
    layers = [keras.layers.Dropout(dropout)] if dropout else []
    with job.scope():
        model = keras.Sequential([keras.Input((2,)), *layers, keras.layers.Dense(1)])
        optimizer = keras.optimizers.SGD(rate, momentum=0.9)
        if adopt:
            batch = job.batch(per_replica=2, base_batch=2, samples_per_epoch=6 * job.size)
            optimizer = job.optimizer(optimizer, batch, **options)
        model.compile(optimizer, "mse")
    return model


def data(job, batches: int = 3):
    x = np.random.default_rng(job.rank).normal(size=(2 * batches, 2)).astype("float32")
    return own_share(tf.data.Dataset.from_tensor_slices((x, x.sum(axis=1, keepdims=True))).batch(2))


def fit(job, model, callbacks=(), epochs: int = EPOCHS, **options):
    all_callbacks = job.callbacks(list(callbacks)) if callbacks is not None else None
    return model.fit(data(job), epochs=epochs, verbose=0, shuffle=False, callbacks=all_callbacks, **options)


class At(keras.callbacks.Callback):
    """Does something to one rank's model after one batch (from 0, over the whole run)."""

    def __init__(self, batch: int, act, epoch_end: bool = False) -> None:
        super().__init__()
        self.batch, self.act, self.count = batch, act, 0

    def on_train_batch_end(self, batch, logs=None):
        if self.count == self.batch:
            self.act(self.model)
        self.count += 1


# -- state -----------------------------------------------------------------------------------------------


def test_every_rank_begins_with_rank_0s_state(job, same_on_all) -> None:
    model = build_model(job)
    with job.scope():
        model.optimizer.build(model.trainable_variables)
    if job.rank == 0:
        model.optimizer.multiply_rate(0.5)
        model.optimizer.iterations.assign(7)
        model.optimizer.variables[2].assign(np.full((2, 1), 0.25))
    seen = {}

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.setdefault("weights", [w.numpy().tolist() for w in self.model.weights])
            seen.setdefault("optimizer", [np.asarray(v.numpy()).tolist() for v in self.model.optimizer.variables])

    model.fit(data(job), verbose=0, shuffle=False, callbacks=[*job.callbacks(), Look()])
    same_on_all(seen)
    assert 7 in seen["optimizer"]
    assert 0.5 in seen["optimizer"]
    assert [[0.25], [0.25]] in seen["optimizer"]


def test_ranks_draw_different_dropout_masks(job) -> None:
    model = build_model(job, dropout=0.5)
    fit(job, model, epochs=1)
    masks = [layer(np.ones((1, 64)), training=True).numpy().tolist() for layer in [model.layers[0]]]
    all_masks = job.communicator.gather_json(masks, tag="masks")
    assert len({json.dumps(mask) for mask in all_masks}) == job.size


def test_different_scaling_is_refused_on_every_rank(job) -> None:
    model = build_model(job, rule="linear" if job.rank else "sqrt")
    with pytest.raises(DistributionError, match=r'formula: .*"rule": "sqrt"'):
        fit(job, model, epochs=1)


def test_different_numbers_of_steps_are_refused_before_the_first(job, simple) -> None:
    model = simple()
    with pytest.raises(DistributionError, match=r"steps an epoch.*rank 0 with.*2"):
        model.fit(data(job, 2 + (job.rank > 0)), verbose=0, shuffle=False, callbacks=job.callbacks())
    assert int(model.optimizer.iterations.numpy()) == 0


# -- divergence --------------------------------------------------------------------------------------------


def _last_bit(model) -> None:
    kernel = model.trainable_variables[0]
    bits = kernel.numpy().view(np.int32)
    bits[0, 0] ^= 1
    kernel.assign(bits.view(np.float32))


DIVERGENCES = {
    "rate": (lambda model: setattr(model.optimizer, "learning_rate", 0.07), "learning rate"),
    "multiplier": (lambda model: model.optimizer.multiply_rate(0.5), "multiplier"),
    "iterations": (lambda model: model.optimizer.iterations.assign_add(1), "iterations"),
    "one weight's last bit": (_last_bit, "weights"),
}


@pytest.mark.parametrize("what", DIVERGENCES)
@pytest.mark.parametrize("every", [None, 2])
def test_a_rank_that_diverges_is_found_and_named_on_every_rank(job, what, every) -> None:
    act, field = DIVERGENCES[what]
    last = job.size - 1
    model = build_model(job)
    strange = At(3, act if job.rank == last else lambda model: None)
    guard = distlr.callbacks.ReplicaGuard(every=every)
    with pytest.raises(ReplicaDivergenceError) as info:
        fit(job, model, [strange, guard])
    text = str(info.value)
    assert f"[rank {job.rank}]" in text
    assert f"{field}: rank" in text
    assert f"rank {last} with" in text
    # Batch 3 of the run is the first of the second epoch, of three batches.
    assert ("at batch 2 of epoch 2" if every else "at epoch 2") in text
    if field == "weights":
        assert "weight 0: " in text
        assert "kernel" in text


def test_a_skipped_step_is_found(job) -> None:
    model = build_model(job)
    core = model.optimizer

    def skip(model) -> None:
        # The exchange takes place, and this rank loses the update.
        before = [variable.numpy() for variable in [*model.weights, *core.variables]]
        model.undo = lambda: [v.assign(b) for v, b in zip([*model.weights, *core.variables], before, strict=True)]

    class Undo(At):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            if self.count == self.batch + 2:
                self.model.undo()

    callback = Undo(1, skip) if job.rank == job.size - 1 else At(1, lambda model: None)
    with pytest.raises(ReplicaDivergenceError, match=r"(?s)at epoch 1.*iterations: .*with 3.*with 2.*samples seen"):
        fit(job, model, [callback])


# -- stops and files -----------------------------------------------------------------------------------------


def test_a_stop_of_one_rank_stops_all_at_the_same_step(job, same_on_all) -> None:
    model = build_model(job)
    stop = At(3, (lambda model: setattr(model, "stop_training", True)) if job.rank == 1 else lambda model: None)
    history = fit(job, model, [stop])
    # Asked for after the 4th step, it travels with the 5th.
    assert same_on_all(int(model.optimizer.iterations.numpy())) == 5
    assert len(history.history["loss"]) == 2
    # The next fit is not stopped by the old request.
    assert len(fit(job, model).history["loss"]) == EPOCHS


def test_a_stop_after_an_epochs_last_step(job, same_on_all) -> None:
    model = build_model(job)
    stop = At(2, (lambda model: setattr(model, "stop_training", True)) if job.rank == 1 else lambda model: None)
    history = fit(job, model, [stop])
    assert same_on_all([int(model.optimizer.iterations.numpy()), len(history.history["loss"])]) == [3, 1]


def test_a_stop_at_an_epochs_end_on_one_rank(job, same_on_all) -> None:
    class StopHere(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1 and job.rank == job.size - 1:
                self.model.stop_training = True

    model = build_model(job)
    history = fit(job, model, [StopHere()])
    assert same_on_all(len(history.history["loss"])) == 2


def test_terminate_on_nan_of_one_rank_ends_all(job, local_data, simple, same_on_all) -> None:
    x = np.ones((10, 2), "float32")
    if job.rank == 1:
        x[2:4] = math.nan  # its second batch of five
    model = simple()
    stop = keras.callbacks.TerminateOnNaN()
    history = model.fit(
        local_data((x, x[:, :1]), 2), verbose=0, epochs=3, shuffle=False, callbacks=job.callbacks([stop])
    )
    # Rank 1 asks after its second step; the others' losses are NaN in the third, which is the last for all.
    assert same_on_all([int(model.optimizer.iterations.numpy()), len(history.history["loss"])]) == [3, 1]


def test_early_stopping_acts_on_the_metric_of_all(job, same_on_all) -> None:
    model = build_model(job, rate=0.0)
    stop = keras.callbacks.EarlyStopping("loss", patience=1, min_delta=1e-3)
    history = fit(job, model, [stop], epochs=6)
    assert same_on_all(history.history["loss"])
    assert len(history.history["loss"]) == 2


def test_files_are_written_by_rank_0_alone(job, tmp_path_factory) -> None:
    shared = pathlib.Path(job.communicator.broadcast_json(str(tmp_path_factory.mktemp("run")), tag="folder"))
    folder = shared / f"rank{job.rank}"
    model = build_model(job)
    writers = [
        keras.callbacks.ModelCheckpoint(folder / "model.keras"),
        keras.callbacks.BackupAndRestore(folder / "backup", delete_checkpoint=False),
        keras.callbacks.CSVLogger(folder / "log.csv"),
        distlr.callbacks.RunRecorder(folder),
        distlr.callbacks.TensorBoardScalars(folder / "scalars"),
    ]
    folder.mkdir(exist_ok=True)
    fit(job, model, writers)
    job.communicator.barrier(tag="written")
    names = sorted(path.name for path in folder.iterdir())
    assert names == (["backup", "epochs.jsonl", "log.csv", "model.keras", "run.json", "scalars"] if job.is_root else [])
    # Rank 0 reads its backup, and every rank goes on at its epoch with its state.
    again = build_model(job)
    history = fit(job, again, [keras.callbacks.BackupAndRestore(folder / "backup")], epochs=EPOCHS + 1)
    assert len(history.history["loss"]) == 1
    assert again.optimizer.samples_seen == 6 * job.size * (EPOCHS + 1)


def test_a_model_that_was_loaded_is_connected(job, same_on_all, tmp_path_factory) -> None:
    model = build_model(job)
    fit(job, model, epochs=1)
    path = tmp_path_factory.mktemp("own") / "model.keras"
    model.save(path)
    with job.scope():
        loaded = keras.models.load_model(path)
    assert loaded.optimizer.distlr.gradients.reducer is None
    fit(job, loaded, epochs=1)
    same_on_all([weight.numpy().tolist() for weight in loaded.weights])
    assert loaded.optimizer.distlr.gradients.reducer is not None


# -- on one rank alone -------------------------------------------------------------------------------------

K = keras.callbacks
DECIDERS = {
    "EarlyStopping": lambda: K.EarlyStopping("loss", patience=2, restore_best_weights=True),
    "ReduceLROnPlateau": lambda: K.ReduceLROnPlateau("loss"),
    "LearningRateScheduler": lambda: K.LearningRateScheduler(lambda epoch: 0.1),
    "SwapEMAWeights": K.SwapEMAWeights,
    "TerminateOnNaN": K.TerminateOnNaN,
    "ReduceLROnPlateau of distlr": lambda: distlr.callbacks.ReduceLROnPlateau("loss"),
}


@pytest.mark.parametrize("name", DECIDERS)
def test_a_decider_on_one_rank_alone_is_refused_before_training_on_every_rank(job, name) -> None:
    model = build_model(job)
    local_callbacks = [DECIDERS[name]()] if job.rank == job.size - 1 else []
    with pytest.raises(DistributionError, match=rf'rank {job.size - 1} with .*"{name.split()[0]}"'):
        fit(job, model, local_callbacks)
    assert model.optimizer.samples_seen == 0


def test_deciders_of_other_patience_are_refused_with_both_numbers(job) -> None:
    model = build_model(job)
    patience = 5 if job.rank == 0 else 3
    with pytest.raises(DistributionError, match=r'"patience": 5.*"patience": 3'):
        fit(job, model, [K.EarlyStopping("loss", patience=patience)])
    assert model.optimizer.samples_seen == 0


def test_a_logger_on_rank_0_alone_that_looks_at_batches_trains(job, same_on_all) -> None:
    seen = []
    logger = K.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(batch))
    model = build_model(job)
    fit(job, model, [logger] if job.is_root else [])
    assert same_on_all(int(model.optimizer.iterations.numpy())) == 3 * EPOCHS
    assert len(seen) == (3 * EPOCHS if job.is_root else 0)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_by_a_callback_that_one_rank_alone_has_stops_all_at_the_same_step(job, same_on_all, rank) -> None:
    model = build_model(job)
    stop = At(3, lambda model: setattr(model, "stop_training", True))
    history = fit(job, model, [stop] if job.rank == rank else [])
    # Asked for after the 4th step, it travels with the 5th.
    assert same_on_all([int(model.optimizer.iterations.numpy()), len(history.history["loss"])]) == [5, 2]
    assert type(model.train_function).__name__ != "_WatchedStep"
    assert len(fit(job, model).history["loss"]) == EPOCHS


def test_a_stop_as_an_epoch_begins_on_one_rank_alone_stops_all(job, same_on_all) -> None:
    def stop(epoch, logs):
        if epoch == 1:
            model.stop_training = True

    model = build_model(job)
    history = fit(job, model, [K.LambdaCallback(on_epoch_begin=stop)] if job.is_root else [])
    # No rank looks at its batches, so nothing tells the others before the epoch's end.
    assert same_on_all([int(model.optimizer.iterations.numpy()), len(history.history["loss"])]) == [6, 2]


def test_weights_that_one_rank_restores_as_the_training_ends_are_found(job) -> None:
    model = build_model(job)
    first = model.get_weights()
    restore = K.LambdaCallback(on_train_end=lambda logs: model.set_weights(first))
    with pytest.raises(ReplicaDivergenceError, match=r"(?s)end of fit.*weights: rank.*kernel"):
        fit(job, model, [restore] if job.rank == 1 else [])


def test_evaluate_refuses_two_models(job) -> None:
    model = build_model(job)
    fit(job, model, epochs=1)
    same = job.evaluate(model, data(job))["loss"]
    if job.rank == 1:
        _last_bit(model)
    with pytest.raises(ReplicaDivergenceError, match=r"(?s)at job\.evaluate.*rank 1 with"):
        job.evaluate(model, data(job))
    assert math.isfinite(same)


def test_evaluate_takes_the_mean_of_moving_statistics(job, spans) -> None:
    """The errors of a model that subtracts the mean over the ranks of what each has seen."""
    with job.scope():
        norm = keras.layers.BatchNormalization(center=False, scale=False, epsilon=0.0)
        model = keras.Sequential([keras.Input((1,)), norm])
        model.compile("sgd", loss="mse")
    if not spans:
        norm.moving_mean.assign([2.0 * job.rank])
    x = np.full((2, 1), 10.0, "float32")
    dataset = own_share(tf.data.Dataset.from_tensor_slices((x, 0 * x)).batch(2))
    mean = 0.0 if spans else job.size - 1.0
    assert job.evaluate(model, dataset)["loss"] == pytest.approx((10.0 - mean) ** 2, rel=1e-5)


# -- half of distlr ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["float", "schedule"])
@pytest.mark.parametrize("part", ["scale", "optimizer", "callbacks", "stock plateau", "all"])
def test_each_part_alone_is_right_or_refused(job, spans, same_on_all, part, kind) -> None:
    rate = 0.1 if kind == "float" else keras.optimizers.schedules.CosineDecay(0.1, 100)
    if part == "scale":  # a plain optimizer: nothing averages
        batch = distlr.GlobalBatch(2, replicas=job.size, base_batch=2, samples_per_epoch=6 * job.size)
        model = build_model(job, adopt=False, rate=distlr.scale(rate, batch))
    else:
        model = build_model(job, adopt=part != "callbacks", rate=rate)
    plateau = distlr.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9)
    if part in ("scale", "callbacks") and not spans:
        with pytest.raises(DistributionError, match="Nothing averages the gradients"):
            fit(job, model, [plateau])
    elif spans and part != "all":
        # The strategy averages, of every optimizer; but Keras cannot cut a plain one's schedule.
        if part == "scale" or (part, kind) == ("callbacks", "schedule"):
            with pytest.raises(ConfigurationError, match="is a schedule"):
                fit(job, model, [plateau])
            return
        stock = [keras.callbacks.ReduceLROnPlateau("loss", patience=1)] if part == "stock plateau" else []
        if part == "callbacks":
            fit(job, model, [plateau])
        else:
            model.fit(data(job), verbose=0, shuffle=False, callbacks=stock)
        same_on_all(
            [[weight.numpy().tolist() for weight in model.weights], float(model.optimizer.learning_rate.numpy())]
        )
        return
    elif part == "optimizer":
        with pytest.raises(DistributionError, match="never broadcast"):
            fit(job, model, None)
    elif part == "stock plateau":  # on the rank's own metrics, past job.callbacks
        stock = keras.callbacks.ReduceLROnPlateau("loss", patience=1)
        with pytest.raises(DistributionError, match="never broadcast"):
            model.fit(data(job), verbose=0, shuffle=False, callbacks=[stock])
    else:
        stock = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9)
        fit(job, model, [plateau, stock])
        same_on_all([model.optimizer.rate_digests(), model.optimizer.multiplier])
        assert model.optimizer.multiplier == pytest.approx(0.5**4)
        return
    assert int(model.optimizer.iterations.numpy()) == 0


def test_a_callback_of_distlr_past_job_callbacks_is_refused(job) -> None:
    model = build_model(job)
    job.broadcast(model, model.optimizer)
    with pytest.raises(DistributionError, match=r"without knowing them.*job\.callbacks"):
        model.fit(data(job), verbose=0, shuffle=False, callbacks=[distlr.callbacks.ReduceLROnPlateau("loss")])


def test_a_plateau_that_knows_no_ranks_is_refused(job, same_on_all) -> None:
    model = build_model(job)
    with pytest.raises(DistributionError, match=r"Plateau runs on \d ranks.*communicator=job\.communicator"):
        distlr.Plateau(model.optimizer, "loss")
    plateau = distlr.Plateau(model.optimizer, "loss", patience=1, factor=0.5, communicator=job.communicator)
    for value in (1.0, 1.0 if job.rank == 0 else 0.0):  # rank 0's counts
        plateau.step(value)
    assert same_on_all(model.optimizer.multiplier) == 0.5


def test_a_loop_of_ones_own(job, same_on_all) -> None:
    keras.utils.set_random_seed(job.rank)
    batch = job.batch(per_replica=2, base_batch=2, samples_per_epoch=6 * job.size)
    with job.scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        optimizer = job.optimizer(keras.optimizers.SGD(0.1), batch)
        optimizer.build(model.trainable_variables)
    job.broadcast(model, optimizer)
    loss_of = keras.losses.MeanSquaredError(reduction=None)

    @tf.function
    def step(x, y):
        def replica(x, y):
            with tf.GradientTape() as tape:
                loss = job.mean_loss(loss_of(y, model(x, training=True)), batch)
            optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

        job.run(replica, x, y)

    x = np.random.default_rng(0).normal(size=(6 * job.size, 2)).astype("float32")
    for inputs, targets in job.distribute(job.shard((x, x[:, :1]), batch, shuffle=False)):
        step(inputs, targets)
    job.check(model, optimizer)
    assert optimizer.samples_seen == 6 * job.size
    same_on_all([weight.numpy().tolist() for weight in model.weights])


def test_engines_and_simulations_do_not_mix(job) -> None:
    with pytest.raises(DistributionError, match=r"would simulate 4 replicas in each"):
        distlr.init(simulate=4)
    with pytest.raises(ConfigurationError, match="simulate"):
        distlr.init("horovod", simulate=4)
    with pytest.raises(ConfigurationError, match="engine='gloo'"):
        distlr.init("gloo")
