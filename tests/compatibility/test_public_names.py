"""A name that was public once can still be reached: as itself, or as an alias that warns."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def listing(load_helper):
    return load_helper(HERE / "public_names.py")


def test_each_public_name_can_still_be_reached(listing):
    names = (HERE / "public_names.txt").read_text("utf-8").split()
    assert len(names) > 150, "the list is not read"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        missing = [name for name in names if not listing.can_be_reached(name)]
    assert missing == [], "public names are gone: keep an alias that warns"


def test_each_public_name_is_in_the_list(listing):
    names = set((HERE / "public_names.txt").read_text("utf-8").split())
    found = {name for name in [*listing.exported(), *listing.shown()] if listing.can_be_reached(name)}
    new = sorted(found - names)
    assert new == [], "add these: python tests/compatibility/public_names.py"


def test_a_name_that_does_not_exist_is_not_reached(listing):
    assert not listing.can_be_reached("distlr.Job.no_such_method")
    assert not listing.can_be_reached("distlr.no_such_module.name")
