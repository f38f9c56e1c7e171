"""The ``broker`` command: what it understands, what it shows, and how it ends."""

from __future__ import annotations

import io
import re
from typing import Any, Final

import pytest
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock

import broker
from broker.cli import mediator
from broker.cli.main import make_parser
from broker.cli.output import NotAllowed, Progress, Unreachable, explain, limits_in_words
from broker.files import InvalidFile
from broker.messages.errors import CalleeBusy, PermissionDenied, RegistrationFailed
from broker.net.tls.errors import TlsFailed
from broker.service.settings.credentials import NoPasswordGiven
from broker.terminal.apps.receipt import TransferFailed
from broker.terminal.errors import CallFailed
from tests.cli.shell import Shell, Tty
from tests.docs.options import commands

DEFAULT: Final = {"mediator": "tcp:127.0.0.1:1201", "trace": False, "identifier": "Ib"}
#: Command lines, and some of what each means.
PARSED: Final[dict[str, dict[str, Any]]] = {
    "permit add --as Ib Ia 山田太郎 --mediator tcp:192.0.2.1:99": {
        "command": "permit",
        "change": "add",
        "identifiers": ["Ia", "山田太郎"],
        **DEFAULT,
        "mediator": "tcp:192.0.2.1:99",
    },
    "permit add --as Ib Ia @family --expires 3600 --uses 1": {
        "identifiers": ["Ia", "@family"],
        "expires": 3600,
        "uses": 1,
        **DEFAULT,
    },
    "login --as Ib": {"command": "login", "password_file": None, **DEFAULT},
    "disclosures --as Ib": {"command": "disclosures", **DEFAULT},
    "register --as Ib --address 127.0.0.1 --port 1210": {
        "command": "register",
        "address": "127.0.0.1",
        "port": 1210,
        "expires": None,
        "once": False,
        **DEFAULT,
    },
    "call --as Ib Ia --send x.wav": {
        "command": "call",
        "callee": "Ia",
        "send": "x.wav",
        "connect_back": False,
        **DEFAULT,
    },
}

#: Each command, and how many examples its help has at least.
HELPED: Final = {
    **{command.name: int(command.kind == "operator") for command in commands()},
    "": 4,
    "ca": 5,
    "check-config": 1,
    "account": 1,
    "account name": 1,
    "group": 1,
    "permit": 0,
}


class ParserTests:
    """The command line."""

    def test_when_a_line_is_parsed_then_each_argument_has_its_value(self) -> None:
        """Limits are numbers, a group is an entry (A18), and defaults are the documented ones."""
        for line, expected in PARSED.items():
            parsed = make_parser().parse_args(line.split())
            mediator = parsed.mediator.text
            assert vars(parsed) | {"mediator": mediator} | expected == {
                **vars(parsed),
                "mediator": mediator,
            }

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            ("", "required: command"),
            ("dance", "invalid choice"),
            ("permit", "required: change"),
            ("permit add --as Ib", "required: ID"),
            ("permit delete --as Ib", "required: ID"),
            ("permit list", "--as --local is required"),
            ("permit create Ia", "required: --as"),
            ("permit add --as Ib a,b", "a comma"),
            ("permit add --as @group Ia", "begins with @"),
            ("register --as Ib", "required: --address"),
            ("register --as Ib --address 127.0.0.1 --port 0", "must be from 1 to 65535"),
            ("register --as Ib --address 127.0.0.1 --port ١", "must be a number"),
            ("call --as Ia", "required: CALLEE"),
            ("call --as Ia Ib --mediator localhost", "no endpoint"),
            ("permit add --as Ib Ia --expires 0", "must be from 1 to"),
            ("permit add --as Ib Ia --uses many", "must be a number"),
            ("permit delete --as Ib Ia --uses 1", "unrecognized"),
            ("permit list --as Ib --certificate x", "go with --mediator tls:HOST:PORT"),
            ("permit list --as Ib --private-key x", "go with --mediator tls:HOST:PORT"),
            ("permit list --as Ib --revocation-list x", "go with --mediator tls:HOST:PORT"),
            ("login --as Ib --password secret", "unrecognized"),
            ("consent list", "invalid choice"),
            ("permit refuse --as Ib Ix", "permit refuse is now called permit reject"),
            ("permit relent --local Ib.consent Ix", "permit relent is now called permit unreject"),
            ("permit relent", "permit relent is now called permit unreject"),
            ("permit foo", "'delete', 'reject', 'unreject', 'policy', 'list', 'show')"),
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
            ("ca", "required: change"),
            ("ca issue", "one of the arguments --server --terminal --mediator is required"),
            ("ca issue --terminal Ia --mediator m", "not allowed with"),
            ("ca issue --terminal @all", "begins with @"),
            ("ca issue --server a_b", "neither a DNS name nor an IP address"),
            ("ca request --mediator a,b", "not a mediator's name"),
            ("ca sign", "required: REQUEST"),
            ("ca revoke", "required: CERTIFICATE|SERIAL"),
        ],
    )
    def test_wrong(self, line: str, why: str, shell: Shell) -> None:
        """Wrong usage ends with 2, and says what is wrong."""
        done = shell(line)
        assert done.status == 2
        assert why in done.err

    @pytest.mark.parametrize("command", HELPED)
    def test_help(self, command: str, shell: Shell) -> None:
        """Each command explains itself, in lines that fit. A newcomer finds what to type, in valid
        examples, and what the exit status means.
        """
        done = shell(f"{command} --help")
        assert done.status == 0
        assert done.out.startswith("usage: broker")
        assert max(map(len, done.out.splitlines())) <= 100
        examples = re.findall(r"^  broker (.*?)(?:  .*)?$", done.out, re.M)
        assert len(examples) >= HELPED[command]
        for example in examples:
            words = re.split(r" [|<] ?", example)[0].replace("'", "").split()
            assert "run" in make_parser().parse_args(words)
        if HELPED[command]:
            assert "exit status: 0" in done.out
        assert command or "4 refused" in done.out

    def test_version(self, shell: Shell) -> None:
        """The version is the package's."""
        assert shell("--version") == (0, f"broker {broker.__version__}\n", "")


class ClearTextTests:
    """Nothing is sent over a network in clear text (I25)."""

    @pytest.fixture
    def events(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """What a command does: it asks a person, or runs in a reactor."""
        events: list[str] = []
        monkeypatch.setattr(mediator, "run_in_reactor", lambda *_: events.append("run"))
        monkeypatch.setattr(mediator, "ask_password", lambda *_: events.append("ask"))
        return events

    @pytest.mark.parametrize(
        "command", ["permit list", "login", "disclosures", "register --address 127.0.0.1"]
    )
    def test_refused(self, command: str, events: list[str], shell: Shell) -> None:
        """It is wrong usage, before a person is asked or a connection is made."""
        done = shell(f"{command} --as=Ib --mediator=tcp:192.0.2.1:1201")
        assert done.status == 2
        assert "go there in clear text" in done.err
        assert events == []

    @pytest.mark.parametrize(
        "options",
        [
            "tcp:192.0.2.1:1201 --allow-clear-text",
            "tcp:127.0.0.5:1201",
            "tcp:localhost:1201",
            "tls:192.0.2.1:1202",
        ],
    )
    def test_not_refused(self, options: str, events: list[str], shell: Shell) -> None:
        """Unless it is allowed, or stays on this machine, or is encrypted."""
        assert shell(f"permit list --as=Ib --mediator={options}").status == 0
        assert events == ["run"]


class ExitStatusTests:
    """How each failure ends."""

    @pytest.mark.parametrize(
        ("error", "status", "told"),
        [
            (PermissionDenied(), 4, "Permission Denied."),
            (CalleeBusy(), 4, "Callee is Busy."),
            (RegistrationFailed("no\x1b"), 4, "Registration Failed. (no\\u001b)"),
            (Unreachable("not there"), 3, "not there"),
            (TlsFailed("bad"), 3, "no TLS connection to the mediator: bad"),
            (ConnectionLost(), 3, "the mediator has closed the connection"),
            (CallFailed("no answer\n"), 1, "no answer\\u000a"),
            (TransferFailed("half"), 1, "half"),
            (NotAllowed("wrong\u202e"), 4, "wrong\\u202e"),
            (InvalidFile("x: others can read it"), 1, "x: others can read it"),
            (FileNotFoundError(2, "No such file", "x"), 1, "x: No such file"),
            # Who answers no question has interrupted the command.
            (NoPasswordGiven(), 130, ""),
        ],
    )
    def test_told_in_a_line(
        self, error: Exception, status: int, told: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A line on standard error, with nothing of a peer's that moves a terminal (I19)."""
        assert explain(error) == status
        assert capsys.readouterr() == ("", f"broker: {told}\n" if told else "")

    def test_our_fault(self, capsys: pytest.CaptureFixture[str]) -> None:
        """What was not foreseen is shown whole, so that it can be mended."""
        assert explain(ZeroDivisionError()) == 1
        assert "ZeroDivisionError" in capsys.readouterr().err


class LimitsTests:
    """The limits of permits in words."""

    @pytest.mark.parametrize(
        ("entry", "words"),
        [
            ("Ia", "Ia"),
            ("Ia;uses=1", "Ia (1 call left)"),
            ("@family;uses=12", "@family (12 calls left)"),
            ("Ia;expires=1", "Ia (1 s left)"),
            ("Ia;expires=119", "Ia (119 s left)"),
            ("Ia;expires=3541;uses=1", "Ia (59 min left, 1 call left)"),
            ("Ia;expires=7200", "Ia (2 h left)"),
            ("Ia;expires=172800", "Ia (2 days left)"),
        ],
    )
    def test_words(self, entry: str, words: str) -> None:
        """As a person says it, never more than there is."""
        assert limits_in_words(entry) == words


class ProgressTests:
    """The bar."""

    @pytest.mark.parametrize(
        ("stream", "total", "steps", "drawn"),
        [
            # It grows on its line, which it leaves at the end.
            (Tty, 2_000_000, [(1.0, 1_000_000), (2.0, 2_000_000)], [50, 100]),
            # Ten times a second is enough, but the end is always drawn.
            (Tty, 2_000_000, [(1.0, 20_000), (1.05, 2), (1.06, 3), (1.07, 2_000_000)], [1, 100]),
            # A file that grew while it was sent is not more than whole.
            (Tty, 2_000_000, [(1.0, 3_000_000)], [100]),
            # An empty file, or a device, has no part of a whole; what is no terminal gets nothing.
            (Tty, 0, [(1.0, 0), (2.0, 10)], []),
            (io.StringIO, 100, [(1.0, 50), (2.0, 100)], []),
        ],
    )
    def test_drawn(
        self, stream: type[io.StringIO], total: int, steps: Any, drawn: list[int]
    ) -> None:
        """The percentages that are drawn after these steps, each a time and the bytes by then."""
        clock, shown = Clock(), stream()
        progress = Progress(shown, total, clock)
        for clock.rightNow, octets in steps:
            progress.at(octets)
        progress.end()
        bars = [f"\r[{'#' * (30 * part // 100):30}] {part:3}% of 2.0 MB" for part in drawn]
        assert shown.getvalue() == "".join(bars) + "\n" * bool(bars)
