"""The gradients' way without an optimizer: averaged, summed, measured, left out; and the digest of applied rates."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from distlr.errors import DistributionError
from distlr.optimizer.gradient_pipeline import GradientPipeline
from distlr.optimizer.reduction import Reduction
from distlr.optimizer.state_variables import StateVariables
from distlr.strategies.mirrored import mirrored


class TwoRanks:
    """Stands for two ranks, of which the other one has the same gradients, or gradients that are not finite."""

    terms = "two ranks"

    def __init__(self, *, other_is_finite: bool = True) -> None:
        self.names: list[list[str]] = []
        self.other_is_finite = other_is_finite

    def average(self, gradients, names):
        self.names.append(list(names))
        return list(gradients)

    def all_true(self, flag):
        return tf.logical_and(flag, self.other_is_finite)


@pytest.fixture(scope="module")
def two_replicas(four_cpus):
    return mirrored(four_cpus[:2])


def pipeline(**reduction) -> GradientPipeline:
    return GradientPipeline(tf.distribute.get_strategy(), Reduction(**reduction), variables())


def variables() -> StateVariables:
    return StateVariables(tf.distribute.get_strategy(), lambda variable, name: None)


def test_on_one_device_gradients_stay_as_they_are():
    gradients = [tf.constant([1.0, 2.0]), None, tf.IndexedSlices(tf.constant([[3.0]]), tf.constant([1]))]
    dense, none, sparse = pipeline().reduce(gradients)
    assert (dense.numpy().tolist(), none, sparse.values.numpy().tolist()) == ([1.0, 2.0], None, [[3.0]])


def test_the_ranks_average_by_the_places_of_the_gradients():
    ranks = pipeline(sums=True, factor=3.0)
    ranks.reducer, ranks.ranks, ranks.places = TwoRanks(), 2, ["0", "4"]
    first, second = ranks.reduce([tf.constant([1.0]), tf.constant([-2.0])])
    assert (first.numpy().tolist(), second.numpy().tolist()) == ([6.0], [-12.0])  # the sum of two, times 3
    assert ranks.reducer.names == [["0", "4"]]


def test_replicas_sum_and_each_gets_the_sum(two_replicas):
    with two_replicas.scope():
        several = GradientPipeline(two_replicas, Reduction(), variables())
        several.watch_norm()

    @tf.function
    def step():
        place = tf.distribute.get_replica_context().replica_id_in_sync_group
        return several.reduce([tf.constant([3.0, 4.0]) * tf.cast(place, tf.float32)])[0]

    sums = two_replicas.experimental_local_results(two_replicas.run(step))
    assert [value.numpy().tolist() for value in sums] == [[3.0, 4.0], [3.0, 4.0]]
    assert several.norm == pytest.approx(5.0)


def test_the_norm_is_kept_where_it_is_watched():
    watched = pipeline()
    assert (watched.norm, len(watched.replica_variables)) == (0.0, 1)
    assert (watched.watch_norm(), watched.watch_norm()) == (True, False)
    watched.reduce([tf.constant([3.0]), tf.constant([4.0], tf.float16), None])
    assert (watched.norm, len(watched.replica_variables)) == (5.0, 2)


@pytest.mark.parametrize(
    ("gradient", "other_is_finite", "taken"), [(1.0, True, 1), (np.nan, True, 0), (np.inf, True, 0), (1.0, False, 0)]
)
def test_a_step_is_left_out_by_all_if_one_has_to(gradient, other_is_finite, taken):
    ranks, steps = pipeline(), []
    ranks.reducer = TwoRanks(other_is_finite=other_is_finite)
    assert (ranks.leave_out_bad_steps(), ranks.leave_out_bad_steps()) == (True, False)
    ranks.run_where_finite(lambda gradients, weights: steps.append(weights), [tf.constant([gradient])], "weights")
    assert (len(steps), ranks.bad_steps) == (taken, 1 - taken)


def test_a_loss_scale_that_agrees_leaves_steps_out_itself():
    ranks, steps = pipeline(), []
    ranks.leave_out_bad_steps()
    ranks.loss_scale_agrees = True
    ranks.run_where_finite(lambda gradients, weights: steps.append(gradients), [tf.constant([np.nan])], None)
    assert (len(steps), ranks.bad_steps) == (1, 0)


def test_the_digest_depends_on_each_rate_and_on_their_order():
    def digest(*rates: float) -> str:
        proof = pipeline()
        for rate in rates:
            proof.record(tf.constant(rate), None)
        return proof.rate_digests()[0]

    # FNV by hand: multiply by the prime, add the bits of the float32, modulo 2^64.
    value = 0
    for rate in (0.1, 0.05):
        value = (value * 1_099_511_628_211 + int(np.float32(rate).view(np.int32))) % 2**64
    assert digest(0.1, 0.05) == f"{value:016x}"
    assert len({digest(0.1, 0.05), digest(0.05, 0.1), digest(0.1), digest(0.1, 0.05000001)}) == 4


def test_a_step_that_only_accumulates_leaves_the_digest():
    proof = pipeline()
    proof.record(tf.constant(0.1), tf.constant(True))
    before = proof.rate_digests()
    proof.record(tf.constant(0.2), tf.constant(False))
    assert proof.rate_digests() == before


def test_a_step_under_another_strategy_is_refused(two_replicas):
    alone = pipeline()
    with two_replicas.scope(), pytest.raises(DistributionError, match=r"built outside job\.scope"):
        alone.check()


def test_ranks_without_rank_zeros_state_take_no_step():
    ranks = pipeline()
    ranks.reducer = TwoRanks()
    with pytest.raises(DistributionError, match="rank 0's state was never broadcast"):
        ranks.check()
    ranks.has_rank_zero_state = True
    ranks.check()
    ranks.needs_agreeing_loss_scale = True
    with pytest.raises(DistributionError, match="looks for overflows on one replica alone"):
        ranks.check()
    ranks.loss_scale_agrees = True
    ranks.check()
