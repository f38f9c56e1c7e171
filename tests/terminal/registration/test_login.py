"""Logging in: by password and token, at what pace, and never in clear text."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

import pytest
from twisted.internet.error import ConnectionLost

from broker.messages.errors import LoginRequired, Refused, RegistrationFailed
from broker.terminal.errors import CannotLogIn
from broker.terminal.registration.client import SECRET_IN_CLEAR, dial
from broker.terminal.registration.login import NO_PASSWORD
from tests.support.clock import advance, settle
from tests.support.log import the_log
from tests.support.reactor import FakeReactor
from tests.support.transport import Client
from tests.terminal.network import HOST, Outcome
from tests.terminal.scene import ELSEWHERE, PASSWORD, Scene, mediator_at

WRONG: Final = "Registration Failed.\nCause:the identifier or the password is wrong"
STALE: Final = "Registration Failed.\nCause:the token is not good"

#: What is shown: the password or a token.
BY_PASSWORD: Final = (PASSWORD, None)
BY_T1, BY_T2 = (None, "t1"), (None, "t2")


def logged_in(**fields: str) -> Scene:
    """A terminal that has logged in."""
    scene = Scene()
    assert scene.shown() == BY_PASSWORD
    scene.complete(Epoch="e1", **fields)
    assert scene.ready.done
    return scene


def complaints(lines: list[str]) -> list[str]:
    """What the log says of logins that failed."""
    return [line for line in lines if "could not log in" in line]


class LoginTests:
    """What proves who it is, and in which order."""

    def test_in_one_message(self) -> None:
        """Login and address go together, in one round trip (A19, A7)."""
        scene = Scene()
        assert list(scene.said().fields.items()) == [
            ("Identifier", "Ib"),
            ("Password", PASSWORD),
            ("Transaction", "1"),
        ]
        assert not scene.ready.done
        scene.complete(Epoch="e1", Token="t1")
        assert scene.ready.done

    def test_without_a_password(self) -> None:
        """Who has none shows none: a mediator may believe it."""
        scene = Scene(None)
        assert scene.shown() == (None, None)
        scene.complete(Epoch="e1")
        assert scene.ready.done

    @pytest.mark.parametrize(
        ("first", "logins"),
        [
            # Whoever was logged in comes back with the newest token, and not the password (A19).
            ("t1", [(BY_T1, {"Epoch": "e1", "Token": "t2"}), (BY_T2, {})]),
            # Without a token the password is shown again; the old token is kept for its epoch.
            (
                None,
                [
                    (BY_PASSWORD, {"Epoch": "e1", "Token": "t1"}),
                    (BY_T1, {"Epoch": "e1"}),
                    (BY_T1, {}),
                ],
            ),
            # A token of a store that began anew is not kept beside one of the new store.
            ("t1", [(BY_T1, {"Epoch": "e2"}), (BY_PASSWORD, {})]),
        ],
        ids=["newest token", "no token given", "new epoch"],
    )
    def test_login_after_login(self, first: str | None, logins: Any) -> None:
        """Each login shows the token that the one before has left it, else the password (A19)."""
        scene = logged_in(**({} if first is None else {"Token": first}))
        for shown, fields in logins:
            scene.lose()
            assert scene.shown() == shown
            scene.complete(**fields)

    def test_token_refused(self) -> None:
        """A token that is not good any more is forgotten; the password follows at once (A19)."""
        scene = logged_in(Token="t1")
        scene.lose()
        assert scene.shown() == BY_T1
        scene.answer(STALE, 401)
        assert scene.shown() == BY_PASSWORD
        scene.complete(Epoch="e1", Token="t2")
        scene.lose()
        assert scene.shown() == BY_T2

    def test_token_refused_and_closed(self) -> None:
        """The same where the mediator closes upon the refusal."""
        scene = logged_in(Token="t1")
        scene.lose()
        scene.answer(STALE, 401)
        scene.lose()
        assert scene.shown() == BY_PASSWORD

    def test_token_not_judged(self) -> None:
        """Another refusal says nothing of the token: it is shown again."""
        scene = logged_in(Token="t1")
        scene.lose()
        scene.answer("Service Unavailable.", 503)
        scene.come_back()
        assert scene.shown() == BY_T1

    def test_password_is_asked_for_when_needed(self) -> None:
        """A password may come from a function, which is asked no more often than needed."""
        passwords = iter(["password 1", "password 2"])
        scene = Scene(lambda: next(passwords))
        assert scene.shown() == ("password 1", None)
        scene.complete(Epoch="e1", Token="t1")
        scene.lose()
        assert scene.shown() == BY_T1
        scene.answer(STALE, 401)
        assert scene.shown() == ("password 2", None)

    def test_edits_follow(self) -> None:
        """Whom it permits is told once it is logged in, without the password."""
        scene = Scene(accept=["Ia"])
        assert scene.shown() == BY_PASSWORD
        scene.complete(Epoch="e1", Token="t1")
        message = scene.said()
        assert message.edits("Accept") == ["Add Ia"]
        assert message.get("Password") is message.get("Token") is None


class RefusedTests:
    """A login that is refused."""

    def refused(self, times: int, text: str = WRONG, code: int = 401, **options: Any) -> Scene:
        """A terminal that was refused so often."""
        scene = Scene(**options)
        for again in range(times):
            scene.answer(text, code)
            if again < times - 1:
                scene.come_back()
        return scene

    def complaint(self, text: str, **options: Any) -> str:
        """What the log says, once, where it is refused twice."""
        with the_log() as lines:
            self.refused(2, text, **options)
        (told,) = complaints(lines)
        return told

    @pytest.mark.parametrize(
        ("text", "code"),
        [(WRONG, 401), ("Login Required.", 401), (WRONG, 403), ("Too Many Requests.", 429)],
    )
    def test_pace(self, text: str, code: int) -> None:
        """It is tried again at the slowest pace, from the first on: 15 to 30 s (I23)."""
        scene = self.refused(5, text, code)
        waits = [after - before for before, after in pairwise(scene.dialled)]
        assert all(14.9 <= wait <= 30.2 for wait in waits)
        assert not scene.ready.done

    def test_after_a_token(self) -> None:
        """Token and password refused one after the other are slow as well."""
        scene = logged_in(Token="t1")
        scene.lose()
        for text in (STALE, WRONG):
            scene.answer(text, 401)
        before = scene.clock.seconds()
        scene.come_back()
        assert scene.clock.seconds() - before >= 14.9
        assert scene.shown() == BY_PASSWORD

    def test_mended(self) -> None:
        """Once the password is right it is ready, and the next loss begins with a short wait."""
        passwords = iter(["wrong", "right"])
        scene = Scene(lambda: next(passwords))
        assert scene.shown() == ("wrong", None)
        scene.answer(WRONG, 401)
        scene.come_back()
        assert scene.shown() == ("right", None)
        scene.complete(Epoch="e1", Token="t1")
        assert scene.ready.done
        before = scene.clock.seconds()
        scene.lose()
        assert scene.clock.seconds() - before < 0.5

    def test_strangers_do_not_hurry_it(self) -> None:
        """Nobody outside can make it show a wrong password again and again (I23, I26)."""
        scene = self.refused(1)
        settle(scene.clock)
        dials = len(scene.clock.dials)
        for _ in range(10):
            scene.terminal._registration.connect_now()
            advance(scene.clock, 1)
        assert len(scene.clock.dials) == dials

    def test_said_once(self) -> None:
        """It is said clearly, once; another cause is said again; the password never is (I18)."""
        with the_log() as lines:
            scene = self.refused(3)
            scene.come_back()
            scene.answer("Too Many Requests.", 429)
            scene.come_back()
            scene.complete(Epoch="e1")
        first, _ = complaints(lines)
        assert (
            "Ib could not log in and keeps trying: Registration Failed."
            " the identifier or the password is wrong" in first
        )
        assert not any(PASSWORD in line for line in lines)

    def test_said_once_though_it_counts(self) -> None:
        """How long it must still wait is no news either."""
        with the_log() as lines:
            scene = Scene()
            for left in (50, 30):
                scene.answer(f"Too Many Requests.\nCause:try again in {left} seconds", 429)
                scene.come_back()
        assert len(complaints(lines)) == 1

    def test_said_again(self) -> None:
        """Once it was logged in, the same refusal is news, and it is woken as before."""
        scene = self.refused(1)
        scene.come_back()
        scene.complete(Epoch="e1")
        scene.line.vanish()
        scene.terminal._registration.connect_now()
        before = scene.clock.seconds()
        scene.connect()
        assert scene.clock.seconds() == before
        with the_log() as lines:
            scene.answer(WRONG, 401)
        assert len(complaints(lines)) == 1

    def test_said_without_a_cause(self) -> None:
        """A refusal that gives no cause is said too."""
        assert "Registration Failed." in self.complaint("Registration Failed.")

    def test_no_password(self) -> None:
        """Where none is at hand and the mediator asks for one, it says what to do."""
        told = self.complaint("Login Required.\nCause:log in first", password=lambda: None)
        assert f"log in first{NO_PASSWORD}" in told

    def test_no_password_wanted(self) -> None:
        """Who was to do without one is told what the mediator says, as of a certificate."""
        told = self.complaint("Login Required.\nCause:the certificate is revoked", password=None)
        assert "Login Required. the certificate is revoked" in told
        assert "no password" not in told

    @pytest.mark.parametrize("password", ["x" * 513, "", "two\nlines"])
    def test_what_is_no_password(self, password: str) -> None:
        """It is never sent, and not shown either (I18)."""
        with the_log() as lines:
            scene = Scene(password)
            assert scene.line.received() == []
            scene.come_back()
        assert scene.clock.seconds() >= 14.9
        (told,) = complaints(lines)
        assert "Password: " in told
        assert not any("xxx" in line or "two" in line or "Traceback" in line for line in lines)

    def test_password_can_not_be_had(self) -> None:
        """A function that can't give it is told of in a line, and asked again later."""
        why = iter(["/x: others can read it: chmod 600 /x", ""])

        def password() -> str:
            text = next(why)
            if text:
                raise ValueError(text)
            return PASSWORD

        with the_log() as lines:
            scene = Scene(password)
            assert scene.line.received() == []
        (told,) = complaints(lines)
        assert "others can read it: chmod 600 /x" in told
        assert not any("Traceback" in line for line in lines)
        scene.come_back()
        assert scene.shown() == BY_PASSWORD

    def test_stops_meanwhile(self) -> None:
        """It can be stopped while it waits, and leaves nothing behind."""
        scene = self.refused(1)
        stopped = Outcome(scene.terminal.stopService())
        settle(scene.clock)
        assert stopped.done
        assert scene.clock.getDelayedCalls() == []


class ClearTextTests:
    """Nothing that proves who it is leaves in clear text (I25)."""

    def test_terminal(self) -> None:
        """A terminal whose mediator is on another machine shows nothing, and says why."""
        with the_log() as lines:
            scene = Scene(host=ELSEWHERE)
        assert scene.line.received() == []
        (told,) = complaints(lines)
        assert SECRET_IN_CLEAR in told
        scene.come_back()
        assert scene.line.received() == []

    def test_token(self) -> None:
        """The token is as good as the password, and kept back likewise."""
        scene = logged_in(Token="t1")
        scene.line.vanish()
        scene.connect(ELSEWHERE)  # as where a name now leads to another machine
        assert scene.line.received() == []

    @pytest.mark.parametrize("password", [PASSWORD, None])
    def test_allowed(self, password: str | None) -> None:
        """Where it is allowed by name it goes; what proves nothing goes in any case."""
        scene = Scene(password, host=ELSEWHERE, allow_clear_text=password is not None)
        assert scene.shown() == (password, None)

    @pytest.mark.parametrize("host", [HOST, "127.9.9.9", "::1"])
    def test_this_machine(self, host: str) -> None:
        """Within this machine it may go."""
        assert Scene(host=host).shown() == BY_PASSWORD


class DialTests:
    """A connection to ask something."""

    def dial(self, host: str = HOST, **options: Any) -> tuple[Client, Outcome]:
        """Dial with a password: the mediator's end, and what becomes of it."""
        clock: Any = FakeReactor()
        outcome = Outcome(dial(clock, mediator_at(clock, host), "Ia", password=PASSWORD, **options))
        return clock.dials[0].accept(), outcome

    def test_logs_in_first(self) -> None:
        """The line is given once the login has been taken (A19)."""
        mediator, outcome = self.dial()
        (message,) = mediator.received()
        assert message.fields == {"Identifier": "Ia", "Password": PASSWORD, "Transaction": "1"}
        assert not outcome.done
        mediator.type("NOTIFY\nRegistration Completed.\nTransaction:1\nCode:200\n\n")
        assert outcome.value.identifier == "Ia"

    @pytest.mark.parametrize(
        ("text", "code", "kind"),
        [(WRONG, 401, RegistrationFailed), ("Login Required.", 401, LoginRequired)],
    )
    def test_refused(self, text: str, code: int, kind: type[Refused]) -> None:
        """A refusal is raised with its code, and the connection closed."""
        mediator, outcome = self.dial()
        mediator.type(f"NOTIFY\n{text}\nTransaction:1\nCode:{code}\n\n")
        assert type(outcome.error) is kind
        assert isinstance(outcome.error, Refused)
        assert outcome.error.code == code
        assert mediator.closed

    def test_lost(self) -> None:
        """So is the end of the connection."""
        mediator, outcome = self.dial()
        mediator.vanish()
        assert isinstance(outcome.error, ConnectionLost)

    def test_clear_text(self) -> None:
        """Over a network it says nothing unless that is allowed (I25)."""
        mediator, outcome = self.dial(ELSEWHERE)
        assert mediator.received() == []
        assert isinstance(outcome.error, CannotLogIn)
        assert mediator.closed
        mediator, _ = self.dial(ELSEWHERE, allow_clear_text=True)
        assert len(mediator.received()) == 1

    def test_no_password(self) -> None:
        """What can be none is refused before anything is dialled, and not shown (I18)."""
        clock: Any = FakeReactor()
        with pytest.raises(ValueError, match="Password") as refused:
            dial(clock, mediator_at(clock), "Ia", password="x\nPort:1")
        assert "Port" not in str(refused.value)
        assert not clock.dials
