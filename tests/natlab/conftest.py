"""What tests across address translation are given."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.natlab.lab import Lab, Router, Unavailable, flags
from tests.natlab.parts import Net

#: Builds a laboratory of these routers; it is used as a context.
Build = Callable[..., Lab]
#: Builds one of these routers that lasts for the test, and starts a mediator in it.
Lay = Callable[..., Net]


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


@pytest.fixture
def lay(build: Build) -> Iterator[Lay]:
    """Makes laboratories with a mediator; what is said in them is shown if the test fails."""
    with ExitStack() as ends:

        def laid(*routers: Router, prepare: Callable[[Lab], object] = bool, **more: Any) -> Net:
            lab = ends.enter_context(build(*routers))
            ends.callback(lab.tell)
            prepare(lab)
            return Net(lab, **more)

        yield laid
