"""``bin/demo --nat``: the laboratory, shown to people."""

from __future__ import annotations

import re
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import ROOT, TETHER, environment

#: Slow: each builds routers of namespaces, and many wait for what a router forgets.
pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.usefixtures("lab_flags"),
]


class Demo:
    """One run of it.

    :ivar folder: where it keeps its files
    :ivar process: its process
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mark = f"RUN={uuid.uuid4()}"
        name, _, value = self._mark.partition("=")
        self.process = subprocess.Popen(
            [*TETHER, ROOT / "bin" / "demo", "--nat"],
            env=environment() | {"TMPDIR": str(folder), name: value},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def left(self) -> list[str]:
        """What there is of it: its processes, which alone hold its namespaces, and its files."""
        found = [str(path) for path in self.folder.iterdir()]
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self._mark.encode() in path.read_bytes().split(b"\0"):
                    found.append(path.parent.name)
            except OSError:  # it has ended, or is another's
                continue
        return found


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    """It runs, and is ended with the test."""
    running = Demo(tmp_path)
    yield running
    running.process.kill()
    running.process.communicate()


class DemoTests:
    """The whole of it, and its end."""

    def test_nat(self, demo: Demo) -> None:
        """A quiet callee is woken behind its router and called by both dialling; who is not
        permitted is refused; where nothing leads through, the cause is told; a port is opened
        where the router opens some. Nothing secret is shown, and nothing is left (E3, D9, I18).
        """
        said, _ = demo.process.communicate(timeout=200)
        assert demo.process.returncode == 0, said
        assert re.search(r"connected by hole punching at 11\.0\.113\.1:\d+", said)
        assert "Identifier:Ib  Key ID:" in said
        assert said.count("TCP SYN") == 2
        assert said.count("the same, bit by bit") == 2
        assert said.count("broker: Permission Denied.\n    exit code 4") == 2
        assert "directly at 11.0.113.3:1203: no answer in 10 seconds" in said
        assert "connected directly at 11.0.113.4:1203" in said
        assert "the mediator sees it at 11.0.113.1; its own address is 192.168.1.2" in said
        assert demo.left() == []

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_interrupted(self, demo: Demo, number: signal.Signals) -> None:
        """Interrupted while much is running, it takes all down, and says so by its status."""
        assert demo.process.stdout is not None
        for line in demo.process.stdout:
            if re.search(r"Ib has \d+ bytes", line):
                break
        assert len(demo.left()) > 8  # the mediator, the terminal, the four that capture, …
        demo.process.send_signal(number)
        said, _ = demo.process.communicate(timeout=30)
        assert demo.process.returncode == 128 + number, said
        assert said.endswith("Interrupted; all that was started has been ended.\n")
        assert demo.left() == []
