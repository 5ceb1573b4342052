"""An adopted optimizer is the user's own: its attributes go before distlr's names, and nothing else is added."""

from __future__ import annotations

import functools
import gc
import weakref

import keras
import numpy as np
import pytest

import distlr
from distlr.batch.global_batch import GlobalBatch
from distlr.optimizer import AdoptedOptimizer, Reduction, adopt, adopted, formula_of
from distlr.schedules import Constant, Multiply

BATCH = GlobalBatch(8, replicas=1, base_batch=4)
SHORTCUTS = ("base_rate", "explain", "multiplier", "multiply_rate", "rate_digests", "samples_seen", "set_base_rate")


@keras.saving.register_keras_serializable("tests")
class Busy(keras.optimizers.SGD):
    """A user's optimizer whose attributes and methods have the names of distlr's."""

    state = "state"
    watch = "watch"

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.multiplier, self.schedule, self.batch, self.reading = 3.0, "schedule", "batch", "reading"

    def connect(self):
        return "connect"

    def explain(self):
        return "explain"

    def _step(self):
        return "step"

    def _apply(self):
        return "apply"

    def _path(self):
        return "path"

    def update_step(self, gradient, variable, learning_rate):
        assert (self._step(), self._apply(), self._path(), self.multiplier) == ("step", "apply", "path", 3.0)
        super().update_step(gradient, variable, learning_rate)


def test_the_users_own_attributes_go_before():
    optimizer = adopt(Busy(0.1, momentum=0.9), BATCH)
    assert (optimizer.state, optimizer.watch, optimizer.connect(), optimizer.explain()) == (
        "state",
        "watch",
        "connect",
        "explain",
    )
    assert (optimizer.multiplier, optimizer.schedule, optimizer.batch, optimizer.reading) == (
        3.0,
        "schedule",
        "batch",
        "reading",
    )
    optimizer.multiplier = 3.0  # as the user's code may
    variable = keras.Variable([1.0])
    optimizer.apply([keras.ops.ones(1)], [variable])
    np.testing.assert_allclose(variable.numpy(), [0.8], rtol=1e-6)
    assert (optimizer.distlr.formula.multiplier, optimizer.samples_seen) == (1.0, 8)


def test_one_name_is_added():
    plain = keras.optimizers.SGD(0.1)
    before = {name for name in object.__dir__(plain) if not name.startswith("_")}
    adopted = adopt(plain, BATCH)
    assert {name for name in object.__dir__(adopted) if not name.startswith("_")} - before == {"distlr"}
    assert set(SHORTCUTS) <= set(dir(adopted))
    public_names = {name for name in vars(AdoptedOptimizer) if not name.startswith("_")}
    assert public_names - set(dir(keras.optimizers.SGD(0.1))) == {"distlr"}


@pytest.mark.parametrize("name", SHORTCUTS)
def test_a_shortcut_cannot_be_assigned(name):
    optimizer = adopt(keras.optimizers.SGD(0.1), BATCH)
    with pytest.raises(AttributeError, match=rf"`{name}` of an adopted optimizer cannot be assigned\. Fix: "):
        setattr(optimizer, name, 0.5)


def test_an_unknown_attribute_is_an_attribute_error():
    optimizer = adopt(keras.optimizers.SGD(0.1), BATCH)
    with pytest.raises(AttributeError, match="'DistlrSGD' object has no attribute 'nothing'"):
        optimizer.nothing  # noqa: B018
    assert not hasattr(optimizer, "mark_broadcast")


class Forwarding(keras.optimizers.SGD):
    """A user's optimizer that looks for attributes elsewhere, too."""

    def __getattr__(self, name):
        if name in ("elsewhere", "multiplier"):
            return f"the user's {name}"
        raise AttributeError(f"nowhere: {name}")


def test_a_users_getattr_is_asked_first():
    optimizer = adopt(Forwarding(0.1), BATCH)
    assert (optimizer.elsewhere, optimizer.multiplier, optimizer.samples_seen) == (
        "the user's elsewhere",
        "the user's multiplier",
        0,
    )
    with pytest.raises(AttributeError, match="nowhere: nothing"):
        optimizer.nothing  # noqa: B018


@pytest.mark.parametrize("name", adopted._RENAMED)
def test_an_old_name_works_and_warns(name):
    optimizer = adopt(keras.optimizers.SGD(0.1), BATCH)
    path = adopted._RENAMED[name].split(".")
    with pytest.warns(DeprecationWarning, match=rf"optimizer\.{name} is optimizer\.distlr\.{'.'.join(path)} now"):
        value = getattr(optimizer, name)
    assert value == functools.reduce(getattr, path, optimizer.distlr)


def test_an_old_name_is_assigned_where_the_new_one_is():
    optimizer = adopt(keras.optimizers.SGD(0.1), BATCH)
    with pytest.warns(DeprecationWarning, match=r"optimizer\.reduction is optimizer\.distlr\.gradients\.reduction now"):
        optimizer.reduction = Reduction(sums=True)
    assert optimizer.distlr.gradients.reduction == Reduction(sums=True)
    assert "reduction" not in vars(optimizer)


def test_no_gradients_stay_no_gradients():
    assert adopt(keras.optimizers.SGD(0.1, global_clipnorm=1.0), BATCH)._clip_gradients([]) == []


class Counted(keras.optimizers.SGD):
    """A user's optimizer that makes its own attributes when it is built, as Keras' optimizers do."""

    def build(self, variables):
        super().build(variables)
        self.multiplier = self.add_variable((), name="mine")
        self.state = "built"

    def update_step(self, gradient, variable, learning_rate):
        self.assign_add(self.multiplier, 1.0)
        super().update_step(gradient, variable, learning_rate)


def test_attributes_that_are_made_in_build_are_the_users():
    optimizer = adopt(Counted(0.1), BATCH)
    assert optimizer.multiplier == 1.0
    variable = keras.Variable([1.0])
    optimizer.apply([keras.ops.ones(1)], [variable])
    assert (float(optimizer.multiplier.numpy()), optimizer.state) == (1.0, "built")
    np.testing.assert_allclose(variable.numpy(), [0.8], rtol=1e-6)
    assert optimizer.distlr.formula.multiplier == 1.0


class Lazy(keras.optimizers.SGD):
    """A user's optimizer that makes its own attributes at the first update."""

    def update_step(self, gradient, variable, learning_rate):
        if not hasattr(self, "state"):
            self.state, self.multiplier = {}, 3.0
        self.state["calls"] = self.state.get("calls", 0.0) + self.multiplier
        super().update_step(gradient, variable, learning_rate)


def test_attributes_that_are_made_in_an_update_are_the_users():
    optimizer = adopt(Lazy(0.1), BATCH)
    variable = keras.Variable([1.0])
    for _ in range(2):
        optimizer.apply([keras.ops.ones(1)], [variable])
    assert (optimizer.state, optimizer.multiplier) == ({"calls": 6.0}, 3.0)
    np.testing.assert_allclose(variable.numpy(), [0.6], rtol=1e-6)


def test_a_decider_and_a_reading_follow_an_optimizer_that_is_adopted_anew():
    optimizer = adopt(keras.optimizers.SGD(0.1), BATCH)
    plateau, reading = distlr.Plateau(optimizer, "loss", factor=0.5, patience=1, min_delta=1e9), optimizer.learning_rate
    distlr.strip(optimizer)
    reading.assign(0.4)
    assert float(optimizer.learning_rate.numpy()) == pytest.approx(0.4)
    adopt(optimizer, GlobalBatch(8, replicas=1, base_batch=8))
    for value in (1.0, 1.0, 1.0):
        plateau.step(value)
    assert float(optimizer.learning_rate) < 0.4


def test_the_explanation_has_the_present_value_of_what_is_scaled():
    optimizer = adopt(keras.optimizers.SGD(0.1, weight_decay=0.01), BATCH, scale=["weight_decay"])
    assert optimizer.explain()["scaled"] == {"weight_decay": [0.01, pytest.approx(optimizer.weight_decay)]}
    optimizer.weight_decay = 0.3
    assert optimizer.explain()["scaled"] == {"weight_decay": [0.01, 0.3]}


def test_it_is_freed_without_the_collector():
    gc.collect()
    gc.disable()
    try:
        optimizer = adopt(keras.optimizers.SGD(0.1), BATCH)
        optimizer.learning_rate = 0.05
        gone = weakref.ref(optimizer)
        extension = optimizer.distlr
        del optimizer
        assert gone() is None
        assert extension.formula.reading().rate == pytest.approx(0.05)
    finally:
        gc.enable()


class Counting(keras.optimizers.schedules.LearningRateSchedule):
    """A user's schedule that counts how often it is called."""

    def __init__(self):
        self.calls = 0

    def __call__(self, step):
        self.calls += 1
        return 0.1

    def get_config(self):
        return {}


def test_a_users_schedule_is_checked_once():
    schedule = Counting()
    adopt(keras.optimizers.SGD(schedule), BATCH, scaling={"warmup": "80sp"})
    assert schedule.calls == 1
    followed = Counting()
    adopt(keras.optimizers.SGD(0.1, weight_decay=0.01), BATCH, weight_decay_schedule=followed)
    assert followed.calls == 1


def test_a_schedule_that_was_renamed_has_its_old_name_in_files():
    schedule = Multiply(Constant(0.1), 3.0)
    assert keras.saving.serialize_keras_object(schedule)["registered_name"] == "distlr>Scale"
    formula = formula_of(adopt(keras.optimizers.SGD(schedule), BATCH))
    assert formula["optimizer.config.learning_rate.class_name"] == "Scale"  # as checkpoints of earlier versions have it
    saved = {"class_name": "Scale", "config": schedule.get_config(), "registered_name": "distlr>Scale"}
    loaded = keras.saving.deserialize_keras_object({**saved, "module": "distlr.schedules.compose"})
    assert (type(loaded), loaded.factor) == (Multiply, 3.0)
    scaled = distlr.scale(0.1, BATCH)
    assert keras.saving.serialize_keras_object(scaled)["registered_name"] == "distlr>Scaled"


class Misspelled(keras.optimizers.schedules.LearningRateSchedule):
    """A user's schedule with a mistake that shows when it is read again."""

    calls = 0

    def __call__(self, step):
        self.calls += 1
        return 0.1 if self.calls == 1 else self.initial_rate

    def get_config(self):
        return {}


def test_an_error_of_a_schedule_is_not_hidden():
    optimizer = adopt(keras.optimizers.SGD(Misspelled()), BATCH)
    with pytest.raises(AttributeError, match="'Misspelled' object has no attribute 'initial_rate'"):
        optimizer.learning_rate  # noqa: B018
