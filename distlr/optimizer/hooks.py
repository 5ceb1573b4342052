"""Whether Keras still calls what distlr overrides in its optimizers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from distlr.errors import ConfigurationError
from distlr.strategies.replicas import on_replicas

__all__ = ["HookContract", "expected_hooks", "missing"]

_LOST = {
    "apply": "the rate is not distlr's and the clock stands still",
    "learning_rate": "the weights are updated at another rate than distlr's",
    "_backend_apply_gradients": "the gradients are neither averaged nor accumulated over the replicas",
    "_clip_gradients": "the gradients are not averaged over replicas and ranks",
    "_all_reduce_sum_gradients": "the gradients are summed over the replicas twice",
    "_apply_weight_decay": "the weight decay does not follow the variables' own rates",
    "update_step": "the variables' own rates and the corrected momentum are left out",
    "weight_decay": "the weight decay does not follow its schedule",
}


class HookContract:
    """Notes which of distlr's hooks an update of Keras has passed, and refuses one that has passed too few.

    Horovod's optimizer averaged nothing under Keras 3, and said nothing, since Keras no longer called what it
    overrides. This is looked at where Keras' own code has returned, while the step is traced: no weight has changed by
    then, and a step costs nothing more.

    >>> contract = HookContract()
    >>> contract.passed("learning_rate")
    >>> contract.check(["learning_rate", "_clip_gradients"])
    Traceback (most recent call last):
        ...
    distlr.errors.ConfigurationError: Keras ... updates an optimizer without calling `_clip_gradients`, which
    distlr overrides: the gradients are not averaged over replicas and ranks. ...
    """

    def __init__(self) -> None:
        self._passed: set[str] = set()

    def passed(self, hook: str) -> None:
        """Notes that Keras came by."""
        self._passed.add(hook)

    def check(self, hooks: Iterable[str]) -> None:
        """Refuses where Keras has left one of these out.

        Raises:
            ConfigurationError: it did.
        """
        for hook in hooks:
            if hook not in self._passed:
                raise ConfigurationError(missing(hook))


def expected_hooks(variables: Sequence[Any], updates: tf.Tensor | None, *, follows_weight_decay: bool) -> list[str]:
    """The hooks that Keras must have called in a step.

    Args:
        variables: the trainable variables.
        updates: whether the step updates the weights; None for yes.
        follows_weight_decay: whether the weight decay follows a schedule.
    """
    if all(getattr(variable, "overwrite_with_gradient", False) for variable in variables):
        return []  # Keras copies such gradients (the scales of float8) and updates nothing
    hooks = ["_backend_apply_gradients"]
    if updates is not None and tf.executing_eagerly() and not bool(updates):
        return hooks
    hooks += ["learning_rate", "_clip_gradients", "_apply_weight_decay", "update_step"]
    if on_replicas():
        hooks.append("_all_reduce_sum_gradients")
    return hooks + (["weight_decay"] if follows_weight_decay else [])


def missing(hook: str) -> str:
    """The message about a hook that is not called."""
    return (
        f"Keras {keras.__version__} updates an optimizer without calling `{hook}`, which distlr overrides: "
        f"{_LOST[hook]}. Fix: install a version of Keras that this distlr knows (3.12 or newer), or update distlr; an "
        "optimizer class of your own that overrides `apply` must call Keras' (`super().apply`)."
    )
