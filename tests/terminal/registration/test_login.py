"""Logging in: by password and token, at what pace, and never in clear text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import pytest
from twisted.internet.error import ConnectError, ConnectionLost

from broker.messages.errors import LoginRequired, RegistrationFailed
from broker.terminal.errors import CannotLogIn
from broker.terminal.registration.client import SECRET_IN_CLEAR, dial
from broker.terminal.registration.login import NO_PASSWORD
from tests.support.clock import advance, settle
from tests.support.log import the_log
from tests.support.reactor import FakeReactor
from tests.terminal.network import HOST, Outcome
from tests.terminal.scene import ELSEWHERE, PASSWORD, Scene, mediator_at

#: What is shown: the password, a token, or neither. Or it says nothing at all.
BY_PASSWORD: Final = (PASSWORD, None)
BY_T1, BY_T2, BY_NEITHER = (None, "t1"), (None, "t2"), (None, None)
SILENT: Final = "says nothing"
#: A step that is no login: the connection breaks.
LOST: Final = ("lost", "", 0)
#: How a login is answered, and what the log says of a refusal.
E1_T1, E1_T2, E1, E2 = [
    (f"Registration Completed.\n{fields}", 200)
    for fields in ("Epoch:e1\nToken:t1", "Epoch:e1\nToken:t2", "Epoch:e1", "Epoch:e2")
]
STALE: Final = ("Registration Failed.\nCause:the token is not valid", 401)
WRONG: Final = ("Registration Failed.\nCause:the identifier or the password is wrong", 401)
REQUIRED: Final = ("Login Required.\nCause:log in first", 401)
TOO_MANY, FORBIDDEN = ("Too Many Requests.", 429), (WRONG[0], 403)
UNAVAILABLE: Final = ("Service Unavailable.", 503)
SAID_WRONG: Final = (
    "Ib could not log in and keeps trying:"
    " Registration Failed. the identifier or the password is wrong\n"
)
#: What a password cannot be.
LONG, LINES = "x" * 513, "two\nlines"


class Row(NamedTuple):
    """Logins one after the other.

    :ivar steps: what is shown, and how that is answered: text and code
    :ivar said: what the log says of refusals, in order
    :ivar password: one, or what its function gives or raises from call to call
    """

    steps: Sequence[tuple[Any, ...]]
    said: Sequence[str] = ()
    password: Any = PASSWORD
    host: str = HOST
    allowed: bool = False
    udp: tuple[None, int] | None = None


def passwords(given: Sequence[Any]) -> Any:
    """The function that gives these; called once too often, it fails."""
    left = iter(given)

    def give() -> Any:
        password = next(left)
        if isinstance(password, Exception):
            raise password
        return password

    return give


ROWS: Final = {
    "without a password it shows none: a mediator may believe it": Row(
        [(BY_NEITHER, E1)], password=None
    ),
    "logged in, it comes back with the newest token, and not the password (A19)": Row(
        [(BY_PASSWORD, E1_T1), (BY_T1, E1_T2), (BY_T2, E1)]
    ),
    "without a token the password is shown again; an old token is kept for its epoch": Row(
        [(BY_PASSWORD, E1), (BY_PASSWORD, E1_T1), (BY_T1, E1), (BY_T1, E1)]
    ),
    "a token is not kept beside one of a new store": Row(
        [(BY_PASSWORD, E1_T1), (BY_T1, E2), (BY_PASSWORD, E2)]
    ),
    "a token that is refused is forgotten; the password follows at once (A19)": Row(
        [(BY_PASSWORD, E1_T1), (BY_T1, STALE), (BY_PASSWORD, E1_T2), (BY_T2, E1)]
    ),
    "so does it where the mediator closes after the refusal": Row(
        [(BY_PASSWORD, E1_T1), (BY_T1, STALE), LOST, (BY_PASSWORD, E1)]
    ),
    "another refusal says nothing of the token: it is shown again": Row(
        [(BY_PASSWORD, E1_T1), (BY_T1, UNAVAILABLE), (BY_T1, E1)]
    ),
    "a password may come from a function, which is called only when needed": Row(
        [(("p1", None), E1_T1), (BY_T1, STALE), (("p2", None), E1)], password=["p1", "p2"]
    ),
    # At the slowest pace, from the first on (I23); and it is said clearly, once.
    "a refused login is tried again": Row([(BY_PASSWORD, WRONG)] * 5, [SAID_WRONG]),
    "refused by another code": Row([(BY_PASSWORD, FORBIDDEN)] * 5, [SAID_WRONG]),
    "refused where a login is required": Row(
        [(BY_PASSWORD, REQUIRED)] * 5, [f"log in first{NO_PASSWORD}"]
    ),
    "refused after too many": Row([(BY_PASSWORD, TOO_MANY)] * 5, ["Too Many Requests. \n"]),
    "token and password refused one after the other": Row(
        [(BY_PASSWORD, E1_T1), (BY_T1, STALE), (BY_PASSWORD, WRONG), (BY_PASSWORD, E1)],
        [SAID_WRONG],
    ),
    "once the password is right it is ready": Row(
        [(("wrong", None), WRONG), (("right", None), E1_T1), (BY_T1, E1)],
        [SAID_WRONG],
        ["wrong", "right"],
    ),
    "another cause is said again": Row(
        [(BY_PASSWORD, WRONG), (BY_PASSWORD, WRONG), (BY_PASSWORD, TOO_MANY), (BY_PASSWORD, E1)],
        [SAID_WRONG, "Too Many Requests. \n"],
    ),
    "how long it must still wait is not another cause": Row(
        [(BY_PASSWORD, (f"Too Many Requests.\nCause:try in {n} s", 429)) for n in (50, 30)],
        ["Too Many Requests. try in 50 s\n"],
    ),
    "once it was logged in, the same refusal is said again": Row(
        [(BY_PASSWORD, WRONG), (BY_PASSWORD, E1), (BY_PASSWORD, WRONG)], [SAID_WRONG] * 2
    ),
    "a refusal without a cause is said too": Row(
        [(BY_PASSWORD, ("Registration Failed.", 401))], ["Registration Failed. \n"]
    ),
    "without a password at hand, it says what to do": Row(
        [(BY_NEITHER, REQUIRED)] * 2, [f"log in first{NO_PASSWORD}\n"], [None, None]
    ),
    "where none is expected, it says what the mediator says, as of a certificate": Row(
        [(BY_NEITHER, ("Login Required.\nCause:it is revoked", 401))] * 2,
        ["Login Required. it is revoked\n"],
        None,
    ),
    # What cannot be a password is never sent, and not shown either (I18).
    "too long": Row([(SILENT, None)] * 2, ["Password: "], LONG),
    "empty": Row([(SILENT, None)] * 2, ["Password: "], ""),
    "two lines": Row([(SILENT, None)] * 2, ["Password: "], LINES),
    "a function that fails is told of in a line, and called again later": Row(
        [(SILENT, None), (BY_PASSWORD, E1)],
        ["/x: others can read it: chmod 600 /x\n"],
        [ValueError("/x: others can read it: chmod 600 /x"), PASSWORD],
    ),
    # Nothing that proves who it is leaves in clear text (I25).
    "nothing is shown to another machine": Row(
        [(SILENT, None)] * 2, [SECRET_IN_CLEAR], host=ELSEWHERE
    ),
    "nor is a key for UDP requested there": Row(
        [(SILENT, None)] * 2, [SECRET_IN_CLEAR], None, ELSEWHERE, udp=(None, 1200)
    ),
    "unless that is allowed by name": Row([(BY_PASSWORD, E1)], host=ELSEWHERE, allowed=True),
    "what proves nothing is sent": Row([(BY_NEITHER, E1)], password=None, host=ELSEWHERE),
    "within this machine": Row([(BY_PASSWORD, E1)], host="127.9.9.9"),
    "within this machine, IPv6": Row([(BY_PASSWORD, E1)], host="::1"),
}


class LoginTests:
    """What proves who it is, and in which order; what is said of refusals, and how often."""

    @pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
    def test_logins(self, row: Row) -> None:
        """Each login shows what the one before has left it; a refused one is slow (A19, I23)."""
        given = row.password
        with the_log() as lines:
            scene = Scene(
                passwords(given) if isinstance(given, list) else given,
                host=row.host,
                allow_clear_text=row.allowed,
                udp=row.udp,
            )
            for number, (shown, *reply) in enumerate(row.steps):
                self.takes(scene, shown, reply, first=number == 0)
        said = [line for line in lines if "could not log in" in line]
        assert len(said) == len(row.said)
        assert all(text in line for text, line in zip(row.said, said, strict=True))
        secrets = [PASSWORD, LONG, LINES, repr(LINES)[1:-1], "Traceback"]
        assert not any(secret in line for line in lines for secret in secrets)

    def takes(self, scene: Scene, shown: Any, reply: list[Any], *, first: bool) -> None:
        """Answer a login, which comes over this connection, or over the next one."""
        if shown == LOST[0]:
            scene.lose()
            return
        messages = scene.line.received()
        if not messages and not first:
            self.comes_back(scene)
            messages = scene.line.received()
        if shown == SILENT:
            assert messages == []
            self.hopeless = True
            return
        assert [(each.get("Password"), each.get("Token")) for each in messages] == [shown]
        ((text, code),) = reply
        self.hopeless = code in (401, 403, 429)
        was_ready = scene.ready.done
        scene.answer(text, code)
        assert scene.ready.done is (was_ready or code == 200)

    def comes_back(self, scene: Scene) -> None:
        """It connects again: soon after a loss, in 15 to 30 s after a refusal."""
        before = scene.clock.seconds()
        settle(scene.clock)
        if scene.line.closed:
            scene.come_back()
        else:
            scene.lose()
        waited = scene.clock.seconds() - before
        assert 14.9 <= waited <= 30.2 if self.hopeless else waited < 1

    def test_in_one_message(self) -> None:
        """Login and address go together, in one round trip (A19, A7)."""
        fields = {"Identifier": "Ib", "Password": PASSWORD, "Transaction": "1"}
        assert list(Scene().said().fields.items()) == list(fields.items())

    def test_permits_follow(self) -> None:
        """Its permits are told once it is logged in, without the password."""
        scene = Scene(accept=["Ia"])
        assert scene.shown() == BY_PASSWORD
        scene.complete(Epoch="e1", Token="t1")
        message = scene.said()
        assert message.edits("Accept") == ["Add Ia"]
        assert message.get("Password") is message.get("Token") is None

    def test_strangers_do_not_hurry_it(self) -> None:
        """A stranger cannot make it show a wrong password again and again (I23, I26)."""
        scene = Scene()
        scene.answer(*WRONG)
        settle(scene.clock)
        for _ in range(10):
            scene.terminal.woken()
            advance(scene.clock, 1)
        assert len(scene.clock.dials) == 1
        scene.come_back()
        scene.complete(Epoch="e1")
        scene.line.vanish()
        scene.terminal.woken()  # once it was logged in, that hurries it as before
        settle(scene.clock)
        assert len(scene.clock.dials) == 3

    def test_stopped_while_it_waits(self) -> None:
        """It can be stopped while it waits, and leaves nothing behind."""
        scene = Scene()
        scene.answer(*WRONG)
        settle(scene.clock)
        stopped = Outcome(scene.terminal.stopService())
        settle(scene.clock)
        assert (stopped.done, scene.clock.getDelayedCalls()) == (True, [])

    def test_token_in_clear_text(self) -> None:
        """The token is worth as much as the password, and kept back likewise (I25)."""
        scene = Scene()
        scene.complete(Epoch="e1", Token="t1")
        scene.line.vanish()
        scene.connect(ELSEWHERE)  # as where a name now leads to another machine
        assert scene.line.received() == []


class DialTests:
    """A connection to ask something."""

    @pytest.mark.parametrize(
        ("host", "allowed", "answer", "result"),
        [
            # The connection is given once the login has been taken (A19).
            (HOST, False, E1, None),
            # A refusal is raised with its code, and the connection closed.
            (HOST, False, WRONG, (RegistrationFailed, 401)),
            (HOST, False, REQUIRED, (LoginRequired, 401)),
            (HOST, False, None, (ConnectionLost, 0)),
            # Over a network it says nothing unless that is allowed (I25).
            (ELSEWHERE, False, None, (CannotLogIn, 0)),
            (ELSEWHERE, True, E1, None),
        ],
    )
    def test_logs_in_first(self, host: str, allowed: bool, answer: Any, result: Any) -> None:
        """It logs in before it asks anything."""
        clock: Any = FakeReactor()
        dialled = dial(
            clock, mediator_at(clock, host), "Ia", password=PASSWORD, allow_clear_text=allowed
        )
        outcome, mediator = Outcome(dialled), clock.dials[0].accept()
        fields = [message.fields for message in mediator.received()]
        private = host == HOST or allowed
        login = {"Identifier": "Ia", "Password": PASSWORD, "Transaction": "1"}
        assert (fields, outcome.done) == ([login] if private else [], not private)
        if answer is not None:
            mediator.type(f"NOTIFY\n{answer[0]}\nTransaction:1\nCode:{answer[1]}\n\n")
        elif private:
            mediator.vanish()
        if result is None:
            assert outcome.value.identifier == "Ia"
        else:
            error: Any = outcome.error
            assert (type(error), getattr(error, "code", 0)) == result
            assert mediator.closed

    def test_not_reached(self) -> None:
        """Connecting once fails as the endpoint does."""
        clock: Any = FakeReactor()
        outcome = Outcome(dial(clock, mediator_at(clock), "Ia"))
        clock.dials[0].refuse()
        assert isinstance(outcome.error, ConnectError)

    @pytest.mark.parametrize(
        ("identifier", "password", "why"),
        [("Ia", "x\nPort:1", "Password"), ("Ia\nCallee:Ib", None, "Identifier")],
    )
    def test_not_valid(self, identifier: str, password: str | None, why: str) -> None:
        """What is not valid is refused before anything is dialled, and not shown (I18)."""
        clock: Any = FakeReactor()
        with pytest.raises(ValueError, match=why) as refused:
            dial(clock, mediator_at(clock), identifier, password=password)
        assert "Port" not in str(refused.value)
        assert not clock.dials
