"""What starts servers leaves none behind, even when it is killed (kill -9) or times out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import psutil
import pytest

from tests.support.processes import PATIENCE, ROOT, TETHER, environment

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not TETHER, reason="setpriv is not installed (Debian's util-linux)"),
]

#: A test that starts a mediator, says so, and waits.
WAITS: Final = """\
import signal

from tests.integration.site import Site


def test_waits(site: Site, capfd: object) -> None:
    site.serve()
    signal.pause()
"""

PROGRAMS: Final = {
    "demo": [sys.executable, "-P", str(ROOT / "examples" / "demo.py")],
    "benchmarks": [
        *(sys.executable, "-m", "benchmarks", "--only=calls", "--callers=2", "--repeats=1")
    ],
    "tests": [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
}


def servers_of(parent: psutil.Process) -> list[psutil.Process]:
    """The processes that it has started, once a server is among them."""
    while True:
        children = parent.children(recursive=True)
        for child in children:
            try:
                if any("twistd" in word for word in child.cmdline()):
                    return children
            except psutil.NoSuchProcess:
                continue
        try:
            parent.wait(0.05)
        except psutil.TimeoutExpired:
            continue
        raise AssertionError("it ended before it started a server")


@pytest.mark.parametrize("name", PROGRAMS)
def test_killed(name: str, tmp_path: Path) -> None:
    """Killed while its servers run, it takes them with it."""
    arguments = PROGRAMS[name]
    if name == "tests":
        test = tmp_path / "test_waits.py"
        test.write_text(WAITS)
        (tmp_path / "conftest.py").write_text(
            "from tests.integration.conftest import site\n__all__ = ['site']\n"
        )
        arguments = [*arguments, f"--rootdir={tmp_path}", str(test)]
    with subprocess.Popen(
        [*TETHER, *arguments],
        cwd=ROOT,
        env=environment() | {"TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as running:
        left = servers_of(psutil.Process(running.pid))
        running.kill()
    gone, alive = psutil.wait_procs(left, PATIENCE)
    assert gone
    assert alive == []
