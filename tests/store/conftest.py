"""What tests of stores are given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.waiting import Stores, Watched


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    """Stores in a folder of the test's own."""
    with Stores(tmp_path) as made:
        yield made


@pytest.fixture
def watched(stores: Stores) -> Watched:
    """An open store, which the test halts or makes fail."""
    return Watched(stores)
