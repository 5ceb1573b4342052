"""Fixtures of all tests: four logical CPUs to place replicas on, and a check that no test leaks."""

from __future__ import annotations

import gc
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

# Before anything can import TensorFlow: its start-up lines would drown the reports.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest
from hypothesis import settings

# Machines are noisy, so an example has no deadline of its own; CI tries the same examples every time.
settings.register_profile("distlr", deadline=None, derandomize="CI" in os.environ, database=None, print_blob=True)
settings.load_profile("distlr")

# pytest has configured logging, so that distlr leaves the level to it.
logging.getLogger("distlr").setLevel(logging.INFO)

LOGICAL_CPUS = 4


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where two processes share the tests (`make fast`), a file's stay in one, for the fixtures that they share."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(str(item.path)))


# What importing TensorFlow (and what it imports) sets in its own process, once.
_SET_BY_IMPORTS = frozenset(
    {
        "ENABLE_RUNTIME_UPTIME_TELEMETRY",
        "HDF5_PLUGIN_PATH",
        "KERAS_BACKEND",
        "KMP_DUPLICATE_LIB_OK",
        "KMP_INIT_AT_FORK",
        "PYTEST_CURRENT_TEST",
        "TF2_BEHAVIOR",
        "TPU_ML_PLATFORM",
        "TPU_ML_PLATFORM_VERSION",
    }
)


def _end_iterators_at_once(tensorflow: ModuleType) -> None:
    """Has no iterator tune itself, here in the tests, which read a few batches from many of them.

    The end of about one in sixty waits for its thread that tunes, for as long as it lived and up to a minute, and on
    ranks all others wait for it (TensorFlow 2.21 wakes that thread before it says that it is to end).
    """
    dataset = importlib.import_module("tensorflow.python.data.ops.dataset_ops").DatasetV2
    apply = dataset._apply_debug_options  # which every iterator's data set goes through

    def untuned(self: Any) -> Any:
        options = tensorflow.data.Options()
        options.autotune.enabled = False
        return apply(self).with_options(options)

    dataset._apply_debug_options = untuned


class _SplitCpuOnImport(importlib.abc.MetaPathFinder):
    """Splits the CPU the moment anything imports TensorFlow.

    TensorFlow takes the split only before it starts, and once in a process. A fixture comes too late for
    tests that import it in their bodies, and would import it for those that do not need it.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "tensorflow":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                cpu = module.config.list_physical_devices("CPU")[0]
                each = module.config.LogicalDeviceConfiguration()
                module.config.set_logical_device_configuration(cpu, [each] * LOGICAL_CPUS)
                _end_iterators_at_once(module)

            spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _SplitCpuOnImport())


@pytest.fixture(scope="session")
def four_cpus() -> list[str]:
    """The names of the four logical CPU devices that every test has: `["CPU:0", ..., "CPU:3"]`."""
    import tensorflow as tf

    devices = [device.name.removeprefix("/device:") for device in tf.config.list_logical_devices("CPU")]
    assert devices == [f"CPU:{index}" for index in range(LOGICAL_CPUS)]
    return devices


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    """Fails a test that leaves an environment variable changed or a non-daemon thread running."""
    environment, threads = _environment(), set(threading.enumerate())
    yield
    after = _environment()
    changed = sorted(key for key in environment.keys() | after.keys() if environment.get(key) != after.get(key))
    if changed:
        # The next test starts from what this one found.
        for key in changed:
            if key in environment:
                os.environ[key] = environment[key]
            else:
                del os.environ[key]
        pytest.fail(f"The test left environment variables changed: {', '.join(changed)}. Use monkeypatch.")
    leaked = _running_since(threads)
    if leaked:
        names = ", ".join(sorted(thread.name for thread in leaked))
        pytest.fail(f"The test left threads running: {names}. Join them.")


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in _SET_BY_IMPORTS}


def _running_since(before: set[threading.Thread], grace: float = 1.0) -> set[threading.Thread]:
    """Non-daemon threads that are not in `before` and still run after `grace` seconds."""
    end = time.monotonic() + grace
    while True:
        new = {thread for thread in threading.enumerate() if thread not in before and not thread.daemon}
        if not new or time.monotonic() > end:
            return new
        time.sleep(0.01)


@pytest.fixture(scope="module", autouse=True)
def _no_garbage_of_others(request: pytest.FixtureRequest) -> Iterator[None]:
    """Collects what other tests left: the graphs of their models can stop a process for seconds, in any thread.

    A rank that stands still for that long is, to a test with a deadline of 0.2 s, a rank that stays away.
    """
    if request.path.parent.name not in ("communicators", "startup"):
        yield
        return
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def load_helper() -> Callable[[pathlib.Path], ModuleType]:
    """Loads a module of the tests' own by its path, once: pytest's import mode puts none of them on `sys.path`."""

    def load(path: pathlib.Path) -> ModuleType:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def rate_bench(load_helper: Callable[[pathlib.Path], ModuleType]) -> ModuleType:
    """The module `_rate_bench.py` beside this file, which imports TensorFlow and Keras."""
    return load_helper(pathlib.Path(__file__).with_name("_rate_bench.py"))
