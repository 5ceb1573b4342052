"""The base of distlr's callbacks."""

from __future__ import annotations

from typing import Any, NoReturn

import keras

import distlr._environment  # noqa: F401  (checks the installation first)
from distlr.communicators import Communicator, alone
from distlr.errors import ConfigurationTypeError

__all__ = ["JobCallback"]


class JobCallback(keras.callbacks.Callback):
    """A callback that knows the job's ranks; `job.callbacks` binds it.

    On its own it takes itself for the only rank, and refuses to run where a launcher says otherwise.
    """

    def __init__(self) -> None:
        super().__init__()
        self._communicator: Communicator | None = None

    def bind(self, communicator: Communicator) -> None:
        """Gives the ranks to the callback; called by `job.callbacks`."""
        self._communicator = communicator

    @property
    def communicator(self) -> Communicator:
        """The job's communicator, or that of a single process."""
        if self._communicator is None:
            self._communicator = alone(type(self).__name__, "model.fit(callbacks=job.callbacks([...]))")
        return self._communicator

    def __call__(self, *_: Any) -> NoReturn:
        """Refuses: Keras takes whatever can be called as a rate, and this would be a silent mistake."""
        name = type(self).__name__
        raise ConfigurationTypeError(
            f"{name} is a callback and was given as a rate. Received: learning_rate={self!r}. To mend it: write a "
            f"float or a schedule there, and give the callback to model.fit(callbacks=job.callbacks([{name}(...)]))."
        )
