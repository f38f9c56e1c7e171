"""A terminal's client: what it answers, what it believes, and how its questions are settled."""

from __future__ import annotations

from typing import Any, Final

import pytest
from twisted.internet.error import ConnectError, ConnectionLost

from broker.messages.errors import (
    BadRequest,
    CalleeBusy,
    CalleeNotConnected,
    CalleeNotFound,
    NotReached,
    PermissionDenied,
    RegistrationFailed,
    ServiceUnavailable,
)
from broker.messages.grammar import NOTIFY, QUERY
from broker.messages.message import Message
from broker.tables.disclosures import Disclosure, format_line, format_time
from broker.tables.sessions import UNSPENT_SECONDS
from broker.terminal.registration.client import (
    ANSWER_TIMEOUT,
    NOT_FOR_TERMINALS,
    NullEvents,
    dial,
)
from tests.support.clock import advance, result_of
from tests.support.reactor import FakeReactor
from tests.terminal.keys import CALLER, KEY, PASSWORD, REPLY_PASSWORD, SESSION
from tests.terminal.network import Outcome
from tests.terminal.scene import Wire, mediator_at

CREDENTIALS: Final = (
    f"Callee Address:192.0.2.7\nPassword:{PASSWORD}\nEncrypt Key:{KEY}\nCallee Port:1203\n"
    f"Callee:Ib\nSession:{SESSION}\nExpires:3600\nReply Password:{REPLY_PASSWORD}"
)
ANNOUNCEMENT: Final = (
    f"NOTIFY\nCaller ID:Ic\nPassword:{PASSWORD}\nEncrypt Key:{KEY}\nSession:{SESSION}\n"
    f"Expires:3600\nReply Password:{REPLY_PASSWORD}\n\n"
)
#: An answer that is no answer to anything that a terminal asks of itself.
SENSELESS: Final = "STATUS Acceptable."


class AskedTests:
    """What the mediator asks (fig. 17)."""

    @pytest.mark.parametrize(
        ("free", "statement"), [(True, "STATUS Acceptable."), (False, "STATUS Busy.")]
    )
    def test_status(self, free: bool, statement: str) -> None:
        """``QUERY STATUS`` is answered as in the figures, as the terminal is (A13, A14)."""
        wire = Wire()
        wire.events.free = free
        wire.mediator.type("QUERY\nSTATUS\n\n")
        assert wire.mediator.text() == f"NOTIFY\n{statement}\n\n"
        wire.mediator.type("QUERY\nSTATUS\nTransaction:t7\n\n")
        code = "Transaction:t7\nCode:200\n"
        assert wire.mediator.text() == f"NOTIFY\n{statement}\n{code}\n"

    def test_nobody_there(self) -> None:
        """A connection that only asks takes no call, and says so."""
        clock: Any = FakeReactor()
        dialled = dial(clock, mediator_at(clock), CALLER)
        mediator = clock.dials[0].accept()
        mediator.type("QUERY\nSTATUS\n\n" + ANNOUNCEMENT)
        mediator.type(f"NOTIFY\nSession:{SESSION}\nTerminate.\n\nNOTIFY\nSuperseded.\n\n")
        assert mediator.text() == "NOTIFY\nSTATUS Busy.\n\n"
        gone = Outcome(result_of(dialled).gone)
        mediator.vanish()
        assert gone.done
        assert not NullEvents().acceptable()

    @pytest.mark.parametrize("verb", ["REGISTER\nIdentifier:Ia", "REQUEST\nSession:S1"])
    def test_what_a_terminal_does_not_take(self, verb: str) -> None:
        """Another request is answered as bad, and changes nothing."""
        wire = Wire()
        wire.mediator.type(f"{verb}\n\n")
        assert wire.mediator.text() == f"NOTIFY\nBad Message.\nCause:{NOT_FOR_TERMINALS}\n\n"
        assert wire.events.heard == []

    def test_malformed(self) -> None:
        """What is no message is answered; the line goes on."""
        wire = Wire()
        wire.mediator.type("HELLO\n\nQUERY\nSTATUS\n\n")
        assert wire.mediator.text().startswith("NOTIFY\nBad Message.\nCause:")
        assert wire.events.heard == [("status",)]


class NotifiedTests:
    """What the mediator tells, over this connection alone (I26)."""

    def test_announcement(self) -> None:
        """Credentials (fig. 5e) are handed on, good for 30 s (A11, I7)."""
        wire = Wire()
        advance(wire.clock, 5)
        wire.mediator.type(ANNOUNCEMENT)
        ((what, call),) = wire.events.heard
        assert what == "announced"
        assert (call.session, call.caller, call.password) == (SESSION, "Ic", PASSWORD)
        assert call.until == 5 + UNSPENT_SECONDS
        assert wire.mediator.text() == ""  # a NOTIFY is never answered

    @pytest.mark.parametrize(
        ("said", "heard"),
        [
            # Credentials that leave anything out are none (I3).
            ("NOTIFY\nCaller ID:Ic\nPassword:p\n\n", []),
            # A session that must end is told (I2); one that is not named can't be.
            (
                f"NOTIFY\nSession:{SESSION}\nTerminate.\n\nNOTIFY\nTerminate.\n\n",
                [("terminated", SESSION)],
            ),
            # So is that the terminal is reached elsewhere.
            ("NOTIFY\nSuperseded.\n\n", [("superseded",)]),
        ],
        ids=["half an announcement", "terminate", "superseded"],
    )
    def test_notices(self, said: str, heard: list[Any]) -> None:
        """What is told whole is handed on, and nothing else (I2, I3)."""
        wire = Wire()
        wire.mediator.type(said)
        assert wire.events.heard == heard

    def test_lost(self) -> None:
        """When the connection is gone, who acts on it is told, and open questions fail."""
        wire = Wire()
        outcome, _ = wire.ask(wire.client.register())
        gone = Outcome(wire.client.gone)
        wire.mediator.vanish()
        assert isinstance(outcome.error, ConnectionLost)
        assert wire.events.heard == [("lost", wire.client)]
        assert gone.done
        with pytest.raises(ConnectionLost):
            result_of(wire.client.query("Ib"))
        wire.client.ended(SESSION, "Completed")  # nobody hears it, and nothing goes wrong
        wire.client.close()

    def test_closed_by_us(self) -> None:
        """A line that was closed here asks nothing more."""
        wire = Wire()
        wire.client.close()
        with pytest.raises(ConnectionLost):
            result_of(wire.client.accepted())
        assert wire.mediator.closed


class RegisterTests:
    """Registering (fig. 3, ¶77)."""

    def test_who_it_is(self) -> None:
        """With nothing said, only the identifier goes."""
        wire = Wire("山田太郎")
        outcome, question = wire.ask(wire.client.register())
        assert question.fields == {"Identifier": "山田太郎", "Transaction": "1"}
        wire.answer("Registration Completed.\nEpoch:e1")
        assert outcome.value.get("Epoch") == "e1"

    def test_by_name(self) -> None:
        """Who calls itself by another name acts as the mediator says from then on (C1)."""
        wire = Wire("太郎")
        _, question = wire.ask(wire.client.register())
        assert question.get("Identifier") == "太郎"
        wire.answer("Registration Failed.\nIdentifier:Ix", 400)
        assert wire.client.identifier == "太郎"
        wire.ask(wire.client.register())
        wire.answer("Registration Completed.\nEpoch:e1\nIdentifier:Ia", transaction=2)
        assert wire.client.identifier == "Ia"
        _, question = wire.ask(wire.client.accepted())
        assert question.get("Identifier") == "Ia"

    def test_everything(self) -> None:
        """Address, port, life and edits go in one message, the edits in order (A4, A7, A22)."""
        wire = Wire()
        edits = ["Add Ic,Ie", "Delete If"]
        _, question = wire.ask(
            wire.client.register(edits=edits, address="192.0.2.1", port=1300, expires=60)
        )
        assert question.fields == {
            "Identifier": CALLER,
            "Address": "192.0.2.1",
            "Port": "1300",
            "Expires": "60",
            "Accept": "Add Ic,Ie\nDelete If",
            "Transaction": "1",
        }

    def test_refused(self) -> None:
        """A refusal is raised, with its cause (A5)."""
        wire = Wire()
        refusal = "Registration Failed.\nCause:the list is full"
        outcome = wire.outcome(wire.client.register(edits=["Add Ib"]), refusal, 400)
        assert isinstance(outcome.error, RegistrationFailed)
        assert outcome.error.cause == "the list is full"

    def test_an_answer_that_makes_no_sense(self) -> None:
        """What is neither yes nor no is no yes (I3)."""
        wire = Wire()
        assert isinstance(wire.outcome(wire.client.register(), SENSELESS).error, BadRequest)

    @pytest.mark.parametrize(
        ("lines", "accepted"),
        [
            ("Accept:Create Ib,If\nAdd Ic\nAdd @group", ["Ib", "If", "Ic", "@group"]),
            ("Accept:Create", []),  # an empty list is one
        ],
    )
    def test_accepted(self, lines: str, accepted: list[str]) -> None:
        """The terminal's own permits come as one list, over however many lines."""
        wire = Wire()
        outcome, question = wire.ask(wire.client.accepted())
        assert (question.verb, question.statement) == (QUERY, "PERMITS")
        wire.answer(lines)
        assert outcome.value == accepted

    @pytest.mark.parametrize(
        "said",
        [
            {"edits": ["Add Ic\r\nPort:1"]},
            {"edits": ["Add Ic\nDelete Ib"]},
            {"edits": ["Remove Ic"]},
            {"edits": ["Add"]},
            {"address": "192.0.2.1\nExpires:0"},
            {"address": "192.0.2.1", "port": 70000},
            {"address": "192.0.2.1", "expires": -1},
        ],
        ids=repr,
    )
    def test_what_can_not_be_said(self, said: dict[str, Any]) -> None:
        """An application's value that is no value is refused here, and smuggles in no line."""
        wire = Wire()
        with pytest.raises(ValueError, match=r":|must|names"):
            wire.client.register(**said)
        assert wire.mediator.text() == ""

    def test_identifier_is_checked(self) -> None:
        """Nobody acts as what is no identifier."""
        clock: Any = FakeReactor()
        with pytest.raises(ValueError, match="Identifier"):
            dial(clock, mediator_at(clock), "Ia\nCallee:Ib")
        assert not clock.dials

    def test_own_address(self) -> None:
        """What a terminal registers where it is told nothing: its end of this connection."""
        wire = Wire()
        assert wire.client.local_host == "192.0.2.99"
        wire.mediator.vanish()
        assert wire.client.local_host == "127.0.0.1"


def disclosed(number: int) -> Disclosure:
    """A disclosure at that microsecond."""
    return Disclosure(CALLER, "Ic", "203.0.113.5", 1203, "S1", "@family", number, 3600)


def page(*numbers: int) -> str:
    """The answer that tells these."""
    lines = [f"Disclosed:{format_line(disclosed(number))}" for number in numbers]
    return "\n".join(lines) or "Nothing Disclosed."


class DisclosuresTests:
    """Asking who was told where one is."""

    def test_pages(self) -> None:
        """Page after page is asked for, until nothing is left."""
        wire = Wire()
        outcome, question = wire.ask(wire.client.disclosures())
        assert question.fields == {"": "DISCLOSURES", "Identifier": CALLER, "Transaction": "1"}
        wire.answer(page(9, 7))
        (question,) = wire.mediator.received()
        assert question.fields["Before"] == format_time(7)
        wire.answer(page(6), transaction=2)
        wire.mediator.received()
        assert not outcome.done
        wire.answer(page(), transaction=3)
        assert outcome.value == [disclosed(9), disclosed(7), disclosed(6)]

    def test_nobody(self) -> None:
        """An empty ledger is one; it may be asked from some time back."""
        wire = Wire()
        outcome, question = wire.ask(wire.client.disclosures(before=1_000_000))
        assert question.fields["Before"] == "1970-01-01T00:00:01.000000Z"
        wire.answer(page())
        assert outcome.value == []

    def test_no_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It ends at a bound, however much there is (I15)."""
        monkeypatch.setattr("broker.terminal.registration.client.DISCLOSURES_MOST", 3)
        wire = Wire()
        outcome = wire.outcome(wire.client.disclosures(), page(9, 8))
        wire.answer(page(7, 6), transaction=2)
        assert outcome.value == [disclosed(number) for number in (9, 8, 7, 6)]

    @pytest.mark.parametrize(
        "second",
        [page(7), page(9), SENSELESS, "", page(6).replace("port=1203", "port=x")],
    )
    def test_no_sense(self, second: str) -> None:
        """A page that goes on for ever, or is none, is an error and no part of an answer (I3)."""
        wire = Wire()
        outcome = wire.outcome(wire.client.disclosures(), page(9, 7))
        wire.answer(second, transaction=2)
        assert isinstance(outcome.error, BadRequest)

    def test_refused(self) -> None:
        """A refusal is raised."""
        wire = Wire()
        outcome = wire.outcome(wire.client.disclosures(), "Service Unavailable.", 503)
        assert isinstance(outcome.error, ServiceUnavailable)


class QueryTests:
    """Asking for a callee (S1101)."""

    def test_credentials(self) -> None:
        """*Request Accepted.* says that more follows; the credentials settle it (fig. 5b, 5d)."""
        wire = Wire()
        outcome, question = wire.ask(wire.client.query("Ib"))
        assert question.fields == {"Identifier": CALLER, "Callee": "Ib", "Transaction": "1"}
        wire.answer("Request Accepted.", 100)
        assert not outcome.done
        wire.answer(CREDENTIALS)
        assert outcome.value.get("Callee Address") == "192.0.2.7"

    @pytest.mark.parametrize(
        ("statement", "error"),
        [
            ("Permission Denied.", PermissionDenied),
            ("Callee not Found.", CalleeNotFound),
            ("Callee is Busy.", CalleeBusy),
            ("Callee not Connected.", CalleeNotConnected),
            ("Service Unavailable.", ServiceUnavailable),
        ],
    )
    @pytest.mark.parametrize("after", [True, False])
    def test_refused(self, statement: str, error: type[Exception], after: bool) -> None:
        """Each cause is told apart; a refusal may also follow *Request Accepted.* (A20)."""
        wire = Wire()
        outcome, _ = wire.ask(wire.client.query("Ib"))
        if after:
            wire.answer("Request Accepted.", 100)
        wire.answer(statement, 403)
        assert type(outcome.error) is error

    @pytest.mark.parametrize(
        "missing",
        ["Callee Address", "Callee Port", "Password", "Encrypt Key", "Session", "Reply Password"],
    )
    def test_half_the_credentials(self, missing: str) -> None:
        """Credentials that leave anything out are none, the reply password included (A23, I3)."""
        wire = Wire()
        lines = [line for line in CREDENTIALS.splitlines() if line.partition(":")[0] != missing]
        outcome = wire.outcome(wire.client.query("Ib"), "\n".join(lines))
        assert isinstance(outcome.error, BadRequest)
        assert missing in outcome.error.cause

    @pytest.mark.parametrize("callee", ["", "I,b", "Ib\nCallee:Ic", "Ib\r", "x" * 129])
    def test_callee_is_checked(self, callee: str) -> None:
        """What is no identifier is never asked for, and smuggles in no line."""
        wire = Wire()
        with pytest.raises(ValueError, match=r"."):
            wire.client.query(callee)
        assert wire.mediator.text() == ""

    def test_answers_find_their_questions(self) -> None:
        """Answers may come in any order: each settles its own question (I11)."""
        wire = Wire()
        outcomes = [Outcome(wire.client.query(name)) for name in ("Ib", "Ic", "Id")]
        assert len(wire.mediator.received()) == 3
        wire.answer("Callee is Busy.", 486, transaction=3)
        wire.answer("Callee not Found.", 404, transaction=1)
        wire.answer("Permission Denied.", 403, transaction=2)
        errors = [type(outcome.error) for outcome in outcomes]
        assert errors == [CalleeNotFound, PermissionDenied, CalleeBusy]

    @pytest.mark.parametrize(
        "answer",
        [
            f"NOTIFY\n{CREDENTIALS}\n\n",  # without a transaction: no answer to any question
            f"NOTIFY\n{CREDENTIALS}\nTransaction:2\n\n",
            f"NOTIFY\n{CREDENTIALS}\nTransaction:x\n\n",
        ],
    )
    def test_answers_to_nothing(self, answer: str) -> None:
        """What answers no open question settles none, and isn't taken for news (I11)."""
        wire = Wire()
        outcome, _ = wire.ask(wire.client.query("Ib"))
        wire.mediator.type(answer)
        assert not outcome.done
        assert wire.events.heard == []

    def test_answered_twice(self) -> None:
        """The first last answer counts."""
        wire = Wire()
        outcome = wire.outcome(wire.client.query("Ib"), "Permission Denied.", 403)
        wire.answer(CREDENTIALS)
        assert isinstance(outcome.error, PermissionDenied)
        assert wire.clock.getDelayedCalls() == []  # once answered, it leaves nothing behind

    def test_no_answer(self) -> None:
        """A mediator that doesn't answer is waited for 15 s; what comes later is nothing."""
        wire = Wire()
        outcome, _ = wire.ask(wire.client.query("Ib"))
        advance(wire.clock, ANSWER_TIMEOUT - 0.1)
        assert not outcome.done
        advance(wire.clock, 0.1)
        assert isinstance(outcome.error, ServiceUnavailable)
        assert outcome.error.cause == "the mediator did not answer"
        wire.answer(CREDENTIALS)
        assert wire.events.heard == []
        assert wire.clock.getDelayedCalls() == []


class OutsideTests:
    """Where it is seen, and whether it is reached there (D10)."""

    @pytest.mark.parametrize("port", [None, 1203])
    def test_seen(self, port: int | None) -> None:
        """It is told its own source; a port is tried."""
        wire = Wire()
        outcome, question = wire.ask(wire.client.outside(port))
        asked = None if port is None else str(port)
        assert (question.statement, question.get("Port")) == ("ADDRESS", asked)
        assert question.get("Identifier") == CALLER
        wire.answer(f"Address:203.0.113.7\nPort:{port or 50000}")
        assert outcome.value == ("203.0.113.7", port or 50000)

    def test_not_reached(self) -> None:
        """Nobody came there."""
        wire = Wire()
        refusal = "Not Reached.\nCause:nothing answers"
        outcome = wire.outcome(wire.client.outside(1203), refusal, 480)
        assert isinstance(outcome.error, NotReached)
        assert (outcome.error.cause, outcome.error.code) == ("nothing answers", 480)

    @pytest.mark.parametrize("told", ["", "Port:1203", "Address:www.example.com\nPort:1203"])
    def test_nonsense(self, told: str) -> None:
        """Half an answer is none, and a name is no address."""
        wire = Wire()
        assert isinstance(wire.outcome(wire.client.outside(1203), told).error, BadRequest)

    def test_no_port(self) -> None:
        """What is none is not asked for."""
        with pytest.raises(ValueError, match="Port"):
            Wire().client.outside(65536)


def test_reports() -> None:
    """The beginning and the end of a call are told, and expect no answer (S5007)."""
    wire = Wire()
    wire.client.began(SESSION)
    wire.client.ended(SESSION, "Completed")
    assert wire.mediator.received() == [
        Message.of(NOTIFY, {"Session": SESSION, "": "Begin."}),
        Message(NOTIFY, Session=SESSION, End="Completed"),
    ]


def test_nobody_answers() -> None:
    """Connecting once fails as the endpoint does."""
    clock: Any = FakeReactor()
    outcome = Outcome(dial(clock, mediator_at(clock), CALLER))
    clock.dials[0].refuse()
    assert isinstance(outcome.error, ConnectError)
