"""Commands of a terminal: those that log in at a mediator, and ``permit`` with its own file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from broker.cli import mediator, permits
from broker.cli.main import make_parser
from broker.cli.mediator import find_password
from broker.cli.output import NotAllowed
from broker.messages.errors import LoginRequired
from broker.service.settings.credentials import FoundPassword, Keyring
from tests.cli.shell import Done, Shell
from tests.support.clock import settle
from tests.support.reactor import FakeReactor
from tests.support.transport import Client
from tests.terminal.network import Outcome

MEDIATOR = "tcp:127.0.0.1:1201"
NOT_RIGHT = "the identifier or the password is wrong"
WRONG = f"Registration Failed.\nCause:{NOT_RIGHT}"
COMPLETED = "Registration Completed."
LOGIN_REQUIRED = "Login Required.\nCause:log in first"


class LoginTests:
    """Passwords: found, sent, asked for, kept."""

    @pytest.fixture(autouse=True)
    def alone(self, monkeypatch: pytest.MonkeyPatch, no_passwords_of_ours: Path) -> None:
        """A reactor, an empty keyring, and no person at a terminal."""
        self.reactor = FakeReactor()
        self.keyring = Keyring(no_passwords_of_ours / "broker")
        self.asked: list[str] = []
        self.typed: FoundPassword | None = None

        def ask(whose: str) -> FoundPassword | None:
            self.asked.append(whose)
            return self.typed

        monkeypatch.setattr(mediator, "ask_password", ask)

    def begin(self, line: str, *, certificate: str | None = None) -> Outcome:
        """Begin a command.

        :param certificate: as if this had been given over TLS
        """
        arguments = make_parser().parse_args(line.split())
        arguments.certificate = certificate or arguments.certificate
        outcome: list[Outcome] = []

        def run(steps: Callable[[], Coroutine[Any, Any, None]], reactor: object) -> None:
            outcome.append(Outcome(Deferred.fromCoroutine(steps())))

        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "twisted.internet.reactor", self.reactor)
            patch.setattr("twisted.internet.reactor", self.reactor, raising=False)
            patch.setattr(mediator, "run_in_reactor", run)
            patch.setattr(mediator, "check_connection", lambda _: None)
            arguments.run(arguments)
        settle(self.reactor)
        return outcome[0]

    def accept(self) -> Client:
        """The mediator's end of the newest connection."""
        return self.reactor.dials[-1].accept()

    def answer(self, client: Client, text: str, code: int, serial: int = 1) -> None:
        """Answer a request."""
        client.type(f"NOTIFY\n{text}\nTransaction:{serial}\nCode:{code}\n\n")
        settle(self.reactor)

    def refused(self, text: str, line: str = "permit list --as Ib", **more: str) -> Any:
        """The error of a command whose login is answered so."""
        outcome = self.begin(line, **more)
        self.answer(self.accept(), text, 401)
        return outcome.error

    def done(self, outcome: Outcome, server: Client) -> None:
        """The mediator closes, and the command has ended well."""
        server.vanish()
        assert outcome.error is None
        assert outcome.done

    def test_a_file(self, tmp_path: Path) -> None:
        """The password of a file is sent first, then the request (A19)."""
        path = tmp_path / "password"
        path.write_text("correct horse\n")
        path.chmod(0o600)
        outcome = self.begin(f"permit add --as Ib Ia --uses 1 --password-file {path}")
        server = self.accept()
        (login,) = server.received()
        assert login.get("Password") == "correct horse"
        self.answer(server, COMPLETED, 200)
        (edit,) = server.received()
        assert (edit.edits("Accept"), edit.get("Password")) == (["Add Ia;uses=1"], None)
        self.answer(server, COMPLETED, 200, 2)
        self.done(outcome, server)

    def test_kept(self) -> None:
        """So is the one that is kept for this mediator; one for another is not (I26)."""
        self.keyring.keep("Ib", MEDIATOR, "kept")
        self.begin("permit list --as Ib")
        assert self.accept().received()[0].get("Password") == "kept"
        self.begin("permit list --as Ib --mediator tcp:127.0.0.1:1299")
        assert self.accept().received()[0].verb == "QUERY"

    def test_certificate(self) -> None:
        """With a certificate no password is looked up. If it is refused, none is asked for: the
        error says why.
        """
        self.keyring.keep("Ib", "tls:localhost:1202", "kept")
        line = "permit list --as Ib --mediator tls:localhost:1202"
        arguments = make_parser().parse_args([*line.split(), "--certificate=x", "--private-key=y"])
        assert find_password(arguments) is None
        error = self.refused(LOGIN_REQUIRED, certificate="x")
        assert isinstance(error, LoginRequired)
        assert (error.cause, self.asked) == ("log in first", [])

    def test_no_one_to_ask(self) -> None:
        """If there is none and the mediator wants one, the error says what to do; ``login`` does
        not even connect.
        """
        error = self.refused(LOGIN_REQUIRED)
        assert isinstance(error, NotAllowed)
        assert str(error) == (
            "the mediator wants a login: log in first: broker login --as Ib --mediator"
            f" {MEDIATOR} asks for the password; or name a --password-file"
        )
        self.reactor.dials.clear()
        assert "name a --password-file" in str(self.begin("login --as Ib").error)
        assert self.reactor.dials == []

    @pytest.mark.parametrize("right", [True, False])
    def test_asked(self, right: bool) -> None:
        """A person is asked when the mediator asks, and the command goes on (A19). A wrong answer
        is not asked for again; it is status 4.
        """
        self.typed = FoundPassword("typed", None)
        outcome = self.begin("permit list --as Ib")
        assert self.asked == []
        self.answer(self.accept(), LOGIN_REQUIRED, 401)
        server = self.accept()
        assert server.received()[0].get("Password") == "typed"
        self.answer(server, *((COMPLETED, 200) if right else (WRONG, 401)))
        if right:
            self.answer(server, "Accept:Create", 200, 2)
            self.done(outcome, server)
        else:
            assert isinstance(outcome.error, NotAllowed)
            assert str(outcome.error).startswith(f"{NOT_RIGHT}: broker login")
        assert self.asked == ["Ib"]

    def test_wrong(self) -> None:
        """A wrong password is told with where it stands (A19)."""
        path = self.keyring.keep("Ib", MEDIATOR, "kept")
        error = str(self.refused(WRONG))
        assert error.startswith(f"{NOT_RIGHT}: it is the one in {path}; broker login")
        assert "kept" not in error.replace(str(path), "")
        assert self.asked == []

    def test_disclosures(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Who was told is printed a line each, to the last, however many there are."""
        monkeypatch.setattr("broker.terminal.registration.client.DISCLOSURES_MOST", 1)
        monkeypatch.setattr("broker.cli.terminal.DISCLOSURES_MOST", 1)
        outcome = self.begin("disclosures --as Ib")
        server = self.accept()
        for serial, address in enumerate(("192.0.2.7", "2001:db8::7"), 1):
            line = f"at=2026-11-21T12:00:0{9 - serial}.000000Z;address={address};port=1203"
            said = f"Ia;{line};session=S1;by=@family;expires=3600"
            self.answer(server, f"Disclosed:{said}", 200, serial)
        self.answer(server, "Nothing Disclosed.", 200, 3)
        self.done(outcome, server)
        assert capsys.readouterr().out == (
            "2026-11-21T12:00:08.000000Z\tIa\t192.0.2.7:1203\t@family\n"
            "2026-11-21T12:00:07.000000Z\tIa\t[2001:db8::7]:1203\t@family\n"
        )

    @pytest.mark.parametrize(
        ("text", "code", "error", "kept"),
        [
            pytest.param(
                f"{COMPLETED}\nToken:t1",
                200,
                "None",
                "typed",
                id="a password that the mediator has taken is kept, for it alone",
            ),
            pytest.param(
                WRONG, 401, f"{NOT_RIGHT}: nothing is kept", "before", id="a wrong one is not"
            ),
            pytest.param(
                f"{COMPLETED}\nEpoch:e1",
                200,
                "the mediator did not check the password of Ib",
                "before",
                id="nor is one that the mediator has not looked at",
            ),
        ],
    )
    def test_login(
        self, text: str, code: int, error: str, kept: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """``broker login`` keeps what the mediator has taken, and never shows it (I18)."""
        self.keyring.keep("Ib", MEDIATOR, "before")
        self.typed = FoundPassword("typed", None)
        outcome = self.begin("login --as Ib")
        assert self.asked == ["Ib"]
        server = self.accept()
        (message,) = server.received()
        assert message.fields == {"Identifier": "Ib", "Password": "typed", "Transaction": "1"}
        self.answer(server, text, code)
        server.vanish()
        assert outcome.done
        assert str(outcome.error).startswith(error)
        assert self.keyring.read("Ib", MEDIATOR) == kept
        assert "typed" not in capsys.readouterr().out

    def test_logout(self, shell: Shell) -> None:
        """What was kept is gone; once more, there is nothing."""
        self.keyring.keep("Ib", MEDIATOR, "kept")
        deleted = f"Deleted the password of Ib at {MEDIATOR}\n"
        assert shell("logout --as=Ib") == (0, deleted, "")
        assert self.keyring.read("Ib", MEDIATOR) is None
        assert shell("logout --as=Ib") == (0, f"No password of Ib at {MEDIATOR} is kept\n", "")

    def test_exposed(self, shell: Shell) -> None:
        """A file that others can read ends the command before anything else (I18)."""
        path = self.keyring.keep("Ib", MEDIATOR, "kept")
        path.chmod(0o644)
        status, _, err = shell("permit list --as=Ib")
        assert (status, err.endswith(f": chmod 600 {path}\n")) == (1, True)


class OwnFileTests:
    """A terminal's own file, edited in the words of the mediator's list (C4, C5)."""

    @pytest.fixture(autouse=True)
    def alone(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shell: Shell) -> None:
        """A file, and no mediator."""
        monkeypatch.delattr(mediator, "run_at_mediator")
        self.file = tmp_path / "Ib.consent"
        self.shell = shell

    def permit(self, line: str) -> Done:
        """Change or list the file."""
        change, _, arguments = line.partition(" ")
        return self.shell(f"permit {change} --local={self.file} {arguments}")

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ("add Ia @family", "+ Ia\n+ @family\n"),
            ("reject Ix", "- Ix\n"),
            ("add Ia, reject Ia", "+ Ia\n- Ia\n"),
            ("add Ia, reject Ia, unreject Ia", "+ Ia\n"),
            ("add Ia Ib, reject Ia, delete Ia Ib", "- Ia\n"),
            ("add Ia, unreject Ia", "+ Ia\n"),
            ("reject Ia, delete Ia", "- Ia\n"),
            ("add Ia, delete Ia", ""),
        ],
    )
    def test_changes(self, changes: str, expected: str) -> None:
        """Two lists, each with two commands; the file is made, for its user only."""
        for change in changes.split(", "):
            assert self.permit(change) == (0, f"{self.file} is changed\n", "")
        assert self.file.read_text() == expected
        assert self.file.stat().st_mode & 0o777 == 0o600
        assert self.permit("list") == (0, expected, "")

    def test_added_though_rejected(self) -> None:
        """To be rejected wins: adding such a caller says so, and how to take it back (C5)."""
        self.permit("reject Ix Iy")
        added = self.permit("add Ix Ia")
        assert added.status == 0
        assert self.file.read_text() == "- Ix\n- Iy\n+ Ix\n+ Ia\n"
        assert added.err == (
            "broker: Ix stays rejected in this file, which wins:"
            f" broker permit unreject --local {self.file} Ix\n"
        )

    def test_fails(self) -> None:
        """An error is status 1 and a line; an invalid file is not changed."""
        for change in ("list", "delete Ia", "unreject Ia"):
            missing = f"broker: {self.file}: No such file or directory\n"
            assert self.permit(change) == (1, "", missing)
            assert not self.file.exists()
        self.file.write_text("+ Ia\nIb\n")
        self.file.chmod(0o600)
        invalid = self.permit("delete Ia")
        assert invalid.status == 1
        assert ": line 2: begins with neither" in invalid.err
        assert self.file.read_text() == "+ Ia\nIb\n"
        self.file = self.file / "under"
        assert self.permit("add Ia") == (1, "", f"broker: {self.file}: Not a directory\n")

    def test_interrupted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A person who gives up waiting for another edit interrupts the command."""

        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(permits, "edit_file", interrupted)
        assert self.permit("add Ia").status == 130

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            ("add Ia --as Ib", "not allowed with argument --local"),
            ("add Ia --expires 60", "--expires can't be used with --local: a file has no limits"),
            ("add Ia --uses 1", "--uses can't be used with --local: a file has no limits"),
            ("list --plain", "--plain can't be used with --local"),
            ("add Ia --mediator tcp:127.0.0.1:1201", "--mediator can't be used with --local"),
            ("list --ca x", "--ca can't be used with --local"),
            (f"list --pin {'0' * 64}", "--pin can't be used with --local"),
            ("list --revocation-list x", "--revocation-list can't be used with --local"),
            ("list --certificate x", "--certificate can't be used with --local"),
            ("list --private-key x", "--private-key can't be used with --local"),
            ("reject Ia --password-file x", "--password-file can't be used with --local"),
            ("unreject Ia --allow-clear-text", "--allow-clear-text can't be used with --local"),
            ("delete Ia --trace", "--trace can't be used with --local: no mediator is involved"),
            ("add", "required: ID"),
            ("add Ia;uses=1", "a comma or a semicolon"),
            ("create Ia", "create is for a mediator's list (--as ID); a file is changed by add,"),
            ("create --as Ib Ia", "create is for a mediator's list"),
            ("policy ask", "a terminal with a file is started with --policy ask"),
        ],
    )
    def test_wrong(self, line: str, why: str) -> None:
        """What only a mediator knows is wrong usage, which says what to do; no file is made."""
        done = self.permit(line)
        assert done.status == 2
        assert why in done.err
        assert not self.file.exists()

    @pytest.mark.parametrize("line", ["create --as Ib Ia", "policy --as Ib ask", "list --as Ib"])
    def test_without(self, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without ``--local``, the command goes to the mediator."""
        ran: list[object] = []
        monkeypatch.setattr(mediator, "run_at_mediator", lambda *_: ran.append(1), raising=False)
        assert self.shell(f"permit {line}").status == 0
        assert ran == [1]
