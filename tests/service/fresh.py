"""Python code in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.processes import environment


def python(
    *arguments: str, cwd: Path | None = None, status: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run this interpreter, and see that it ends with a status."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done
