"""The README's first command, as it stands there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.support.processes import ROOT, TETHER, environment

pytestmark = pytest.mark.integration

#: The exit status where something can't be shown.
NOT_HERE: Final = 77
#: Where the laboratory looks for its tools whatever the path is.
ALWAYS: Final = "/usr/local/sbin:/usr/sbin:/sbin"


def demo(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run it to its end.

    :param path: the only folder in which it finds programs
    """
    return subprocess.run(
        [*TETHER, ROOT / "bin" / "demo", *arguments],
        env=environment() | ({} if path is None else {"PATH": str(path)}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


class DemoTests:
    """``bin/demo``."""

    def test_demo(self) -> None:
        """It ends well: everybody logs in over TLS, a file crosses the channel whole, who isn't
        permitted is refused, one disclosure is written down, no secret is shown (A19, A21, I18).
        """
        done = demo()
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

    @pytest.mark.parametrize("arguments", [("--ant",), ("--nat", "--nat")])
    def test_usage(self, arguments: tuple[str, ...]) -> None:
        """What it does not know is wrong usage, and nothing is started."""
        done = demo(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "Usage: bin/demo [--nat]\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder with the programs that ``bin/demo`` itself calls, and none besides."""
    for name in ("cat", "dirname", "readlink"):
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)
    return tmp_path


@pytest.mark.skipif(
    shutil.which("unshare", path=ALWAYS) is not None, reason="unshare can't be hidden here"
)
class NotHereTests:
    """``bin/demo --nat`` where there can be no networks of one's own."""

    def test_tool_missing(self, path: Path) -> None:
        """The tool is named, with the package that has it; the exit status tells it apart."""
        done = demo("--nat", path=path)
        assert done.returncode == NOT_HERE, done.stdout + done.stderr
        first, *_ = done.stdout.splitlines()
        assert first == (
            "This can't be shown here: unshare is not installed (Debian's package util-linux)"
        )
        assert done.stderr == ""

    def test_right_missing(self, path: Path) -> None:
        """That namespaces may not be made is told in the system's words and in plain ones."""
        for name in ("unshare", "setpriv", "nsenter", "ip", "nft", "conntrack", "miniupnpd"):
            tool = path / name
            tool.write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2; exit 1")
            tool.chmod(0o755)
        done = demo("--nat", path=path)
        assert done.returncode == NOT_HERE, done.stdout + done.stderr
        first, second, *_ = done.stdout.splitlines()
        assert first.startswith("This can't be shown here: unshare ")
        assert first.endswith("unshare failed: Operation not permitted")
        assert second.startswith("What is missing is the right to make network namespaces")
        assert done.stderr == ""
