"""Whatever a run is made of, and wherever it ends: resumed it is the run that was not interrupted, bit for bit.

Each draw is trained as a whole, and again with one or two interruptions, each continued from the newest checkpoint.

The same ranks: weights, slots, averages, loss scale, clock, iterations, multiplier, the clock and the rate after each
step, the samples of each epoch, and how many steps were left out are equal, bit for bit.

Other ranks: n ranks see, together, the batches that one process with n times the batch sees, which stands for them
here. Exact are the clock (by hand, from where it stood), each rate (the formula at that clock), and the samples: none
of an epoch is drawn twice, and none is left out that a whole update could have. The weights are those of another
training, and are not compared.

`DISTLR_PROPERTY_DRAWS` is the number of draws, `DISTLR_PROPERTY_SEED` tells them apart.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import signal
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis import strategies as st

import distlr
from distlr.callbacks import Checkpoint, NonFiniteGuard, ReduceLROnPlateau
from distlr.checkpoint.snapshot import TrainingStateSnapshot
from distlr.checkpoint.store import CheckpointDirectory

DRAWS = int(os.environ.get("DISTLR_PROPERTY_DRAWS", "60"))
SEED = int(os.environ.get("DISTLR_PROPERTY_SEED", "0"))
SAMPLES, EPOCHS, BASE = 26, 3, 4  # 26: most batches leave some out
RNG = np.random.default_rng(0)
X = RNG.normal(size=(SAMPLES, 3)).astype("float32")
Y = X.sum(axis=1, keepdims=True)
NUMBERS = np.arange(SAMPLES, dtype="float32")[:, None]
SCHEDULES = {
    "constant": lambda: 0.05,
    "cosine": lambda: keras.optimizers.schedules.CosineDecay(0.05, 20),
    "steps": lambda: keras.optimizers.schedules.PiecewiseConstantDecay([5, 11], [0.05, 0.03, 0.01]),
}


@dataclasses.dataclass(frozen=True)
class Script:
    """What is written in a script; `ranks` that take two samples a step each."""

    schedule: str
    rule: str
    accumulation: int
    ema: bool
    loss_scale: bool
    knows_samples: bool
    ranks: int

    @property
    def per_step(self) -> int:
        return 2 * self.ranks


@dataclasses.dataclass(frozen=True)
class Draw:
    script: Script
    goes_on_with: int  # ranks
    bad: tuple[int, ...]  # samples with a NaN
    every: str
    ends: tuple[
        tuple[str, int], ...
    ]  # how, and after how many steps of that process; or epochs, where `fit` had so many


SCRIPTS = st.builds(
    Script,
    schedule=st.sampled_from(sorted(SCHEDULES)),
    rule=st.sampled_from(["linear", "sqrt"]),
    accumulation=st.integers(1, 3),
    ema=st.booleans(),
    loss_scale=st.booleans(),
    knows_samples=st.booleans(),
    ranks=st.integers(1, 2),
)
DRAW = st.builds(
    Draw,
    script=SCRIPTS,
    goes_on_with=st.sampled_from([0, 0, 0, 1, 2, 3]),  # 0: the same
    bad=st.lists(st.integers(0, SAMPLES - 1), max_size=3, unique=True).map(lambda bad: tuple(sorted(bad))),
    every=st.sampled_from(["1ba", "2ba", "3ba", "1ep"]),
    ends=st.lists(
        st.tuples(st.sampled_from(["kill", "signal"]), st.integers(1, 20))
        | st.tuples(st.just("end"), st.integers(1, EPOCHS - 1)),
        min_size=1,
        max_size=2,
    ).map(tuple),
)


class Killed(Exception):
    """Stands for the end of the process."""


class Counting(keras.Sequential):
    """Counts how often each sample was drawn; its number is the last column."""

    def train_step(self, data):
        x, y = data
        numbers = tf.cast(x[:, 3:], tf.int32)
        self.drawn.assign(tf.tensor_scatter_nd_add(self.drawn, numbers, tf.ones_like(numbers[:, 0])))
        return super().train_step((x[:, :3], y))


class Watch(keras.callbacks.Callback):
    """Notes each step, by all of the rate's bits, and which samples of the epoch it had until then; ends the run."""

    def __init__(self, how: str, after: int) -> None:
        super().__init__()
        self.how, self.after = how, after
        self.seen: list[tuple[int, int, int, str]] = []  # epoch, clock, updates, rate
        self.drawn: list[np.ndarray] = []

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self.model.drawn.assign(tf.zeros_like(self.model.drawn))

    def on_train_batch_end(self, batch, logs=None):
        optimizer = core(self.model)
        rate = float(optimizer.learning_rate).hex()
        self.seen.append((self.epoch, optimizer.samples_seen, int(optimizer.iterations), rate))
        self.drawn.append(self.model.drawn.numpy())
        if len(self.seen) == self.after and self.how == "kill":
            raise Killed
        if len(self.seen) == self.after and self.how == "signal":
            os.kill(os.getpid(), signal.SIGTERM)

    def steps_of(self, epoch: int) -> list[np.ndarray]:
        """The samples of an epoch in this process, after each of its steps."""
        return [drawn for (at, *_), drawn in zip(self.seen, self.drawn, strict=True) if at == epoch]


@dataclasses.dataclass
class Trained:
    watch: Watch
    state: list[np.ndarray]
    left_out: int


def core(model: Any) -> Any:
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def batch_of(job: Any, script: Script) -> Any:
    return job.batch(
        per_replica=script.per_step,
        base_batch=BASE,
        samples_per_epoch=SAMPLES if script.knows_samples else None,
        accumulation=script.accumulation,
    )


@functools.lru_cache(maxsize=256)
def built(script: Script) -> tuple[Any, TrainingStateSnapshot]:
    """A model of that script, traced once for all of its runs, and what it begins with."""
    keras.utils.set_random_seed(0)
    job = distlr.init(environ={})
    accumulate = {"gradient_accumulation_steps": script.accumulation} if script.accumulation > 1 else {}
    average = {"use_ema": True, "ema_momentum": 0.8} if script.ema else {}
    layers = [keras.layers.Dense(3), keras.layers.Dropout(0.2), keras.layers.Dense(1)]
    model = Counting([keras.Input((3,)), *layers])
    model.drawn = tf.Variable(tf.zeros(SAMPLES, tf.int32), trainable=False)
    optimizer = keras.optimizers.SGD(SCHEDULES[script.schedule](), momentum=0.9, **accumulate, **average)
    if script.loss_scale:  # overflows at once, and again whenever it has grown
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**126, dynamic_growth_steps=3)
    model.compile(job.optimizer(optimizer, batch_of(job, script), rule=script.rule, warmup="12sp"), "mse")
    core(model).distlr.gradients.leave_out_bad_steps()
    model.optimizer.build(model.trainable_variables)
    return model, TrainingStateSnapshot(model)


def train(directory: str, script: Script, draw: Draw, how: str = "", after: int = 0) -> Trained:
    """One process of the run: nothing but the directory has outlived the one before."""
    model, fresh = built(script)
    fresh.restore()
    optimizer = core(model)
    variables = optimizer.distlr.variables
    variables.assign(variables.initial_values())  # those of deciders were made later
    optimizer.distlr.formula.samples_behind = 0
    job = distlr.init(environ={})
    x = X.copy()
    x[list(draw.bad)] = np.nan
    watch, bad = Watch(how, after), NonFiniteGuard("skip", limit=10**6)
    plateau = ReduceLROnPlateau("loss", patience=1, factor=0.5, min_delta=1e9, warmup_patience=True)
    shards = job.shard((np.concatenate([x, NUMBERS], axis=1), Y), batch_of(job, script), seed=1)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        model.fit(
            shards,
            epochs=after if how == "end" else EPOCHS,
            callbacks=job.callbacks([watch, plateau, bad, Checkpoint(directory, draw.every, keep=100)]),
            shuffle=False,
            verbose=0,
        )
    except (Killed, SystemExit):
        pass
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)  # a process that is killed leaves none
    variables = [*model.variables, *model.optimizer.variables, *optimizer.distlr.variables.by_name().values()]
    return Trained(watch, [np.asarray(variable.numpy()) for variable in variables], bad.count)


@pytest.fixture(scope="module")
def quiet() -> Iterator[None]:
    """Lines of hundreds of runs would drown the draw that fails."""
    logger = logging.getLogger("distlr")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)


@pytest.mark.properties
@pytest.mark.timeout(3600)
@seed(SEED)
@settings(
    max_examples=DRAWS,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),  # a draw is small, and shrinking one would take as long as all of them
    suppress_health_check=list(HealthCheck),
)
@given(draw=DRAW)
def test_resumed_is_the_run_that_was_not_interrupted(quiet, draw: Draw) -> None:
    note(f"DISTLR_PROPERTY_SEED={SEED} DISTLR_PROPERTY_DRAWS={DRAWS}: {draw!r}")
    other = dataclasses.replace(draw.script, ranks=draw.goes_on_with or draw.script.ranks)
    with tempfile.TemporaryDirectory() as directory:
        whole = train(f"{directory}/whole", draw.script, draw)
        parts = [train(f"{directory}/cut", draw.script, draw, *end) for end in draw.ends]
        newest = next(CheckpointDirectory(f"{directory}/cut", 1).readable(), None)
        last = train(f"{directory}/cut", other, draw)
    if other == draw.script:
        for part in parts:
            first = _index(whole.watch.seen, part.watch.seen)
            assert first is not None, "an interrupted part is no part of the whole"
        assert_is_the_end_of(whole, last)
    elif newest is not None:
        assert_goes_on(draw.script, other, newest[2], whole, last)


def assert_is_the_end_of(whole: Trained, last: Trained) -> None:
    first = len(whole.watch.seen) - len(last.watch.seen)
    assert last.watch.seen == whole.watch.seen[first:]
    before = np.zeros(SAMPLES, np.int32)
    if first and last.watch.seen and whole.watch.seen[first - 1][0] == last.watch.seen[0][0]:
        before = whole.watch.drawn[first - 1]
    for (epoch, *_), found, expected in zip(last.watch.seen, last.watch.drawn, whole.watch.drawn[first:], strict=True):
        np.testing.assert_array_equal(found + before * (epoch == last.watch.seen[0][0]), expected)
    for found, expected in zip(last.state, whole.state, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert last.left_out == whole.left_out


def assert_goes_on(script: Script, other: Script, run: dict[str, Any], whole: Trained, last: Trained) -> None:
    """By hand: `run` is what the checkpoint says of the run's place."""
    old, new = script.per_step, other.per_step
    each = script.accumulation
    updates = SAMPLES // (new * each)  # an epoch's
    epoch, steps = run["epoch"], run["steps"]
    left = updates * each
    if steps and script.knows_samples:  # whole updates of the new batch that fit behind the old one's place
        place = Fraction(steps * SAMPLES // (SAMPLES // (old * each) * each))
        left = int((SAMPLES - place) * updates / SAMPLES) * each
    elif steps:
        left = max(0, updates * new * each - steps * old) // (new * each) * each
    counts = {at: len(last.watch.steps_of(at)) for at in range(EPOCHS)}
    assert counts == {at: 0 if at < epoch else left if at == epoch else updates * each for at in range(EPOCHS)}
    # Which samples: none twice.
    before = whole.watch.steps_of(epoch)[steps - 1] if steps else np.zeros(SAMPLES, np.int32)
    for at in range(epoch, EPOCHS):
        drawn = last.watch.steps_of(at)[-1:] or [np.zeros(SAMPLES, np.int32)]
        everything = drawn[0] + before * (at == epoch)
        assert everything.max(initial=0) <= 1
        assert everything.sum() == counts[at] * new + steps * old * (at == epoch)
    # The clock, from where it stood: on by an update of the new batch where one was made.
    clock, made = run["samples_seen"], run["iterations"]
    grid = [j * SAMPLES // updates for j in range(updates + 1)]
    model, _ = built(other)
    for _, now, iterations, rate in last.watch.seen:
        assert iterations - made in (0, 1)
        if iterations > made and script.knows_samples:
            j = next(j for j, at in enumerate(grid) if at >= clock % SAMPLES)
            clock += (grid[j + 1] if j < updates else SAMPLES + grid[1]) - clock % SAMPLES
        elif iterations > made:
            clock += new * each
        made = iterations
        assert now == clock
        full = core(model).distlr.formula.rates_at([clock])[0]
        assert rate in {float(np.float32(full * 0.5**cuts)).hex() for cuts in range(EPOCHS + 1)}


def _index(whole: list[Any], part: list[Any]) -> int | None:
    return next((i for i in range(len(whole) + 1) if whole[i : i + len(part)] == part), None)
