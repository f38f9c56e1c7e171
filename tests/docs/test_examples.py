"""The programs in examples/ do what docs/embedding.md says of them."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from broker.messages.errors import PermissionDenied
from examples import echo, say
from tests.support.clock import settle
from tests.support.processes import PATIENCE, TETHER
from tests.support.reactor import FakeReactor
from tests.support.server import FakeMediator, a_mediator
from tests.support.transport import Pair

EXAMPLES: Final = Path(__file__).resolve().parents[2] / "examples"
#: Seconds that a program may take.


class Network:
    """One machine: whoever dials 1201 gets the mediator, any other port whoever listens there."""

    def __init__(self) -> None:
        self.reactor = FakeReactor()
        self.mediator: FakeMediator = a_mediator(self.reactor)
        self._pairs: list[Pair] = []

    def run(self) -> None:
        """Let everything happen that can, without any time passing."""
        while self._join() or any(pair.step() for pair in self._pairs):
            pass

    def _join(self) -> bool:
        settle(self.reactor)
        new = [dial for dial in self.reactor.dials if not dial.over]
        for dial in new:
            factory: Any = self.mediator.factory
            for port, listening, *_ in self.reactor.tcpServers:
                factory = listening if port == dial.port else factory
            self._pairs.append(dial.join(factory.buildProtocol(None)))
        return bool(new)


@pytest.fixture
def network() -> Network:
    """A machine with a mediator on it."""
    return Network()


def outcome(network: Network, text: str) -> Any:
    """What comes back when Ia says something to Ib, or why nothing does."""
    came: list[Any] = []
    Deferred.fromCoroutine(say.say(network.reactor, text)).addBoth(came.append)
    network.run()
    assert len(came) == 1, "it neither came back nor failed"
    return came[0]


class ExamplesTests:
    """echo.py and say.py."""

    def test_echo(self, network: Network) -> None:
        """Ia is permitted, calls Ib over the library, and gets back what it says (A9–A12)."""
        echo.make_terminal(network.reactor).startService()
        network.run()
        assert outcome(network, "Is anybody there?") == "Is anybody there?"
        assert outcome(network, "山田太郎") == "山田太郎"

    def test_nobody(self, network: Network) -> None:
        """Where nobody has permitted Ia, it is told so, and no more (I6)."""
        failure = outcome(network, "Is anybody there?")
        assert isinstance(failure, Failure)
        assert failure.check(PermissionDenied)


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
    """The same, as somebody runs them."""

    def test_programs(self, programs: list[subprocess.Popen[str]], tmp_path: Path) -> None:
        """Both run as they stand there, against a mediator that runs as the README starts it."""
        line = start(
            programs,
            *("-m", "twisted", "--log-format=text", "broker"),
            *("--listen", "tcp:0:interface=127.0.0.1", "--store", "memory:", "--auth", "none"),
            *("--admin", "none", "--udp", "none"),
            says="Listening on",
        )
        mediator = line.strip().rpartition(":")[2]
        start(programs, "examples/say.py", "Too early", mediator, says="Permission Denied.")
        start(programs, "examples/echo.py", mediator, "0", says="Ib is registered")
        start(programs, "examples/say.py", "Good morning", mediator, says="Good morning")

    def test_programs_log_in(self, programs: list[subprocess.Popen[str]], tmp_path: Path) -> None:
        """Both log in with what ``broker login`` keeps, as their docstring says (A19)."""
        admin = f"--admin=unix:{tmp_path}/admin"
        line = start(
            programs,
            *("-m", "twisted", "--log-format=text", "broker", admin),
            *("--listen", "tcp:0:interface=127.0.0.1", "--udp", "none", "--store", "memory:"),
            says="Listening on",
        )
        mediator = line.strip().rpartition(":")[2]
        secret = tmp_path / "password"
        secret.touch(0o600)
        secret.write_text("correct horse\n")
        for name in ("Ia", "Ib"):
            broker("account", "add", name, admin, "--password-file", str(secret))
            server = f"--mediator=tcp:127.0.0.1:{mediator}"
            broker("login", "--as", name, server, "--password-file", str(secret))
        start(programs, "examples/echo.py", mediator, "0", says="Ib is registered")
        start(programs, "examples/say.py", "Good morning", mediator, says="Good morning")

    def test_inside(self, programs: list[subprocess.Popen[str]], tmp_path: Path) -> None:
        """A mediator and two terminals in one program, over TLS and with passwords (A19, A21)."""
        broker("ca", "init", "--folder", str(tmp_path / "ca"))
        certificate = (
            "--folder",
            str(tmp_path / "ca"),
            "--out",
            str(tmp_path / "server-localhost"),
        )
        broker("ca", "issue", "--server", "localhost", *certificate)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
        program = ("-m", "examples.inside", str(tmp_path), port)
        start(programs, *program, says="Is anybody there?")
