"""How the batches of a data set are divided among the replicas of one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

__all__ = ["divided", "is_divided", "split_batches"]


def divided(dataset: tf.data.Dataset, strategy: tf.distribute.Strategy) -> tf.data.Dataset:
    """Each batch of n samples as a `PerReplica` value: each replica has ceil(n / replicas), the last ones the rest.

    These are the shares of `tf.distribute`, from one ordinary iterator, which has its first batch in a fifth of the
    time of an iterator over four CPUs; every epoch and every validation makes one. The values are in the memory of the
    iterator, so this is for replicas that share their memory.
    """
    replicas = strategy.num_replicas_in_sync

    def divide(tensor: tf.Tensor) -> Any:
        whole = tensor.shape[0]
        share = -(-(tf.shape(tensor)[0] if whole is None else whole) // replicas)
        return strategy.experimental_distribute_values_from_function(
            lambda replica: tensor[replica.replica_id_in_sync_group * share :][:share]
        )

    return _on_each_tensor(divide, dataset)


def is_divided(data: Any) -> bool:
    """Whether this is a data set whose batches are divided already, by `divided` or by TensorFlow."""
    if not isinstance(data, tf.data.Dataset):
        return isinstance(data, tf.distribute.DistributedDataset)
    specs = tf.nest.flatten(data.element_spec)
    return any(issubclass(spec.value_type, tf.distribute.DistributedValues) for spec in specs)


def split_batches(dataset: tf.data.Dataset, parts: int) -> tf.data.Dataset:
    """Each batch as `parts` equal smaller ones, one behind another; every batch must divide."""
    if parts == 1:
        return dataset

    def cut(tensor: tf.Tensor) -> tf.Tensor:
        whole, rest = tensor.shape[0], tensor.shape[1:]
        pieces = tf.reshape(tensor, tf.concat([[parts, tf.shape(tensor)[0] // parts], tf.shape(tensor)[1:]], axis=0))
        pieces.set_shape([parts, None if whole is None else whole // parts, *rest])
        return pieces

    return _on_each_tensor(cut, dataset).unbatch()


def _on_each_tensor(function: Callable[[tf.Tensor], Any], dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The data set with a function applied to each tensor in the structure of its elements."""
    several = type(dataset.element_spec) is tuple  # `map` passes its parts one by one

    def on_element(*parts: Any) -> Any:
        return tf.nest.map_structure(function, parts if several else parts[0])

    return dataset.map(tf.autograph.experimental.do_not_convert(on_element))
