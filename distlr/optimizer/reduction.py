"""How the gradients of several ranks and backward passes are combined: a part of the optimizer's config."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

__all__ = ["Reduction"]


@dataclasses.dataclass(frozen=True)
class Reduction:
    """The options of a reduction, with the meanings of Horovod's own arguments (`distlr.horovod`).

    Attributes:
        exchange: whether distlr averages the gradients over the ranks; False where something of the user's own does.
        sums: whether the ranks' sum is applied, and not their mean.
        factor: on the gradients: the number of backward passes where their sum is applied, since Keras takes the mean.
        compression: what gradients are sent as.
    """

    exchange: bool = True
    sums: bool = False
    factor: float = 1.0
    compression: str = "none"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Reduction:
        """The reduction with this config; an argument that is not in the config has its default."""
        return cls(**config)

    def config(self) -> dict[str, Any]:
        """The arguments that do not have their defaults, as JSON."""
        asked, default = dataclasses.asdict(self), dataclasses.asdict(Reduction())
        return {name: value for name, value in asked.items() if value != default[name]}

    @property
    def terms(self) -> str:
        """What is applied; the same on all ranks."""
        return f"{'sum' if self.sums else 'mean'} of the ranks times {self.factor:g}"

    def applied(self, gradients: Sequence[Any], ranks: int) -> list[Any]:
        """What is applied of the mean over the ranks of each gradient: dense, sparse, or None."""
        factor = self.factor * (ranks if self.sums else 1)
        return list(gradients) if factor == 1 else [_times(gradient, factor) for gradient in gradients]


def _times(gradient: Any, factor: float) -> Any:
    if gradient is None:
        return None
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient * tf.cast(factor, gradient.dtype)
    values = gradient.values * tf.cast(factor, gradient.values.dtype)
    return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
