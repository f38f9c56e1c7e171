"""The ``broker`` command: what it understands, what it shows, and how it ends."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure

import broker
from broker.cli import main as cli
from broker.cli.main import NotLoggedIn, Progress, Unreachable, make_parser
from broker.messages.errors import CalleeBusy, LoginRequired, PermissionDenied, RegistrationFailed
from broker.net.tls.certificates import InvalidFile
from broker.service.settings.credentials import Found, Keyring, NoAnswer
from broker.terminal.apps.files import TransferFailed
from broker.terminal.errors import CallFailed
from tests.support.clock import settle
from tests.support.reactor import FakeReactor
from tests.support.transport import Client
from tests.terminal.network import Outcome

WRONG = "Registration Failed.\nCause:the identifier or the password is wrong"
LOGIN_REQUIRED = "Login Required.\nCause:log in first"


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

    def test_limits(self) -> None:
        """For how long, and for how many calls; a group's name is an entry too (A18)."""
        line = "permit add --as Ib Ia @family --expires 3600 --uses 1"
        arguments = make_parser().parse_args(line.split())
        assert arguments.identifiers == ["Ia", "@family"]
        assert (arguments.expires, arguments.uses) == (3600, 1)

    def test_logins(self) -> None:
        """What keeps a password, and what tells of disclosures."""
        parser = make_parser()
        assert parser.parse_args(["login", "--as", "Ib"]).run is cli.login
        assert parser.parse_args(["logout", "--as", "Ib"]).local is cli.logout
        assert parser.parse_args(["disclosures", "--as", "Ib"]).run is cli.disclosures

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
            "permit add --help",
            "permit refuse --help",
            "permit list --help",
            "login --help",
            "logout --help",
            "disclosures --help",
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


class OwnFileTests:
    """A terminal's own file, edited in the words of the mediator's list (C4, C5)."""

    @pytest.fixture(autouse=True)
    def alone(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """No reactor, nobody to ask, and no password looked for."""
        for name in ("run", "ask_password", "Source"):
            monkeypatch.delattr(cli, name)
        self.file = tmp_path / "Ib.consent"

    def permit(self, change: str, *more: str) -> int:
        """Change or list the file; the status."""
        return cli.main(["permit", change, f"--local={self.file}", *more])

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ("add Ia @family", "+ Ia\n+ @family\n"),
            ("refuse Ix", "- Ix\n"),
            ("add Ia, refuse Ia", "+ Ia\n- Ia\n"),
            ("add Ia, refuse Ia, relent Ia", "+ Ia\n"),
            ("add Ia Ib, refuse Ia, delete Ia Ib", "- Ia\n"),
            ("add Ia, relent Ia", "+ Ia\n"),
            ("refuse Ia, delete Ia", "- Ia\n"),
            ("add Ia, delete Ia", ""),
        ],
    )
    def test_changes(self, changes: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Two lists, each changed by two words; the file is made, for its user alone."""
        for change in changes.split(", "):
            assert self.permit(*change.split()) == 0
            assert capsys.readouterr() == (f"{self.file} says so\n", "")
        assert self.file.read_text() == expected
        assert self.file.stat().st_mode & 0o777 == 0o600
        assert self.permit("list") == 0
        assert capsys.readouterr() == (expected, "")

    def test_added_though_refused(self, capsys: pytest.CaptureFixture[str]) -> None:
        """To be refused wins: who adds somebody refused is told, and how it is taken back (C5)."""
        self.permit("refuse", "Ix", "Iy")
        capsys.readouterr()
        assert self.permit("add", "Ix", "Ia") == 0
        assert self.file.read_text() == "- Ix\n- Iy\n+ Ix\n+ Ia\n"
        assert capsys.readouterr().err == (
            "broker: Ix is refused there, which wins:"
            f" broker permit relent --local {self.file} Ix\n"
        )

    def test_fails(self, capsys: pytest.CaptureFixture[str]) -> None:
        """What is bad, or can't be had, is status 1 and a line; a bad file stays as it is."""
        for change in (["list"], ["delete", "Ia"], ["relent", "Ia"]):
            assert self.permit(*change) == 1
            assert capsys.readouterr().err == f"broker: {self.file}: No such file or directory\n"
            assert not self.file.exists()
        self.file.write_text("+ Ia\nIb\n")
        self.file.chmod(0o600)
        assert self.permit("delete", "Ia") == 1
        assert ": line 2: begins with neither" in capsys.readouterr().err
        assert self.file.read_text() == "+ Ia\nIb\n"
        self.file = self.file / "under"
        assert self.permit("add", "Ia") == 1
        assert capsys.readouterr() == ("", f"broker: {self.file}: Not a directory\n")

    def test_interrupted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who gives up waiting for another's edit ends it as any command."""

        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(cli, "edit_file", interrupted)
        assert self.permit("add", "Ia") == 130

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            ("add Ia --as Ib", "not allowed with argument --local"),
            ("add Ia --expires 60", "--expires goes without --local: a file has no limits"),
            ("add Ia --uses 1", "--uses goes without --local: a file has no limits"),
            ("list --plain", "--plain goes without --local"),
            ("add Ia --mediator tcp:127.0.0.1:1201", "--mediator goes without --local"),
            ("list --ca x", "--ca goes without --local"),
            (f"list --pin {'0' * 64}", "--pin goes without --local"),
            ("list --revocation-list x", "--revocation-list goes without --local"),
            ("list --certificate x", "--certificate goes without --local"),
            ("list --private-key x", "--private-key goes without --local"),
            ("refuse Ia --password-file x", "--password-file goes without --local"),
            ("relent Ia --allow-clear-text", "--allow-clear-text goes without --local"),
            ("delete Ia --trace", "--trace goes without --local: no mediator is spoken to"),
            ("add", "required: ID"),
            ("add Ia;uses=1", "a comma or a semicolon"),
            ("create Ia", "create is for a mediator's list (--as ID); a file is changed by add,"),
            ("create --as Ib Ia", "create is for a mediator's list"),
            ("policy ask", "a terminal with a file is started with --policy ask"),
        ],
    )
    def test_wrong(self, line: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
        """What only a mediator knows is wrong usage, which says what to do; nothing is made."""
        with pytest.raises(SystemExit) as wrong:
            self.permit(*line.split())
        assert wrong.value.code == 2
        assert why in capsys.readouterr().err
        assert not self.file.exists()

    @pytest.mark.parametrize("line", ["create --as Ib Ia", "policy --as Ib ask", "list --as Ib"])
    def test_without(self, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """All that has no ``--local`` goes to the mediator."""
        monkeypatch.setattr(cli, "_find_password", lambda _: None)
        monkeypatch.setattr(cli, "run", lambda *_: 17, raising=False)
        assert cli.main(["permit", *line.split()]) == 17


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
        assert cli.limits_in_words(entry) == words


class ClearTextTests:
    """Nothing is said over a network in clear text (I25)."""

    @pytest.mark.parametrize(
        "command", ["permit list", "login", "disclosures", "register --address 127.0.0.1"]
    )
    def test_refused(
        self, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It is wrong usage, before anybody is asked, or any connection attempted."""
        done: list[object] = []
        monkeypatch.setattr(cli, "run", lambda *_: done.append("run"))
        monkeypatch.setattr(cli, "ask_password", lambda *_: done.append("asked"))
        with pytest.raises(SystemExit) as wrong:
            cli.main([*command.split(), "--as=Ib", "--mediator=tcp:192.0.2.1:1201"])
        assert wrong.value.code == 2
        assert "go there in clear text" in capsys.readouterr().err
        assert done == []

    @pytest.mark.parametrize(
        ("mediator", "more"),
        [
            ("tcp:192.0.2.1:1201", ["--allow-clear-text"]),
            ("tcp:127.0.0.5:1201", []),
            ("tcp:localhost:1201", []),
            ("tls:192.0.2.1:1202", []),
        ],
    )
    def test_not_refused(
        self, mediator: str, more: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Unless it is allowed, or goes nowhere, or is encrypted."""
        monkeypatch.setattr(cli, "run", lambda *_: 17)
        arguments = ["permit", "list", "--as=Ib", f"--mediator={mediator}", *more]
        assert cli.main(arguments) == 17


class LoginTests:
    """What proves who somebody is: found, shown, asked for, kept."""

    @pytest.fixture(autouse=True)
    def alone(self, monkeypatch: pytest.MonkeyPatch, no_passwords_of_ours: Path) -> None:
        """A reactor, an empty keyring, and nobody at a terminal."""
        self.reactor = FakeReactor()
        self.keyring = Keyring(no_passwords_of_ours / "broker")
        self.asked: list[str] = []
        self.typed: Found | None = None

        def ask(whose: str) -> Found | None:
            self.asked.append(whose)
            return self.typed

        monkeypatch.setattr(cli, "ask_password", ask)

    def begin(self, line: str) -> Outcome:
        """Begin a command."""
        arguments = make_parser().parse_args(line.split())
        arguments.password = cli._find_password(arguments)
        return self.run(arguments)

    def run(self, arguments: argparse.Namespace) -> Outcome:
        """What becomes of a command."""
        outcome = Outcome(Deferred.fromCoroutine(cli.as_terminal(self.reactor, arguments)))
        settle(self.reactor)
        return outcome

    def mediator(self) -> Client:
        """Its end of the newest connection."""
        return self.reactor.dials[-1].accept()

    def answer(self, client: Client, text: str, code: int, serial: int = 1) -> None:
        """Answer a question."""
        client.type(f"NOTIFY\n{text}\nTransaction:{serial}\nCode:{code}\n\n")
        settle(self.reactor)

    def test_a_file(self, tmp_path: Path) -> None:
        """The password of a file is shown first; then what is asked (A19)."""
        path = tmp_path / "password"
        path.write_text("correct horse\n")
        path.chmod(0o600)
        outcome = self.begin(f"permit add --as Ib Ia --uses 1 --password-file {path}")
        mediator = self.mediator()
        (login,) = mediator.received()
        assert login.get("Password") == "correct horse"
        self.answer(mediator, "Registration Completed.", 200)
        (edit,) = mediator.received()
        assert edit.edits("Accept") == ["Add Ia;uses=1"]
        assert edit.get("Password") is None
        self.answer(mediator, "Registration Completed.", 200, 2)
        mediator.vanish()
        assert outcome.error is None
        assert outcome.done

    def test_kept(self) -> None:
        """So is the one that is kept for this mediator; not that of another (I26)."""
        self.keyring.keep("Ib", "tcp:127.0.0.1:1201", "kept")
        self.begin("permit list --as Ib")
        assert self.mediator().received()[0].get("Password") == "kept"
        self.begin("permit list --as Ib --mediator tcp:127.0.0.1:1299")
        assert self.mediator().received()[0].verb == "QUERY"

    def test_certificate(self) -> None:
        """With a certificate no password is looked for."""
        self.keyring.keep("Ib", "tls:localhost:1202", "kept")
        line = "permit list --as Ib --mediator tls:localhost:1202"
        arguments = make_parser().parse_args([*line.split(), "--certificate=x", "--private-key=y"])
        assert cli._find_password(arguments) is None

    def test_certificate_refused(self) -> None:
        """Where the certificate is not good, no password is asked for: it is told why."""
        arguments = make_parser().parse_args(["permit", "list", "--as=Ib"])
        arguments.password, arguments.certificate = None, "x"  # over TLS it would be shown
        outcome = self.run(arguments)
        self.answer(self.mediator(), LOGIN_REQUIRED, 401)
        assert isinstance(outcome.error, LoginRequired)
        assert outcome.error.cause == "log in first"
        assert self.asked == []

    def test_nobody_to_ask(self) -> None:
        """Where there is none and the mediator asks for it, it is said what to do."""
        outcome = self.begin("permit list --as Ib")
        self.answer(self.mediator(), LOGIN_REQUIRED, 401)
        assert isinstance(outcome.error, NotLoggedIn)
        assert str(outcome.error) == (
            "the mediator wants a login: log in first: broker login --as Ib --mediator"
            " tcp:127.0.0.1:1201 asks for the password; or name a --password-file"
        )

    def test_asked(self) -> None:
        """A person is asked when the mediator asks, and the command goes on (A19)."""
        self.typed = Found("typed", None)
        outcome = self.begin("permit list --as Ib")
        assert self.asked == []
        self.answer(self.mediator(), LOGIN_REQUIRED, 401)
        assert self.asked == ["Ib"]
        mediator = self.mediator()
        assert mediator.received()[0].get("Password") == "typed"
        self.answer(mediator, "Registration Completed.", 200)
        self.answer(mediator, "Accept:Create", 200, 2)
        mediator.vanish()
        assert outcome.error is None
        assert outcome.done

    def test_asked_once(self) -> None:
        """A wrong answer is not asked for again; it is status 4."""
        self.typed = Found("typed", None)
        outcome = self.begin("permit list --as Ib")
        self.answer(self.mediator(), LOGIN_REQUIRED, 401)
        self.answer(self.mediator(), WRONG, 401)
        assert isinstance(outcome.error, NotLoggedIn)
        assert str(outcome.error).startswith(
            "the identifier or the password is wrong: broker login"
        )
        assert self.asked == ["Ib"]

    def test_wrong(self) -> None:
        """A wrong password is told with where it stands (A19)."""
        path = self.keyring.keep("Ib", "tcp:127.0.0.1:1201", "kept")
        outcome = self.begin("permit list --as Ib")
        self.answer(self.mediator(), WRONG, 401)
        expected = f"the identifier or the password is wrong: it is the one in {path}; broker login"
        assert str(outcome.error).startswith(expected)
        assert "kept" not in str(outcome.error).replace(str(path), "")
        assert self.asked == []

    def log_in(self, text: str, code: int) -> Outcome:
        """``broker login``, answered so."""
        self.typed = Found("typed", None)
        outcome = self.begin("login --as Ib")
        assert self.asked == ["Ib"]
        mediator = self.mediator()
        (message,) = mediator.received()
        assert message.fields == {"Identifier": "Ib", "Password": "typed", "Transaction": "1"}
        self.answer(mediator, text, code)
        mediator.vanish()
        return outcome

    def test_disclosures(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Who was told is printed a line each, to the last, however many there are."""
        monkeypatch.setattr("broker.terminal.registration.client.DISCLOSURES_MOST", 1)
        monkeypatch.setattr("broker.cli.main.DISCLOSURES_MOST", 1)
        outcome = self.begin("disclosures --as Ib")
        mediator = self.mediator()
        for serial, address in enumerate(("192.0.2.7", "2001:db8::7"), 1):
            line = f"at=2026-11-21T12:00:0{9 - serial}.000000Z;address={address};port=1203"
            said = f"Ia;{line};session=S1;by=@family;expires=3600"
            self.answer(mediator, f"Disclosed:{said}", 200, serial)
        self.answer(mediator, "Nothing Disclosed.", 200, 3)
        mediator.vanish()
        assert outcome.error is None
        assert capsys.readouterr().out == (
            "2026-11-21T12:00:08.000000Z\tIa\t192.0.2.7:1203\t@family\n"
            "2026-11-21T12:00:07.000000Z\tIa\t[2001:db8::7]:1203\t@family\n"
        )

    def test_login(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A password that the mediator has taken is kept, for it alone, and not shown (I18)."""
        outcome = self.log_in("Registration Completed.\nToken:t1", 200)
        assert outcome.done
        assert outcome.error is None
        assert self.keyring.read("Ib", "tcp:127.0.0.1:1201") == "typed"
        assert "typed" not in capsys.readouterr().out

    def test_login_refused(self) -> None:
        """A wrong one is not kept; what was kept before is."""
        self.keyring.keep("Ib", "tcp:127.0.0.1:1201", "kept")
        outcome = self.log_in(WRONG, 401)
        assert str(outcome.error) == "the identifier or the password is wrong: nothing is kept"
        assert self.keyring.read("Ib", "tcp:127.0.0.1:1201") == "kept"

    def test_login_not_checked(self) -> None:
        """Nor is one that the mediator has not looked at."""
        outcome = self.log_in("Registration Completed.\nEpoch:e1", 200)
        assert "did not check the password of Ib" in str(outcome.error)
        assert self.keyring.read("Ib", "tcp:127.0.0.1:1201") is None

    def test_login_without_anybody(self) -> None:
        """Where nobody can be asked, nothing is dialled."""
        outcome = self.begin("login --as Ib")
        assert "name a --password-file" in str(outcome.error)
        assert self.reactor.dials == []

    def test_logout(self, capsys: pytest.CaptureFixture[str]) -> None:
        """What was kept is gone; once more, there is nothing."""
        self.keyring.keep("Ib", "tcp:127.0.0.1:1201", "kept")
        for _ in range(2):
            assert cli.main(["logout", "--as=Ib"]) == 0
        assert self.keyring.read("Ib", "tcp:127.0.0.1:1201") is None
        assert capsys.readouterr().out == (
            "The password of Ib at tcp:127.0.0.1:1201 is kept no longer\n"
            "No password of Ib at tcp:127.0.0.1:1201 is kept\n"
        )

    def test_exposed(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A file that others can read ends the command before anything else (I18)."""
        path = self.keyring.keep("Ib", "tcp:127.0.0.1:1201", "kept")
        path.chmod(0o644)
        assert cli.main(["permit", "list", "--as=Ib"]) == 1
        assert capsys.readouterr().err.endswith(f": chmod 600 {path}\n")


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
            (NotLoggedIn("wrong\u202e"), 4, "wrong\\u202e"),
            (InvalidFile("x: others can read it"), 1, "x: others can read it"),
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

    def test_given_up(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Who answers no question has interrupted the command."""
        assert cli._explain(Failure(NoAnswer())) == 130
        assert capsys.readouterr().err == ""

    def test_our_fault(self, capsys: pytest.CaptureFixture[str]) -> None:
        """What was not foreseen is shown whole, so that it can be mended."""
        assert cli._explain(Failure(ZeroDivisionError())) == 1
        assert "ZeroDivisionError" in capsys.readouterr().err
