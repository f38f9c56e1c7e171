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
from broker.cli import main as cli
from broker.cli.admin import AdminRefused, NoBroker, Row, ask
from broker.cli.main import make_parser
from broker.service.settings.credentials import FoundPassword
from broker.tables.grants import PASSWORD_ALPHABET
from tests.cli.tty import Tty

ROOT: Final = Path(__file__).resolve().parents[2]
COMMANDS: Final = [
    *(f"account {change}" for change in ("add", "remove", "list", "reset")),
    *("account name add", "account name remove"),
    *(f"group {change}" for change in ("create", "add", "delete", "list")),
    *("permit show", "who-knows", "check-config"),
]


class Answering:
    """A broker that is asked by nobody but a test.

    :ivar asked: the requests
    :ivar rows: what each is answered
    :ivar end: the end of each answer
    :ivar raises: what becomes of one instead
    """

    def __init__(self) -> None:
        self.asked: list[Row] = []
        self.paths: list[str] = []
        self.rows: list[Row] = []
        self.end: Row = {}
        self.raises: Exception | None = None

    def ask(self, path: str, request: Row, told: Callable[[Row], object]) -> Row:
        """As ``admin_cli.ask``."""
        self.asked.append(request)
        self.paths.append(path)
        for row in self.rows:
            told(row)
        if self.raises is not None:
            raise self.raises
        return {"done": True, **self.end}


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Answering:
    """A broker that answers as the test says."""
    answering = Answering()
    monkeypatch.setattr(admin_cli, "ask", answering.ask)
    return answering


class ParserTests:
    """The command line."""

    @pytest.mark.parametrize("command", ["account", "group", "account name", *COMMANDS])
    def test_help(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Each command explains itself, in lines that fit, with examples that are understood."""
        with pytest.raises(SystemExit) as done:
            cli.main([*command.split(), "--help"])
        assert done.value.code == 0
        shown = capsys.readouterr().out
        assert shown.startswith("usage: broker")
        assert max(map(len, shown.splitlines())) <= 100
        assert "exit status: 0" in shown
        examples = re.findall(r"^  broker (.*?)(?:  .*)?$", shown, re.M)
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
    def test_wrong(self, line: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Wrong usage ends with 2, and says what is wrong."""
        with pytest.raises(SystemExit) as wrong:
            cli.main(line.split())
        assert wrong.value.code == 2
        assert why in capsys.readouterr().err

    def test_admin(self, broker: Answering) -> None:
        """The socket is the one that is named; without, the one that a broker makes here."""
        assert cli.main(["account", "list"]) == 0
        assert cli.main(["account", "list", "--admin", "unix:/run/x"]) == 0
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
        self, text: str, when: int, broker: Answering, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A time is so long ago, or a date, in UTC where it does not say otherwise."""
        monkeypatch.setattr(time, "time", lambda: 2_000_000_000.5)
        assert cli.main(["who-knows", "Ib", "--since", text]) == 0
        expected = when if when >= 0 else 2_000_000_000 + when
        assert broker.asked == [{"do": "who knows", "identifier": "Ib", "since": expected}]


class OutputTests:
    """What is asked and printed."""

    @pytest.mark.parametrize(
        ("line", "request_", "end", "shown"),
        [
            (
                "account remove Ia",
                {"do": "account remove", "identifier": "Ia"},
                {"lists": 1, "groups": 2},
                "Ia is removed, also from 1 list and 2 groups",
            ),
            (
                "account name add Ia taro",
                {"do": "account name add", "identifier": "Ia", "name": "taro"},
                {},
                "taro is a name of Ia",
            ),
            (
                "account name remove Ia taro",
                {"do": "account name remove", "identifier": "Ia", "name": "taro"},
                {},
                "taro is taken from Ia",
            ),
            (
                "group create @f",
                {"do": "group create", "group": "@f", "members": []},
                {"members": 0},
                "@f has 0 members",
            ),
            (
                "group add @f Ia Ic",
                {"do": "group add", "group": "@f", "members": ["Ia", "Ic"]},
                {"members": 2},
                "@f has 2 members",
            ),
            (
                "group delete @f Ia",
                {"do": "group remove", "group": "@f", "members": ["Ia"]},
                {"members": 1},
                "@f has 1 member",
            ),
            (
                "group delete @f",
                {"do": "group delete", "group": "@f"},
                {"members": 1, "lists": 3},
                "@f is deleted; it had 1 member, and 3 lists named it",
            ),
        ],
    )
    def test_acts(
        self,
        line: str,
        request_: Row,
        end: Row,
        shown: str,
        broker: Answering,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Each act says what it has done; for scripts, what the broker says."""
        broker.end = end
        assert cli.main(line.split()) == 0
        assert capsys.readouterr().out == shown + "\n"
        assert cli.main([*line.split(), "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"done": True, **end}
        assert broker.asked == [request_, request_]

    def listed(
        self, line: str, broker: Answering, capsys: pytest.CaptureFixture[str], *rows: Row
    ) -> list[str]:
        """What a command that lists something prints."""
        broker.rows = list(rows)
        assert cli.main(line.split()) == 0
        return capsys.readouterr().out.splitlines()

    def test_accounts(self, broker: Answering, capsys: pytest.CaptureFixture[str]) -> None:
        """Accounts: who, whether it is there, its groups and names; a dash for what is empty."""
        ia = {"identifier": "Ia", "names": ["t", "u"], "groups": ["@f"], "connections": 1}
        ib = {"identifier": "Ib", "names": [], "groups": [], "connections": 0, "reached": False}
        assert self.listed(
            "account list", broker, capsys, {**ia, "reached": True}, {**ia, "reached": False}, ib
        ) == ["Ia\treached\t@f\tt,u", "Ia\tconnected\t@f\tt,u", "Ib\taway\t-\t-"]

    def test_groups(self, broker: Answering, capsys: pytest.CaptureFixture[str]) -> None:
        """Groups, and who is in one."""
        assert self.listed("group list", broker, capsys, {"group": "@f", "members": 2}) == ["@f\t2"]
        assert self.listed("group list @f", broker, capsys, {"identifier": "Ia"}) == ["Ia"]
        assert broker.asked == [{"do": "group list"}, {"do": "group members", "group": "@f"}]

    def test_permits(self, broker: Answering, capsys: pytest.CaptureFixture[str]) -> None:
        """Who may call, by which entry, and with what limits."""
        plain = {"expires": None, "uses": None}
        assert self.listed(
            "permit show Ib",
            broker,
            capsys,
            {"caller": "Ia", "entry": "Ia", **plain},
            {"caller": "Ic", "entry": "@f", "expires": 3541, "uses": 1},
            {"caller": "Ic", "entry": "@f", "expires": None, "uses": 2},
            {"caller": None, "entry": "@e", **plain, "group": "empty"},
            {"caller": None, "entry": "@n", **plain, "group": "none"},
        ) == [
            "Ia\tIa",
            "Ic\t@f\t0:59:01 left\t1 call left",
            "Ic\t@f\t2 calls left",
            "-\t@e\tno member",
            "-\t@n\tthere is no such group",
        ]

    def test_who_knows(self, broker: Answering, capsys: pytest.CaptureFixture[str]) -> None:
        """Who was told, when, which address, by what entry, in which session, until when."""
        row = {
            "at": "2026-11-21T12:34:56.123456Z",
            "told": "Ia",
            "address": "192.0.2.1",
            "port": 1203,
            "entry": "@f",
            "session": "S1",
            "until": "2026-11-21T13:34:56.123456Z",
        }
        lines = self.listed(
            "who-knows Ib --most 5", broker, capsys, row, {**row, "address": "2001:db8::1"}
        )
        assert lines[0] == (
            "2026-11-21T12:34:56Z\tIa\t192.0.2.1:1203\t@f\tS1\tuntil 2026-11-21T13:34:56Z"
        )
        assert "\t[2001:db8::1]:1203\t" in lines[1]
        assert broker.asked == [{"do": "who knows", "identifier": "Ib", "most": 5}]

    @pytest.mark.parametrize("as_json", [False, True])
    def test_names_have_no_power(
        self, as_json: bool, broker: Answering, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """What terminals are called makes no line and no escape on the operator's screen (I19)."""
        broker.rows = [{"identifier": "a\u2028b\u202e\x1b[2Jc"}]
        assert cli.main(["group", "list", "@f", *(["--json"] if as_json else [])]) == 0
        shown = capsys.readouterr().out
        assert shown.isascii()
        assert "\x1b" not in shown
        assert len(shown.splitlines()) == 1 + as_json

    def test_json_rows(self, broker: Answering, capsys: pytest.CaptureFixture[str]) -> None:
        """For scripts each row is as it came, and the last line says that it was all."""
        broker.rows = [{"group": "@f", "members": 2}]
        broker.end = {"groups": 1}
        assert cli.main(["group", "list", "--json"]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
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
        self,
        raised: Exception,
        status: int,
        broker: Answering,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Refused is 4, no broker 3, all else 1; why is on standard error, in a line."""
        broker.raises = raised
        assert cli.main(["account", "remove", "Ia"]) == status
        shown = capsys.readouterr()
        assert shown.out == ""
        if str(raised):
            text = str(raised).replace("\x1b", "\\u001b")
            assert shown.err == f"broker: {text}\n"

    def test_no_reader(
        self, broker: Answering, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Whoever reads what is printed may have had enough; nothing is said of that."""
        with (tmp_path / "out").open("w") as out:
            monkeypatch.setattr(sys, "stdout", out)
            broker.raises = BrokenPipeError()
            assert cli.main(["account", "list"]) == 1


class PasswordTests:
    """Where a password comes from: never from where others see it (I18)."""

    @pytest.mark.parametrize("change", ["add", "reset"])
    def test_generated(
        self, change: str, broker: Answering, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """One that is made has 96 bits at least, is another each time, and is printed once."""
        shown = []
        for _ in range(2):
            assert cli.main(["account", change, "Ia", "--generate"]) == 0
            shown.append(capsys.readouterr().out)
        passwords = [request["password"] for request in broker.asked]
        assert len(set(passwords)) == 2
        for password, text in zip(passwords, shown, strict=True):
            assert set(password) <= set(PASSWORD_ALPHABET.decode())
            assert len(password) * math.log2(len(PASSWORD_ALPHABET)) >= 96
            assert text.count(password) == 1

    def test_generated_and_refused(
        self, broker: Answering, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """One that was not taken is not printed."""
        broker.raises = AdminRefused("refused", "there is an account Ia already")
        assert cli.main(["account", "add", "Ia", "--generate"]) == 4
        assert capsys.readouterr().out == ""

    def test_generated_for_a_script(
        self, broker: Answering, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A script finds it in the last line."""
        assert cli.main(["account", "add", "Ia", "--generate", "--json"]) == 0
        (request,) = broker.asked
        answer = json.loads(capsys.readouterr().out)
        assert answer == {"done": True, "password": request["password"]}

    def test_file(
        self, broker: Answering, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A file's one line; refused where others can read it, with what to do."""
        path = tmp_path / "password"
        path.write_text("correct horse\n")
        path.chmod(0o644)
        command = ["account", "add", "Ia", "--password-file", str(path)]
        assert cli.main(command) == 1
        assert f"chmod 600 {path}" in capsys.readouterr().err
        assert broker.asked == []
        path.chmod(0o600)
        assert cli.main(command) == 0
        assert [request["password"] for request in broker.asked] == ["correct horse"]
        assert "correct" not in capsys.readouterr().out
        path.unlink()
        assert cli.main(command) == 1
        assert "No such file" in capsys.readouterr().err

    def typed(self, monkeypatch: pytest.MonkeyPatch, *passwords: str) -> list[str]:
        """Somebody is at a terminal and types these; who was asked for is kept."""
        asked: list[str] = []
        typing = iter(passwords)

        def ask_password(whose: str) -> FoundPassword:
            asked.append(whose)
            return FoundPassword(next(typing), None)

        monkeypatch.setattr(sys, "stdin", Tty())
        monkeypatch.setattr(admin_cli, "ask_password", ask_password)
        return asked

    def test_typed(self, broker: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
        """At a terminal it is asked for twice."""
        asked = self.typed(monkeypatch, "horse", "horse")
        assert cli.main(["account", "reset", "Ia"]) == 0
        assert asked == ["Ia", "Ia, once more"]
        assert [request["password"] for request in broker.asked] == ["horse"]

    def test_typed_otherwise(
        self,
        broker: Answering,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Two that differ set nothing, and neither is shown."""
        self.typed(monkeypatch, "horse", "house")
        assert cli.main(["account", "add", "Ia"]) == 1
        assert broker.asked == []
        assert "the two passwords differ" in (shown := capsys.readouterr().err)
        assert "horse" not in shown

    def test_from_a_pipe(
        self,
        broker: Answering,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """From a pipe none is read; it is said what to do instead."""
        monkeypatch.setattr(sys, "stdin", io.StringIO("horse\nhorse\n"))
        assert cli.main(["account", "add", "Ia"]) == 1
        assert broker.asked == []
        shown = capsys.readouterr().err
        assert "--password-file" in shown
        assert "--generate" in shown


class CheckConfigTests:
    """``broker check-config``."""

    @pytest.mark.parametrize("role", admin_cli.ROLES)
    def test_good(self, role: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """The samples are good; a mediator's is taken for one without being told so."""
        path = tmp_path / f"{role}.toml"
        text = (ROOT / "etc" / f"{role}.toml").read_text("utf-8")
        path.write_text(text.replace('identifier = ""', 'identifier = "Ib"'))
        named = [] if role == "broker" else ["--role", role]
        assert cli.main(["check-config", *named, str(path)]) == 0
        assert capsys.readouterr().out == f"{path} is valid\n"

    def test_bad(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Everything that is wrong is said, a line each, as the role would (I3)."""
        path = tmp_path / "bad.toml"
        path.write_text('listen = ["tcp:1201"]\nstore = "redis:x"\nauto = 1\nadmin = "tcp:1"\n')
        assert cli.main(["check-config", str(path)]) == 1
        shown = capsys.readouterr()
        assert shown.out == ""
        lines = shown.err.splitlines()
        assert [line.partition(f"broker: {path}: ")[2].partition(":")[0] for line in lines] == [
            "auto",
            "store",
            "admin",
            "listen",
        ]

    @pytest.mark.parametrize(
        ("content", "why"), [(None, "No such file"), (b"=", "not TOML"), (b"\xff", "not TOML")]
    )
    def test_unreadable(
        self,
        content: bytes | None,
        why: str,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """So is what is no configuration at all."""
        path = tmp_path / "x.toml"
        if content is not None:
            path.write_bytes(content)
        assert cli.main(["check-config", str(path)]) == 1
        assert why in capsys.readouterr().err

    def test_certificates(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Files that it names are looked at, as at a start."""
        path = tmp_path / "x.toml"
        path.write_text(
            'listen-tls = ["tcp:1202"]\ncertificate = "/nowhere/x"\nprivate-key = "/nowhere/y"\n'
        )
        assert cli.main(["check-config", str(path)]) == 1
        assert "/nowhere/" in capsys.readouterr().err

    def test_touches_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """No socket is opened, no database, and no file is written."""

        def forbidden(*_: Any, **__: Any) -> Any:
            raise AssertionError("it was to touch nothing")

        monkeypatch.chdir(tmp_path)
        Path("broker.toml").write_text('store = "sqlite:x.db"\nadmin = "unix:x.admin"\n')
        monkeypatch.setattr(socket, "socket", forbidden)
        monkeypatch.setattr(sqlite3, "connect", forbidden)
        assert cli.main(["check-config", "broker.toml"]) == 0
        assert os.listdir() == ["broker.toml"]


@pytest.mark.integration
class SocketTests:
    """What may be at the other end."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> str:
        """Where it is."""
        return str(tmp_path / "admin")

    @pytest.fixture
    def says(self, path: str) -> Iterator[Callable[[bytes], None]]:
        """Have somebody listen there who reads a line, says something, and closes."""
        threads: list[threading.Thread] = []
        with socket.socket(socket.AF_UNIX) as listening:

            def serve(answer: bytes) -> None:
                connection, _ = listening.accept()
                with connection, connection.makefile("rb") as lines:
                    lines.readline()
                    connection.sendall(answer)

            def start(answer: bytes) -> None:
                if not threads:
                    listening.bind(path)
                    listening.listen()
                threads.append(threading.Thread(target=serve, args=(answer,)))
                threads[-1].start()

            yield start
            for thread in threads:
                thread.join(10)

    def ask(self, path: str) -> tuple[list[Row], Row]:
        """Ask for something; give the rows and the end."""
        rows: list[Row] = []
        end = ask(path, {"do": "x"}, rows.append)
        return rows, end

    def test_answer(self, path: str, says: Callable[[bytes], None]) -> None:
        """Rows, and an end."""
        says('{"a": "山"}\n{"a": 2}\n{"done": true, "b": 1}\n'.encode())
        assert self.ask(path) == ([{"a": "山"}, {"a": 2}], {"done": True, "b": 1})

    def test_refusal(self, path: str, says: Callable[[bytes], None]) -> None:
        """A refusal, be it after rows."""
        says(b'{"a": 1}\n{"error": "no", "kind": "busy"}\n')
        with pytest.raises(AdminRefused, match="no") as refused:
            self.ask(path)
        assert refused.value.kind == "busy"

    @pytest.mark.parametrize("answer", [b"", b'{"a": 1}\n'])
    def test_cut_short(self, path: str, says: Callable[[bytes], None], answer: bytes) -> None:
        """An answer without an end is not taken for one (I8)."""
        says(answer)
        with pytest.raises(NoBroker, match="may have done what was asked"):
            self.ask(path)

    @pytest.mark.parametrize("answer", [b"220 mail\r\n", b"\xff\n", b'{"a": '])
    def test_no_broker(self, path: str, says: Callable[[bytes], None], answer: bytes) -> None:
        """Somebody who speaks otherwise."""
        says(answer)
        with pytest.raises(NoBroker, match="is no broker"):
            self.ask(path)

    def test_nobody(self, path: str) -> None:
        """Nobody, and a file that is no socket."""
        with pytest.raises(NoBroker, match=r"no broker answers at .*: start it, or name"):
            self.ask(path)
        Path(path).touch()
        with pytest.raises(NoBroker, match="no broker answers at"):
            self.ask(path)

    def test_silence(self, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that says nothing is not waited for endlessly."""
        monkeypatch.setattr(admin_cli, "PATIENCE", 0.01)
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(path)
            silent.listen()
            with pytest.raises(NoBroker, match="does not answer"):
                self.ask(path)

    def test_printing_fails(self, path: str, says: Callable[[bytes], None]) -> None:
        """What goes wrong with what is printed is not taken for the broker's end."""

        def told(row: Row) -> None:
            raise BrokenPipeError

        says(b'{"a": 1}\n{"done": true}\n')
        with pytest.raises(BrokenPipeError):
            ask(path, {"do": "x"}, told)
