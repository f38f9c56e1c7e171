"""The operator at work: real brokers, and the commands as somebody runs them."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.processes import (
    BROKER,
    PATIENCE,
    TETHER,
    TWISTD,
    Processes,
    Running,
    Typing,
    environment,
    listening,
)

pytestmark = pytest.mark.integration

DONE = "NOTIFY\nRegistration Completed.\n\n"
#: The user whom nobody is, on Linux.
NOBODY = 65534


def operate(folder: Path, *arguments: str, status: int = 0) -> list[str]:
    """Run a command there, see that it ends so, and give what it says."""
    done = subprocess.run(
        [*BROKER, *arguments],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return (done.stderr if status else done.stdout).splitlines()


def typed(folder: Path, arguments: list[str], *answers: str) -> tuple[int, str]:
    """Run a command at a terminal, and type an answer to each question.

    :return: its exit status, and all that stood on the screen
    """
    ours, its = pty.openpty()
    with os.fdopen(ours, "rb+", buffering=0) as screen:
        running = subprocess.Popen(
            [*TETHER, *BROKER, *arguments],
            cwd=folder,
            env=environment(),
            preexec_fn=lambda: os.login_tty(its),  # noqa: PLW1509
        )
        os.close(its)
        shown = b""
        try:
            for answer in answers:
                while not shown.endswith(b": "):
                    shown += screen.read(1)
                screen.write(answer.encode() + b"\n")
                shown += b"|"
            while more := _read(screen.fileno()):
                shown += more
            return running.wait(PATIENCE), shown.decode().replace("\r\n", "\n")
        finally:
            running.kill()
            running.wait()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other end is closed
        return b""


def broker(processes: Processes, *arguments: str) -> tuple[Running, int]:
    """A broker at which terminals log in."""
    return processes.mediator("--auth=password", "--no-status", *arguments)


def register(who: str, password: str, *lines: str) -> str:
    """The login of a terminal."""
    return "\n".join(["REGISTER", f"Identifier:{who}", f"Password:{password}", *lines, "", ""])


class DayTests:
    """What an operator does."""

    def test_from_the_first_account_to_the_last_call(self, processes: Processes) -> None:
        """Accounts, names and groups take effect on who is let in and who may call (A18, A19, C1).

        Out of a group, one is refused the next call (I2); each address told is known.
        """
        running, port = broker(processes)
        folder = processes.folder
        (made,) = operate(folder, "account", "add", "Ia", "--generate", "--json")
        first = json.loads(made)["password"]
        (folder / "ib").write_text("correct horse\n")
        (folder / "ib").chmod(0o600)
        operate(folder, "account", "add", "Ib", "--password-file", "ib")
        operate(folder, "account", "name", "add", "Ia", "taro@example.com")
        operate(folder, "group", "create", "@family", "taro@example.com")
        with Typing(port) as ia, Typing(port) as ib:
            ib.type(register("Ib", "correct horse", "Address:127.0.0.1", "Accept:Create @family"))
            assert ib.read() == DONE
            ia.type(register("taro@example.com", first))
            assert ia.read() == DONE
            assert operate(folder, "account", "list") == [
                "Ia\tconnected\t@family\ttaro@example.com",
                "Ib\treached\t-\t-",
            ]
            assert operate(folder, "permit", "show", "Ib") == ["Ia\t@family"]
            ia.type("QUERY\nCallee:Ib\n\n")
            accepted = ia.read(2)
            assert "Request Accepted." in accepted
            session = re.findall(r"Session:(\S+)", accepted)[0]
            (line,) = operate(folder, "who-knows", "Ib")
            assert re.fullmatch(
                rf"20\S+Z\tIa\t127\.0\.0\.1:1203\t@family\t{session}\tuntil 20\S+Z", line
            )
            assert operate(folder, "who-knows", "Ib", "--since", "2999-01-01") == []
            said = operate(folder, "group", "delete", "@family", "Ia")
            assert said == ["@family has 0 members"]
            assert "Terminate." in ia.read()
            ia.type("QUERY\nCallee:Ib\n\n")
            assert ia.read() == "NOTIFY\nPermission Denied.\n\n"
            said = operate(folder, "group", "delete", "@family")
            assert said == ["@family is deleted; it had 0 members, and 1 list named it"]
            assert operate(folder, "permit", "show", "Ib") == []
            operate(folder, "account", "remove", "Ia")
            assert ia.read_to_end() == ""
        refused = operate(folder, "account", "remove", "Ia", status=4)
        assert refused == ["broker: there is no account Ia"]
        assert running.end() == 0
        assert "Traceback" not in running.said
        assert first not in running.said
        assert "correct horse" not in running.said
        assert f"Operator (user {os.geteuid()}): account remove Ia: done" in running.said

    def test_typed(self, processes: Processes) -> None:
        """A password is asked for twice, is not seen as it is typed, and is the one that counts."""
        _, port = broker(processes)
        status, shown = typed(
            processes.folder, ["account", "add", "Ia"], "correct horse", "correct horse"
        )
        assert status == 0
        assert "Password of Ia: |" in shown
        assert "Password of Ia, once more: |" in shown
        assert "Ia has an account" in shown
        assert "horse" not in shown
        with Typing(port) as ia:
            ia.type(register("Ia", "correct horse"))
            assert ia.read() == DONE

    def test_kept(self, processes: Processes) -> None:
        """What was acknowledged is there after the process was killed (I8)."""
        running, _ = broker(processes)
        operate(processes.folder, "account", "add", "Ia", "--generate")
        operate(processes.folder, "group", "create", "@family", "Ia")
        running.end(signal.SIGKILL)
        broker(processes)
        assert operate(processes.folder, "account", "list") == ["Ia\taway\t@family\t-"]


class SocketTests:
    """The socket."""

    @pytest.fixture
    def open_folder(self) -> Iterator[Path]:
        """A folder into which anybody may look."""
        with tempfile.TemporaryDirectory(prefix="broker-") as folder:
            os.chmod(folder, 0o755)
            yield Path(folder)

    def test_comes_and_goes(self, processes: Processes) -> None:
        """It has mode 0600 while the broker runs, and is gone with it."""
        running, _ = processes.mediator()
        path = processes.folder / "broker.admin"
        found = path.lstat()
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o600
        assert running.end() == 0
        assert not os.path.lexists(path)
        (why,) = operate(processes.folder, "account", "list", status=3)
        assert why.startswith(f"broker: no broker answers at {path}: start it, or name")

    def test_none(self, processes: Processes) -> None:
        """With ``--admin none`` there is none."""
        processes.mediator("--admin=none")
        assert not os.path.lexists(processes.folder / "broker.admin")

    def test_left_by_a_dead_broker(self, processes: Processes) -> None:
        """One that a killed broker has left is replaced by the next."""
        running, _ = processes.mediator()
        path = processes.folder / "broker.admin"
        running.end(signal.SIGKILL)
        assert os.path.lexists(path)
        (why,) = operate(processes.folder, "account", "list", status=3)
        assert "no broker answers" in why
        again, _ = processes.mediator()
        assert operate(processes.folder, "account", "list") == []
        assert again.end() == 0
        assert not os.path.lexists(path)

    def test_of_another_broker(self, processes: Processes) -> None:
        """That of a broker that runs is why a second one doesn't start; the first goes on."""
        processes.mediator()
        path = processes.folder / "broker.admin"
        second = processes.start(
            *(*TWISTD, "-n", "--pidfile=", "broker", "--listen=tcp:0:interface=127.0.0.1"),
            *("--store=memory:", "--auth=none"),
        )
        assert second.wait() == 1
        assert second.err == [
            f"broker: {path}: another broker has it open: stop that one, or name another with"
            " --admin"
        ]
        assert "Traceback" not in second.said
        assert operate(processes.folder, "account", "list") == []

    def test_of_a_role_that_does_not_start(self, processes: Processes) -> None:
        """Where a port can't be opened none is left behind."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            listen = f"--listen=tcp:{taken.getsockname()[1]}:interface=127.0.0.1"
            assert processes.twistd("broker", listen).wait() == 1
        assert not os.path.lexists(processes.folder / "broker.admin")

    def test_too_long(self, processes: Processes) -> None:
        """A path that is too long for a socket is why it doesn't start, in a line."""
        running = processes.twistd("broker", "--admin=unix:/" + "x" * 200)
        assert running.wait() == 1
        (line,) = running.err
        assert "at most 107 bytes" in line

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
    def test_another_user(self, processes: Processes, open_folder: Path) -> None:
        """Another user can't open it, and is refused by the broker even where the mode is wrong."""
        path = open_folder / "admin"
        running, _ = processes.mediator(f"--admin=unix:{path}")
        request = b'{"do": "group create", "group": "@f", "members": []}\n'
        assert ask_as(NOBODY, path, request) == b"PermissionError"
        path.chmod(0o666)
        assert json.loads(ask_as(NOBODY, path, request))["kind"] == "refused"
        running.wait_for(f"User {NOBODY} was refused")
        assert operate(processes.folder, "group", "list", f"--admin=unix:{path}") == []
        assert json.loads(ask_as(0, path, request)) == {"done": True, "members": 0}


def ask_as(user: int, path: Path, request: bytes) -> bytes:
    """What another user is answered, or the name of what prevents it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            with socket.socket(socket.AF_UNIX) as asking:
                asking.settimeout(PATIENCE)
                asking.connect(str(path))
                with suppress(BrokenPipeError):  # refused already
                    asking.sendall(request)
                os.write(writing, asking.recv(65536))
        except Exception as error:
            os.write(writing, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        told = answer.read()
    os.waitpid(child, 0)
    return told


class CheckConfigTests:
    """``broker check-config`` and the role agree."""

    def test_good(self, processes: Processes) -> None:
        """What is good is what starts, and checking leaves nothing behind."""
        path = processes.folder / "mine.toml"
        path.write_text('listen = ["tcp:0:interface=127.0.0.1"]\nauth = "none"\n')
        assert operate(processes.folder, "check-config", "mine.toml") == ["mine.toml is valid"]
        assert os.listdir(processes.folder) == ["mine.toml"]
        listening(processes.twistd("broker", "--config=mine.toml"))

    def test_bad(self, processes: Processes) -> None:
        """What is wrong is told in the words in which the role refuses to start."""
        path = processes.folder / "mine.toml"
        path.write_text('listen = ["tcp:0"]\nstore = "redis:x"\nport = 1\n')
        lines = operate(processes.folder, "check-config", "mine.toml", status=1)
        assert len(lines) == 3
        refused = processes.twistd("broker", "--config=mine.toml")
        assert refused.wait() == 1
        assert refused.err == lines
