"""Digests of what must be equal on every replica."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = ["weights_digests"]


def weights_digests(model: Any, strategy: tf.distribute.Strategy) -> list[str]:
    """SHA-256 of all weights, one digest for each replica of this process, over that replica's own copy."""
    copies = [strategy.experimental_local_results(variable.value) for variable in model.weights]
    replicas = max(map(len, copies), default=1)
    hashes = [hashlib.sha256() for _ in range(replicas)]
    for own in copies:
        # A variable that the strategy keeps once has one copy, and that is every replica's.
        for i, replica in enumerate(hashes):
            replica.update(np.ascontiguousarray(own[i % len(own)].numpy()).tobytes())
    return [replica.hexdigest() for replica in hashes]
