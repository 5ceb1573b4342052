"""Callbacks go on counting where a run is continued."""

from __future__ import annotations

import ast
import contextlib
import inspect
import textwrap

import keras
import numpy as np
import pytest
from restarts import Killed

import distlr
from distlr.callbacks import JobCallback
from distlr.callbacks.counters import KEPT, NOT_KEPT, Counters
from distlr.checkpoint.store import CheckpointDirectory, read_checkpoint, write_checkpoint
from distlr.errors import ConfigurationError, StateError
from distlr.testing import run_ranks

K = keras.callbacks
X = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
Y = X.sum(axis=1, keepdims=True)
SCORES = [3.0, 1.0, 2.0, 2.5, 1.5, 4.0, 5.0, 6.0]  # the best is in the second epoch


class Score(K.Callback):
    """A metric that is known beforehand; dies before an epoch."""

    def __init__(self, die_before: int | None = None) -> None:
        super().__init__()
        self.die_before = die_before

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.die_before:
            raise Killed

    def on_epoch_end(self, epoch, logs=None):
        logs["score"] = SCORES[epoch]


def run(directory, *more, die_before=None, epochs=8, every="1ep"):
    """One process of a job; the model that it has trained."""
    keras.utils.set_random_seed(0)
    job = distlr.init(environ={})
    batch = job.batch(total=4, base_batch=4, samples_per_epoch=16)
    with job.scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile(job.optimizer(keras.optimizers.SGD(0.01), batch), "mse")
    callbacks = [Score(die_before), *more]
    if directory is not None:
        callbacks.append(distlr.callbacks.Checkpoint(directory, every))
    with contextlib.suppress(Killed):
        model.fit(
            job.shard((X, Y), batch, seed=0),
            epochs=epochs,
            callbacks=job.callbacks(callbacks),
            shuffle=False,
            verbose=0,
        )
    return model


# -- the table, against the installed Keras -----------------------------------------------------------------


def assigned(kind: type) -> set[str]:
    """The attributes that methods of a class assign to `self`, apart from its `__init__`."""
    names = set()
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    for method in definition.body:
        if not isinstance(method, ast.FunctionDef) or method.name == "__init__":
            continue
        for node in ast.walk(method):
            stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            if stored and isinstance(node.value, ast.Name) and node.value.id == "self":
                names.add(node.attr)
    return names


def known(kind: type) -> set[str]:
    return {name for base in kind.__mro__ for table in (KEPT, NOT_KEPT) for name in table.get(base.__name__, ())}


KINDS = {
    name: kind
    for name, kind in vars(K).items()
    if isinstance(kind, type) and issubclass(kind, K.Callback) and kind is not K.CallbackList
}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_what_changes_in_a_callback_of_the_installed_keras_is_kept_or_known_not_to_matter(name) -> None:
    kind = KINDS[name]
    changes = {attribute for base in kind.__mro__ if issubclass(base, K.Callback) for attribute in assigned(base)}
    assert changes - known(kind) == set()
    assert not {*KEPT.get(name, ())} & {*NOT_KEPT.get(name, ())}


def test_the_table_has_no_class_that_is_not_there() -> None:
    bases = {base.__name__ for kind in KINDS.values() for base in kind.__mro__}
    assert {*KEPT, *NOT_KEPT} - bases <= {"OrbaxCheckpoint"}  # of newer versions


def test_the_inspection_finds_a_counter_that_nobody_knows() -> None:
    class Stateful(K.EarlyStopping):
        def on_epoch_end(self, epoch, logs=None):
            self.new_counter += 1
            self.wait = 0

    assert assigned(Stateful) - known(Stateful) == {"new_counter"}


# -- resumed equals uninterrupted ---------------------------------------------------------------------------


def callbacks_in(folder):
    return [
        K.ModelCheckpoint(folder / "best.keras", monitor="score", mode="min", save_best_only=True),
        K.EarlyStopping("score", mode="min", patience=4, restore_best_weights=True),
        K.ReduceLROnPlateau("score", mode="min", factor=0.5, patience=2, cooldown=2),
    ]


def state(callback) -> dict:
    names = [name for base in type(callback).__mro__ for name in KEPT.get(base.__name__, ())]
    return {name: np.asarray(getattr(callback, name)).tolist() for name in names if name != "best_weights"}


@pytest.mark.replicas
@pytest.mark.parametrize("die_before", [2, 3, 5])
def test_keras_callbacks_decide_as_in_the_run_that_was_not_interrupted(tmp_path, die_before) -> None:
    whole, resumed = callbacks_in(tmp_path / "whole"), callbacks_in(tmp_path / "resumed")
    expected = run(tmp_path / "whole", *whole)
    assert whole[1].stopped_epoch == 5  # by hand: the best at 1, four epochs after it
    assert whole[1].best_epoch == 1
    run(tmp_path / "resumed", *callbacks_in(tmp_path / "resumed"), die_before=die_before)
    model = run(tmp_path / "resumed", *resumed)
    assert [state(callback) for callback in resumed] == [state(callback) for callback in whole]
    for actual, value in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, value)  # of the second epoch, from before the restart
    assert float(model.optimizer.multiplier) == float(expected.optimizer.multiplier)
    best = [keras.saving.load_model(tmp_path / name / "best.keras").get_weights()[0] for name in ("whole", "resumed")]
    np.testing.assert_array_equal(*best)


def test_a_saver_by_batches_goes_on_counting_in_the_middle_of_an_epoch(tmp_path) -> None:
    saver = lambda: K.ModelCheckpoint(tmp_path / "a.weights.h5", save_weights_only=True, save_freq=7)  # noqa: E731
    first = saver()
    run(tmp_path / "ck", first, epochs=1, every="3ba")
    assert (first._batches_seen_since_last_saving, first._last_batch_seen) == (4, 3)
    newest = CheckpointDirectory(tmp_path / "ck", 3).files()[0]
    newest.unlink()  # of the end; the one before it is after three batches
    second = saver()
    run(tmp_path / "ck", second, epochs=1, every="3ba")
    assert second._batches_seen_since_last_saving == 4


def test_two_of_one_class_are_distinguished_by_their_metric(tmp_path) -> None:
    stop = lambda metric: K.EarlyStopping(metric, mode="min", patience=9)  # noqa: E731
    run(tmp_path, stop("loss"), stop("score"), die_before=3)
    other, score = stop("loss"), stop("score")
    run(tmp_path, score, other, epochs=3)  # the other way round, and nothing is trained
    assert (score.best, score.wait) == (1.0, 1)
    assert other.best not in (1.0, None)


def test_a_csv_file_is_continued_and_not_emptied(tmp_path) -> None:
    first = K.CSVLogger(tmp_path / "log.csv")
    run(tmp_path / "ck", first, die_before=2)
    first.csv_file.close()
    run(tmp_path / "ck", K.CSVLogger(tmp_path / "log.csv"), epochs=4)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["epoch", "0", "1", "2", "3"]


# -- callbacks of one's own ---------------------------------------------------------------------------------


class Mine(K.Callback):
    """Counts; what it has counted is named in `distlr_state`."""

    distlr_state = ("best", "wait", "seen", "mask", "note")

    def __init__(self) -> None:
        super().__init__()
        self.best, self.wait, self.seen, self.mask, self.note = float("inf"), 0, [], np.zeros(3), None
        self.epoch = 0

    def on_epoch_end(self, epoch, logs=None):
        self.epoch = epoch
        self.wait += 1
        self.seen.append(epoch)
        self.mask = self.mask + 1
        self.note = f"after {epoch}"
        if epoch == 2:
            self.best = np.float32(0.1)


def test_what_a_class_names_is_kept(tmp_path, caplog) -> None:
    with caplog.at_level("INFO", "distlr"):
        run(tmp_path, Mine(), die_before=2)
        early = Mine()
        run(tmp_path, early, epochs=2)
        assert early.best == float("inf")
        callback = Mine()
        run(tmp_path, callback, epochs=3)
    assert (callback.wait, callback.seen, callback.note) == (3, [0, 1, 2], "after 2")
    assert callback.best == np.float32(0.1)
    assert callback.mask.tolist() == [3.0, 3.0, 3.0]
    assert "begun anew" not in caplog.text.lower()


class Unknown(K.Callback):
    """Counts, and nobody knows of it."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed, self.wait, self._best = 3, 0, None

    def on_epoch_end(self, epoch, logs=None):
        self.wait += 1
        self._best = logs["score"]


class Silent(Unknown):
    """Says that its numbers are no counts."""

    distlr_state = ()


class OfAJob(JobCallback):
    """Counts as well."""

    turns = 0

    def on_epoch_end(self, epoch, logs=None):
        self.turns = self.turns + 1


def test_what_counts_and_is_not_kept_is_named_once(tmp_path, caplog) -> None:
    with caplog.at_level("INFO", "distlr"):
        run(tmp_path, Unknown(), Silent(), OfAJob(), die_before=3)
    named = [record for record in caplog.records if "distlr_state" in record.getMessage()]
    assert [record.levelname for record in named] == ["INFO", "INFO"]
    assert named[0].getMessage() == (
        "Not kept in checkpoints, and begun anew at a restart: _best, wait of Unknown. Fix: write distlr_state = "
        "('_best', 'wait') in its class, or () where it is no count."
    )
    assert "turns of OfAJob" in named[1].getMessage()
    caplog.clear()
    with caplog.at_level("WARNING", "distlr"):
        run(tmp_path, Unknown(), Silent(), OfAJob(), epochs=4)
    assert [text for text in caplog.messages if "Unknown" in text and "_best, wait" in text]
    assert not [text for text in caplog.messages if "Silent" in text]


@pytest.mark.parametrize("names", ["best", ("best", "missing"), (3,)])
def test_a_wrong_declaration_is_refused(names) -> None:
    kind = type("Wrong", (Mine,), {"distlr_state": names})
    with pytest.raises(ConfigurationError, match=r"`distlr_state` of Wrong must name attributes.*Fix: write"):
        Counters([kind()])


def test_a_value_that_is_no_number_is_left_out_with_a_warning(caplog) -> None:
    callback = Mine()
    callback.note = object()
    with caplog.at_level("INFO", "distlr"):
        assert "note" not in Counters([callback]).read().note["kept"]["Mine 1"]
    assert "note of Mine 1 is not kept in checkpoints: it is a object." in caplog.text


# -- the file, and the ranks ----------------------------------------------------------------------------------


def test_a_file_without_counters_is_continued_with_a_warning(tmp_path, caplog) -> None:
    run(tmp_path, *callbacks_in(tmp_path / "a"), die_before=3)
    (path, *_) = CheckpointDirectory(tmp_path, 3).files()
    arrays, values = read_checkpoint(path)
    del values["callbacks"]
    write_checkpoint(path, {n: a for n, a in arrays.items() if not n.startswith("callback/")}, values)
    with caplog.at_level("WARNING", "distlr"):
        stop = K.EarlyStopping("score", mode="min", patience=9)
        run(tmp_path, stop, epochs=4)
    assert stop.best == 2.5  # of the fourth epoch alone
    assert "no counters of EarlyStopping score 1" in caplog.text


@pytest.mark.parametrize(
    "note",
    [
        [],
        {"kept": {}},
        {"kept": {"EarlyStopping loss 1": 3}, "lost": {}},
        {"kept": {"EarlyStopping loss 1": {"best_weights": {"array": "absent"}}}, "lost": {}},
        {"kept": {"EarlyStopping loss 1": {"wait": {"call": "os.system"}}}, "lost": {}},
        {"kept": {"EarlyStopping loss 1": {"wait": {}}}, "lost": {}},
        {"kept": {}, "lost": {"a": 3}},
    ],
)
def test_what_was_not_written_so_is_refused(note) -> None:
    stop = K.EarlyStopping("loss")
    with pytest.raises(StateError, match="does not say what callbacks had counted"):
        Counters([stop]).assign(note, {})
    assert stop.wait == 0


def test_every_rank_gets_what_rank_0_has_read() -> None:
    """ModelCheckpoint is on rank 0 alone, EarlyStopping on both."""
    weights = [np.arange(6, dtype="float32").reshape(2, 3), np.ones(3, "float16")]

    def rank(comm):
        stop = K.EarlyStopping("loss", restore_best_weights=True)
        saver = [K.ModelCheckpoint("a.keras", monitor="loss")] if comm.is_root else []
        counters = Counters([*saver, stop])
        written = Counters([K.ModelCheckpoint("a.keras", monitor="loss"), stop])
        stop.best, stop.wait, stop.best_weights = np.float32(0.3), 2, weights
        bundle = written.read()
        stop.best, stop.wait, stop.best_weights = None, 0, None
        counters.restore(comm, bundle.note, bundle.arrays if comm.is_root else {})
        return stop.best, stop.wait, [(w.dtype.name, w.tolist()) for w in stop.best_weights]

    first, second = run_ranks(rank, 2)
    assert first == second == (float(np.float32(0.3)), 2, [(w.dtype.name, w.tolist()) for w in weights])
