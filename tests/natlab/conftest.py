"""What tests across address translation are given."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.natlab.lab import Lab, Router, Unavailable, flags

#: Builds a laboratory of these routers; it is used as a context.
Build = Callable[..., Lab]


@pytest.fixture(scope="session")
def lab_flags() -> list[str]:
    """How namespaces can be had; without them the tests are skipped, or fail where required."""
    try:
        return flags()
    except Unavailable as error:
        if os.environ.get("NATLAB") == "require":
            pytest.fail(f"no laboratory of routers here: {error}")
        pytest.skip(f"no laboratory of routers here: {error}")


@pytest.fixture
def build(lab_flags: list[str], tmp_path: Path) -> Build:
    """Makes laboratories."""

    def made(*routers: Router) -> Lab:
        return Lab(tmp_path, lab_flags, *routers)

    return made
