"""The state of a run outside of weights and optimizer variables, which a checkpoint stores as well."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distlr._version import __version__
from distlr.communicators import Communicator
from distlr.communicators.bundles import Bundle, exchange_bundles, reduce_over, to_number
from distlr.communicators.topology import Topology
from distlr.data.position import EpochSteps
from distlr.errors import StateError
from distlr.optimizer import differences, partial_sums, read_state, training_values_of, unwrap_loss_scale, write_state
from distlr.sync.metrics import assign_states, read_states
from distlr.sync.moving_statistics import average_over_replicas, average_sums, exchange_with_statistics

__all__ = [
    "LOG",
    "RANK",
    "RunState",
    "are_finite",
    "gather_arrays",
    "log_arrays",
    "rank_arrays",
    "read_arrays",
    "read_logs",
    "restore_metrics",
    "restore_seeds",
    "seed_values",
    "write_arrays",
    "write_weights",
]

_WEIGHT, _OPTIMIZER, _SEED, _METRIC = "weight/", "optimizer/", "seed/", "metric/"
RANK, LOG = "rank/", "log/"
"""What the names of arrays begin with that are one rank's own, and that are results of an epoch's training."""


@dataclasses.dataclass(frozen=True)
class RunState:
    """Where a run stood, and under which formula; plain JSON values.

    Attributes:
        epoch: the epoch, from 0, in which the next step is.
        steps: Keras' steps of that epoch that were done.
        iterations: the optimizer's iterations.
        samples_seen: the clock, which stands still where a step is left out.
        began: how far the data was as that epoch began, as `DataPositionSync.drawn` counts; None in files of earlier
            versions.
        place: samples of that epoch that were behind, on all ranks together; None in files of earlier versions.
        updates: the updates of the run, including those that were left out; None in files of earlier versions.
        positions: seed, pass and offset of each training pipeline.
        formula: the optimizer's formula; see `optimizer.comparison`.
        ranks: how many ranks wrote it.
        replicas: the number of replicas over all ranks.
        global_batch: samples an update, or None where nothing was scaled.
        accumulation: Keras' steps an update; None in files of earlier versions.
        to_validate: if the training of that epoch is done and its validation is not, the names of the training's logs;
            otherwise, and in files of earlier versions, None.
        factor: the factor of the rate.
        versions: the versions of distlr, Keras and TensorFlow; for people.
    """

    epoch: int
    steps: int
    iterations: int
    samples_seen: int
    positions: list[list[int]]
    formula: dict[str, Any]
    ranks: int
    replicas: int
    global_batch: int | None
    factor: float
    versions: dict[str, str]
    began: int | None = None
    place: int | None = None
    updates: int | None = None
    accumulation: int | None = None
    to_validate: list[str] | None = None

    @classmethod
    def of(cls, model: Any, communicator: Communicator, formula: dict[str, Any]) -> RunState:
        """The state of this run now, at the start of the first epoch; `dataclasses.replace` says where it is."""
        optimizer = unwrap_loss_scale(model.optimizer)
        topology = Topology.of(communicator, model.distribute_strategy.num_replicas_in_sync)
        return cls(
            epoch=0,
            steps=0,
            iterations=int(optimizer.iterations.numpy()),
            samples_seen=optimizer.distlr.formula.samples_seen,
            positions=[],
            formula=formula,
            ranks=topology.ranks,
            replicas=topology.replicas,
            global_batch=None if optimizer.distlr.batch is None else optimizer.distlr.batch.size,
            factor=float(optimizer.distlr.formula.factor),
            versions={"distlr": __version__, "keras": keras.__version__, "tensorflow": tf.__version__},
            accumulation=optimizer.gradient_accumulation_steps or 1,
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunState:
        """Restores the state from `to_json`. It trusts no value, since they come from a file.

        Raises:
            StateError: something is missing, or is not of its type.
        """
        try:
            required = [field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING]
            later: dict[str, Any] = {name: values.get(name) for name in ("began", "place", "updates", "accumulation")}
            to_validate = values.get("to_validate")
            state = cls(**{name: values[name] for name in required}, **later, to_validate=to_validate)
            counts = [state.epoch, state.steps, state.iterations, state.samples_seen, state.ranks, state.replicas]
            counts += [count for count in later.values() if count is not None]
            counts += [number for position in state.positions for number in position[1:]]
            right = all(type(count) is int and count >= 0 for count in counts)
            right = right and all(len(position) == 3 and type(position[0]) is int for position in state.positions)
            right = right and isinstance(state.formula, dict) and state.factor > 0
            right = right and (to_validate is None or all(isinstance(name, str) for name in to_validate))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError(f"The checkpoint does not say where the run stood: {error!r}.") from error
        if not right:
            raise StateError(f"The checkpoint does not say where the run stood: {dict(values)!r}.")
        return state

    def to_json(self) -> dict[str, Any]:
        """The attributes by their names."""
        return dataclasses.asdict(self)

    def differences(self, current: RunState, path: Any, *, accept: bool) -> list[str]:
        """The parts of the formula that differ in the script, a line each.

        Args:
            current: the state of the script.
            path: the path of the checkpoint, for the message.
            accept: whether differences are allowed.

        Raises:
            StateError: there are differences that are not allowed.
        """
        formula_differences = differences(self.formula, current.formula)
        if formula_differences and not accept:
            lines = "\n  ".join(formula_differences)
            raise StateError(
                f"{path} was written under another formula than the script's:\n  {lines}\nFix: make the "
                "optimizer as it was, or write Checkpoint(..., accept=True) to go on with the script's."
            )
        return formula_differences

    def steps_done(self, current: RunState, epoch_steps: EpochSteps, *, endless: bool) -> int:
        """The steps of the epoch that are done, in steps of the script, on whatever number of replicas it runs.

        After another size of the batch the next step begins an update, as on the clock, which goes on at the first
        place of the new batch that is not before its own.

        Args:
            current: the state of the script.
            epoch_steps: the epoch's steps in the script.
            endless: whether one iteration of the data lasts for a whole `fit`, so that offsets are not of the epoch.

        Raises:
            StateError: the number of steps of an epoch is not known.
        """
        if epoch_steps.steps is None:
            raise StateError("The checkpoint is of the middle of an epoch whose number of steps is not known here.")
        place = self._place_of_before(epoch_steps, endless=endless) if self.place is None else self.place
        same = self.global_batch == current.global_batch and self.accumulation in (None, current.accumulation)
        return epoch_steps.done(place) if same else epoch_steps.done_by_update(place)

    def epoch_began(self, done: int, epoch_steps: EpochSteps) -> int:
        """How far the data was at the beginning of the epoch, so many steps of the script ago."""
        if self.began is not None:
            return self.began
        reached = self.samples_seen if epoch_steps.in_samples else self.iterations
        return reached - epoch_steps.drawn(done)

    def _place_of_before(self, epoch_steps: EpochSteps, *, endless: bool) -> int:
        """The place in the epoch in a file that does not say it."""
        size, samples = self.global_batch, epoch_steps.samples
        if not endless and self.positions:
            offset = self.positions[0][2]
            return offset if samples is None or size is None else offset * samples // (samples // size * size)
        if samples is not None:
            return self.samples_seen % samples  # right where no step was left out
        return self.steps * epoch_steps.per_step


def read_arrays(model: Any, ranks: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The training's weights and its optimizer's variables, which all ranks share, and the arrays of each rank.

    Args:
        model: compiled with an adopted optimizer.
        ranks: the result of `gather_arrays`.
    """
    held = training_values_of(model.optimizer)
    arrays = {f"{_WEIGHT}{i}": held.holder(weight).numpy() for i, weight in enumerate(model.weights)}
    arrays |= {_OPTIMIZER + name: value for name, value in read_state(model.optimizer).items()}
    return arrays | {
        f"{RANK}{rank}/{name}": array for rank, of_rank in enumerate(ranks) for name, array in of_rank.items()
    }


def write_arrays(model: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Assigns the arrays of `read_arrays` to the model and its optimizer.

    Raises:
        StateError: they do not fit; nothing was changed.
    """
    weights = _weights(model, arrays)
    write_state(model.optimizer, _under(_OPTIMIZER, arrays))
    for weight, value in zip(model.weights, weights, strict=True):
        weight.assign(value)


def write_weights(model: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Assigns the weights among the arrays of `read_arrays` to the model, and leaves its optimizer as it is.

    Raises:
        StateError: they do not fit; nothing was changed.
    """
    for weight, value in zip(model.weights, _weights(model, arrays), strict=True):
        weight.assign(value)


def _weights(model: Any, arrays: Mapping[str, np.ndarray]) -> list[Any]:
    weights = [arrays.get(f"{_WEIGHT}{i}") for i in range(sum(name.startswith(_WEIGHT) for name in arrays))]
    shapes = [None if value is None else tuple(value.shape) for value in weights]
    expected = [tuple(weight.shape) for weight in model.weights]
    if shapes != expected:
        first = next((i for i, (a, b) in enumerate(zip(shapes, expected, strict=False)) if a != b), None)
        what = f"{len(shapes)} weights, and the model {len(expected)}"
        if first is not None:
            what = f"the shape {shapes[first]} for '{model.weights[first].path}', and the model {expected[first]}"
        raise StateError(f"The checkpoint has {what}. Fix: build the model that it was written of.")
    return weights


def are_finite(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether the weights and the optimizer's slots are finite; a plateau's best may begin as infinity."""
    return all(np.isfinite(a).all() for name, a in arrays.items() if name.startswith(_WEIGHT) or "/slot_" in name)


def rank_arrays(arrays: Mapping[str, np.ndarray], ranks: int) -> list[dict[str, np.ndarray]]:
    """The arrays of each rank, by rank, among those of `read_arrays`."""
    return [_under(f"{RANK}{rank}/", arrays) for rank in range(ranks)]


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name[len(prefix) :]: array for name, array in arrays.items() if name.startswith(prefix)}


def log_arrays(logs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The numbers of an epoch's logs, by their names, as arrays, which keep all their bits, also of a NaN."""
    arrays = {name: np.asarray(value) for name, value in logs.items()}
    wide = {"i": np.int64, "u": np.int64, "f": np.float64}
    return {name: array.astype(wide[array.dtype.kind]) for name, array in arrays.items() if array.dtype.kind in wide}


def read_logs(names: Sequence[str], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The numbers that `log_arrays` turned into arrays.

    Args:
        names: the names in the order of the logs.
        arrays: the arrays of the checkpoint, where `LOG` is before each name.

    Raises:
        StateError: one is missing.
    """
    missing = [name for name in names if LOG + name not in arrays]
    if missing:
        raise StateError(f"The checkpoint does not have what the epoch's training has given: {', '.join(missing)}.")
    return {name: to_number(arrays[LOG + name]) for name in names}


def seed_values(model: Any) -> list[tuple[Any, np.ndarray]]:
    """The seed generators of a model, each with its state."""
    return [(seed, np.asarray(seed.numpy())) for seed in _seeds(model)]


def gather_arrays(communicator: Communicator, model: Any, *, within_epoch: bool) -> list[dict[str, np.ndarray]]:
    """The arrays that differ by rank, by rank. Collective.

    They are the states of seed generators (dropout) and, in the middle of an epoch, of the metrics. There the moving
    statistics, too, become their mean over replicas and ranks, as they do at each epoch's end, so that the run goes on
    from what the checkpoint holds. So do the accumulators of an update that is not complete, as at an epoch's end where
    steps were left out.
    """
    sums = partial_sums(model.optimizer)
    if sums and (communicator.size > 1 or model.distribute_strategy.num_replicas_in_sync > 1):
        average_sums(communicator, model, sums, tag="the sums of an update that is not complete")
    local_arrays = {f"{_SEED}{i}": np.asarray(seed.numpy(), np.int64) for i, seed in enumerate(_seeds(model))}
    if within_epoch:
        local_arrays |= read_states(model.metrics).arrays
        average_over_replicas(model)
    if communicator.size == 1:
        return [local_arrays]
    tag = "the ranks' part of a checkpoint"
    if within_epoch:
        bundles = exchange_with_statistics(communicator, model, Bundle(local_arrays), tag=tag)
    else:
        bundles = exchange_bundles(communicator, Bundle(local_arrays), tag=tag)
    return [dict(bundle.arrays) for bundle in bundles]


def restore_seeds(communicator: Communicator, model: Any, ranks: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Gives this rank its seed generators' states; a rank that the checkpoint does not know keeps its own."""
    if communicator.rank >= len(ranks):
        return
    local_arrays = ranks[communicator.rank]
    for i, seed in enumerate(_seeds(model)):
        value = local_arrays.get(f"{_SEED}{i}")
        if value is not None and value.shape == tuple(seed.shape):
            seed.assign(value.astype(seed.dtype))


def restore_metrics(communicator: Communicator, model: Any, ranks: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Adds the saved counts to this rank's metrics; on another number of ranks rank 0 gets all of them.

    Call it after the first batch: Keras makes a metric that `compile` got by its name, and its variables, only then.
    """
    states = [{name: array for name, array in arrays.items() if name.startswith(_METRIC)} for arrays in ranks]
    if communicator.strategy_spans_ranks:
        states = states[:1]  # each rank has read the sum over all
    elif len(ranks) == communicator.size:
        states = [states[communicator.rank]]
    elif not communicator.is_root:
        return
    now = read_states(model.metrics)
    assign_states(model.metrics, reduce_over([*(Bundle(arrays) for arrays in states), Bundle(now.arrays)], now.how))


def _seeds(model: Any) -> list[Any]:
    weights = {id(variable) for variable in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]
