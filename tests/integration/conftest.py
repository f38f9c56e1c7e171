"""What integration tests are given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.site import Site
from tests.support.certificates import Pki


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Processes that run in a folder of their own, and end with the test."""
    with Site(tmp_path) as site:
        yield site


@pytest.fixture(scope="class")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Processes that a class of tests shares: they are started once, and end with the class."""
    folder = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch, Site(folder) as site:
        patch.setenv("XDG_CONFIG_HOME", str(folder / "configuration"))
        yield site


@pytest.fixture
def pki(site: Site) -> Pki:
    """An authority in the folder of the processes."""
    return Pki(site.folder)
