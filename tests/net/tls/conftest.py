"""Certificates of a real authority, made once for each module."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.certificates import Files, Pki


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all files of this module are."""
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def pki(folder: Path) -> Pki:
    """The authority that is trusted."""
    return Pki(folder)


@pytest.fixture(scope="module")
def other(folder: Path) -> Pki:
    """Another, that isn't."""
    return Pki(folder, "Other")


@pytest.fixture(scope="module")
def own(pki: Pki) -> Files:
    """The server's certificate."""
    return pki.server()


@pytest.fixture(scope="module")
def terminal(pki: Pki) -> Files:
    """A terminal's certificate."""
    return pki.terminal("山田太郎 大阪府")
