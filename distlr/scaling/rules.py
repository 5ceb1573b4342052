"""Scaling rules: what a larger batch does to the learning rate.

With `k = global batch / base batch`, the rate becomes `base rate * factor(rule, k)`.
This module imports neither TensorFlow, Keras nor numpy.
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Callable

from distlr._utils.checks import positive_real
from distlr.errors import ConfigurationError, ConfigurationTypeError, received

__all__ = [
    "RULES",
    "Rule",
    "adam_beta",
    "adam_epsilon",
    "factor",
    "linear",
    "moving_average",
    "none",
    "rule_name",
    "sqrt",
    "weight_decay",
]


def linear(k: float) -> float:
    """Linear scaling: `factor = k`.

    For SGD with momentum, one step at `k` times the batch and `k` times the rate is close to `k` steps
    at the base batch, as long as the gradient changes little in between. It needs a warmup when `k` is large.

    Source: Goyal et al. 2017, "Accurate, Large Minibatch SGD", arXiv 1706.02677, section 2.1.

    Args:
        k: global batch / base batch, without a unit.

    Returns:
        The factor of the rate.

    Example:
        >>> linear(8)
        8.0
    """
    return float(k)


def sqrt(k: float) -> float:
    """Square root scaling: `factor = k ** 0.5`.

    It keeps the variance of the update constant, as the gradient's noise falls with the root of the batch.
    For Adam it is the rule that the stochastic differential equation gives.

    Sources: Krizhevsky 2014, "One weird trick", arXiv 1404.5997; Hoffer et al. 2017, "Train longer,
    generalize better", arXiv 1705.08741; for Adam, Malladi et al. 2022, "On the SDEs and Scaling Rules
    for Adaptive Gradient Algorithms", arXiv 2205.10287 (which scales the betas and epsilon too).

    Args:
        k: global batch / base batch, without a unit.

    Returns:
        The factor of the rate.

    Example:
        >>> sqrt(16)
        4.0
    """
    return math.sqrt(k)


def none(k: float) -> float:
    """No scaling: `factor = 1`, whatever the batch.

    For a rate that was tuned at the global batch itself, or an optimizer that adapts it on its own.

    Args:
        k: global batch / base batch, without a unit; unused.

    Returns:
        1.0.

    Example:
        >>> none(8)
        1.0
    """
    del k
    return 1.0


_ROUNDING = 1e-12

#: The rules that go by a name.
RULES: dict[str, Callable[[float], float]] = {"linear": linear, "sqrt": sqrt, "none": none}

#: A scaling rule: a name in `RULES`, or a function from `k` to the factor.
Rule = str | Callable[[float], float]


def factor(rule: Rule, k: float) -> float:
    """The factor of the learning rate: `rate = base rate * factor(rule, k)`.

    Args:
        rule: "linear" (`k`), "sqrt" (`k ** 0.5`), "none" (1), or a function from `k` to the factor.
        k: global batch / base batch, without a unit; finite and above 0. An int stays an int on its way to
            the rule, so linear scaling of a whole ratio is exact.

    Returns:
        A finite float above 0.

    Raises:
        ConfigurationError: The rule's name is unknown, `k` is not finite and above 0, or the rule returned
            a factor that is not.
        ConfigurationTypeError: `rule` is neither text nor callable, or `k` or the factor is not a number.

    Example:
        >>> factor("linear", 8)
        8.0
        >>> factor("sqrt", 16)
        4.0
        >>> factor(lambda k: 1 + (k - 1) / 2, 4)
        2.5
    """
    function = _resolve(rule)
    ratio = _check_ratio(k)
    result: object = function(ratio)
    argument = f"rule({ratio!r})"
    hint = f"let the rule {rule_name(rule)!r} return a float such as {float(ratio)!r}"
    return positive_real(argument, result, hint)


def rule_name(rule: Rule) -> str:
    """The name of a rule, for messages and reports.

    Args:
        rule: A name in `RULES`, or a function from `k` to the factor.

    Returns:
        The name in `RULES` where the rule has one, otherwise the function's (or its class') name.

    Raises:
        ConfigurationError: The name is unknown.
        ConfigurationTypeError: `rule` is neither text nor callable.

    Example:
        >>> rule_name("sqrt"), rule_name(linear)
        ('sqrt', 'linear')
    """
    function = _resolve(rule)
    for name, known in RULES.items():
        if function is known:
            return name
    return str(getattr(function, "__name__", type(function).__name__))


def adam_beta(beta: float, k: float, argument: str = "beta") -> float:
    """A decay rate of Adam's moments at k times the batch: `1 - k (1 - beta)`, so that a moment forgets per sample.

    It belongs with the `sqrt` rule for the rate and `adam_epsilon`.

    Source: Malladi et al. 2022, arXiv 2205.10287, section 5.

    Args:
        beta: at the base batch, in [0, 1).
        k: base steps that one update stands for; above 0.
        argument: its name, for messages.

    Raises:
        ConfigurationError: the result would be below 0: the largest k is `1 / (1 - beta)`.

    Example:
        >>> round(adam_beta(0.9, 4), 12)
        0.6
    """
    scaled = 1 - k * (1 - beta)
    if abs(scaled) < _ROUNDING:  # at the largest k itself
        scaled = 0.0
    if not 0 <= scaled < 1:
        raise ConfigurationError(
            f"`{argument}`={beta:g} cannot be scaled to k={k:g}: 1 - k (1 - {argument}) = {scaled:.4g} must be in "
            f"[0, 1). Fix: use a k of at most {1 / (1 - beta):.6g}, or leave the betas out of `scale`."
        )
    return scaled


def adam_epsilon(epsilon: float, k: float) -> float:
    """Adam's epsilon at k times the batch: `epsilon / sqrt(k)`.

    Source: Malladi et al. 2022, arXiv 2205.10287, section 5.

    Example:
        >>> adam_epsilon(1e-7, 4)
        5e-08
    """
    return epsilon / math.sqrt(k)


def weight_decay(decay: float, k: float, factor: float) -> float:
    """Decoupled weight decay at k times the batch: `decay * k / factor`.

    The decay of a weight per sample, hence per epoch, stays constant: an update multiplies a weight by
    `1 - rate * decay`, the rate is `factor` times as large, and there are k times fewer updates. Under linear scaling
    nothing changes. Decoupled: Loshchilov and Hutter 2019, arXiv 1711.05101.

    Args:
        decay: at the base batch.
        k: global batch / base batch.
        factor: of the rate.

    Example:
        >>> weight_decay(0.01, k=16, factor=4)
        0.04
    """
    return decay * k / factor


def moving_average(momentum: float, k: float) -> float:
    """The momentum of a moving average at k times the batch: `momentum^k`, so that it forgets per sample.

    It is for batch normalization's statistics and a model's averaged weights.

    Source: Busbridge et al. 2023, "How to Scale Your EMA", arXiv 2307.13813, section 3.

    Args:
        momentum: at the base batch, in [0, 1].
        k: base steps that one update of the average stands for.

    Example:
        >>> moving_average(0.5, 3)
        0.125
    """
    return float(momentum**k)


def _resolve(rule: Rule) -> Callable[[float], float]:
    """The function behind a rule."""
    known = ", ".join(repr(name) for name in RULES)
    expected = f"one of {known}, or a function from k to the factor"
    if isinstance(rule, str):
        if rule in RULES:
            return RULES[rule]
        close = difflib.get_close_matches(rule.strip().lower(), RULES, n=1, cutoff=0.65)
        raise ConfigurationError(received("rule", rule, expected, f"did you mean {close[0]!r}" if close else ""))
    if callable(rule):
        return rule
    hint = "write 'none' to leave the rate as it is" if rule is None else ""
    raise ConfigurationTypeError(received("rule", rule, expected, hint))


def _check_ratio(k: object) -> int | float:
    """Validates `k` and returns it as a Python number; an integer stays an integer."""
    hint = "k is the global batch divided by the base batch"
    if isinstance(k, bool) or not isinstance(k, numbers.Real):
        raise ConfigurationTypeError(received("k", k, "a finite number above 0", hint))
    number = positive_real("k", k, hint)
    return int(k) if isinstance(k, numbers.Integral) else number
