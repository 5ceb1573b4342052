"""PlateauPolicy: exact sequences, agreement with Keras' own callback, properties, refusals."""

from __future__ import annotations

import importlib
import json
import math
import random
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from distlr.errors import ConfigurationError, ConfigurationTypeError, DistlrError, NonFiniteMetricError, StateError
from distlr.plateau.policy import Decision, PlateauPolicy, PlateauState

NAN, INF = math.nan, math.inf


@pytest.fixture
def keras(request: pytest.FixtureRequest) -> Any:
    """Keras on TensorFlow, started with the CPU split as all tests share it."""
    request.getfixturevalue("four_cpus")
    return importlib.import_module("keras")


def run(policy: PlateauPolicy, metrics: list[Any], rate: float = 1.0, warmup: int = 0) -> list[float]:
    """The rate after each epoch."""
    state, rates = policy.initial_state(), []
    for epoch, metric in enumerate(metrics):
        state, decision = policy.step(state, metric, rate=rate, in_warmup=epoch < warmup)
        rate *= decision.multiplier
        rates.append(rate)
    return rates


H = {"factor": 0.5, "min_delta": 0.0}  # halves, so that rates are exact
SEQUENCES: list[tuple[str, dict[str, Any], list[float], list[float]]] = [
    ("min: equal is no improvement", {"patience": 2}, [1, 1, 1, 1, 1], [1, 1, 0.5, 0.5, 0.25]),
    ("min: improvement resets wait", {"patience": 2}, [3, 4, 2, 2, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0.5]),
    ("max: falling", {"patience": 1, "mode": "max"}, [1, 2, 1, 3, 2], [1, 1, 0.5, 0.5, 0.25]),
    ("auto is max for accuracy", {"patience": 1, "monitor": "val_accuracy"}, [0.1, 0.2, 0.2], [1, 1, 0.5]),
    ("min_delta: exactly delta is none", {"patience": 1, "min_delta": 0.5}, [2, 1.5, 1.4], [1, 0.5, 0.5]),
    ("min_delta: float32, as Keras", {"patience": 1, "min_delta": 0.1}, [0.8, 0.7, 0.69], [1, 0.5, 0.5]),
    ("max, min_delta", {"patience": 1, "mode": "max", "min_delta": 0.5}, [1, 1.5, 1.6], [1, 0.5, 0.5]),
    (
        "rel min",
        {"patience": 1, "min_delta": 0.25, "threshold_mode": "rel"},
        [100, 75, 74, 56, 55],
        [1, 0.5, 0.5, 0.25, 0.25],
    ),
    (
        "rel max",
        {"patience": 1, "min_delta": 0.25, "threshold_mode": "rel", "mode": "max"},
        [100, 125, 126],
        [1, 0.5, 0.5],
    ),
    (
        "rel min, negative best",
        {"patience": 1, "min_delta": 0.25, "threshold_mode": "rel"},
        [-100, -90, -124, -126],
        [1, 0.5, 0.25, 0.25],
    ),
    (
        "rel max, negative best",
        {"patience": 1, "min_delta": 0.25, "threshold_mode": "rel", "mode": "max"},
        [-100, -110, -76, -74],
        [1, 0.5, 0.25, 0.25],
    ),
    ("rel, best 0", {"patience": 1, "min_delta": 0.25, "threshold_mode": "rel"}, [0, -1, 0], [1, 1, 0.5]),
    (
        "cooldown 1 ends in the next epoch, as in Keras",
        {"patience": 1, "cooldown": 1},
        [1, 1, 1, 1],
        [1, 0.5, 0.25, 0.125],
    ),
    (
        "cooldown 3",
        {"patience": 1, "cooldown": 3},
        [1] * 8,
        [1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125],
    ),
    (
        "cooldown 3, patience 2: the last cooldown epoch counts",
        {"patience": 2, "cooldown": 3},
        [1] * 7,
        [1, 1, 0.5, 0.5, 0.5, 0.5, 0.25],
    ),
    (
        "the best is followed during cooldown",
        {"patience": 1, "cooldown": 2},
        [2, 2, 1, 1.5],
        [1, 0.5, 0.5, 0.25],
    ),
    ("min_lr floors", {"patience": 1, "min_lr": 0.2}, [1] * 5, [1, 0.5, 0.25, 0.2, 0.2]),
    ("a rate below min_lr stays", {"patience": 1, "min_lr": 2.0}, [1] * 3, [1, 1, 1]),
    ("patience 0 is patience 1", {"patience": 0}, [1, 1, 0.5, 1], [1, 0.5, 0.5, 0.25]),
    ("nan is worse", {"patience": 1, "on_nan": "worse"}, [1, NAN, 0.5, INF], [1, 0.5, 0.5, 0.25]),
    ("a first nan never becomes the best", {"patience": 2, "on_nan": "worse"}, [NAN, 1, 0.5], [1, 1, 1]),
    ("-inf never becomes the best", {"patience": 2, "on_nan": "worse"}, [1, -INF, 0.5], [1, 1, 1]),
    ("nan is ignored", {"patience": 2, "on_nan": "ignore"}, [1, 1, NAN, NAN, 1], [1, 1, 1, 1, 0.5]),
    (
        "an ignored epoch is no cooldown epoch",
        {"patience": 1, "cooldown": 2, "on_nan": "ignore"},
        [1, 1, NAN, NAN, 1, 1],
        [1, 0.5, 0.5, 0.5, 0.5, 0.25],
    ),
]


@pytest.mark.parametrize(("arguments", "metrics", "rates"), [r[1:] for r in SEQUENCES], ids=[r[0] for r in SEQUENCES])
def test_sequence(arguments: dict[str, Any], metrics: list[float], rates: list[float]) -> None:
    assert run(PlateauPolicy(**{**H, **arguments}), metrics) == rates


@pytest.mark.parametrize(
    ("warmup_patience", "rates"),
    [(False, [1, 1, 1, 1, 0.5]), (True, [1, 1, 0.5, 0.5, 0.25])],
)
def test_patience_during_warmup(warmup_patience: bool, rates: list[float]) -> None:
    policy = PlateauPolicy(**H, patience=2, warmup_patience=warmup_patience)
    assert run(policy, [1] * 5, warmup=3) == rates


def test_the_best_is_followed_during_warmup() -> None:
    assert run(PlateauPolicy(**H, patience=1), [3, 1, 2], warmup=2) == [1, 1, 0.5]


def test_a_float32_floor_is_not_cut_again() -> None:
    policy = PlateauPolicy(patience=1, min_lr=1e-4)
    for rate in (
        float(np.float32(1e-4)),
        np.float32(1e-4),
        1e-4,
        np.nextafter(np.float32(1e-4), np.float32(1)),
    ):
        _, decision = policy.step(PlateauState(1.0, 0, 0), 1.0, rate=rate)
        assert not decision.cut
        assert "min_lr=0.0001" in decision.reason
    _, decision = policy.step(PlateauState(1.0, 0, 0), 1.0, rate=1.001e-4)
    assert decision.multiplier == 1e-4 / 1.001e-4


def test_tiny_rates_keep_a_positive_multiplier() -> None:
    _, decision = PlateauPolicy(factor=1e-300, patience=1).step(PlateauState(1.0, 0, 0), 1.0, rate=1e-44)
    assert decision.multiplier == 1e-300


def test_a_schedule_at_zero_is_not_cut() -> None:
    state, decision = PlateauPolicy(patience=3).step(PlateauState(1.0, 3, 0), 1.0, rate=0.0)
    assert (state.wait, decision.cut) == (3, False)


def test_wait_starts_anew_after_a_stored_cooldown() -> None:
    state, _ = PlateauPolicy(patience=5).step(PlateauState(1.0, 3, 1), 1.0, rate=1.0)
    assert state == PlateauState(1.0, 1, 0)


def test_reasons() -> None:
    policy = PlateauPolicy(patience=2, cooldown=2, on_nan="worse")
    state, reasons, rate = policy.initial_state(), [], 1.0
    for metric in (0.25, 0.123, 0.2, NAN, 0.2, 0.1):
        state, decision = policy.step(state, metric, rate=rate)
        rate *= decision.multiplier
        reasons.append((decision.reason, decision.improved, decision.cut))
    assert reasons == [
        ("val_loss is 0.25, the first value", True, False),
        ("val_loss improved from 0.25 to 0.123", True, False),
        ("val_loss did not improve on 0.123 for 1 epoch", False, False),
        ("val_loss=nan did not improve on 0.123 for 2 epochs", False, True),
        ("val_loss did not improve on 0.123, in cooldown (1 left)", False, False),
        ("val_loss improved from 0.123 to 0.1", True, False),
    ]


@pytest.mark.parametrize("metric", [NAN, INF, -INF, np.float32("nan")])
def test_a_metric_that_is_not_finite_raises_by_default(metric: float) -> None:
    policy = PlateauPolicy("val_mse")
    with pytest.raises(NonFiniteMetricError, match=r"`val_mse` must be finite.*on_nan='worse'") as caught:
        policy.step(policy.initial_state(), metric, rate=1.0)
    assert isinstance(caught.value, DistlrError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("metric", [1, 1.0, np.float32(1), np.int64(1), np.array(1.0), Decimal(1), Fraction(1)])
def test_metrics_that_are_numbers(metric: object) -> None:
    state, _ = PlateauPolicy().step(PlateauPolicy().initial_state(), metric, rate=np.float32(0.1))
    assert state == PlateauState(1.0, 0, 0)


# ---- direction

DIRECTIONS = {
    "max": "accuracy val_acc sparse_top_k_categorical_accuracy auc_1 head_precision recall f1_score "
    "val_mean_io_u iou r2_score cosine_similarity true_positives recall_at_precision top5acc val_AUC "
    "loss_head_accuracy",
    "min": "loss val_loss head_acc_loss mean_squared_error dice_loss categorical_crossentropy kl_divergence "
    "false_positives log_loss hinge",
    "guessed": "val_accumulated_cost my_metric total score",
}


@pytest.mark.parametrize(("direction", "name"), [(d, n) for d, names in DIRECTIONS.items() for n in names.split()])
def test_auto_mode(direction: str, name: str) -> None:
    policy = PlateauPolicy(name)
    expected = "min" if direction == "guessed" else direction
    assert (policy.direction, policy.mode_guessed) == (expected, direction == "guessed")
    assert policy.key == f"{name}/{expected}"
    assert policy.initial_state().best == (INF if expected == "min" else -INF)
    assert not PlateauPolicy(name, mode="min").mode_guessed


def test_auto_mode_agrees_with_the_direction_of_every_keras_metric(keras: Any) -> None:
    arguments: list[dict[str, Any]] = [{}, {"num_classes": 2}, {"num_classes": 2, "target_class_ids": [1]}]
    arguments += [{name: 0.5} for name in ("precision", "recall", "specificity", "sensitivity")]
    checked = 0
    for class_name in dir(keras.metrics):
        metric_class = getattr(keras.metrics, class_name)
        for keywords in arguments if isinstance(metric_class, type) else []:
            try:
                metric = metric_class(**keywords)
            except (TypeError, NotImplementedError):
                continue
            direction = getattr(metric, "_direction", None)
            if direction is not None:
                policy = PlateauPolicy(f"val_{metric.name}")
                assert (policy.direction, policy.mode_guessed) == (
                    "max" if direction == "up" else "min",
                    False,
                )
                checked += 1
            break
    assert checked >= 30


# ---- agreement with Keras


class Float32Optimizer:
    """An optimizer as the callback sees it: a rate that is kept in float32."""

    def __init__(self, rate: float) -> None:
        self.learning_rate = rate

    @property
    def learning_rate(self) -> np.float32:
        return self._rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self._rate = np.float32(value)


class FakeModel:
    metrics: tuple[()] = ()

    def __init__(self, rate: float) -> None:
        self.optimizer = Float32Optimizer(rate)


def random_case(rng: random.Random) -> tuple[dict[str, Any], float, list[float]]:
    arguments: dict[str, Any] = {
        "monitor": rng.choice(["val_loss", "score"]),
        "factor": rng.choice([0.1, 0.5, 0.2, 0.9, rng.uniform(0.01, 0.99)]),
        "patience": rng.randrange(5),
        "mode": rng.choice(["min", "max"]),
        "min_delta": rng.choice([0.0, 1e-4, 0.1, 0.25]),
        "cooldown": rng.randrange(5),
        "min_lr": rng.choice([0.0, 1e-4, 1e-3, 0.01, 0.3]),
    }
    if arguments["monitor"] == "val_loss" and arguments["mode"] == "min":
        arguments["mode"] = "auto"
    # On a grid ties and differences of exactly min_delta are common. NaN is never first: Keras differs there.
    steps = rng.choice([10, 4, None])
    length, centre = 20, rng.uniform(-2, 2)
    metrics = [rng.randrange(-8, 9) / steps if steps else rng.gauss(centre, 0.2) for _ in range(length)]
    for epoch in range(1, length):
        if rng.random() < 0.03:
            metrics[epoch] = NAN
    return arguments, rng.choice([0.1, 0.5, 0.001, 1.0]), metrics


def test_rates_are_those_of_the_keras_callback(keras: Any) -> None:
    rng = random.Random(20)
    cuts = 0
    for case in range(300):
        arguments, start, metrics = random_case(rng)
        callback = keras.callbacks.ReduceLROnPlateau(**arguments)
        model = FakeModel(start)
        callback.set_model(model)
        callback.on_train_begin()
        policy = PlateauPolicy(**arguments, on_nan="worse")
        state, rate = policy.initial_state(), np.float32(start)
        for epoch, metric in enumerate(metrics):
            callback.on_epoch_end(epoch, {policy.monitor: metric})
            state, decision = policy.step(state, metric, rate=rate)
            rate = np.float32(float(rate) * decision.multiplier)
            cuts += decision.cut
            message = f"case {case}, epoch {epoch}: {arguments}, {metrics}"
            assert rate == pytest.approx(model.optimizer.learning_rate, rel=3e-7, abs=0), message
            if rate > policy.min_lr * (1 + 1e-6):  # at the floor Keras may "cut" by one ulp, and wait anew
                assert state.wait == min(callback.wait, policy.patience), message
                assert state.cooldown == callback.cooldown_counter, message
    assert cuts > 500


# ---- properties

finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=1e-30, max_value=1e30)
policies = st.builds(
    PlateauPolicy,
    factor=st.floats(min_value=1e-6, max_value=0.999),
    patience=st.integers(0, 4),
    mode=st.sampled_from(["min", "max"]),
    min_delta=st.floats(min_value=0, max_value=0.9),
    cooldown=st.integers(0, 3),
    min_lr=st.one_of(st.just(0.0), st.floats(min_value=1e-8, max_value=1.0)),
    threshold_mode=st.sampled_from(["abs", "rel"]),
    on_nan=st.sampled_from(["worse", "ignore"]),
    warmup_patience=st.booleans(),
)


@given(st.floats(allow_nan=False), st.integers(0, 2**53), st.integers(0, 2**53))
def test_state_vector_round_trip(best: float, wait: int, cooldown: int) -> None:
    state = PlateauState(best, wait, cooldown)
    assert PlateauState.from_vector(state.as_vector()) == state
    restored = PlateauState.from_vector(np.array(state.as_vector(), np.float64))
    assert restored == state
    assert (type(restored.best), type(restored.wait), type(restored.cooldown)) == (float, int, int)


@given(positive, st.text(), st.booleans())
def test_decision_json_round_trip(multiplier: float, reason: str, improved: bool) -> None:
    decision = Decision(multiplier, reason, improved)
    assert Decision.from_dict(json.loads(json.dumps(decision.to_dict(), allow_nan=False))) == decision


@given(policies, st.lists(st.tuples(st.floats(), st.booleans()), max_size=25), positive)
def test_invariants(policy: PlateauPolicy, epochs: list[tuple[float, bool]], start: float) -> None:
    state, rate = policy.initial_state(), start
    lowest = min(start, policy.min_lr)
    for metric, in_warmup in epochs:
        before = state
        state, decision = policy.step(state, metric, rate=rate, in_warmup=in_warmup)
        rate *= decision.multiplier
        assert 0 < decision.multiplier <= 1
        assert not (decision.cut and decision.improved)
        assert state.wait <= policy.patience
        assert state.cooldown <= policy.cooldown
        assert rate >= lowest * (1 - 1e-15)
        assert not math.isnan(state.best)
        assert (state.best != before.best) <= decision.improved
        assert PlateauState.from_vector(state.as_vector()) == state


@given(policies, st.lists(finite, min_size=2, max_size=20), st.data())
def test_resuming_equals_going_on(policy: PlateauPolicy, metrics: list[float], data: st.DataObject) -> None:
    stop = data.draw(st.integers(0, len(metrics) - 1))
    state, rate = policy.initial_state(), 1.0
    for metric in metrics[:stop]:
        state, decision = policy.step(state, metric, rate=rate)
        rate *= decision.multiplier
    state = PlateauState.from_vector(np.array(state.as_vector()))
    for metric in metrics[stop:]:
        state, decision = policy.step(state, metric, rate=rate)
        rate *= decision.multiplier
    assert rate == run(policy, metrics)[-1]


@given(policies, st.lists(finite, min_size=1, max_size=20))
def test_max_is_min_of_the_negated_metric(policy: PlateauPolicy, metrics: list[float]) -> None:
    assume(policy.mode == "min")
    mirrored = PlateauPolicy(**{**vars(policy), "mode": "max"})
    assert run(policy, metrics) == run(mirrored, [-m for m in metrics])


# ---- refusals

BAD_ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"factor": 1.0}, ConfigurationError, "factor=1.0"),
    ({"factor": 0}, ConfigurationError, "factor=0"),
    ({"factor": -0.5}, ConfigurationError, "factor=-0.5"),
    ({"factor": NAN}, ConfigurationError, "factor=nan"),
    ({"factor": "0.1"}, ConfigurationTypeError, "factor='0.1'"),
    ({"factor": None}, ConfigurationTypeError, "factor=None"),
    ({"patience": -1}, ConfigurationError, "patience=-1"),
    ({"patience": 2.5}, ConfigurationError, "patience=2.5"),
    ({"patience": True}, ConfigurationTypeError, "patience=True"),
    ({"patience": INF}, ConfigurationError, "patience=inf"),
    ({"patience": "5ep"}, ConfigurationTypeError, "patience='5ep'"),
    ({"cooldown": -3}, ConfigurationError, "cooldown=-3"),
    ({"cooldown": 10**400}, ConfigurationError, "cooldown=1000"),
    ({"min_delta": -1e-4}, ConfigurationError, "min_delta=-0.0001"),
    ({"min_delta": INF}, ConfigurationError, "min_delta=inf"),
    ({"min_delta": 5, "threshold_mode": "rel"}, ConfigurationError, "min_delta=5.0"),
    ({"min_lr": -1.0}, ConfigurationError, "min_lr=-1.0"),
    ({"min_lr": NAN}, ConfigurationError, "min_lr=nan"),
    ({"min_lr": [1e-4]}, ConfigurationTypeError, "min_lr=[0.0001]"),
    ({"mode": "Max"}, ConfigurationError, "mode='Max'. Fix: write 'max'."),
    ({"mode": "sideways"}, ConfigurationError, "mode='sideways'."),
    ({"mode": 0}, ConfigurationTypeError, "mode=0"),  # Keras' fourth positional argument is verbose
    ({"threshold_mode": "real"}, ConfigurationError, "threshold_mode='real'. Fix: write 'rel'."),
    ({"on_nan": "ignored"}, ConfigurationError, "on_nan='ignored'. Fix: write 'ignore'."),
    ({"on_nan": None}, ConfigurationTypeError, "on_nan=None"),
    ({"warmup_patience": 1}, ConfigurationTypeError, "warmup_patience=1"),
    ({"monitor": ""}, ConfigurationError, "monitor=''"),
    ({"monitor": None}, ConfigurationTypeError, "monitor=None"),
]


@pytest.mark.parametrize(("arguments", "error", "text"), BAD_ARGUMENTS, ids=[row[2][:40] for row in BAD_ARGUMENTS])
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        PlateauPolicy(**arguments)
    assert text in str(caught.value)
    assert f"`{next(iter(arguments))}` must be" in str(caught.value)


def test_integral_floats_and_numpy_integers_are_counts() -> None:
    policy = PlateauPolicy(patience=5.0, cooldown=np.int64(2))  # type: ignore[arg-type]
    assert (policy.patience, policy.cooldown, type(policy.patience), type(policy.cooldown)) == (
        5,
        2,
        int,
        int,
    )


@pytest.mark.parametrize("metric", [None, "0.5", b"1", True, np.bool_(True), 1j, np.complex64(1), np.ones(3), [1.0]])
def test_bad_metrics(metric: object) -> None:
    policy = PlateauPolicy("val_auc")
    with pytest.raises(ConfigurationTypeError, match=r"`val_auc` must be a real number\. Received: val_auc="):
        policy.step(policy.initial_state(), metric, rate=1.0)


@pytest.mark.parametrize("rate", [-0.1, NAN, INF, None, "0.1", True])
def test_bad_rates(rate: object) -> None:
    with pytest.raises((ConfigurationError, ConfigurationTypeError), match="Received: rate="):
        PlateauPolicy().step(PlateauPolicy().initial_state(), 1.0, rate=rate)


def test_a_state_of_the_other_mode_is_refused() -> None:
    with pytest.raises(StateError, match=r"best=-inf does not fit 'val_loss/min'"):
        PlateauPolicy().step(PlateauState(-INF, 0, 0), 1.0, rate=1.0)


@pytest.mark.parametrize(
    ("vector", "text"),
    [
        ([NAN, 0, 0], "best=nan"),
        ([1.0, -1.0, 0.0], "wait=-1.0"),
        ([1.0, 0.5, 0.0], "wait=0.5"),
        ([1.0, 0.0, INF], "cooldown=inf"),
        ([1.0, 0.0], "vector=[1.0, 0.0]"),
        (["1", 0, 0], "best='1'"),
        (3, "vector=3"),
    ],
)
def test_bad_state_vectors(vector: Any, text: str) -> None:
    with pytest.raises(StateError) as caught:
        PlateauState.from_vector(vector)
    assert text in str(caught.value)


GOOD = {"multiplier": 0.5, "reason": "because", "improved": False}


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        ({**GOOD, "multiplier": 0}, ConfigurationError, "multiplier=0"),
        ({**GOOD, "multiplier": -0.5}, ConfigurationError, "multiplier=-0.5"),
        ({**GOOD, "multiplier": NAN}, ConfigurationError, "multiplier=nan"),
        ({**GOOD, "multiplier": INF}, ConfigurationError, "multiplier=inf"),
        ({**GOOD, "multiplier": 10**400}, ConfigurationError, "multiplier=1000"),
        ({**GOOD, "multiplier": "0.5"}, ConfigurationTypeError, "multiplier='0.5'"),
        ({**GOOD, "multiplier": True}, ConfigurationTypeError, "multiplier=True"),
        ({**GOOD, "multiplier": None}, ConfigurationTypeError, "multiplier=None"),
        ({**GOOD, "reason": None}, ConfigurationTypeError, "reason=None"),
        ({**GOOD, "improved": 0}, ConfigurationTypeError, "improved=0"),
        ({**GOOD, "epoch": 3}, ConfigurationError, "unknown: ['epoch']"),
        ({"multiplier": 0.5}, ConfigurationError, "missing: ['improved', 'reason']"),
        ([0.5, "because", False], ConfigurationTypeError, "decision=[0.5"),
        (None, ConfigurationTypeError, "decision=None"),
    ],
)
def test_bad_decisions(data: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        Decision.from_dict(data)
    assert text in str(caught.value)


def test_a_decision_of_1_is_no_cut() -> None:
    assert not Decision.from_dict({**GOOD, "multiplier": 1}).cut
    assert Decision.from_dict(GOOD).cut


def test_imports_neither_tensorflow_nor_keras_nor_numpy() -> None:
    code = "import sys, distlr.plateau; sys.exit(bool({'tensorflow', 'keras', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
