"""What does a larger batch change? The rules, without TensorFlow; `batch_normalization` needs it."""

from distlr.scaling.rules import (
    RULES,
    Rule,
    adam_beta,
    adam_epsilon,
    factor,
    linear,
    moving_average,
    none,
    rule_name,
    sqrt,
    weight_decay,
)

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
