"""The operator's commands: what they ask, what they print, and how they end."""

from __future__ import annotations

import io
import json
import math
import os
import re
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from broker.cli import admin as admin_cli
from broker.cli.admin import AdminRefused, NoBroker, Row, ask
from broker.service.settings.credentials import FoundPassword
from broker.tables.grants import PASSWORD_ALPHABET
from tests.cli.shell import Shell, Tty

ROOT: Final = Path(__file__).resolve().parents[2]


class FakeBroker:
    """A broker that answers as the test says.

    :ivar asked: the requests
    :ivar paths: the socket of each
    :ivar rows: the rows of each answer
    :ivar end: the end of each answer
    :ivar raises: what asking raises after the rows
    """

    def __init__(self) -> None:
        self.asked: list[Row] = []
        self.paths: list[str] = []
        self.rows: list[Row] = []
        self.end: Row = {}
        self.raises: BaseException | None = None

    def ask(self, path: str, request: Row, show: Callable[[Row], object]) -> Row:
        """As ``admin_cli.ask``."""
        self.asked.append(request)
        self.paths.append(path)
        for row in self.rows:
            show(row)
        if self.raises is not None:
            raise self.raises
        return {"done": True, **self.end}

    @property
    def passwords(self) -> list[str]:
        """The passwords in the requests."""
        return [request["password"] for request in self.asked]


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> FakeBroker:
    """A broker that answers as the test says."""
    fake = FakeBroker()
    monkeypatch.setattr(admin_cli, "ask", fake.ask)
    return fake


class ParserTests:
    """The command line."""

    def test_admin(self, broker: FakeBroker, shell: Shell) -> None:
        """The socket is the one that is named; the default is the one that a broker makes here."""
        assert shell("account list").status == 0
        assert shell("account list --admin unix:/run/x").status == 0
        assert broker.paths == [os.path.abspath("broker.admin"), "/run/x"]

    @pytest.mark.parametrize(
        ("text", "when"),
        [
            ("30s", -30),
            ("30m", -1800),
            ("2h", -7200),
            ("7d", -604_800),
            ("1w", -604_800),
            ("2026-11-20", 1_795_132_800),
            ("2026-11-20T08:00", 1_795_161_600),
            ("2026-11-20T08:00Z", 1_795_161_600),
            ("2026-11-20T08:00+09:00", 1_795_129_200),
            ("1960-01-01", 0),
        ],
    )
    def test_since(
        self,
        text: str,
        when: int,
        broker: FakeBroker,
        shell: Shell,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A time is an age or a date; a date is UTC if it names no time zone."""
        monkeypatch.setattr(time, "time", lambda: 2_000_000_000.5)
        assert shell(f"who-knows Ib --since {text}").status == 0
        expected = when if when >= 0 else 2_000_000_000 + when
        assert broker.asked == [{"do": "who knows", "identifier": "Ib", "since": expected}]


IA: Final = {"identifier": "Ia"}
MANY: Final = {"group": "@f", "members": ["Ia", "Ic"]}
#: Commands that change something: the request, the end of the answer, what is printed.
CHANGES: Final[dict[str, tuple[Row, Row, str]]] = {
    "account remove Ia": (
        IA,
        {"lists": 1, "groups": 2},
        "Ia is removed, also from 1 list and 2 groups",
    ),
    "account name add Ia taro": ({**IA, "name": "taro"}, {}, "taro is a name of Ia"),
    "account name remove Ia taro": ({**IA, "name": "taro"}, {}, "taro is taken from Ia"),
    "group create @f": ({"group": "@f", "members": []}, {"members": 0}, "@f has 0 members"),
    "group add @f Ia Ic": (MANY, {"members": 2}, "@f has 2 members"),
    "group delete @f Ia": (
        {"do": "group remove", "group": "@f", "members": ["Ia"]},
        {"members": 1},
        "@f has 1 member",
    ),
    "group delete @f": (
        {"group": "@f"},
        {"members": 1, "lists": 3},
        "@f is deleted; it had 1 member, and 3 lists named it",
    ),
}


IB: Final = {"identifier": "Ib"}
ACCOUNT: Final[Row] = {**IA, "names": ["t", "u"], "groups": ["@f"], "connections": 1}
PLAIN: Final = {"caller": None, "expires": None, "uses": None}
FAMILY: Final = {"caller": "Ic", "entry": "@f"}
TOLD: Final = {
    "at": "2026-11-21T12:34:56.123456Z",
    "until": "2026-11-21T13:34:56.123456Z",
    "told": "Ia",
    "address": "192.0.2.1",
    "port": 1203,
    "entry": "@f",
    "session": "S1",
}
TOLD_SHOWN: Final = "2026-11-21T12:34:56Z\tIa\t{}:1203\t@f\tS1\tuntil 2026-11-21T13:34:56Z"
#: Commands that list something: the request, the rows of the answer, what is printed.
LISTED: Final[dict[str, tuple[Row, list[Row], list[str]]]] = {
    # Identifier, state, groups and names.
    "account list": (
        {"do": "account list"},
        [
            {**ACCOUNT, "reached": True},
            {**ACCOUNT, "reached": False},
            {**IB, "names": [], "groups": [], "connections": 0, "reached": False},
        ],
        ["Ia\treached\t@f\tt,u", "Ia\tconnected\t@f\tt,u", "Ib\taway\t-\t-"],
    ),
    "group list": ({"do": "group list"}, [{"group": "@f", "members": 2}], ["@f\t2"]),
    "group list @f": ({"do": "group members", "group": "@f"}, [IA], ["Ia"]),
    # Who may call, by which entry, and with what limits.
    "permit show Ib": (
        {"do": "permit show", **IB},
        [
            {**PLAIN, "caller": "Ia", "entry": "Ia"},
            {**FAMILY, "expires": 3541, "uses": 1},
            {**FAMILY, "expires": None, "uses": 2},
            {**PLAIN, "entry": "@e", "group": "empty"},
            {**PLAIN, "entry": "@n", "group": "none"},
        ],
        [
            "Ia\tIa",
            "Ic\t@f\t0:59:01 left\t1 call left",
            "Ic\t@f\t2 calls left",
            "-\t@e\tno member",
            "-\t@n\tthere is no such group",
        ],
    ),
    # When, who was told, which address, by what entry, in which session, until when.
    "who-knows Ib --most 5": (
        {"do": "who knows", **IB, "most": 5},
        [TOLD, {**TOLD, "address": "2001:db8::1"}],
        [TOLD_SHOWN.format("192.0.2.1"), TOLD_SHOWN.format("[2001:db8::1]")],
    ),
}


class OutputTests:
    """What is asked and printed."""

    @pytest.mark.parametrize("line", CHANGES)
    def test_changes(self, line: str, broker: FakeBroker, shell: Shell) -> None:
        """Each change says what it has done; with ``--json``, what the broker answers."""
        fields, broker.end, shown = CHANGES[line]
        assert shell(line) == (0, f"{shown}\n", "")
        assert json.loads(shell(f"{line} --json").out) == {"done": True, **broker.end}
        do = re.sub(" (@|I).*", "", line)
        assert broker.asked == [{"do": do, **fields}] * 2

    @pytest.mark.parametrize("line", LISTED)
    def test_lists(self, line: str, broker: FakeBroker, shell: Shell) -> None:
        """Each row is a line; a dash stands for what is empty."""
        request, broker.rows, shown = LISTED[line]
        assert shell(line) == (0, "".join(f"{row}\n" for row in shown), "")
        assert broker.asked == [request]

    @pytest.mark.parametrize("option", ["", " --json"])
    def test_names_have_no_power(self, option: str, broker: FakeBroker, shell: Shell) -> None:
        """A terminal's name makes no line and no escape on the operator's screen (I19)."""
        broker.rows = [{"identifier": "a\u2028b\u202e\x1b[2Jc"}]
        shown = shell(f"group list @f{option}").out
        assert shown.isascii()
        assert "\x1b" not in shown
        assert len(shown.splitlines()) == (2 if option else 1)

    def test_json_rows(self, broker: FakeBroker, shell: Shell) -> None:
        """With ``--json`` each row is as it came, and the last line says that it was all."""
        broker.rows = [{"group": "@f", "members": 2}]
        broker.end = {"groups": 1}
        lines = [json.loads(line) for line in shell("group list --json").out.splitlines()]
        assert lines == [{"group": "@f", "members": 2}, {"done": True, "groups": 1}]


class StatusTests:
    """How it ends."""

    @pytest.mark.parametrize(
        ("raised", "status"),
        [
            (AdminRefused("refused", "there is no account\x1b Ia"), 4),
            (AdminRefused("busy", "try again"), 1),
            (AdminRefused("bad", "no"), 1),
            (AdminRefused("failed", "no"), 1),
            (NoBroker("start it"), 3),
            (KeyboardInterrupt(), 130),
        ],
    )
    def test_status(
        self, raised: BaseException, status: int, broker: FakeBroker, shell: Shell
    ) -> None:
        """Refused is 4, no broker 3, others 1; the cause is a line on standard error."""
        broker.raises = raised
        text = str(raised).replace("\x1b", "\\u001b")
        assert shell("account remove Ia") == (status, "", f"broker: {text}\n" if text else "")

    def test_no_reader(
        self, broker: FakeBroker, shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """If the reader of the output has gone, nothing is said about it."""
        with (tmp_path / "out").open("w") as out:
            monkeypatch.setattr(sys, "stdout", out)
            broker.raises = BrokenPipeError()
            assert shell("account list") == (1, "", "")


class PasswordTests:
    """Where a password comes from: never from where others see it (I18)."""

    @pytest.mark.parametrize("change", ["add", "reset"])
    def test_generated(self, change: str, broker: FakeBroker, shell: Shell) -> None:
        """A generated one has at least 96 bits, differs each time, and is printed once."""
        shown = [shell(f"account {change} Ia --generate").out for _ in range(2)]
        assert len(set(broker.passwords)) == 2
        for password, text in zip(broker.passwords, shown, strict=True):
            assert set(password) <= set(PASSWORD_ALPHABET.decode())
            assert len(password) * math.log2(len(PASSWORD_ALPHABET)) >= 96
            assert text.count(password) == 1

    def test_generated_for_a_script(self, broker: FakeBroker, shell: Shell) -> None:
        """A script finds it in the last line; one that the broker has refused is not printed."""
        answer = json.loads(shell("account add Ia --generate --json").out)
        assert answer == {"done": True, "password": broker.passwords[0]}
        broker.raises = AdminRefused("refused", "there is already an account Ia")
        assert shell("account add Ia --generate")[:2] == (4, "")

    def test_file(self, broker: FakeBroker, shell: Shell, tmp_path: Path) -> None:
        """A file's only line; an error if others can read the file, with the remedy."""
        path = tmp_path / "password"
        path.write_text("correct horse\n")
        for mode, status, why in (
            (0o644, 1, f"chmod 600 {path}"),
            (0o600, 0, ""),
            (0, 1, "No such"),
        ):
            path.chmod(mode) if mode else path.unlink()
            done = shell(f"account add Ia --password-file {path}")
            assert done.status == status
            assert why in done.err
            assert "correct" not in done.out
        assert broker.passwords == ["correct horse"]

    @pytest.mark.parametrize("second", ["horse", "house"])
    def test_typed(
        self, second: str, broker: FakeBroker, shell: Shell, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """At a terminal it is asked for twice; two that differ set nothing, and none is shown."""
        asked: list[str] = []
        typing = iter(("horse", second))

        def ask_password(whose: str) -> FoundPassword:
            asked.append(whose)
            return FoundPassword(next(typing), None)

        monkeypatch.setattr(sys, "stdin", Tty())
        monkeypatch.setattr(admin_cli, "ask_password", ask_password)
        done = shell("account reset Ia")
        assert asked == ["Ia", "Ia, once more"]
        alike = second == "horse"
        assert (done.status, broker.passwords) == ((0, ["horse"]) if alike else (1, []))
        assert ("the two passwords differ" in done.err) is not alike
        assert "horse" not in done.err

    def test_from_a_pipe(
        self, broker: FakeBroker, shell: Shell, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """None is read from a pipe; the error says what to do instead."""
        monkeypatch.setattr(sys, "stdin", io.StringIO("horse\nhorse\n"))
        done = shell("account add Ia")
        assert (done.status, broker.asked) == (1, [])
        assert "--password-file" in done.err
        assert "--generate" in done.err


class CheckConfigTests:
    """``broker check-config``."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """A configuration file."""
        return tmp_path / "x.toml"

    @pytest.mark.parametrize("role", admin_cli.ROLES)
    def test_valid(self, role: str, path: Path, shell: Shell) -> None:
        """The samples are valid; the default role is the mediator."""
        text = (ROOT / "etc" / f"{role}.toml").read_text("utf-8")
        path.write_text(text.replace('identifier = ""', 'identifier = "Ib"'))
        named = "" if role == "broker" else f"--role {role}"
        assert shell(f"check-config {named} {path}") == (0, f"{path} is valid\n", "")

    @pytest.mark.parametrize(
        ("content", "whys"),
        [
            pytest.param(
                b'listen = ["tcp:1201"]\nstore = "redis:x"\nauto = 1\nadmin = "tcp:1"\n',
                ["auto: ", "store: ", "admin: ", "listen: "],
                id="everything that is wrong is said, one line each, as the role would (I3)",
            ),
            (None, ["No such file"]),
            (b"=", ["not TOML"]),
            pytest.param(
                b'listen-tls = ["tcp:1202"]\ncertificate = "/nowhere/x"\n'
                b'private-key = "/nowhere/y"\n',
                ["listen-tls: /nowhere/"],
                id="files that it names",
            ),
        ],
    )
    def test_invalid(
        self, content: bytes | None, whys: list[str], path: Path, shell: Shell
    ) -> None:
        """What is wrong is said, a line each, as the role would (I3)."""
        if content is not None:
            path.write_bytes(content)
        done = shell(f"check-config {path}")
        assert done[:2] == (1, "")
        lines = zip(done.err.splitlines(), whys, strict=True)
        assert all(line.startswith(f"broker: {path}: {why}") for line, why in lines)

    def test_touches_nothing(
        self, tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No socket is opened, no database, and no file is written."""

        def forbidden(*_: Any, **__: Any) -> Any:
            raise AssertionError("nothing must be opened")

        monkeypatch.chdir(tmp_path)
        Path("broker.toml").write_text('store = "sqlite:x.db"\nadmin = "unix:x.admin"\n')
        monkeypatch.setattr(socket, "socket", forbidden)
        monkeypatch.setattr(sqlite3, "connect", forbidden)
        assert shell("check-config broker.toml").status == 0
        assert os.listdir() == ["broker.toml"]


@pytest.mark.integration
class SocketTests:
    """What may be at the other end."""

    @pytest.fixture(autouse=True)
    def alone(self, tmp_path: Path) -> None:
        """The path of the socket, and what the command shows."""
        self.path = str(tmp_path / "admin")
        self.rows: list[Row] = []
        self.show: Callable[[Row], object] = self.rows.append

    def ask(self, data: bytes | None = None) -> Row:
        """Ask a server that reads a line, sends an answer, and closes; the end of the answer.

        :param data: what it sends; ``None``: there is no server of ours
        """
        if data is None:
            return ask(self.path, {"do": "x"}, self.show)

        def serve() -> None:
            connection, _ = listening.accept()
            with connection, connection.makefile("rb") as lines:
                lines.readline()
                connection.sendall(data)

        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(self.path)
            listening.listen()
            thread = threading.Thread(target=serve)
            thread.start()
            try:
                return ask(self.path, {"do": "x"}, self.show)
            finally:
                thread.join(10)

    def test_answer(self) -> None:
        """Rows, and an end."""
        end = self.ask('{"a": "山"}\n{"a": 2}\n{"done": true, "b": 1}\n'.encode())
        assert (self.rows, end) == ([{"a": "山"}, {"a": 2}], {"done": True, "b": 1})

    def test_refusal(self) -> None:
        """A refusal, even after rows."""
        with pytest.raises(AdminRefused, match="no") as refused:
            self.ask(b'{"a": 1}\n{"error": "no", "kind": "busy"}\n')
        assert refused.value.kind == "busy"

    @pytest.mark.parametrize(
        ("data", "why"),
        [
            (b"", "may have done what was asked"),
            (b'{"a": 1}\n', "may have done what was asked"),
            (b"220 mail\r\n", "is no broker"),
            (b"\xff\n", "is no broker"),
            (b'{"a": ', "is no broker"),
        ],
    )
    def test_no_answer(self, data: bytes, why: str) -> None:
        """An answer without an end is not taken for one (I8), nor is another protocol."""
        with pytest.raises(NoBroker, match=why):
            self.ask(data)

    def test_not_there(self) -> None:
        """No file, and a file that is no socket."""
        for _ in range(2):
            with pytest.raises(NoBroker, match=r"no broker answers at .*: start it, or name"):
                self.ask()
            Path(self.path).touch()

    def test_silence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The wait for an answer ends."""
        monkeypatch.setattr(admin_cli, "PATIENCE", 0.01)
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(self.path)
            silent.listen()
            with pytest.raises(NoBroker, match="does not answer"):
                self.ask()

    def test_printing_fails(self) -> None:
        """A failure to print is not taken for the end of the broker."""

        def show(row: Row) -> None:
            raise BrokenPipeError

        self.show = show
        with pytest.raises(BrokenPipeError):
            self.ask(b'{"a": 1}\n{"done": true}\n')
