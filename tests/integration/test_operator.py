"""The operator at work: real brokers, and the commands that an operator runs."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.integration.site import COMPLETED, Site
from tests.support.processes import (
    BROKER,
    LOOPBACK,
    PATIENCE,
    TETHER,
    TWISTD,
    environment,
    listening,
)

pytestmark = pytest.mark.integration

#: The user that owns nothing, on Linux.
NOBODY = 65534


def typed(folder: Path, arguments: list[str], *answers: bytes) -> tuple[int, str]:
    """Run a command at a terminal, and type an answer to each question.

    :return: its exit status, and all that stood on the screen, ``|`` before each answer
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
        shown, waiting = b"", list(answers)
        deadline = time.monotonic() + PATIENCE
        try:
            while time.monotonic() < deadline:
                if not select.select([screen], [], [], 0.1)[0]:
                    continue
                try:
                    shown += screen.read(1)
                except OSError:  # the other end is closed
                    break
                if waiting and shown.endswith(b": ") and b"Password of" in shown:
                    screen.write(waiting.pop(0))
                    shown += b"|"
            return running.wait(PATIENCE), shown.decode().replace("\r\n", "\n")
        finally:
            running.kill()
            running.wait()


def register(who: str, password: str, *lines: str) -> str:
    """The login of a terminal."""
    return "\n".join(["REGISTER", f"Identifier:{who}", f"Password:{password}", *lines, "", ""])


class DayTests:
    """What an operator does."""

    def test_from_the_first_account_to_the_last_call(self, site: Site) -> None:
        """Accounts, names and groups take effect on who is let in and who may call (A18, A19, C1).

        Out of a group, one is refused the next call (I2); each address told is known. A password
        that is typed is asked for twice, and is not seen.
        """
        running = site.serve("--auth=password", "--no-status")
        done = site.run("account", "add", "Ia", "--generate", "--json")
        first = json.loads(done.out)["password"]
        status, shown = typed(site.folder, ["account", "add", "Ib"], *[b"correct horse\n"] * 2)
        assert status == 0
        assert "Password of Ib: |" in shown
        assert "Password of Ib, once more: |" in shown
        assert "Ib has an account" in shown
        assert "horse" not in shown
        site.operate("account", "name", "add", "Ia", "taro@example.com")
        site.operate("group", "create", "@family", "taro@example.com")
        with site.typing() as ia, site.typing() as ib:
            ib.type(register("Ib", "correct horse", "Address:127.0.0.1", "Accept:Create @family"))
            assert ib.read() == COMPLETED
            ia.type(register("taro@example.com", first))
            assert ia.read() == COMPLETED
            assert site.operate("account", "list") == [
                "Ia\tconnected\t@family\ttaro@example.com",
                "Ib\treached\t-\t-",
            ]
            assert site.operate("permit", "show", "Ib") == ["Ia\t@family"]
            ia.type("QUERY\nCallee:Ib\n\n")
            accepted = ia.read(2)
            assert "Request Accepted." in accepted
            session = re.findall(r"Session:(\S+)", accepted)[0]
            (line,) = site.operate("who-knows", "Ib")
            assert re.fullmatch(
                rf"20\S+Z\tIa\t127\.0\.0\.1:1203\t@family\t{session}\tuntil 20\S+Z", line
            )
            assert site.operate("who-knows", "Ib", "--since", "2999-01-01") == []
            said = site.operate("group", "delete", "@family", "Ia")
            assert said == ["@family has 0 members"]
            assert "Terminate." in ia.read()
            ia.type("QUERY\nCallee:Ib\n\n")
            assert ia.read() == "NOTIFY\nPermission Denied.\n\n"
            said = site.operate("group", "delete", "@family")
            assert said == ["@family is deleted; it had 0 members, and 1 list named it"]
            assert site.operate("permit", "show", "Ib") == []
            site.operate("account", "remove", "Ia")
            assert ia.read_to_end() == ""
        refused = site.operate("account", "remove", "Ia", status=4)
        assert refused == ["broker: there is no account Ia"]
        assert running.end() == 0
        assert "Traceback" not in running.said
        assert first not in running.said
        assert "correct horse" not in running.said
        assert f"Operator (user {os.geteuid()}): account remove Ia: done" in running.said


class SocketTests:
    """The socket."""

    @pytest.fixture
    def open_folder(self) -> Iterator[Path]:
        """A folder into which any user may look."""
        with tempfile.TemporaryDirectory(prefix="broker-") as folder:
            os.chmod(folder, 0o755)
            yield Path(folder)

    def test_while_a_broker_runs_it_has_one(self, site: Site) -> None:
        """It has mode 0600 while the broker runs, and is gone with it. One that a killed broker has
        left is replaced by the next, which has all that was acknowledged (I8). That of a broker
        that runs is why a second one doesn't start; the first goes on.
        """
        path = site.folder / "broker.admin"
        running = site.serve()
        found = path.lstat()
        assert stat.S_ISSOCK(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o600
        site.operate("account", "add", "Ia", "--generate")
        site.operate("group", "create", "@family", "Ia")
        running.end(signal.SIGKILL)
        assert os.path.lexists(path)
        (why,) = site.operate("account", "list", status=3)
        assert "no broker answers" in why
        again = site.serve()
        second = site.start(
            *(*TWISTD, "-n", "--pidfile=", "broker", f"--listen={LOOPBACK}"),
            *("--store=memory:", "--auth=none"),
        )
        assert second.wait() == 1
        assert second.err == [
            f"broker: {path}: another broker has it open: stop that one, or name another with"
            " --admin"
        ]
        assert "Traceback" not in second.said
        assert site.operate("account", "list") == ["Ia\taway\t@family\t-"]
        assert again.end() == 0
        assert not os.path.lexists(path)
        (why,) = site.operate("account", "list", status=3)
        assert why.startswith(f"broker: no broker answers at {path}: start it, or name")

    def test_with_admin_none_there_is_none(self, site: Site) -> None:
        """Nothing of the name is in the folder."""
        site.serve("--admin=none")
        assert not os.path.lexists(site.folder / "broker.admin")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
    def test_another_user_is_refused(self, site: Site, open_folder: Path) -> None:
        """It can't open the socket, and the broker refuses it even where the mode is wrong."""
        path = open_folder / "admin"
        running = site.serve(f"--admin=unix:{path}")
        request = b'{"do": "group create", "group": "@f", "members": []}\n'
        assert ask_as(NOBODY, path, request) == b"PermissionError"
        path.chmod(0o666)
        assert json.loads(ask_as(NOBODY, path, request))["kind"] == "refused"
        running.wait_for(f"User {NOBODY} was refused")
        assert site.operate("group", "list", f"--admin=unix:{path}") == []
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

    def test_what_is_valid_starts(self, site: Site) -> None:
        """Checking leaves nothing behind. A file does what the options do."""
        site.file("mine.toml", f'listen = ["{LOOPBACK}"]\nauth = "none"\ntrace = true\n')
        assert site.operate("check-config", "mine.toml") == ["mine.toml is valid"]
        assert os.listdir(site.folder) == ["mine.toml"]
        running = site.twistd("broker", "--config=mine.toml")
        site.port = listening(running)
        with site.typing() as typing:
            typing.type("REGISTER\nIdentifier:Ia\n\n")
            running.wait_for(r"< REGISTER / Identifier:Ia$")
            running.wait_for(r"Ia > NOTIFY / Registration Completed\.$")

    def test_what_is_invalid_is_refused_in_the_same_words(self, site: Site) -> None:
        """Several errors are told together, a line each."""
        site.file("mine.toml", 'listen = ["tcp:0"]\nstore = "redis:x"\nport = 1\n')
        lines = site.operate("check-config", "mine.toml", status=1)
        assert len(lines) == 3
        refused = site.twistd("broker", "--config=mine.toml")
        assert refused.wait() == 1
        assert refused.err == lines
