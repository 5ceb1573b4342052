"""The files that a run leaves in its directory."""

from __future__ import annotations

import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from restarts import locked_by_another_job

import distlr
from distlr.callbacks import ReduceLROnPlateau
from distlr.callbacks.job_callback import JobCallback
from distlr.callbacks.run_recorder import RunRecorder
from distlr.communicators import run_ranks
from distlr.errors import ConfigurationError
from distlr.optimizer.all_or_none import global_norm
from distlr.runlog.directory import RunDirectory


def _fit(rate_bench, tmp_path, replicas=1, epochs=3, callbacks=(), adopted=True, reads=True, **options):
    bench = rate_bench.Bench(replicas, keras.optimizers.schedules.CosineDecay(0.1, 100))
    batch = bench.batch(4 // replicas, 2, samples_per_epoch=9)
    if adopted:
        bench.adopt(batch, warmup="1ep")
    else:
        bench = rate_bench.Bench(replicas)
    bench.compile()
    all_callbacks = bench.job.callbacks(list(callbacks), run_dir=tmp_path / "a" / "run")
    data = bench.job.shard(rate_bench.samples(9), batch, remainder="carry")
    history = bench.fit(data, epochs, all_callbacks, steps_per_epoch=2, **options).history
    return bench, history, RunDirectory(tmp_path / "a" / "run").read() if reads else None


@pytest.mark.parametrize("replicas", [1, 2])
def test_epochs_and_the_curve_are_what_was_applied(rate_bench, tmp_path, replicas) -> None:
    cut = ReduceLROnPlateau("val_loss", factor=0.5, patience=1, warmup_patience=True)
    bench, history, run = _fit(rate_bench, tmp_path, replicas, callbacks=[rate_bench.Overwrite([1.0] * 3), cut])
    assert [epoch["epoch"] for epoch in run.epochs] == [0, 1, 2]
    for name in ("learning_rate", "lr_multiplier", "samples_seen"):
        assert [epoch[name] for epoch in run.epochs] == history[name]
    assert [epoch["logs"]["loss"] for epoch in run.epochs] == pytest.approx(history["loss"])
    agreement = run.epochs[-1]["agreement"]
    assert (agreement["ranks"], agreement["replicas"], agreement["equal"]) == (1, replicas, True)
    assert agreement["rates"] == bench.job.rate_digests(bench.optimizer)
    # The first step of each epoch had the curve's first rate, cuts and all.
    starts = [epoch["curve"][0] for epoch in run.epochs]
    np.testing.assert_allclose([rate for _, rate in starts], bench.rates()[::2], rtol=1e-6)
    assert [position for position, _ in starts] == [0, 1, 2]
    assert [(d["kind"], d["epoch"], d["at"], d["multiplier"]) for d in run.decisions] == [
        ("plateau", 1, 2.0, 0.5),
        ("plateau", 2, 3.0, 0.5),
    ]
    assert run.decisions[0]["learning_rate"] == pytest.approx(bench.rates()[4], rel=1e-6)


def test_the_run_says_what_it_is(rate_bench, tmp_path) -> None:
    bench, _, run = _fit(rate_bench, tmp_path)
    assert run.run["job"]["factor"] == 2
    assert run.run["job"]["replicas"] == 1
    assert run.run["epochs"] == 3
    assert run.run["started"] <= run.run["ended"]
    assert run.run["versions"]["keras"] == keras.__version__
    assert run.run["job"] == {**bench.job.explain(), "samples_seen": 0, "learning_rate": pytest.approx(0.1)}


def test_a_plain_optimizer_has_its_rate_alone(rate_bench, tmp_path, caplog) -> None:
    _, history, run = _fit(rate_bench, tmp_path, adopted=False, epochs=1)
    assert run.epochs[0]["learning_rate"] == pytest.approx(history["learning_rate"][0])
    assert "curve" not in run.epochs[0]
    assert "control is not read" in caplog.text


def test_numbers_that_are_none_are_null(rate_bench, tmp_path) -> None:
    values = rate_bench.Overwrite([float("nan"), float("inf"), 1.0], "score")
    plateau = ReduceLROnPlateau("score", mode="min", on_nan="ignore")
    _, _, run = _fit(rate_bench, tmp_path, callbacks=[values, plateau])
    assert [epoch["logs"]["score"] for epoch in run.epochs] == [None, None, 1.0]


def test_a_run_that_is_continued_takes_back_what_it_trains_again(rate_bench, tmp_path) -> None:
    for initial, epochs in ((0, 3), (1, 2)):
        _, _, run = _fit(rate_bench, tmp_path, epochs=epochs, initial_epoch=initial)
    assert [epoch["epoch"] for epoch in run.epochs] == [0, 1]
    _, _, run = _fit(rate_bench, tmp_path, epochs=1)
    assert [epoch["epoch"] for epoch in run.epochs] == [0]
    assert len(list((tmp_path / "a" / "run" / "earlier").iterdir())) == 1


class Deciding(JobCallback):
    """Decides in each epoch, in a way of its own."""

    def on_epoch_end(self, epoch, logs=None):
        self.decided("of my own", epoch, "it is time")


def test_what_any_callback_decided_after_the_place_that_is_continued_is_decided_again(rate_bench, tmp_path) -> None:
    for initial, epochs in ((0, 3), (1, 3)):
        _, _, run = _fit(rate_bench, tmp_path, epochs=epochs, initial_epoch=initial, callbacks=[Deciding()])
        assert [(entry["kind"], entry["epoch"]) for entry in run.decisions] == [
            ("of my own", epoch) for epoch in range(initial, epochs)
        ]


def test_scalars_that_cannot_be_written_cost_the_scalars_and_not_the_run(rate_bench, tmp_path, caplog) -> None:
    """On rank 0 alone an error would leave the others waiting."""
    directory = tmp_path / "a" / "run"
    directory.mkdir(parents=True)
    (directory / "tensorboard").write_text("")
    _, history, run = _fit(rate_bench, tmp_path, callbacks=[Deciding()])
    assert len(history["loss"]) == len(run.epochs) == 3
    assert caplog.text.count("tensorboard cannot be written, and gets no more scalars") == 1


@pytest.mark.parametrize(("name", "line"), [("epochs.jsonl", '{"loss": 1}'), ("decisions.jsonl", '{"clock": null}')])
def test_files_that_are_no_runs_cost_the_record_and_not_the_run(rate_bench, tmp_path, caplog, name, line) -> None:
    _fit(rate_bench, tmp_path, epochs=2)
    (tmp_path / "a" / "run" / name).write_text(f"{line}\n")
    _, history, _ = _fit(rate_bench, tmp_path, epochs=3, initial_epoch=1, reads=False)
    assert len(history["loss"]) == 2
    assert caplog.text.count("is not what a run writes") == 1


def test_a_schedule_that_takes_one_time_at_a_time(rate_bench, tmp_path) -> None:
    bench = rate_bench.Bench(1, keras.optimizers.schedules.CosineDecay(0.0, 100, warmup_target=0.1, warmup_steps=4))
    batch = bench.batch(2, 2, samples_per_epoch=8)
    bench.adopt(batch)
    bench.compile()
    data = bench.job.shard(rate_bench.samples(8), batch)
    bench.fit(data, 2, bench.job.callbacks(run_dir=tmp_path))
    curve = RunDirectory(tmp_path).read().epochs[0]["curve"]
    assert [rate for _, rate in curve[::2]] == pytest.approx([0, 0.025, 0.05, 0.075, 0.1])


@pytest.mark.parametrize("batches", [1, 2])
def test_a_change_after_a_batch_is_in_the_curve_from_there_on(rate_bench, tmp_path, batches) -> None:
    """This includes a change after the epoch's last batch, which is not one at the epoch's end."""

    class Cut(distlr.callbacks.JobCallback):
        def on_train_batch_end(self, batch, logs=None):
            if batch + 1 == batches:
                self.model.optimizer.multiply_rate(0.5)
                self.decided("control", 0, "by hand", multiplier=0.5, between=False)

    bench = rate_bench.Bench(1)
    batch = bench.batch(4, 2, samples_per_epoch=8)
    bench.adopt(batch)
    bench.compile()
    bench.fit(bench.job.shard(rate_bench.samples(8), batch), 1, bench.job.callbacks([Cut()], run_dir=tmp_path))
    curve = RunDirectory(tmp_path).read().epochs[0]["curve"]
    assert [rate for _, rate in curve] == pytest.approx([0.2 if at < batches / 2 else 0.1 for at, _ in curve])


def test_a_directory_that_is_gone_costs_the_record_and_not_the_run(rate_bench, tmp_path, caplog) -> None:
    gone = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: shutil.rmtree(tmp_path / "a") if epoch == 1 else None
    )
    _, history, _ = _fit(rate_bench, tmp_path, callbacks=[gone], reads=False)
    assert len(history["loss"]) == 3
    assert caplog.text.count("cannot be written") == 1


@pytest.mark.parametrize("why", ["no room for the earlier run", "no number of JSON"])
def test_files_that_cannot_begin_cost_the_record_and_not_the_run(rate_bench, tmp_path, caplog, why) -> None:
    """On rank 0 alone an error would leave the others waiting. To the earlier run's files nothing is added."""
    directory = RunDirectory(tmp_path)
    directory.begin({"started": "earlier"})
    directory.add_epoch({"epoch": 0})
    bench = rate_bench.Bench(1)
    batch = bench.batch(4, 2, samples_per_epoch=8)
    bench.adopt(batch)
    bench.compile()
    callbacks = bench.job.callbacks(run_dir=tmp_path)
    if why == "no number of JSON":
        (record,) = (callback for callback in callbacks if isinstance(callback, RunRecorder))
        record.about = lambda: {"learning_rate": float("nan")}
    else:
        (tmp_path / "earlier").write_text("")
    history = bench.fit(bench.job.shard(rate_bench.samples(8), batch), 2, callbacks).history
    assert len(history["loss"]) == 2
    assert caplog.text.count("cannot be written") == 1
    left = [path.read_text() for path in tmp_path.rglob("*.jsonl")]
    assert left == ['{"epoch": 0}\n']


def test_a_directory_that_another_job_uses_is_refused_on_every_rank_before_the_first_step(tmp_path) -> None:
    def rank(comm):
        record = RunRecorder(tmp_path)
        record.bind(comm)
        with pytest.raises(ConfigurationError) as info:
            record.on_train_begin()
        return str(info.value)

    with locked_by_another_job(tmp_path, "run.lock") as message:
        errors = run_ranks(rank, 2, timeout=1.0)
    assert errors[0].startswith(message)
    assert errors[1].startswith(f"[rank 1] Rank 0 could not use run_dir: {message}")


def test_the_end_of_a_run_leaves_no_lock_and_a_second_one_need_not_wait(rate_bench, tmp_path) -> None:
    for _ in range(2):
        _fit(rate_bench, tmp_path, epochs=1)
        assert not (tmp_path / "a" / "run" / "run.lock").exists()


def test_a_fit_that_trains_nothing_writes_nothing_twice(rate_bench, tmp_path) -> None:
    bench = rate_bench.Bench(1)
    batch = bench.batch(4, 2, samples_per_epoch=8)
    bench.adopt(batch)
    bench.compile()
    cut = ReduceLROnPlateau("val_loss", factor=0.5, patience=1)
    callbacks = bench.job.callbacks([rate_bench.Overwrite([1.0] * 3), cut], run_dir=tmp_path)
    data = bench.job.shard(rate_bench.samples(8), batch)
    bench.fit(data, 0, callbacks)
    bench.fit(data, 3, callbacks)
    assert [d["epoch"] for d in RunDirectory(tmp_path).read().decisions] == [1, 2]


def test_gradients_of_two_types_have_one_norm(rate_bench) -> None:
    gradients = [tf.constant([3.0]), None, tf.constant([400.0], tf.float16), tf.IndexedSlices([4.0], [0], [2])]
    assert float(global_norm(gradients)) == pytest.approx(np.sqrt(9 + 160_000 + 16))


def test_rank_0_alone_writes(rate_bench, tmp_path) -> None:
    bench = rate_bench.Bench(1)
    bench.adopt(bench.batch(4, 2, samples_per_epoch=9))
    bench.compile()

    def rank(comm):
        record = distlr.callbacks.RunRecorder(tmp_path / str(comm.rank))
        record.bind(comm)
        record.set_model(bench.model)
        record.on_train_begin()
        record.on_epoch_begin(0)
        record.on_epoch_end(0, {"loss": 1.0})

    distlr.communicators.run_ranks(rank, 3, timeout=5)
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    assert RunDirectory(tmp_path / "0").read().epochs[0]["agreement"]["ranks"] == 3


def _events(directory) -> list[tuple[int, str, object]]:
    (path,) = directory.iterdir()
    events = []
    for raw in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(raw.numpy())
        for value in event.summary.value:
            array = tf.make_ndarray(value.tensor)
            content = array.item() if array.ndim == 0 else array[0].decode()
            events.append((event.step, value.tag, value.metadata.plugin_data.plugin_name, content))
    return events


@pytest.mark.parametrize("replicas", [1, 2])
def test_tensorboard_has_the_rate_and_the_decisions(rate_bench, tmp_path, replicas) -> None:
    cut = ReduceLROnPlateau("val_loss", factor=0.5, patience=1, warmup_patience=True)
    norms: list[float] = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: norms.append(bench_norm()))

    def bench_norm() -> float:
        return note.model.optimizer.distlr.gradients.norm

    _, history, run = _fit(rate_bench, tmp_path, replicas, callbacks=[rate_bench.Overwrite([1.0] * 3), cut, note])
    events = _events(tmp_path / "a" / "run" / "tensorboard")
    scalars = {}
    for step, tag, plugin, value in events:
        if plugin == "scalars":
            scalars.setdefault(tag, []).append((step, value))
    assert [step for step, _ in scalars["distlr/samples_seen"]] == [2, 4, 6]
    assert [value for _, value in scalars["distlr/samples_seen"]] == history["samples_seen"]
    assert {value for _, value in scalars["distlr/global_batch"]} == {4}
    assert [value for _, value in scalars["distlr/multiplier"]] == [1.0, 0.5, 0.25]
    assert [value for _, value in scalars["distlr/gradient_norm"]] == pytest.approx(norms)
    assert min(norms) > 0
    assert "distlr/collective_seconds" in scalars
    assert scalars["distlr/decisions"] == [(4, 1.0), (6, 2.0)]
    texts = [value for _, _, plugin, value in events if plugin == "text"]
    assert texts == [f"epoch {d['epoch'] + 1}: {d['reason']}" for d in run.decisions]


def test_the_norm_is_that_of_the_averaged_gradients_before_they_are_clipped(rate_bench) -> None:
    bench = rate_bench.Bench(2, global_clipnorm=0.01)
    bench.adopt(bench.batch(1, 1))
    bench.optimizer.distlr.gradients.watch_norm()
    bench.step()
    # Each of two replicas has half of the gradient, and their sum is the global batch's.
    assert bench.optimizer.distlr.gradients.norm == pytest.approx(2 * np.hypot(0.1, 0.2), rel=1e-6)
