"""Whole calls between real processes."""

from __future__ import annotations

import random
import signal
from hashlib import sha256
from pathlib import Path

import pytest

from tests.support.processes import Processes, Running, Typing

pytestmark = pytest.mark.integration

CONTENT = random.Random(3).randbytes(3_000_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where what is sent is kept."""
    folder = tmp_path / "received"
    folder.mkdir()
    return folder


@pytest.fixture
def sent(tmp_path: Path) -> Path:
    """The file to send."""
    path = tmp_path / "sent.wav"
    path.write_bytes(CONTENT)
    return path


def received(folder: Path) -> list[bytes]:
    """What was received so far, half files included."""
    return [path.read_bytes() for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("apart", [False, True], ids=["resolver inside", "resolver apart"])
class WholeCallTests:
    """A permitted call, end to end, with the resolver inside and apart (A15)."""

    def start(self, processes: Processes, apart: bool, *arguments: str) -> int:
        """Start the servers; give the mediator's port."""
        if apart:
            secret = processes.folder / "secret"
            secret.write_text("correct horse battery\n")
            secret.chmod(0o600)
            _, resolver = processes.resolver("--mediator-secret=secret")
            arguments = (
                *arguments,
                f"--resolver=tcp:127.0.0.1:{resolver}",
                "--mediator-secret=secret",
            )
        _, port = processes.mediator(*arguments)
        return port

    def test_a_file(self, processes: Processes, apart: bool, folder: Path, sent: Path) -> None:
        """A file reaches whoever permits its sender, to the byte, and both say its digest."""
        port = self.start(processes, apart)
        terminal = processes.terminal("Ib", port, f"--receive={folder}")
        refused = processes.broker(port, "call", "--as=Ia", "Ib", f"--send={sent}")
        assert refused.returncode == 4
        assert refused.stderr == b"broker: Permission Denied.\n"
        assert received(folder) == []
        permitted = processes.broker(port, "permit", "add", "--as=Ib", "Ia")
        assert permitted.returncode == 0
        assert permitted.stdout == b"Registration Completed.\n"
        called = processes.broker(port, "call", "--as=Ia", "Ib", f"--send={sent}")
        digest = sha256(CONTENT).hexdigest()
        assert called.returncode == 0, called.stderr
        assert called.stdout.decode() == f"Ib has {len(CONTENT)} bytes, SHA-256 {digest}\n"
        assert called.stderr == b""
        assert received(folder) == [CONTENT]
        terminal.wait_for(rf"Received .*-Ia from Ia: {len(CONTENT)} bytes, SHA-256 {digest}")
        withdrawn = processes.broker(port, "permit", "delete", "--as=Ib", "Ia")
        assert withdrawn.returncode == 0
        again = processes.broker(port, "call", "--as=Ia", "Ib", f"--send={sent}")
        assert (again.returncode, again.stderr) == (4, b"broker: Permission Denied.\n")
        assert terminal.end() == 0
        assert "Traceback" not in terminal.said


class CallTests:
    """Calls in all their ways to end."""

    @pytest.fixture
    def port(self, processes: Processes) -> int:
        """The port of a mediator."""
        return processes.mediator()[1]

    def test_standard_input(self, processes: Processes, port: int, folder: Path) -> None:
        """Standard input is sent, and nothing but what the callee says is written."""
        processes.terminal("Ib", port, "--accept=Ia", f"--receive={folder}")
        called = processes.broker(port, "call", "--as=Ia", "Ib", given=CONTENT)
        assert (called.returncode, called.stdout, called.stderr) == (0, b"", b"")
        assert received(folder) == [CONTENT]

    def test_nothing_to_send(self, processes: Processes, port: int, folder: Path) -> None:
        """An empty file is a file."""
        processes.terminal("Ib", port, "--accept=Ia", f"--receive={folder}")
        called = processes.broker(port, "call", "--as=Ia", "Ib", "--send=/dev/null")
        assert called.returncode == 0
        assert received(folder) == [b""]

    def test_traced(self, processes: Processes, port: int, folder: Path, sent: Path) -> None:
        """With ``--trace`` each message is shown on standard error, without its secrets (I18)."""
        processes.terminal("Ib", port, "--accept=Ia", f"--receive={folder}")
        called = processes.broker(port, "call", "--as=Ia", "Ib", f"--send={sent}", "--trace")
        lines = called.stderr.decode().splitlines()
        assert lines[0] == "mediator > QUERY / Identifier:Ia / Callee:Ib / Transaction:1"
        assert lines[1].startswith("mediator < NOTIFY / Request Accepted. / ")
        assert "Password:… / Encrypt Key:… / " in lines[2]
        assert called.returncode == 0

    def test_unknown_callee(self, processes: Processes, port: int) -> None:
        """Who doesn't exist is refused as who doesn't permit (I6)."""
        called = processes.broker(port, "call", "--as=Ia", "Nobody")
        assert (called.returncode, called.stderr) == (4, b"broker: Permission Denied.\n")

    def test_busy(self, processes: Processes, port: int) -> None:
        """A terminal that takes no calls says so (fig. 17)."""
        processes.terminal("Ib", port, "--accept=Ia")
        called = processes.broker(port, "call", "--as=Ia", "Ib")
        assert (called.returncode, called.stderr) == (4, b"broker: Callee is Busy.\n")

    def test_not_connected(self, processes: Processes, port: int) -> None:
        """One that has only left its address, where nobody is, can't be reached (fig. 19)."""
        here = ("--address=127.0.0.1", "--port=9", "--expires=60", "--once")
        assert processes.broker(port, "register", "--as=Ib", *here).returncode == 0
        assert processes.broker(port, "permit", "create", "--as=Ib", "Ia").returncode == 0
        called = processes.broker(port, "call", "--as=Ia", "Ib")
        assert (called.returncode, called.stderr) == (4, b"broker: Callee not Connected.\n")

    def test_unreachable(self, processes: Processes) -> None:
        """Where no mediator is, the exit status says so."""
        called = processes.broker(9, "call", "--as=Ia", "Ib")
        assert called.returncode == 3
        assert called.stderr.startswith(b"broker: the mediator at tcp:127.0.0.1:9 can't be reached")
        assert called.stderr.count(b"\n") == 1

    def test_no_such_file(self, processes: Processes, port: int, tmp_path: Path) -> None:
        """A file that isn't there is no call."""
        called = processes.broker(port, "call", "--as=Ia", "Ib", "--send=none.wav")
        assert called.returncode == 1
        assert called.stderr == b"broker: none.wav: No such file or directory\n"

    def test_too_large(self, processes: Processes, port: int, folder: Path, sent: Path) -> None:
        """A file over the cap is not taken, and nothing of it stays."""
        limits = (f"--receive={folder}", "--max-size=1M")
        processes.terminal("Ib", port, "--accept=Ia", *limits)
        called = processes.broker(port, "call", "--as=Ia", "Ib", f"--send={sent}")
        assert called.returncode == 1
        assert b"a file here has at most 1048576 bytes" in called.stderr
        assert received(folder) == []

    def test_interrupted(self, processes: Processes, port: int, folder: Path) -> None:
        """Ctrl-C ends a call cleanly with 130; the callee keeps nothing of it."""
        terminal = processes.terminal("Ib", port, "--accept=Ia", f"--receive={folder}", "--trace")
        calling = processes.start_broker(port, "call", "--as=Ia", "Ib", "--trace")
        assert calling.process.stdin is not None
        calling.process.stdin.write("half")
        calling.process.stdin.flush()
        terminal.wait_for(r"mediator > NOTIFY / Session:\S+ / Begin\.$")
        assert calling.end(signal.SIGINT) == 130
        assert "Traceback" not in calling.said
        terminal.wait_for(r"Dropped a file from Ia after 4 bytes: .*the caller gave up")
        assert received(folder) == []


class RegisterTests:
    """``broker register`` and ``broker permit``."""

    def registered(self, processes: Processes, port: int) -> Running:
        """A terminal that is registered and held."""
        running = processes.start_broker(
            port, "register", "--as=Ib", "--address=127.0.0.1", "--port=1399"
        )
        running.wait_for(r"^Registration Completed\.$")
        return running

    def test_held(self, processes: Processes) -> None:
        """The terminal is reached over the connection until it is interrupted."""
        _, port = processes.mediator()
        running = self.registered(processes, port)
        assert processes.broker(port, "permit", "create", "--as=Ib", "Ia").returncode == 0
        with Typing(port) as ia:
            ia.type("QUERY\nIdentifier:Ia\nCallee:Ib\n\n")
            accepted, credentials, _ = ia.read(2).split("\n\n")
            assert accepted == "NOTIFY\nRequest Accepted."
            assert "Callee Port:1399" in credentials
            running.wait_for(r"^A call from Ia is announced$")
            assert running.end(signal.SIGINT) == 130
            assert running.err == []
            ia.type("QUERY\nIdentifier:Ia\nCallee:Ib\n\n")
            assert ia.read() == "NOTIFY\nCallee not Connected.\n\n"

    def test_server_goes(self, processes: Processes) -> None:
        """When the mediator goes, so does the command, and says why."""
        mediator, port = processes.mediator()
        running = self.registered(processes, port)
        assert mediator.end() == 0
        assert running.wait() == 3
        assert running.err == ["broker: the mediator has closed the connection"]

    def test_refused(self, processes: Processes) -> None:
        """A registration that fails changes nothing, and its cause is told (A5)."""
        _, port = processes.mediator()
        failed = processes.broker(port, "register", "--as=Ib", "--address=0.0.0.0", "--once")
        assert failed.returncode == 4
        assert failed.stderr.startswith(b"broker: Registration Failed. (")

    def test_permits(self, processes: Processes) -> None:
        """Create replaces, add appends, delete withdraws, list shows (A1–A3)."""
        _, port = processes.mediator()

        def permits(*arguments: str) -> list[str]:
            done = processes.broker(port, "permit", *arguments)
            assert done.returncode == 0, done.stderr
            return done.stdout.decode().splitlines()

        assert permits("list", "--as=Ib") == []
        permits("create", "--as=Ib", "Ia", "山田太郎")
        assert permits("list", "--as=Ib") == ["Ia", "山田太郎"]
        permits("add", "--as=Ib", "Ic")
        permits("delete", "--as=Ib", "Ia")
        assert permits("list", "--as=Ib") == ["山田太郎", "Ic"]
        permits("create", "--as=Ib")
        assert permits("list", "--as=Ib") == []
