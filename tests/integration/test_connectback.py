"""Connect-back between real processes: by a call password alone, where no permit is given."""

from __future__ import annotations

import random
import socket
import time
from hashlib import sha256
from pathlib import Path

import pytest

from tests.support.processes import BROKER, PATIENCE, Processes, Running

pytestmark = pytest.mark.integration

#: Seconds in which a request is decided here, and after which it is refused.
DECIDED = 3.0
CONTENT = random.Random(4).randbytes(2_000_000)
SECRET = "open sesame, said he"
REFUSED = (4, b"broker: Permission Denied.\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where what is sent is kept; beside it the call password, a guess, and what is sent."""
    folder = tmp_path / "received"
    folder.mkdir()
    for name, password in (("Ib.call", SECRET), ("guess", "open barley")):
        (tmp_path / name).write_text(password + "\n")
        (tmp_path / name).chmod(0o600)
    (tmp_path / "sent").write_bytes(CONTENT)
    return folder


@pytest.fixture
def port(processes: Processes) -> int:
    """The port of a mediator that decides soon."""
    return processes.mediator(f"--status-timeout={DECIDED}")[1]


def terminal(processes: Processes, port: int, folder: Path, *arguments: str) -> Running:
    """Ib, which is reached by its call password."""
    return processes.terminal(
        "Ib",
        port,
        f"--receive={folder}",
        "--policy=password",
        "--call-password-file=Ib.call",
        *arguments,
    )


def call_back(
    processes: Processes, port: int, password: str = "Ib.call", *arguments: str
) -> tuple[int, bytes, bytes]:
    """Ia asks Ib to come for a file; the status, and what was said."""
    done = processes.broker(
        port,
        "call",
        "--verbose",
        "--as=Ia",
        "Ib",
        "--send=sent",
        "--connect-back",
        f"--call-password-file={password}",
        "--listen=tcp:0:interface=127.0.0.1",
        *arguments,
    )
    return done.returncode, done.stdout, done.stderr


def received(folder: Path) -> list[bytes]:
    """What was received so far, half files included."""
    return [path.read_bytes() for path in sorted(folder.iterdir())]


class WholeWayTests:
    """A caller to whom nothing is permitted (D3–D8)."""

    def test_a_file(self, processes: Processes, port: int, folder: Path) -> None:
        """With the right call password the callee comes, and the file is whole."""
        callee = terminal(processes, port, folder)
        refused = processes.broker(port, "call", "--as=Ia", "Ib", "--send=sent")
        assert (refused.returncode, refused.stderr) == REFUSED
        status, out, err = call_back(processes, port)
        digest = sha256(CONTENT).hexdigest()
        assert status == 0
        assert err.startswith(b"connected by connecting back to us at 127.0.0.1:")
        assert out.decode() == f"Ib has {len(CONTENT)} bytes, SHA-256 {digest}\n"
        assert received(folder) == [CONTENT]
        told = processes.broker(port, "disclosures", "--as=Ia").stdout.decode().split("\t")
        assert told[1] == "Ib"
        assert told[3] == "connect-back\n"
        assert callee.end() == 0
        assert SECRET not in callee.said
        assert "Traceback" not in callee.said

    def test_a_wrong_password(self, processes: Processes, port: int, folder: Path) -> None:
        """The caller is refused, and the callee's log says why (D7)."""
        callee = terminal(processes, port, folder)
        status, _, err = call_back(processes, port, "guess")
        assert (status, err) == REFUSED
        assert received(folder) == []
        callee.wait_for("Ia showed a wrong call password")
        assert "barley" not in callee.said

    def test_busy(self, processes: Processes, port: int, folder: Path) -> None:
        """A callee that is in a call and takes one at a time doesn't come (A25, B1)."""
        terminal(processes, port, folder, "--one-at-a-time")
        first = processes.start_broker(
            port,
            "call",
            "--as=Ic",
            "Ib",
            "--connect-back",
            "--call-password-file=Ib.call",
            "--listen=tcp:0:interface=127.0.0.1",
        )
        deadline = time.monotonic() + PATIENCE
        while not list(folder.iterdir()):
            assert time.monotonic() < deadline, first.said
            time.sleep(0.05)
        status, _, err = call_back(processes, port)
        assert (status, err) == REFUSED
        assert first.process.stdin is not None
        first.process.stdin.close()
        assert first.wait() == 0, first.said

    def test_a_new_password(self, processes: Processes, port: int, folder: Path) -> None:
        """A call password that is changed is in force at once, with no word to anybody."""
        terminal(processes, port, folder)
        (processes.folder / "Ib.call").write_text("open barley\n")
        assert call_back(processes, port, "guess")[0] == 0
        assert received(folder) == [CONTENT]

    def test_nobody_behind_the_address(self, processes: Processes, port: int, folder: Path) -> None:
        """A caller that is not where it says is told so at once, and the callee goes on (C12)."""
        callee = terminal(processes, port, folder)
        with socket.create_server(("127.0.0.1", 0)) as free:
            nowhere = free.getsockname()[1]
        caller = processes.start_broker(
            port,
            "call",
            "--as=Ia",
            "Ib",
            "--send=sent",
            "--connect-back",
            "--call-password-file=Ib.call",
            "--listen=tcp:0:interface=127.0.0.1",
            f"--outside=127.0.0.1:{nowhere}",
        )
        callee.wait_for("Ia could not be reached at 127.0.0.1")
        assert caller.wait() == 1
        assert caller.err == ["broker: Ib could not connect to us"]
        assert call_back(processes, port)[0] == 0
        assert received(folder) == [CONTENT]

    def test_quiet(self, processes: Processes, folder: Path) -> None:
        """A callee that lives on keepalives is woken by a notice, and comes (D1, D4, D5)."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            udp = free.getsockname()[1]
        _, port = processes.mediator(f"--udp={udp}:127.0.0.1")
        quiet = (f"--udp=127.0.0.1:{udp}", "--no-hold", "--linger=1")
        callee = terminal(processes, port, folder, *quiet)
        callee.wait_for("Idle: closing the connection to the mediator")
        assert call_back(processes, port)[0] == 0
        assert received(folder) == [CONTENT]

    def test_with_accounts(self, processes: Processes, folder: Path) -> None:
        """Where there are logins, each has its own password beside the call password."""
        mediator = processes.twistd("broker", "--listen=tcp:0:interface=127.0.0.1")
        port = int(mediator.wait_for(r"Listening on .*:(\d+)$")[1])
        for name in ("Ia", "Ib"):
            added = processes.start(
                *BROKER, "account", "add", name, "--generate", "--admin=unix:broker.admin"
            )
            assert added.wait() == 0, added.said
            (processes.folder / name).write_text(added.out[-1].split()[-1] + "\n")
            (processes.folder / name).chmod(0o600)
        terminal(processes, port, folder, "--password-file=Ib")
        status, _, err = call_back(processes, port, "Ib.call", "--password-file=Ia")
        assert (status, err[:10]) == (0, b"connected ")
        # its login's password is not its call password
        status, _, err = call_back(processes, port, "Ib", "--password-file=Ia")
        assert (status, err) == REFUSED


class UsageTests:
    """What the command says of its options."""

    def test_goes_with(self, processes: Processes, folder: Path) -> None:
        """A call password goes with ``--connect-back``."""
        done = processes.broker(1, "call", "--as=Ia", "Ib", "--call-password-file=Ib.call")
        assert done.returncode == 2
        assert b"--call-password-file goes with --connect-back" in done.stderr

    def test_a_port_opened(self, processes: Processes) -> None:
        """It finds out its address, and so goes without one."""
        known = ("--open-port", "--outside=127.0.0.1:1")
        done = processes.broker(1, "call", "--as=Ia", "Ib", *known)
        assert done.returncode == 2
        assert b"--open-port finds the outside address itself" in done.stderr

    def test_no_call_password(self, processes: Processes) -> None:
        """With nobody to ask, a file is to be named."""
        done = processes.broker(1, "call", "--as=Ia", "Ib", "--connect-back")
        assert done.returncode == 1
        assert b"name a --call-password-file" in done.stderr

    def test_readable_by_others(self, processes: Processes, folder: Path) -> None:
        """Neither side takes a call password that others can read (I18)."""
        (processes.folder / "Ib.call").chmod(0o644)
        done = processes.broker(
            1, "call", "--as=Ia", "Ib", "--connect-back", "--call-password-file=Ib.call"
        )
        assert done.returncode == 1
        assert b"others can read or change it" in done.stderr
        callee = processes.twistd(
            "broker-terminal",
            "--identifier=Ib",
            f"--receive={folder}",
            "--policy=password",
            "--call-password-file=Ib.call",
        )
        assert callee.wait() == 1
        assert "others can read or change it" in callee.said
