"""Scripts as people rightly write them: none is refused, or warned of, and ranks end with the same weights.

All scripts of an engine run in one process (one a rank), so that TensorFlow is imported once.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
RUNNER = HERE / "_in_one_process.py"
LIMIT = 300.0  # seconds for all scripts of an engine; the lane's own limit is shorter

RANKS = {"gloo": 2, "mpirun": 2, "multi-worker": 2}  # the others are one process
EVERY = ("one_device", "replicas", "gloo", "mpirun", "multi-worker")
OFTEN = ("one_device", "replicas", "gloo")
HOROVODS = (
    "one_device",
    "gloo",
    "mpirun",
)  # a script of Horovod's has one device a rank, and no tf.distribute strategy

# Where each makes sense: a multi-worker strategy divides arrays that `fit` is given, so that each rank must not have
# taken its share before. A failed script ends its ranks' engine, and what comes after it there was not run.
CANARIES = {
    "fit_callbacks": EVERY,
    "transfer_learning": EVERY,
    "mixed_precision": ("one_device", "replicas", "gloo", "mpirun"),
    "two_outputs": EVERY,
    "vae": EVERY,
    "horovod_fit": HOROVODS,
    "horovod_schedule": HOROVODS,
    "horovod_loop": HOROVODS,
    "dcgan": EVERY,
    "wgan_gp": EVERY,
}
ENGINES = EVERY if os.environ.get("DISTLR_CANARIES") == "every" else OFTEN

# What may be warned of, by script ("" for all).
ALLOWED = [
    ("", "UserWarning: `shuffle=True` was passed, but will be ignored"),  # Keras', to all who hand `fit` a tf.data
    # True where batch normalization's averages move; that the base is called with training=False no one can see.
    ("transfer_learning", "distlr: The moving averages of 1 layers"),
    # True on replicas: the numbers that these show are a share of the mean.
    ("dcgan", "distlr: What these metrics show is 1/"),
    ("vae", "distlr: What these metrics show is 1/"),
    # True as well: the critic's clock counts its updates. Its rate is constant, so that the script is right.
    ("wgan_gp", "distlr: [rank 0] The train_step applies the optimizer 'adam' 2 times a step"),
]


def _cases() -> list[Any]:
    """One test a script and engine; an engine's stay in one process of pytest, which runs them once."""
    return [
        pytest.param(engine, script, id=f"{engine}-{script}", marks=pytest.mark.xdist_group(engine))
        for engine in ENGINES
        for script, engines in CANARIES.items()
        if engine in engines
    ]


@pytest.fixture(scope="session")
def run_all(launching, tmp_path_factory, request) -> Callable[[str], tuple[dict[str, list[dict[str, Any]]], str]]:
    """Runs the chosen scripts of an engine, once: what each process found, by script, and all that was printed."""
    known: dict[str, Any] = {}

    def run(engine: str) -> Any:
        if engine not in known:
            cases = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
            chosen = [case["script"] for case in cases if case.get("engine") == engine]
            folder = tmp_path_factory.mktemp(engine)
            # TensorFlow's workers meet once in a process.
            launches = [[script] for script in chosen] if engine == "multi-worker" else [chosen]
            output = "".join(start(engine, folder, scripts).output for scripts in launches)
            results = {s: [json.loads(f.read_text()) for f in folder.glob(f"{s}-*.json")] for s in chosen}
            known[engine] = results, output
        return known[engine]

    def start(engine: str, folder: Path, scripts: list[str]) -> Any:
        words = [str(RUNNER), str(folder), *(str(HERE / "scripts" / f"{script}.py") for script in scripts)]
        if engine in RANKS:
            return launching.launch(engine, RANKS[engine], words, limit=LIMIT)
        environ = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "2"}  # two engines share two cores
        if engine == "replicas":
            environ["DISTLR_SIMULATE"] = "4"
        return launching.run([sys.executable, *words], limit=LIMIT, environ=environ)

    return run


@pytest.mark.canaries
@pytest.mark.timeout(2 * LIMIT)
@pytest.mark.parametrize(("engine", "script"), _cases())
def test_canary(run_all, engine, script) -> None:
    results, output = run_all(engine)
    found = results[script]
    assert found, f"It was not run, or ended its process:\n{output[-8000:]}"
    errors = [each["error"] for each in found if each["error"]]
    assert not errors, errors[0]
    assert len(found) == RANKS.get(engine, 1), output[-8000:]
    warned = {line for each in found for line in each["warnings"] if not is_allowed(script, line)}
    assert not warned
    weights = {each["weights"] for each in found}
    assert len(weights) == 1, "the ranks' weights differ"
    assert "not finite" not in weights


def is_allowed(script: str, line: str) -> bool:
    return any(name in ("", script) and line.startswith(start) for name, start in ALLOWED)


def test_every_script_is_in_the_table_and_short() -> None:
    texts = {path.stem: path.read_text() for path in (HERE / "scripts").glob("*.py")}
    assert texts.keys() == CANARIES.keys()
    assert {name: text.count("\n") for name, text in texts.items() if text.count("\n") > 80} == {}
    assert [name for name, text in texts.items() if not re.search(r"^    model\b|^model = ", text, re.MULTILINE)] == []
