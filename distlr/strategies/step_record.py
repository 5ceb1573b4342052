"""A record of a training step, made while Keras traces it or runs it eagerly: its samples, optimizers and loss."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import keras
import tensorflow as tf

from distlr.communicators import Communicator
from distlr.strategies.engine_errors import explained

__all__ = ["Step", "StepListener", "StepRecord", "applying", "note_share", "overrides_train_step", "record_of"]

_RECORD = "distlr_step_record"  # the attribute of a training function that has a record
_of_thread = threading.local()  # `.step` is what this thread traces or runs


class StepListener(Protocol):
    """Is told of the events of a step; an error that it raises ends the training there.

    Attributes:
        communicator: the job's.
    """

    communicator: Communicator

    @property
    def is_on(self) -> bool:
        """Whether its `fit` still runs; after one that ended with an error, another one may use the same function."""

    def on_apply(self, step: Step) -> None:
        """Is called before the last optimizer of `step.applied` is applied; in a trace nothing is applied yet."""

    def on_step(self, step: Step) -> None:
        """Is called when the whole step is traced, or has run eagerly."""

    def on_first_call(self, record: StepRecord) -> None:
        """Is called when the first call of a `fit` has returned: one step, or as many as `steps_per_execution` says."""


class Step:
    """One pass through the Python code of a `train_step`, in one replica: a trace, or an eager step.

    Attributes:
        samples: the leading dimension of the batch; None where it is not known while the step is traced, or where the
            tensors of the batch differ in it.
        applied: the optimizers that were applied, in order, each with whether every run of the step does it. False
            means inside of a condition, a loop or another function of TensorFlow's, where Python cannot count.
        losses: the tensors whose gradients by variables were computed.
        keras_losses: the results of Keras' losses in it.
        shares: the losses that `job.mean_loss` has divided by the batch of all replicas.
        means_of_losses: the names of metrics that were updated with one of these losses unchanged.
        averages_itself: whether a tape of another library took a gradient, which averages over the ranks then.
    """

    def __init__(self, listener: StepListener, samples: int | None) -> None:
        self.samples = samples
        self.applied: list[tuple[Any, bool]] = []
        self.losses: list[Any] = []
        self.keras_losses: list[Any] = []
        self.shares: list[Any] = []
        self.means_of_losses: list[str] = []
        self.averages_itself = False
        self.is_eager = tf.executing_eagerly()
        self._listener: StepListener | None = listener
        self._graph = _graph()
        self._is_applying = False

    def times(self, optimizer: Any) -> int:
        """How often every run of the step applies this optimizer, at least."""
        return sum(always for other, always in self.applied if other is optimizer)

    @contextlib.contextmanager
    def apply(self, optimizer: Any) -> Iterator[None]:
        """Notes an optimizer; calls of `apply` within its own are not noted (a loss scale's, or its base class')."""
        if self._is_applying:
            yield
            return
        self._is_applying = True
        try:
            self.applied.append((optimizer, _graph() is self._graph))
            if self._listener is not None:
                self._listener.on_apply(self)
            yield
        finally:
            self._is_applying = False

    def release_tensors(self) -> None:
        """Drops all tensors and graphs, since a record lives as long as its model."""
        self.losses, self.keras_losses, self.shares = [], [], []
        self._listener = self._graph = None


class StepRecord:
    """What the steps of one training function do; it lives as long as the function.

    Attributes:
        steps: the passes so far; of eager passes only those of this `fit`'s first step.
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self._listener: StepListener | None = None
        self.steps: list[Step] = []
        self._strategy = strategy
        self._is_first = False
        with strategy.scope():  # several workers make it together
            self._samples = tf.Variable(
                tf.zeros((), tf.int64),
                trainable=False,
                synchronization=tf.VariableSynchronization.ON_READ,
                aggregation=tf.VariableAggregation.NONE,
            )

    def begin(self, listener: StepListener) -> None:
        """Begins a `fit`, whose events go to the listener until it is no longer on."""
        self._listener, self._is_first = listener, True
        self.steps = [step for step in self.steps if not step.is_eager]
        for copy in self._strategy.experimental_local_results(self._samples):
            copy.assign(0)

    @property
    def listener(self) -> StepListener | None:
        """The current listener."""
        if self._listener is not None and not self._listener.is_on:
            self._listener = None
        return self._listener

    def first_samples(self) -> int | None:
        """The leading dimension of this `fit`'s first batch, if it was unknown while the step was traced."""
        local = self._strategy.experimental_local_results(self._samples)
        known = {int(copy.numpy()) for copy in local} - {0, _DIFFER}
        return max(known) if known else None

    def recorded(self, train_step: Callable[..., Any]) -> Callable[..., Any]:
        """A `train_step` that does the same and is recorded."""

        @functools.wraps(train_step)
        def step_of_record(data: Any, *arguments: Any, **named: Any) -> Any:
            listener = self.listener
            if listener is None or (tf.executing_eagerly() and not self._is_first):  # one eager step is as good as all
                return train_step(data, *arguments, **named)
            size = _leading_size(data)
            if tf.is_tensor(size):  # the first batch's: the last one may be smaller
                self._samples.assign(tf.where(tf.equal(self._samples, 0), size, self._samples))
            step = Step(listener, size if isinstance(size, int) else None)
            with _watching(), _as_current(step):
                result = train_step(data, *arguments, **named)
            self.steps.append(step)
            listener.on_step(step)
            step.release_tensors()
            return result

        recorded: Callable[..., Any] = tf.autograph.experimental.do_not_convert(step_of_record)
        return recorded

    def reporting(self, train_function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Keras' training function, which also says when its first call of a `fit` has returned."""

        def train_function_of_record(iterator: Any) -> Any:
            listener = self.listener
            with contextlib.nullcontext() if listener is None else explained(listener.communicator, "An update"):
                logs = train_function(iterator)
            if self._is_first:
                self._is_first = False
                if listener is not None:
                    listener.on_first_call(self)
            return logs

        setattr(train_function_of_record, _RECORD, self)
        return train_function_of_record


def record_of(model: Any) -> StepRecord:
    """The record of a model's training function; a function without one is replaced by a new one, not yet traced.

    `train_step` is the model's own again when this returns, so nothing is saved, copied or pickled with the record.
    """
    record: StepRecord | None = getattr(model.train_function, _RECORD, None)
    if record is not None:
        return record
    record = StepRecord(model.distribute_strategy)
    attributes = model.__dict__
    instance_attributes = {name: attributes[name] for name in ("train_step",) if name in attributes}
    attributes["train_step"] = record.recorded(model.train_step)
    try:
        model.train_function = None
        model.make_train_function()
    finally:
        del attributes["train_step"]
        attributes.update(instance_attributes)
    model.train_function = record.reporting(model.train_function)
    return record


def overrides_train_step(model: Any) -> bool:
    """Whether the model overrides Keras' `train_step`."""
    return "train_step" in vars(model) or type(model).train_step is not keras.Model.train_step


def applying(optimizer: Any) -> contextlib.AbstractContextManager[Any]:
    """Tells the step in progress, if one is, that an optimizer is applied."""
    step = _current()
    return contextlib.nullcontext() if step is None else step.apply(optimizer)


def note_share(loss: Any) -> None:
    """Tells the step in progress, if one is, that a loss is divided by the batch of all replicas."""
    step = _current()
    if step is not None:
        step.shares.append(loss)


# -- the step in progress ------------------------------------------------------------------------------

_DIFFER = -1  # stands for the leading dimension of tensors that differ in it


def _current() -> Step | None:
    step: Step | None = getattr(_of_thread, "step", None)
    return step


@contextlib.contextmanager
def _as_current(step: Step) -> Iterator[None]:
    before, _of_thread.step = _current(), step
    try:
        yield
    finally:
        _of_thread.step = before


def _graph() -> Any:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def _leading_size(data: Any) -> int | tf.Tensor | None:
    """The leading dimension that all tensors of a batch share; a tensor where a part is not known yet.

    None, or the value `_DIFFER`, if they differ: then the samples of the batch cannot be counted in this way.
    """
    parts = [(part, tf.TensorShape(part.shape)) for part in tf.nest.flatten(data) if hasattr(part, "shape")]
    known = {shape[0] for _, shape in parts if shape.rank} - {None}
    unknown = [part for part, shape in parts if shape.rank is None or (shape.rank and shape[0] is None)]
    if len(known) > 1 or not (known or unknown):
        return None
    if not unknown:
        return int(known.pop())
    sizes = tf.stack([*(tf.constant(size, tf.int64) for size in known), *map(_dynamic_size, unknown)])
    largest = tf.reduce_max(sizes)
    smallest = tf.reduce_min(tf.where(sizes < 0, largest, sizes))  # a scalar after all has -1
    return tf.where(tf.equal(smallest, largest), largest, tf.constant(_DIFFER, tf.int64))


def _dynamic_size(tensor: Any) -> tf.Tensor:
    """The leading dimension of a dense, ragged or sparse tensor, in graph; -1 of a scalar."""
    if isinstance(tensor, tf.RaggedTensor):
        return tf.cast(tensor.nrows(), tf.int64)
    shape = tensor.dense_shape if isinstance(tensor, tf.SparseTensor) else tf.shape(tensor, tf.int64)
    return tf.concat([tf.cast(shape, tf.int64), tf.constant([-1], tf.int64)], axis=0)[0]


# -- the calls of Keras and TensorFlow that are watched while a step is traced ------------------------------------


def _note_apply(original: Callable[..., Any]) -> Callable[..., Any]:
    def apply(optimizer: Any, *arguments: Any, **named: Any) -> Any:
        with applying(optimizer):
            return original(optimizer, *arguments, **named)

    return apply


def _note_gradient(original: Callable[..., Any]) -> Callable[..., Any]:
    def gradient(tape: Any, target: Any, sources: Any, *arguments: Any, **named: Any) -> Any:
        step = _current()
        if step is not None and any(map(_is_variable, tf.nest.flatten(sources))):
            step.losses += tf.nest.flatten(target)
            step.averages_itself |= type(tape).__module__.split(".")[0] not in ("tensorflow", "keras")
        return original(tape, target, sources, *arguments, **named)

    return gradient


def _note_loss(original: Callable[..., Any]) -> Callable[..., Any]:
    def loss(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        step = _current()
        if step is not None:
            step.keras_losses.append(result)
        return result

    return loss


def _note_mean(original: Callable[..., Any]) -> Callable[..., Any]:
    def update_state(metric: Any, values: Any, *arguments: Any, **named: Any) -> Any:
        step = _current()
        if step is not None and any(values is loss for loss in (*step.keras_losses, *step.shares)):
            step.means_of_losses.append(metric.name)
        return original(metric, values, *arguments, **named)

    return update_state


def _is_variable(source: Any) -> bool:
    return isinstance(source, (keras.Variable, tf.Variable, tf.distribute.DistributedValues))


def _defining(kind: type, name: str) -> type:
    return next(parent for parent in kind.__mro__ if name in vars(parent))


_WATCHED: tuple[tuple[type, str, Callable[[Callable[..., Any]], Callable[..., Any]]], ...] = (
    (_defining(keras.optimizers.Optimizer, "apply"), "apply", _note_apply),
    (keras.optimizers.LossScaleOptimizer, "apply", _note_apply),  # which has one of its own
    (tf.GradientTape, "gradient", _note_gradient),
    (keras.losses.Loss, "__call__", _note_loss),
    (_defining(keras.Model, "compute_loss"), "compute_loss", _note_loss),
    (keras.metrics.Mean, "update_state", _note_mean),
)
_lock = threading.Lock()
_originals: list[Callable[..., Any]] = []
_watchers = 0  # replicas, and ranks in threads, that trace a step now


@contextlib.contextmanager
def _watching() -> Iterator[None]:
    """Reports the watched calls to the step in progress of their thread; threads without one are not affected."""
    global _watchers
    with _lock:
        _watchers += 1
        if _watchers == 1:
            for kind, name, watched in _WATCHED:
                original = vars(kind)[name]
                _originals.append(original)
                replacement = functools.wraps(original)(watched(original))
                setattr(kind, name, tf.autograph.experimental.do_not_convert(replacement))
    try:
        yield
    finally:
        with _lock:
            _watchers -= 1
            if not _watchers:
                for kind, name, _ in reversed(_WATCHED):
                    setattr(kind, name, _originals.pop())
