"""Logging in: by password and token, at what pace, and never in clear text."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionLost

from broker.messages.errors import LoginRequired, Refused, RegistrationFailed
from broker.messages.message import Message
from broker.terminal.errors import CannotLogIn
from broker.terminal.registration.client import dial
from broker.terminal.settings import TerminalSettings
from broker.terminal.terminal import Terminal
from tests.support.clock import advance, settle
from tests.support.reactor import FakeReactor
from tests.support.transport import Client
from tests.terminal.network import Outcome
from tests.terminal.test_doors import the_log

PASSWORD = "correct horse"
ELSEWHERE = "192.0.2.1"
WRONG = "Registration Failed.\nCause:the identifier or the password is wrong"
STALE = "Registration Failed.\nCause:the token is not good"


class Script:
    """A terminal, and a person who plays its mediator.

    :ivar line: the mediator's end of the newest connection
    :ivar dialled: when each connection was attempted
    """

    def __init__(
        self,
        password: str | Callable[[], str | None] | None = PASSWORD,
        *,
        host: str = "127.0.0.1",
        **options: Any,
    ) -> None:
        self.clock = FakeReactor()
        reactor: Any = self.clock
        self.terminal = Terminal(
            reactor,
            "Ib",
            TCP4ClientEndpoint(reactor, host, 1201),
            TerminalSettings(
                password=password,
                jitter=random.Random(1).random,
                **options,
            ),
        )
        self.line: Client
        self.dialled: list[float] = []
        self.ready = Outcome(self.terminal.ready())
        self.terminal.startService()
        self.connect()

    def connect(self, host: str | None = None) -> None:
        """The terminal's next attempt reaches its mediator, which may be elsewhere by now."""
        while not (dials := [dial for dial in self.clock.dials if not dial.over]):
            assert self.clock.getDelayedCalls(), "it dials no more"
            advance(self.clock, 0.1)
        self.dialled.append(self.clock.seconds())
        dials[0].host = host or dials[0].host
        self.line = dials[0].accept()

    def said(self) -> Message:
        """The one message that came."""
        (message,) = self.line.received()
        return message

    def shown(self) -> tuple[str | None, str | None]:
        """The password and the token of the one message that came."""
        message = self.said()
        return message.get("Password"), message.get("Token")

    def answer(self, text: str, code: int, **fields: str) -> None:
        """Answer the last question on this connection."""
        lines = "".join(f"{name}:{value}\n" for name, value in fields.items())
        self.serial = getattr(self, "serial", 0) + 1
        self.line.type(f"NOTIFY\n{text}\n{lines}Transaction:{self.serial}\nCode:{code}\n\n")

    def complete(self, **fields: str) -> None:
        """Take the registration."""
        self.answer("Registration Completed.", 200, **fields)

    def lose(self) -> None:
        """The connection breaks; the next one stands."""
        self.line.vanish()
        self.serial = 0
        self.connect()

    def come_back(self) -> None:
        """The terminal has closed the connection itself; the next one stands."""
        settle(self.clock)
        assert self.line.closed
        self.serial = 0
        self.connect()


def logged_in(**fields: str) -> Script:
    """A terminal that has logged in."""
    script = Script()
    assert script.shown() == (PASSWORD, None)
    script.complete(Epoch="e1", **fields)
    assert script.ready.done
    return script


class LoginTests:
    """What proves who it is, and in which order."""

    def test_in_one_message(self) -> None:
        """Login and address go together, in one round trip (A19, A7)."""
        script = Script()
        assert list(script.said().fields.items()) == [
            ("Identifier", "Ib"),
            ("Password", PASSWORD),
            ("Transaction", "1"),
        ]
        assert not script.ready.done
        script.complete(Epoch="e1", Token="t1")
        assert script.ready.done

    def test_without_a_password(self) -> None:
        """Who has none shows none: a mediator may believe it."""
        script = Script(None)
        assert script.shown() == (None, None)
        script.complete(Epoch="e1")
        assert script.ready.done

    def test_token(self) -> None:
        """Whoever was logged in comes back with the newest token, and not the password (A19)."""
        script = logged_in(Token="t1")
        script.lose()
        assert script.shown() == (None, "t1")
        script.complete(Epoch="e1", Token="t2")
        script.lose()
        assert script.shown() == (None, "t2")

    def test_no_token_given(self) -> None:
        """Without a token the password is shown again; the old token is kept for its epoch."""
        script = logged_in()
        script.lose()
        assert script.shown() == (PASSWORD, None)
        script.complete(Epoch="e1", Token="t1")
        script.lose()
        assert script.shown() == (None, "t1")
        script.complete(Epoch="e1")
        script.lose()
        assert script.shown() == (None, "t1")

    def test_token_refused(self) -> None:
        """A token that is not good any more is forgotten; the password follows at once (A19)."""
        script = logged_in(Token="t1")
        script.lose()
        assert script.shown() == (None, "t1")
        script.answer(STALE, 401)
        assert script.shown() == (PASSWORD, None)
        script.complete(Epoch="e1", Token="t2")
        script.lose()
        assert script.shown() == (None, "t2")

    def test_token_refused_and_closed(self) -> None:
        """The same where the mediator closes upon the refusal."""
        script = logged_in(Token="t1")
        script.lose()
        script.line.received()
        script.answer(STALE, 401)
        script.lose()
        assert script.shown() == (PASSWORD, None)

    def test_token_not_judged(self) -> None:
        """Another refusal says nothing of the token: it is shown again."""
        script = logged_in(Token="t1")
        script.lose()
        script.line.received()
        script.answer("Service Unavailable.", 503)
        script.come_back()
        assert script.shown() == (None, "t1")

    def test_new_epoch(self) -> None:
        """A token of a store that began anew is not kept beside one of the new store."""
        script = logged_in(Token="t1")
        script.lose()
        assert script.shown() == (None, "t1")
        script.complete(Epoch="e2")
        script.lose()
        assert script.shown() == (PASSWORD, None)

    def test_password_is_asked_for_when_needed(self) -> None:
        """A password may come from a function, which is asked no more often than needed."""
        asked: list[int] = []

        def password() -> str:
            asked.append(1)
            return f"password {len(asked)}"

        script = Script(password)
        assert script.shown() == ("password 1", None)
        script.complete(Epoch="e1", Token="t1")
        script.lose()
        assert script.shown() == (None, "t1")
        script.answer(STALE, 401)
        assert script.shown() == ("password 2", None)

    def test_edits_follow(self) -> None:
        """Whom it permits is told once it is logged in, without the password."""
        script = Script(accept=["Ia"])
        assert script.shown() == (PASSWORD, None)
        script.complete(Epoch="e1", Token="t1")
        message = script.said()
        assert message.edits("Accept") == ["Add Ia"]
        assert message.get("Password") is message.get("Token") is None


class RefusedTests:
    """A login that is refused."""

    def refused(self, times: int, text: str = WRONG, code: int = 401, **options: Any) -> Script:
        """A terminal that was refused so often."""
        script = Script(**options)
        for again in range(times):
            script.line.received()
            script.answer(text, code)
            if again < times - 1:
                script.come_back()
        return script

    @pytest.mark.parametrize(
        ("text", "code"),
        [(WRONG, 401), ("Login Required.", 401), (WRONG, 403), ("Too Many Requests.", 429)],
    )
    def test_pace(self, text: str, code: int) -> None:
        """It is tried again at the slowest pace, from the first on: 15 to 30 s (I23)."""
        script = self.refused(5, text, code)
        waits = [after - before for before, after in pairwise(script.dialled)]
        assert all(14.9 <= wait <= 30.2 for wait in waits)
        assert not script.ready.done

    def test_after_a_token(self) -> None:
        """Token and password refused one after the other are slow as well."""
        script = logged_in(Token="t1")
        script.lose()
        for text in (STALE, WRONG):
            script.line.received()
            script.answer(text, 401)
        before = script.clock.seconds()
        script.come_back()
        assert script.clock.seconds() - before >= 14.9
        assert script.shown() == (PASSWORD, None)

    def test_mended(self) -> None:
        """Once the password is right it is ready, and the next loss begins with a short wait."""
        passwords = iter(["wrong", "right"])
        script = Script(lambda: next(passwords))
        assert script.shown() == ("wrong", None)
        script.answer(WRONG, 401)
        script.come_back()
        assert script.shown() == ("right", None)
        script.complete(Epoch="e1", Token="t1")
        assert script.ready.done
        before = script.clock.seconds()
        script.lose()
        assert script.clock.seconds() - before < 0.5

    def test_strangers_do_not_hurry_it(self) -> None:
        """Nobody outside can make it show a wrong password again and again (I23, I26)."""
        script = self.refused(1)
        settle(script.clock)
        dials = len(script.clock.dials)
        for _ in range(10):
            script.terminal._registration.connect_now()
            advance(script.clock, 1)
        assert len(script.clock.dials) == dials

    def test_said_once(self) -> None:
        """It is said clearly, once; another cause is said again; the password never is (I18)."""
        with the_log() as lines:
            script = self.refused(3)
            script.come_back()
            script.line.received()
            script.answer("Too Many Requests.", 429)
            script.come_back()
            script.complete(Epoch="e1")
        told = [line for line in lines if "could not log in" in line]
        assert len(told) == 2
        assert (
            "Ib could not log in and keeps trying: Registration Failed."
            " the identifier or the password is wrong" in told[0]
        )
        assert not any(PASSWORD in line for line in lines)

    def test_said_once_though_it_counts(self) -> None:
        """How long it must still wait is no news either."""
        with the_log() as lines:
            script = Script()
            for left in (50, 30):
                script.line.received()
                script.answer(f"Too Many Requests.\nCause:try again in {left} seconds", 429)
                script.come_back()
        assert sum("could not log in" in line for line in lines) == 1

    def test_said_again(self) -> None:
        """Once it was logged in, the same refusal is news, and it is woken as before."""
        script = self.refused(1)
        script.come_back()
        script.line.received()
        script.complete(Epoch="e1")
        script.line.vanish()
        script.terminal._registration.connect_now()
        script.serial = 0
        before = script.clock.seconds()
        script.connect()
        assert script.clock.seconds() == before
        with the_log() as lines:
            script.line.received()
            script.answer(WRONG, 401)
        assert sum("could not log in" in line for line in lines) == 1

    def test_said_without_a_cause(self) -> None:
        """A refusal that gives no cause is said too."""
        with the_log() as lines:
            self.refused(2, "Registration Failed.")
        assert sum("could not log in" in line for line in lines) == 1

    def test_no_password(self) -> None:
        """Where none is at hand and the mediator asks for one, it says what to do."""
        with the_log() as lines:
            self.refused(2, "Login Required.\nCause:log in first", password=lambda: None)
        (told,) = [line for line in lines if "could not log in" in line]
        assert "log in first; there is no password: name a file or run broker login" in told

    def test_no_password_wanted(self) -> None:
        """Who was to do without one is told what the mediator says, as of a certificate."""
        with the_log() as lines:
            self.refused(2, "Login Required.\nCause:the certificate is revoked", password=None)
        (told,) = [line for line in lines if "could not log in" in line]
        assert "Login Required. the certificate is revoked" in told
        assert "no password" not in told

    @pytest.mark.parametrize("password", ["x" * 513, "", "two\nlines"])
    def test_what_is_no_password(self, password: str) -> None:
        """It is never sent, and not shown either (I18)."""
        with the_log() as lines:
            script = Script(password)
            assert script.line.received() == []
            script.come_back()
        assert script.clock.seconds() >= 14.9
        (told,) = [line for line in lines if "could not log in" in line]
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
            script = Script(password)
            assert script.line.received() == []
        (told,) = [line for line in lines if "could not log in" in line]
        assert "others can read it: chmod 600 /x" in told
        assert not any("Traceback" in line for line in lines)
        script.come_back()
        assert script.shown() == (PASSWORD, None)

    def test_stops_meanwhile(self) -> None:
        """It can be stopped while it waits, and leaves nothing behind."""
        script = self.refused(1)
        stopped = Outcome(script.terminal.stopService())
        settle(script.clock)
        assert stopped.done
        assert script.clock.getDelayedCalls() == []


class ClearTextTests:
    """Nothing that proves who it is leaves in clear text (I25)."""

    def test_terminal(self) -> None:
        """A terminal whose mediator is on another machine shows nothing, and says why."""
        with the_log() as lines:
            script = Script(host=ELSEWHERE)
        assert script.line.received() == []
        (told,) = [line for line in lines if "could not log in" in line]
        assert "would be sent to another machine in clear text" in told
        script.come_back()
        assert script.line.received() == []

    def test_token(self) -> None:
        """The token is as good as the password, and kept back likewise."""
        script = logged_in(Token="t1")
        script.line.vanish()
        script.connect(ELSEWHERE)  # as where a name now leads to another machine
        assert script.line.received() == []

    @pytest.mark.parametrize("password", [PASSWORD, None])
    def test_allowed(self, password: str | None) -> None:
        """Where it is allowed by name it goes; what proves nothing goes in any case."""
        script = Script(password, host=ELSEWHERE, allow_clear_text=password is not None)
        assert script.shown() == (password, None)

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1"])
    def test_this_machine(self, host: str) -> None:
        """Within this machine it may go."""
        assert Script(host=host).shown() == (PASSWORD, None)


class DialTests:
    """A connection to ask something."""

    def dial(self, host: str = "127.0.0.1", **options: Any) -> tuple[Client, Outcome]:
        """Dial with a password: the mediator's end, and what becomes of it."""
        clock = FakeReactor()
        reactor: Any = clock
        endpoint = TCP4ClientEndpoint(reactor, host, 1201)
        outcome = Outcome(dial(reactor, endpoint, "Ia", password=PASSWORD, **options))
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
        endpoint = TCP4ClientEndpoint(clock, "127.0.0.1", 1201)
        with pytest.raises(ValueError, match="Password") as refused:
            dial(clock, endpoint, "Ia", password="x\nPort:1")
        assert "Port" not in str(refused.value)
        assert not clock.dials
