"""Certificates of a test module's own."""

from __future__ import annotations

import pytest

from tests.support.certificates import Files, Pki


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """An authority."""
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def own(pki: Pki) -> Files:
    """A server's certificate."""
    return pki.server()
