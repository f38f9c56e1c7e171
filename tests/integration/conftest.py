"""What integration tests are given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import Processes


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Processes that run in a folder of their own, and end with the test."""
    with Processes(tmp_path) as running:
        yield running
