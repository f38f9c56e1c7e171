"""The README's first command, as it stands there."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.integration.processes import ROOT, environment

pytestmark = pytest.mark.integration


class DemoTests:
    """``bin/demo``."""

    def test_demo(self) -> None:
        """It ends well: everybody logs in over TLS, a file crosses the channel whole, who isn't
        permitted is refused, one disclosure is written down, no secret is shown (A19, A21, I18).
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
        assert "Ib ──▶ mediator   REGISTER Identifier:Ib  Password:…  Address:" in done.stdout
        assert "--mediator tcp:" not in done.stdout
        assert "Encrypt Key:…" in done.stdout
        assert done.stdout.count("not shown again: …\n") == 2
        assert "Ia ──▶ Ib         REQUEST" in done.stdout
        told = [line.split() for line in done.stdout.splitlines() if re.match(r" {4}\d{4}-", line)]
        assert [(who, by) for _, who, _, by, *_ in told] == [("Ia", "Ia")] * 2
