"""The ``broker`` command: what it understands, what it shows, and how it ends."""

from __future__ import annotations

import io
from typing import Any

import pytest
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure

import broker
from broker import cli
from broker.cli import Progress, Unreachable, make_parser
from broker.terminal.errors import CallFailed
from broker.terminal.files import TransferFailed
from broker.wire.refusals import CalleeBusy, PermissionDenied, RegistrationFailed


class ParserTests:
    """The command line."""

    def test_permit(self) -> None:
        """Who edits, what becomes of whom, and where."""
        arguments = make_parser().parse_args(
            ["permit", "add", "--as", "Ib", "Ia", "山田太郎", "--mediator", "tcp:192.0.2.1:99"]
        )
        assert arguments.run is cli.permit
        assert arguments.change == "add"
        assert arguments.identifier == "Ib"
        assert arguments.identifiers == ["Ia", "山田太郎"]
        assert arguments.mediator.text == "tcp:192.0.2.1:99"
        assert arguments.trace is False

    def test_register(self) -> None:
        """Where a terminal is; what is not said is left to the server."""
        arguments = make_parser().parse_args(
            ["register", "--as", "Ib", "--address", "127.0.0.1", "--port", "1210"]
        )
        assert arguments.run is cli.register
        assert (arguments.address, arguments.port, arguments.expires) == ("127.0.0.1", 1210, None)
        assert arguments.once is False
        assert arguments.mediator.text == "tcp:127.0.0.1:1201"

    def test_call(self) -> None:
        """Who calls whom, and what is sent."""
        arguments = make_parser().parse_args(["call", "--as", "Ia", "Ib", "--send", "x.wav"])
        assert arguments.run is cli.call
        assert (arguments.identifier, arguments.callee) == ("Ia", "Ib")
        assert arguments.send == "x.wav"

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            ("", "required: command"),
            ("dance", "invalid choice"),
            ("permit", "required: change"),
            ("permit add --as Ib", "required: ID"),
            ("permit delete --as Ib", "required: ID"),
            ("permit list Ia", "required: --as"),
            ("permit add --as Ib a,b", "a comma"),
            ("permit add --as @group Ia", "begins with @"),
            ("register --as Ib", "required: --address"),
            ("register --as Ib --address 127.0.0.1 --port 0", "must be from 1 to 65535"),
            ("register --as Ib --address 127.0.0.1 --port ١", "must be a number"),
            ("call --as Ia", "required: CALLEE"),
            ("call --as Ia Ib --mediator localhost", "no endpoint"),
        ],
    )
    def test_wrong(self, line: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Wrong usage ends with 2, and says what is wrong."""
        with pytest.raises(SystemExit) as wrong:
            cli.main(line.split())
        assert wrong.value.code == 2
        assert why in capsys.readouterr().err

    @pytest.mark.parametrize(
        "command",
        [
            "--help",
            "permit --help",
            "permit create --help",
            "permit list --help",
            "register --help",
            "call --help",
        ],
    )
    def test_help(self, command: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Each command explains itself, in lines that fit."""
        with pytest.raises(SystemExit) as done:
            cli.main(command.split())
        assert done.value.code == 0
        shown = capsys.readouterr().out
        assert shown.startswith("usage: broker")
        assert max(map(len, shown.splitlines())) <= 100

    def test_help_has_examples(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A newcomer finds what to type, and what the exit status means."""
        with pytest.raises(SystemExit):
            cli.main(["--help"])
        shown = capsys.readouterr().out
        examples = [line for line in shown.splitlines() if line.startswith("  broker ")]
        assert len(examples) >= 4
        for example in examples:
            command, _, _ = example.strip().partition("   ")[0].partition(" <")
            make_parser().parse_args(command.split()[1:])
        assert "4 refused" in shown

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The version is the package's."""
        with pytest.raises(SystemExit) as done:
            cli.main(["--version"])
        assert done.value.code == 0
        assert capsys.readouterr().out == f"broker {broker.__version__}\n"


class Tty(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


class ProgressTests:
    """The bar."""

    def draw(self, stream: io.StringIO, total: int, *steps: tuple[float, int]) -> str:
        """What is written when so many bytes have gone at such times."""
        now = [0.0]
        progress = Progress(stream, total, lambda: now[0])
        for now[0], octets in steps:
            progress.at(octets)
        progress.end()
        return stream.getvalue()

    def test_grows(self) -> None:
        """It grows on its line, which it leaves at the end."""
        drawn = self.draw(Tty(), 2_000_000, (1.0, 1_000_000), (2.0, 2_000_000))
        half, full = "#" * 15 + " " * 15, "#" * 30
        assert drawn == f"\r[{half}]  50% of 2.0 MB\r[{full}] 100% of 2.0 MB\n"

    def test_not_too_often(self) -> None:
        """Ten times a second is enough, but the end is always drawn."""
        drawn = self.draw(Tty(), 100, (1.0, 1), (1.05, 2), (1.06, 3), (1.07, 100))
        assert drawn.count("\r") == 2
        assert "100%" in drawn

    def test_none_in_a_pipe(self) -> None:
        """What is no terminal gets nothing."""
        assert self.draw(io.StringIO(), 100, (1.0, 50), (2.0, 100)) == ""

    def test_nothing_to_send(self) -> None:
        """An empty file, or a device, has no part of a whole."""
        assert self.draw(Tty(), 0, (1.0, 0), (2.0, 10)) == ""

    def test_grown_since(self) -> None:
        """A file that grew while it was sent is not more than whole."""
        assert "100%" in self.draw(Tty(), 100, (1.0, 150))


class ExitStatusTests:
    """How each failure ends."""

    @pytest.mark.parametrize(
        ("error", "status", "told"),
        [
            (PermissionDenied(), 4, "Permission Denied."),
            (CalleeBusy(), 4, "Callee is Busy."),
            (RegistrationFailed("no\x1b"), 4, "Registration Failed. (no\\u001b)"),
            (Unreachable("not there"), 3, "not there"),
            (ConnectionLost(), 3, "the mediator has closed the connection"),
            (CallFailed("no answer\n"), 1, "no answer\\u000a"),
            (TransferFailed("half"), 1, "half"),
            (FileNotFoundError(2, "No such file", "x"), 1, "x: No such file"),
        ],
    )
    def test_told_in_a_line(
        self, error: Exception, status: int, told: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A line on standard error, with nothing of a peer's that moves a terminal (I19)."""
        assert cli._explain(Failure(error)) == status
        captured: Any = capsys.readouterr()
        assert captured.err == f"broker: {told}\n"
        assert captured.out == ""

    def test_our_fault(self, capsys: pytest.CaptureFixture[str]) -> None:
        """What was not foreseen is shown whole, so that it can be mended."""
        assert cli._explain(Failure(ZeroDivisionError())) == 1
        assert "ZeroDivisionError" in capsys.readouterr().err
