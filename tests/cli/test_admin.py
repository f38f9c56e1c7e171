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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from broker.cli import admin as admin_cli
from broker.cli.admin import AdminRefused, NoBroker, Row, ask
from broker.cli.main import make_parser
from broker.service.settings.credentials import FoundPassword
from broker.tables.grants import PASSWORD_ALPHABET
from tests.cli.shell import Shell, Tty

ROOT: Final = Path(__file__).resolve().parents[2]
COMMANDS: Final = [
    *("account", "group", "account name", "permit show", "who-knows", "check-config"),
    *(f"account {change}" for change in ("add", "remove", "list", "reset")),
    *("account name add", "account name remove"),
    *(f"group {change}" for change in ("create", "add", "delete", "list")),
]


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

    @pytest.mark.parametrize("command", COMMANDS)
    def test_help(self, command: str, shell: Shell) -> None:
        """Each command explains itself, in lines that fit, with valid examples."""
        done = shell(f"{command} --help")
        assert done.status == 0
        assert done.out.startswith("usage: broker")
        assert max(map(len, done.out.splitlines())) <= 100
        assert "exit status: 0" in done.out
        examples = re.findall(r"^  broker (.*?)(?:  .*)?$", done.out, re.M)
        assert examples
        for example in examples:
            words = example.partition(" | ")[0].replace("'", "").split()
            assert "run" in make_parser().parse_args(words)

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            ("account", "required: change"),
            ("account add", "required: ID"),
            ("account add @f", "begins with @"),
            ("account add Ia secret", "unrecognized arguments"),
            ("account add Ia --password secret", "unrecognized arguments: --password"),
            ("account add Ia --generate --password-file x", "not allowed with"),
            ("account name add Ia", "required: NAME"),
            ("group create family", "begins with @"),
            ("group create @", "begins with @"),
            ("group add @f", "required: ID"),
            ("group add @f @g", "begins with @"),
            ("permit show", "required: ID"),
            ("permit show Ib --as Ib", "unrecognized arguments"),
            ("who-knows Ib --most 0", "from 1 on"),
            ("who-knows Ib --most ١", "from 1 on"),
            ("who-knows Ib --since yesterday", "must be 30m, 2h or 7d"),
            ("account list --admin tcp:1201", "only unix:PATH"),
            ("account list --admin none", "no broker can be asked there"),
            ("check-config --role resolver x", "invalid choice"),
        ],
    )
    def test_wrong(self, line: str, why: str, shell: Shell) -> None:
        """Wrong usage ends with 2, and says what is wrong."""
        done = shell(line)
        assert done.status == 2
        assert why in done.err

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

    def listed(self, line: str, broker: FakeBroker, shell: Shell, *rows: Row) -> list[str]:
        """What a command that lists something prints."""
        broker.rows = list(rows)
        done = shell(line)
        assert done.status == 0
        return done.out.splitlines()

    def test_accounts(self, broker: FakeBroker, shell: Shell) -> None:
        """Accounts: identifier, state, groups and names; a dash for what is empty."""
        ia = {**IA, "names": ["t", "u"], "groups": ["@f"], "connections": 1}
        ib = {"identifier": "Ib", "names": [], "groups": [], "connections": 0, "reached": False}
        rows = ({**ia, "reached": True}, {**ia, "reached": False}, ib)
        assert self.listed("account list", broker, shell, *rows) == [
            "Ia\treached\t@f\tt,u",
            "Ia\tconnected\t@f\tt,u",
            "Ib\taway\t-\t-",
        ]

    def test_groups(self, broker: FakeBroker, shell: Shell) -> None:
        """Groups, and the members of one."""
        assert self.listed("group list", broker, shell, {"group": "@f", "members": 2}) == ["@f\t2"]
        assert self.listed("group list @f", broker, shell, IA) == ["Ia"]
        assert broker.asked == [{"do": "group list"}, {"do": "group members", "group": "@f"}]

    def test_permits(self, broker: FakeBroker, shell: Shell) -> None:
        """Who may call, by which entry, and with what limits."""
        plain = {"expires": None, "uses": None}
        rows: list[Row] = [
            {"caller": "Ia", "entry": "Ia", **plain},
            {"caller": "Ic", "entry": "@f", "expires": 3541, "uses": 1},
            {"caller": "Ic", "entry": "@f", "expires": None, "uses": 2},
            {"caller": None, "entry": "@e", **plain, "group": "empty"},
            {"caller": None, "entry": "@n", **plain, "group": "none"},
        ]
        assert self.listed("permit show Ib", broker, shell, *rows) == [
            "Ia\tIa",
            "Ic\t@f\t0:59:01 left\t1 call left",
            "Ic\t@f\t2 calls left",
            "-\t@e\tno member",
            "-\t@n\tthere is no such group",
        ]

    def test_who_knows(self, broker: FakeBroker, shell: Shell) -> None:
        """When, who was told, which address, by what entry, in which session, until when."""
        moments = {"at": "2026-11-21T12:34:56.123456Z", "until": "2026-11-21T13:34:56.123456Z"}
        row = {**moments, "told": "Ia", "address": "192.0.2.1", "port": 1203, "entry": "@f"}
        row["session"] = "S1"
        rows = (row, {**row, "address": "2001:db8::1"})
        first, second = self.listed("who-knows Ib --most 5", broker, shell, *rows)
        assert first == (
            "2026-11-21T12:34:56Z\tIa\t192.0.2.1:1203\t@f\tS1\tuntil 2026-11-21T13:34:56Z"
        )
        assert "\t[2001:db8::1]:1203\t" in second
        assert broker.asked == [{"do": "who knows", "identifier": "Ib", "most": 5}]

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

    def test_generated_and_refused(self, broker: FakeBroker, shell: Shell) -> None:
        """One that the broker has refused is not printed."""
        broker.raises = AdminRefused("refused", "there is already an account Ia")
        assert shell("account add Ia --generate")[:2] == (4, "")

    def test_generated_for_a_script(self, broker: FakeBroker, shell: Shell) -> None:
        """A script finds it in the last line."""
        answer = json.loads(shell("account add Ia --generate --json").out)
        assert answer == {"done": True, "password": broker.passwords[0]}

    def test_file(self, broker: FakeBroker, shell: Shell, tmp_path: Path) -> None:
        """A file's only line; an error if others can read the file, with the remedy."""
        path = tmp_path / "password"
        path.write_text("correct horse\n")
        path.chmod(0o644)
        command = f"account add Ia --password-file {path}"
        exposed = shell(command)
        assert exposed.status == 1
        assert f"chmod 600 {path}" in exposed.err
        assert broker.asked == []
        path.chmod(0o600)
        taken = shell(command)
        assert taken.status == 0
        assert "correct" not in taken.out
        assert broker.passwords == ["correct horse"]
        path.unlink()
        missing = shell(command)
        assert missing.status == 1
        assert "No such file" in missing.err

    def typed(self, monkeypatch: pytest.MonkeyPatch, *passwords: str) -> list[str]:
        """A person at a terminal types these; the result lists for which account each time."""
        asked: list[str] = []
        typing = iter(passwords)

        def ask_password(whose: str) -> FoundPassword:
            asked.append(whose)
            return FoundPassword(next(typing), None)

        monkeypatch.setattr(sys, "stdin", Tty())
        monkeypatch.setattr(admin_cli, "ask_password", ask_password)
        return asked

    def test_typed(self, broker: FakeBroker, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
        """At a terminal it is asked for twice."""
        asked = self.typed(monkeypatch, "horse", "horse")
        assert shell("account reset Ia").status == 0
        assert asked == ["Ia", "Ia, once more"]
        assert broker.passwords == ["horse"]

    def test_typed_differently(
        self, broker: FakeBroker, shell: Shell, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Two that differ set nothing, and neither is shown."""
        self.typed(monkeypatch, "horse", "house")
        done = shell("account add Ia")
        assert done.status == 1
        assert broker.asked == []
        assert "the two passwords differ" in done.err
        assert "horse" not in done.err

    def test_from_a_pipe(
        self, broker: FakeBroker, shell: Shell, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """None is read from a pipe; the error says what to do instead."""
        monkeypatch.setattr(sys, "stdin", io.StringIO("horse\nhorse\n"))
        done = shell("account add Ia")
        assert done.status == 1
        assert broker.asked == []
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

    def test_invalid(self, path: Path, shell: Shell) -> None:
        """Everything that is wrong is said, one line each, as the role would (I3)."""
        path.write_text('listen = ["tcp:1201"]\nstore = "redis:x"\nauto = 1\nadmin = "tcp:1"\n')
        done = shell(f"check-config {path}")
        assert done[:2] == (1, "")
        names = [line.partition(f"broker: {path}: ")[2] for line in done.err.splitlines()]
        assert [name.partition(":")[0] for name in names] == ["auto", "store", "admin", "listen"]

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (None, "No such file"),
            (b"=", "not TOML"),
            (b"\xff", "not TOML"),
            (
                b'listen-tls = ["tcp:1202"]\ncertificate = "/nowhere/x"\n'
                b'private-key = "/nowhere/y"\n',
                "/nowhere/",
            ),
        ],
    )
    def test_unreadable(self, content: bytes | None, why: str, path: Path, shell: Shell) -> None:
        """So are a file that can't be read, and files that it names."""
        if content is not None:
            path.write_bytes(content)
        done = shell(f"check-config {path}")
        assert done.status == 1
        assert why in done.err

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

    @pytest.fixture
    def path(self, tmp_path: Path) -> str:
        """The path of the socket."""
        return str(tmp_path / "admin")

    @pytest.fixture
    def answer(self, path: str) -> Iterator[Callable[[bytes], None]]:
        """Have a server at the socket read a line, send an answer, and close."""
        threads: list[threading.Thread] = []
        with socket.socket(socket.AF_UNIX) as listening:

            def serve(data: bytes) -> None:
                connection, _ = listening.accept()
                with connection, connection.makefile("rb") as lines:
                    lines.readline()
                    connection.sendall(data)

            def start(data: bytes) -> None:
                if not threads:
                    listening.bind(path)
                    listening.listen()
                threads.append(threading.Thread(target=serve, args=(data,)))
                threads[-1].start()

            yield start
            for thread in threads:
                thread.join(10)

    def ask(self, path: str) -> tuple[list[Row], Row]:
        """Ask for something; the rows and the end of the answer."""
        rows: list[Row] = []
        end = ask(path, {"do": "x"}, rows.append)
        return rows, end

    def test_answer(self, path: str, answer: Callable[[bytes], None]) -> None:
        """Rows, and an end."""
        answer('{"a": "山"}\n{"a": 2}\n{"done": true, "b": 1}\n'.encode())
        assert self.ask(path) == ([{"a": "山"}, {"a": 2}], {"done": True, "b": 1})

    def test_refusal(self, path: str, answer: Callable[[bytes], None]) -> None:
        """A refusal, even after rows."""
        answer(b'{"a": 1}\n{"error": "no", "kind": "busy"}\n')
        with pytest.raises(AdminRefused, match="no") as refused:
            self.ask(path)
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
    def test_no_answer(
        self, path: str, answer: Callable[[bytes], None], data: bytes, why: str
    ) -> None:
        """An answer without an end is not taken for one (I8), nor is another protocol."""
        answer(data)
        with pytest.raises(NoBroker, match=why):
            self.ask(path)

    def test_not_there(self, path: str) -> None:
        """No file, and a file that is no socket."""
        with pytest.raises(NoBroker, match=r"no broker answers at .*: start it, or name"):
            self.ask(path)
        Path(path).touch()
        with pytest.raises(NoBroker, match="no broker answers at"):
            self.ask(path)

    def test_silence(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The wait for an answer ends."""
        monkeypatch.setattr(admin_cli, "PATIENCE", 0.01)
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(path)
            silent.listen()
            with pytest.raises(NoBroker, match="does not answer"):
                self.ask(path)

    def test_printing_fails(self, path: str, answer: Callable[[bytes], None]) -> None:
        """A failure to print is not taken for the end of the broker."""

        def show(row: Row) -> None:
            raise BrokenPipeError

        answer(b'{"a": 1}\n{"done": true}\n')
        with pytest.raises(BrokenPipeError):
            ask(path, {"do": "x"}, show)
