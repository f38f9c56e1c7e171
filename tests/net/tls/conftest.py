"""Certificates of a real authority, made once for each module."""

from __future__ import annotations

import pytest

from tests.net.tls.handshakes import Trust


@pytest.fixture(scope="module")
def trust(tmp_path_factory: pytest.TempPathFactory) -> Trust:
    """Who trusts which authority, and has which certificate."""
    return Trust(tmp_path_factory.mktemp("tls"))
