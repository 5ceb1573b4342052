"""The named variables without an optimizer, and values that are loaded before their variables exist."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from distlr.errors import StateError
from distlr.optimizer.state_variables import StateVariables, name_of, saved_name


def state(tracked=None) -> StateVariables:
    tracked = {} if tracked is None else tracked
    return StateVariables(tf.distribute.get_strategy(), lambda variable, name: tracked.update({name: variable}))


def test_multiplier_and_clock_are_there_from_the_start():
    tracked = {}
    variables = state(tracked)
    assert (variables.multiplier.dtype, variables.samples_seen.dtype) == ("float64", "int64")
    assert (float(variables.multiplier.numpy()), int(variables.samples_seen.numpy())) == (1.0, 0)
    assert list(tracked.values()) == list(variables)


def test_a_variable_is_made_once_and_keeps_its_value():
    variables = state()
    assert "mine/best" not in variables
    variables.get("mine/best", [1.0, 2.0]).assign([3.0, 4.0])
    assert "mine/best" in variables
    assert variables.get("mine/best", [1.0, 2.0]).numpy().tolist() == [3.0, 4.0]
    assert variables.find("mine/best") is variables.get("mine/best", [1.0, 2.0])
    assert variables.find("other") is None


@pytest.mark.parametrize("name", ["plateau/val:loss/min", "a b", "100%", "distlr_"])
def test_a_saved_name_has_no_slash_and_leads_back(name):
    assert "/" not in saved_name(name)
    assert name_of(saved_name(name)) == name


def test_a_value_waits_for_its_variable():
    variables = state()
    variables.assign_by_name({"multiplier": np.float64(0.5), "mine": np.array([7.0])})
    assert (float(variables.multiplier.numpy()), list(variables.loaded)) == (0.5, ["mine"])
    assert variables.decider_states() == {"mine": [7.0]}
    assert variables.get("mine", [0.0]).numpy().tolist() == [7.0]
    assert variables.loaded == {}
    # Another load begins anew: what it does not have has its initial value again.
    variables.assign_by_name({})
    assert (float(variables.multiplier.numpy()), variables.find("mine").numpy().tolist()) == (1.0, [0.0])


def test_a_loaded_value_of_another_length_is_refused():
    variables = state()
    variables.assign_by_name({"mine": np.array([7.0, 8.0])})
    with pytest.raises(StateError, match=r"'mine' has shape \(2,\) and not \(1,\)"):
        variables.get("mine", [0.0])


def test_states_are_told_with_their_initial_values():
    variables = state()
    variables.get("b", [1.0]).assign([2.0])
    variables.get("a", [0.0, np.inf])
    assert variables.decider_states() == {"a": [0.0, np.inf], "b": [1.0]}
    assert variables.names() == ["multiplier", "samples_seen", "b", "a"]
    assert list(variables.by_name()) == ["a", "b", "multiplier", "samples_seen"]
