"""The programs in examples/ do what docs/embedding.md says of them, as a person runs them."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support.processes import LOOPBACK, Processes, Running, listening

EXAMPLES: Final = Path(__file__).resolve().parents[2] / "examples"
GREETING: Final = "山田太郎, good day"


class Programs(Processes):
    """The programs, and a mediator for them."""

    def mediate(self, *options: str) -> str:
        """Start a mediator as the README does; give its port."""
        twist = (sys.executable, "-m", "twisted", "--log-format=text", "broker")
        memory = (f"--listen={LOOPBACK}", "--store=memory:", "--udp=none")
        return str(listening(self.start(*twist, *memory, *options)))

    def program(self, name: str, *arguments: str) -> Running:
        """Start an example as it stands there."""
        return self.start(sys.executable, str(EXAMPLES / name), *arguments)

    def call(self, mediator: str) -> None:
        """Ia calls Ib over the library, and gets back what it says."""
        self.program("echo.py", mediator, "0").wait_for("Ib is registered")
        self.program("say.py", GREETING, mediator).wait_for(f"^{GREETING}$")

    def succeed(self, *arguments: str) -> None:
        """Run a ``broker`` command that succeeds."""
        done = self.run(*arguments)
        assert done.status == 0, done.err


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    """Programs that are ended when the test is."""
    with Programs(tmp_path) as programs:
        yield programs


@pytest.mark.integration
class ProgramsTests:
    """echo.py, say.py and inside.py."""

    def test_programs(self, programs: Programs) -> None:
        """Against a mediator that asks for no login, Ia is permitted, calls Ib and gets back what
        it says (A9–A12). Before that it is told no more than that it is not permitted (I6).
        """
        mediator = programs.mediate("--auth=none", "--admin=none")
        early = programs.program("say.py", "Too early", mediator)
        assert (early.wait(), early.out, early.err) == (1, [], ["Permission Denied."])
        programs.call(mediator)

    def test_programs_log_in(self, programs: Programs) -> None:
        """Both log in with what ``broker login`` keeps, as their docstring says (A19)."""
        mediator = programs.mediate()
        password = f"--password-file={programs.file('password', 'correct horse')}"
        for name in ("Ia", "Ib"):
            programs.succeed("account", "add", name, password)
            server = f"--mediator=tcp:127.0.0.1:{mediator}"
            programs.succeed("login", "--as", name, server, password)
        programs.call(mediator)

    def test_inside(self, programs: Programs) -> None:
        """A mediator and two terminals in one program, over TLS and with passwords (A19, A21)."""
        programs.succeed("ca", "init")
        programs.succeed("ca", "issue", "--server", "localhost")
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
        inside = (sys.executable, "-m", "examples.inside", str(programs.folder), port)
        programs.start(*inside).wait_for("Is anybody there[?]")
