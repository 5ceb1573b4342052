"""Strategies of the user's own: accepted, warned of, or refused."""

from __future__ import annotations

import pytest
import tensorflow as tf

from distlr.errors import ConfigurationError
from distlr.strategies import check_strategy
from distlr.strategies.batches import split_batches


class ParameterServerStrategyV9(tf.distribute.Strategy):
    def __init__(self) -> None:
        super().__init__(tf.distribute.get_strategy().extended)


class TPUStrategy(ParameterServerStrategyV9.__mro__[1]):
    def __init__(self) -> None:
        super().__init__(tf.distribute.get_strategy().extended)


@pytest.mark.parametrize("make", [tf.distribute.get_strategy, lambda: tf.distribute.OneDeviceStrategy("/CPU:0")])
def test_tested_strategies_are_accepted_without_a_warning(make, caplog) -> None:
    check_strategy(make())
    assert caplog.records == []


def test_a_parameter_server_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"take each step together.*multi-worker"):
        check_strategy(ParameterServerStrategyV9())


def test_an_untested_one_is_accepted_with_a_warning(caplog) -> None:
    check_strategy(TPUStrategy())
    assert "never tested on TPUStrategy" in caplog.text


@pytest.mark.parametrize("sizes", [(4, 4, 2), (2,), (6,)])
def test_a_batch_is_split_into_equal_shares_of_the_local_replicas(sizes) -> None:
    def batches():
        for size in sizes:
            yield {"x": tf.range(size), "y": tf.ones((size, 3))}

    signature = {"x": tf.TensorSpec((None,), tf.int32), "y": tf.TensorSpec((None, 3))}
    data = tf.data.Dataset.from_generator(batches, output_signature=signature)
    assert split_batches(data, 1) is data
    shares = [share["x"].numpy().tolist() for share in split_batches(data, 2)]
    assert [len(share) for share in shares] == [size // 2 for size in sizes for _ in range(2)]
    assert [i for share in shares for i in share] == [i for size in sizes for i in range(size)]


def test_a_static_batch_stays_static() -> None:
    data = tf.data.Dataset.from_tensor_slices((tf.zeros((8, 3)), tf.zeros(8))).batch(4, drop_remainder=True)
    x, y = split_batches(data, 2).element_spec
    assert (x.shape.as_list(), y.shape.as_list()) == ([2, 3], [2])
