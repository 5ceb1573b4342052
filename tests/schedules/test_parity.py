"""The peers' own numbers, as `make parity` has written them, against ours."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from distlr.schedules import get
from distlr.schedules.schedule import as_float64

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "parity"
FILES = sorted(FOLDER.glob("*.json"))
CASES = [(path.stem, case) for path in FILES for case in json.loads(path.read_text())["cases"]]


@pytest.mark.parametrize(("peer", "case"), CASES, ids=[f"{peer}-{case['peer']}" for peer, case in CASES])
def test_the_peers_numbers(peer, case) -> None:
    values = np.array(case["values"])
    ours = as_float64(get(case["ours"]))(tf.range(len(values), dtype=tf.float64)).numpy()
    np.testing.assert_allclose(ours, values, rtol=1e-6, atol=1e-12 * max(values))


def test_no_peer_was_lost() -> None:
    assert {path.stem for path in FILES} == {"optax", "torch", "transformers", "timm", "ignite"}
    assert len(CASES) >= 40
    for path in FILES:
        assert json.loads(path.read_text())["versions"]
