"""The programs in examples/ do what docs/embedding.md says of them."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.processes import PATIENCE, TETHER

EXAMPLES: Final = Path(__file__).resolve().parents[2] / "examples"
MEDIATOR: Final = (
    *("-m", "twisted", "--log-format=text", "broker", "--listen", "tcp:0:interface=127.0.0.1"),
    *("--store", "memory:", "--udp", "none"),
)


@pytest.fixture
def programs() -> Iterator[list[subprocess.Popen[str]]]:
    """Programs that are ended when the test is."""
    running: list[subprocess.Popen[str]] = []
    yield running
    for program in reversed(running):
        program.terminate()
        program.communicate(timeout=PATIENCE)


def start(programs: list[subprocess.Popen[str]], *arguments: str, says: str) -> str:
    """Start a program and wait until it says something.

    :return: the line in which it says so
    """
    program = subprocess.Popen(
        [*TETHER, sys.executable, "-u", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=EXAMPLES.parent,
        text=True,
    )
    programs.append(program)
    impatience = threading.Timer(PATIENCE, program.kill)
    impatience.start()
    try:
        assert program.stdout is not None
        lines = []
        for line in program.stdout:
            lines.append(line)
            if says in line:
                return line
    finally:
        impatience.cancel()
    pytest.fail(f"{arguments} never said {says!r}: {''.join(lines)}")


def broker(*arguments: str) -> None:
    """Run the ``broker`` command, which must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "broker.cli.main", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=EXAMPLES.parent,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.integration
class ProgramsTests:
    """The programs as a person runs them."""

    def calls(self, programs: list[subprocess.Popen[str]], mediator: str) -> None:
        """Ia calls Ib over the library, and gets back what it says."""
        start(programs, "examples/echo.py", mediator, "0", says="Ib is registered")
        start(
            programs, "examples/say.py", "Is 山田太郎 there?", mediator, says="Is 山田太郎 there?"
        )

    def test_programs(self, programs: list[subprocess.Popen[str]]) -> None:
        """Both run as they stand there, against a mediator that runs as the README starts it
        (A9–A12). Until Ib has permitted Ia, it is told so, and nothing else (I6).
        """
        none = ("--auth", "none", "--admin", "none")
        line = start(programs, *MEDIATOR, *none, says="Listening on")
        mediator = line.strip().rpartition(":")[2]
        early = start(programs, "examples/say.py", "Early", mediator, says="Permission Denied.")
        assert early.endswith("Permission Denied.\n")
        self.calls(programs, mediator)

    def test_programs_log_in(self, programs: list[subprocess.Popen[str]], tmp_path: Path) -> None:
        """Both log in with what ``broker login`` keeps, as their docstring says (A19)."""
        admin = f"--admin=unix:{tmp_path}/admin"
        line = start(programs, *MEDIATOR, admin, says="Listening on")
        mediator = line.strip().rpartition(":")[2]
        secret = tmp_path / "password"
        secret.touch(0o600)
        secret.write_text("correct horse\n")
        password = f"--password-file={secret}"
        for name in ("Ia", "Ib"):
            broker("account", "add", name, admin, password)
            broker("login", "--as", name, f"--mediator=tcp:127.0.0.1:{mediator}", password)
        self.calls(programs, mediator)

    def test_inside(self, programs: list[subprocess.Popen[str]], tmp_path: Path) -> None:
        """A mediator and two terminals in one program, over TLS and with passwords (A19, A21)."""
        folder = ("--folder", str(tmp_path / "ca"))
        broker("ca", "init", *folder)
        out = ("--out", str(tmp_path / "server-localhost"))
        broker("ca", "issue", "--server", "localhost", *folder, *out)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
        program = ("-m", "examples.inside", str(tmp_path), port)
        start(programs, *program, says="Is anybody there?")
