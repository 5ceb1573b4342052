"""The counters of callbacks, which Keras resets in each process: best values, epochs without improvement, steps."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from distlr.callbacks.job_callback import JobCallback
from distlr.callbacks.other_weights import ADAPTATIONS
from distlr.communicators import Communicator
from distlr.communicators.bundles import Bundle, broadcast_arrays
from distlr.errors import ConfigurationError, StateError

__all__ = ["KEPT", "NOT_KEPT", "Counters", "append_to_logs"]

KEPT: Mapping[str, tuple[str, ...]] = {
    "EarlyStopping": ("best", "best_epoch", "best_weights", "stopped_epoch", "wait"),
    "ModelCheckpoint": ("_batches_seen_since_last_saving", "_last_batch_seen", "best"),
    "OrbaxCheckpoint": ("_batches_seen_since_last_saving", "_last_batch_seen", "_total_batches_seen", "best"),
    "ReduceLROnPlateau": ("best", "cooldown_counter", "wait"),
    "TensorBoard": ("_global_test_batch", "_global_train_batch"),
}
"""What is kept of Keras' callbacks, by the name of their class."""

NOT_KEPT: Mapping[str, tuple[str, ...]] = {
    "BackupAndRestore": ("_batches_seen_since_last_saving", "_current_epoch", "_last_batch_seen"),
    "Callback": ("_model", "params"),
    "CSVLogger": ("append", "append_header", "csv_file", "keys", "writer"),
    "EarlyStopping": ("min_delta", "monitor_op"),
    "History": ("epoch", "history"),
    "ModelCheckpoint": ("_current_epoch", "min_delta", "monitor_op"),
    "OrbaxCheckpoint": ("_async_futures", "_current_epoch", "min_delta", "monitor_op"),
    "ProgbarLogger": ("_called_in_fit", "epochs", "progbar", "seen", "target", "verbose"),
    "ReduceLROnPlateau": ("min_delta", "monitor_op"),
    "SwapEMAWeights": ("_ema_weights_in_model",),
    "TensorBoard": (
        "_batch_start_time",
        "_batch_trace_context",
        "_epoch_start_time",
        "_is_tracing",
        "_log_write_dir",
        "_prev_summary_state",
        "_previous_epoch_iterations",
        "_profiler_started",
        "_should_trace",
        "_should_write_train_graph",
        "_start_batch",
        "_stop_batch",
        "_summary_module",
        "_train_dir",
        "_val_dir",
        "_writers",
    ),
}
"""What changes in Keras' callbacks, and begins anew rightly: made from the script, from the epoch, or the process'."""

DECLARED = "distlr_state"
"""The attribute of a class that names what is to be kept of a callback of one's own."""

# These attributes say where a callback stands; it sets them anew, and they are no counters.
_PLACES = frozenset({"batch", "current_epoch", "epoch", "step"})
_ARRAYS = "callback/"

_log = logging.getLogger("distlr")


class Counters:
    """Reads the counters of a job's callbacks for a checkpoint, and gives them back to those of the next process.

    It knows those of Keras' callbacks by `KEPT`; a user's class names its own as `distlr_state = ("best", "wait")`:
    numbers, strings, arrays, None, and lists of them. A callback is recognized by its class, the metric that it
    monitors, and its number among those. The saved counters are JSON and arrays, without any code.

    Args:
        callbacks: all callbacks of this rank, in order; writers are on rank 0 alone.

    Raises:
        ConfigurationError: `distlr_state` is no sequence of names of attributes.

    >>> stop = keras.callbacks.EarlyStopping("loss")
    >>> stop.best, stop.wait = 0.25, 2
    >>> kept = Counters([stop]).read()
    >>> kept.note["kept"]["EarlyStopping loss 1"]["wait"]
    2
    >>> later = keras.callbacks.EarlyStopping("loss")
    >>> _ = Counters([later]).assign(kept.note, kept.arrays)
    >>> later.best, later.wait
    (0.25, 2)
    """

    def __init__(self, callbacks: Sequence[Any]) -> None:
        self._callbacks: dict[str, Any] = {}
        for callback in callbacks:
            monitor = getattr(callback, "monitor", None)
            name = " ".join([type(callback).__name__, *([monitor] if isinstance(monitor, str) else [])])
            number = 1 + sum(key.rsplit(" ", 1)[0] == name for key in self._callbacks)
            self._callbacks[f"{name} {number}"] = callback
            _kept_attributes(callback)  # refuses what is declared wrongly
        self._before: dict[str, dict[str, Any]] = {}
        self._named: set[str] = set()

    def begin(self) -> None:
        """Notes the numbers that callbacks of one's own begin with, to see later which of them count."""
        unknown = {key: callback for key, callback in self._callbacks.items() if _is_users(callback)}
        self._before = {key: _numbers(each) for key, each in unknown.items() if not hasattr(type(each), DECLARED)}

    def read(self) -> Bundle:
        """The counters as they are now: arrays by name, and JSON values beside them."""
        arrays: dict[str, np.ndarray] = {}
        attributes: dict[str, dict[str, Any]] = {}
        for i, (key, callback) in enumerate(self._callbacks.items()):
            for name in _kept_attributes(callback):
                if name not in vars(callback):
                    continue  # an attribute of another version of Keras
                try:
                    attributes.setdefault(key, {})[name] = _to_json(
                        vars(callback)[name], f"{_ARRAYS}{i}/{name}", arrays
                    )
                except TypeError as error:
                    self._warn_once(key, "%s of %s is not kept in checkpoints: %s.", name, key, error)
        lost = {key: names for key in self._before if (names := self._changed(key))}
        for key, names in lost.items():
            self._warn_once(key, "Not kept in checkpoints, and begun anew at a restart: %s", _advice(key, names))
        return Bundle(arrays, note={"kept": attributes, "lost": lost})

    def restore(self, communicator: Communicator, note: Any, arrays: Mapping[str, np.ndarray]) -> None:
        """Gives all ranks the counters that rank 0 has read from a checkpoint. Collective.

        Args:
            communicator: the job's.
            note: the note that `read` returned, the same on every rank; None if the checkpoint has none.
            arrays: the arrays that `read` returned, on rank 0.

        Raises:
            StateError: it is not what `read` gave.
        """
        sent: list[Any] = [[name, array.dtype.name, list(array.shape)] for name, array in arrays.items()]
        sent = communicator.broadcast_json(sent, tag="the arrays of callbacks")
        values = [arrays.get(name, np.zeros(shape, dtype)) for name, dtype, shape in sent]
        if sent and communicator.size > 1:
            values = broadcast_arrays(communicator, values, tag="the arrays of callbacks")
        known, lost = (
            ({}, {}) if note is None else self.assign(note, dict(zip([n for n, *_ in sent], values, strict=True)))
        )
        if not communicator.is_root:
            return
        missing = [key for key, callback in self._callbacks.items() if _kept_attributes(callback) and key not in known]
        if missing:
            _log.warning("The checkpoint has no counters of %s, which begin anew.", ", ".join(missing))
        for key, names in lost.items():
            _log.warning("Begun anew, where the run before had counted: %s", _advice(key, names))

    def assign(self, note: Any, arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, list[str]]]:
        """Assigns the values that `read` returned to the callbacks, after their own `on_train_begin`.

        Returns:
            By callback: the attributes that were kept, and the names of those that were not.

        Raises:
            StateError: it is not what `read` gave; nothing has changed then.
        """
        try:
            attributes = {key: dict(values) for key, values in note["kept"].items()}
            lost = {key: [str(name) for name in names] for key, names in note["lost"].items()}
            assignments = [
                (callback, name, _from_json(attributes[key][name], arrays))
                for key, callback in self._callbacks.items()
                for name in _kept_attributes(callback)
                if name in attributes.get(key, {})
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StateError(f"The checkpoint does not say what callbacks had counted: {error!r}.") from error
        for callback, name, value in assignments:
            setattr(callback, name, value)
        return attributes, lost

    def ended_by(self) -> str | None:
        """The callback that stopped the run and would stop it again; None if the run goes on."""
        for key, callback in self._callbacks.items():
            if not isinstance(callback, keras.callbacks.EarlyStopping) or callback.stopped_epoch <= 0:
                continue
            if callback.wait >= callback.patience:
                return key
            callback.stopped_epoch = 0  # it has more patience now
        return None

    @property
    def has_best_weights(self) -> bool:
        """Whether a callback gives the model its best weights when `fit` ends."""
        return any(getattr(callback, "best_weights", None) is not None for callback in self._callbacks.values())

    def _changed(self, key: str) -> list[str]:
        """The numbers of a callback that have changed since the beginning and that nobody keeps."""
        callback, before = self._callbacks[key], self._before[key]
        ignored = {*_PLACES, *_kept_attributes(callback), *_of_keras(callback, NOT_KEPT)}
        now = {name: value for name, value in _numbers(callback).items() if name.lstrip("_") not in ignored}
        counts = (name for name in now if name not in ignored and "time" not in name)
        return sorted(name for name in counts if before.get(name) != now[name])

    def _warn_once(self, key: str, *words: Any) -> None:
        if key not in self._named:
            self._named.add(key)
            _log.info(*words)


def append_to_logs(callbacks: Sequence[Any]) -> None:
    """Makes each `CSVLogger` append to its file, which it would empty; call it before `on_train_begin`."""
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.CSVLogger) and not callback.append:
            callback.append = True
            _log.info(
                "CSVLogger goes on in '%s', as with append=True. Epochs that are trained again stand in it twice.",
                callback.filename,
            )


def _kept_attributes(callback: Any) -> tuple[str, ...]:
    """The attributes that are kept of a callback."""
    declared: tuple[str, ...] = ()
    for kind in type(callback).__mro__:
        names = vars(kind).get(DECLARED, ())
        if isinstance(names, str) or not all(name in vars(callback) for name in names):
            raise ConfigurationError(
                f"`{DECLARED}` of {kind.__name__} must name attributes that its __init__ sets. Received: {names!r}. "
                f'Fix: write {DECLARED} = ("best", "wait"), for example, and set self.best and self.wait in __init__.'
            )
        declared += tuple(names)
    return (*_of_keras(callback, KEPT), *declared)


def _of_keras(callback: Any, table: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    kinds = [kind for kind in type(callback).__mro__ if kind.__module__.partition(".")[0] == "keras"]
    return tuple(name for kind in kinds for name in table.get(kind.__name__, ()))


def _is_users(callback: Any) -> bool:
    """Whether a callback is neither Keras' nor distlr's, and so may have counters that nobody knows."""
    kinds = [kind for kind in type(callback).__mro__ if kind.__module__.partition(".")[0] == "distlr"]
    known = any(kind is not JobCallback and kind not in ADAPTATIONS for kind in kinds)
    return not known and type(callback).__module__.partition(".")[0] != "keras"


def _numbers(callback: Any) -> dict[str, Any]:
    kinds = (bool, int, float, np.number)
    return {name: value for name, value in vars(callback).items() if isinstance(value, kinds) or value is None}


def _advice(key: str, names: Sequence[str]) -> str:
    kind, listed = key.split(" ", 1)[0], ", ".join(repr(name) for name in names)
    listed += "," if len(names) == 1 else ""
    return f"{', '.join(names)} of {kind}. Fix: write {DECLARED} = ({listed}) in its class, or () where it is no count."


def _to_json(value: Any, name: str, arrays: dict[str, np.ndarray]) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (list, tuple)):
        return {"list": [_to_json(each, f"{name}/{i}", arrays) for i, each in enumerate(value)]}
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise TypeError(f"it is a {type(value).__name__}")
    if array.ndim:
        arrays[name] = array
        return {"array": name}
    number = array.item()
    return number if math.isfinite(number) else {"float": repr(number)}


def _from_json(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, inside),) = value.items()
    if kind == "list":
        return [_from_json(each, arrays) for each in inside]
    return arrays[inside] if kind == "array" else {"float": float}[kind](inside)
