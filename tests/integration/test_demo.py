"""The README's first command, as it stands there."""

from __future__ import annotations

import subprocess

import pytest

from tests.integration.processes import ROOT, environment

pytestmark = pytest.mark.integration


class DemoTests:
    """``bin/demo``."""

    def test_demo(self) -> None:
        """It ends well: a file crosses the channel whole, who isn't permitted is refused, and no
        secret is shown (I18).
        """
        done = subprocess.run(
            [ROOT / "bin" / "demo"],
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "the same, bit by bit" in done.stdout
        assert done.stdout.count("broker: Permission Denied.") == 3
        assert "Encrypt Key:…" in done.stdout
        assert "Ia ──▶ Ib         REQUEST" in done.stdout
