"""A terminal's line: what it answers, what it believes, and how its questions are settled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectError, ConnectionLost
from twisted.python.failure import Failure

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
from broker.tables.consent_lists import ConsentLists
from broker.tables.disclosures import Disclosure, format_line, format_time
from broker.tables.sessions import UNSPENT_SECONDS
from broker.terminal.registration.client import (
    ANSWER_TIMEOUT,
    NOT_FOR_TERMINALS,
    MediatorClient,
    NullEvents,
    dial,
)
from broker.terminal.registration.notices import ConnectBackRequest, PendingCall
from tests.support.clock import advance, result_of
from tests.support.reactor import FakeReactor
from tests.support.transport import Client
from tests.terminal.keys import CALLER, KEY, PASSWORD, REPLY_PASSWORD, SESSION
from tests.terminal.network import Outcome

CREDENTIALS = (
    f"Callee Address:192.0.2.7\nPassword:{PASSWORD}\nEncrypt Key:{KEY}\nCallee Port:1203\n"
    f"Callee:Ib\nSession:{SESSION}\nExpires:3600\nReply Password:{REPLY_PASSWORD}\n"
)
ANNOUNCEMENT = (
    f"NOTIFY\nCaller ID:Ic\nPassword:{PASSWORD}\nEncrypt Key:{KEY}\nSession:{SESSION}\n"
    f"Expires:3600\nReply Password:{REPLY_PASSWORD}\n\n"
)


class Listener:
    """Keeps what it is told.

    :ivar free: whether a call can be taken
    :ivar told: everything, in order
    :ivar asked: gives whom it accepts
    """

    def __init__(self) -> None:
        self.free = True
        self.told: list[tuple[Any, ...]] = []
        self.asked: Callable[[], Awaitable[ConsentLists]] = NullEvents().consent_lists

    def acceptable(self) -> bool:
        """Whether it is free."""
        self.told.append(("status",))
        return self.free

    async def consent_lists(self) -> ConsentLists:
        """What the test says."""
        self.told.append(("lists",))
        return await self.asked()

    def call_announced(self, client: MediatorClient, call: PendingCall) -> None:
        """Note it."""
        self.told.append(("announced", call))

    async def admits_dial_back(self, client: MediatorClient, request: ConnectBackRequest) -> bool:
        """It does not."""
        self.told.append(("comes", request))
        return False

    def dial_back(self, request: ConnectBackRequest) -> None:
        """Note it."""
        self.told.append(("come", request))

    def session_terminated(self, session: str, how: str | None = None) -> None:
        """Note it."""
        self.told.append(("terminated", session) if how is None else ("terminated", session, how))

    def superseded(self) -> None:
        """Note it."""
        self.told.append(("superseded",))

    def mediator_lost(self, client: MediatorClient, reason: Failure) -> None:
        """Note it."""
        self.told.append(("lost", client))


class Wire:
    """A line, and the mediator's end of it, which a test plays.

    :ivar mediator: what the mediator receives, and where it sends
    """

    def __init__(self, identifier: str = CALLER, listener: Listener | None = None) -> None:
        self.clock = FakeReactor()
        self.listener = listener or Listener()
        reactor: Any = self.clock
        dialled = dial(
            reactor,
            TCP4ClientEndpoint(reactor, "127.0.0.1", 1201),
            identifier,
            events=self.listener,
        )
        self.mediator: Client = self.clock.dials[0].accept(local_host="192.0.2.99")
        self.line: MediatorClient = result_of(dialled)

    def ask(self, deferred: Any) -> tuple[Outcome, Message]:
        """What becomes of a question, and the question as it arrived."""
        outcome = Outcome(deferred)
        (question,) = self.mediator.received()
        return outcome, question


class AskedTests:
    """What the mediator asks (fig. 17)."""

    @pytest.mark.parametrize(
        ("free", "statement"), [(True, "STATUS Acceptable."), (False, "STATUS Busy.")]
    )
    def test_status(self, free: bool, statement: str) -> None:
        """``QUERY STATUS`` is answered as in the figures, as the terminal is (A13, A14)."""
        wire = Wire()
        wire.listener.free = free
        wire.mediator.type("QUERY\nSTATUS\n\n")
        assert wire.mediator.text() == f"NOTIFY\n{statement}\n\n"
        wire.mediator.type("QUERY\nSTATUS\nTransaction:t7\n\n")
        code = "Transaction:t7\nCode:200\n"
        assert wire.mediator.text() == f"NOTIFY\n{statement}\n{code}\n"

    def test_nobody_there(self) -> None:
        """A connection that only asks takes no call, and says so."""
        clock = FakeReactor()
        reactor: Any = clock
        dialled = dial(reactor, TCP4ClientEndpoint(reactor, "127.0.0.1", 1201), CALLER)
        mediator = clock.dials[0].accept()
        mediator.type("QUERY\nSTATUS\n\n" + ANNOUNCEMENT)
        mediator.type(f"NOTIFY\nSession:{SESSION}\nTerminate.\n\nNOTIFY\nSuperseded.\n\n")
        assert mediator.text() == "NOTIFY\nSTATUS Busy.\n\n"
        line = result_of(dialled)
        gone = Outcome(line.gone)
        mediator.vanish()
        assert gone.done
        assert not NullEvents().acceptable()

    @pytest.mark.parametrize("verb", ["REGISTER\nIdentifier:Ia", "REQUEST\nSession:S1"])
    def test_what_a_terminal_does_not_take(self, verb: str) -> None:
        """Another request is answered as bad, and changes nothing."""
        wire = Wire()
        wire.mediator.type(f"{verb}\n\n")
        assert wire.mediator.text() == f"NOTIFY\nBad Message.\nCause:{NOT_FOR_TERMINALS}\n\n"
        assert wire.listener.told == []

    def test_malformed(self) -> None:
        """What is no message is answered; the line goes on."""
        wire = Wire()
        wire.mediator.type("HELLO\n\nQUERY\nSTATUS\n\n")
        assert wire.mediator.text().startswith("NOTIFY\nBad Message.\nCause:")
        assert wire.listener.told == [("status",)]


class ToldTests:
    """What the mediator tells, over this connection alone (I26)."""

    def test_announcement(self) -> None:
        """Credentials (fig. 5e) are handed on, good for 30 s (A11, I7)."""
        wire = Wire()
        advance(wire.clock, 5)
        wire.mediator.type(ANNOUNCEMENT)
        ((what, call),) = wire.listener.told
        assert what == "announced"
        assert (call.session, call.caller, call.password) == (SESSION, "Ic", PASSWORD)
        assert call.until == 5 + UNSPENT_SECONDS
        assert wire.mediator.text() == ""  # a NOTIFY is never answered

    def test_half_an_announcement(self) -> None:
        """Credentials that leave anything out are none (I3)."""
        wire = Wire()
        wire.mediator.type("NOTIFY\nCaller ID:Ic\nPassword:p\n\n")
        assert wire.listener.told == []

    def test_terminate(self) -> None:
        """A session that must end is told (I2)."""
        wire = Wire()
        wire.mediator.type(f"NOTIFY\nSession:{SESSION}\nTerminate.\n\nNOTIFY\nTerminate.\n\n")
        assert wire.listener.told == [("terminated", SESSION)]

    def test_superseded(self) -> None:
        """So is that the terminal is reached elsewhere."""
        wire = Wire()
        wire.mediator.type("NOTIFY\nSuperseded.\n\n")
        assert wire.listener.told == [("superseded",)]

    def test_lost(self) -> None:
        """When the connection is gone, who acts on it is told, and open questions fail."""
        wire = Wire()
        outcome, _ = wire.ask(wire.line.register())
        gone = Outcome(wire.line.gone)
        wire.mediator.vanish()
        assert isinstance(outcome.error, ConnectionLost)
        assert wire.listener.told == [("lost", wire.line)]
        assert gone.done
        with pytest.raises(ConnectionLost):
            result_of(wire.line.query("Ib"))
        wire.line.ended(SESSION, "Completed")  # nobody hears it, and nothing goes wrong
        wire.line.close()

    def test_closed_by_us(self) -> None:
        """A line that was closed here asks nothing more."""
        wire = Wire()
        wire.line.close()
        with pytest.raises(ConnectionLost):
            result_of(wire.line.accepted())
        assert wire.mediator.closed


class RegisterTests:
    """Registering (fig. 3, ¶77)."""

    def test_who_it_is(self) -> None:
        """With nothing said, only the identifier goes."""
        wire = Wire("山田太郎")
        outcome, question = wire.ask(wire.line.register())
        assert question.fields == {"Identifier": "山田太郎", "Transaction": "1"}
        wire.mediator.type("NOTIFY\nRegistration Completed.\nEpoch:e1\nTransaction:1\nCode:200\n\n")
        assert outcome.value.get("Epoch") == "e1"

    def test_by_name(self) -> None:
        """Who calls itself by another name acts as the mediator says from then on (C1)."""
        wire = Wire("太郎")
        _, question = wire.ask(wire.line.register())
        assert question.get("Identifier") == "太郎"
        wire.mediator.type(
            "NOTIFY\nRegistration Failed.\nIdentifier:Ix\nTransaction:1\nCode:400\n\n"
        )
        assert wire.line.identifier == "太郎"
        _, question = wire.ask(wire.line.register())
        done = (
            "NOTIFY\nRegistration Completed.\nEpoch:e1\nIdentifier:Ia\nTransaction:2\nCode:200\n\n"
        )
        wire.mediator.type(done)
        assert wire.line.identifier == "Ia"
        _, question = wire.ask(wire.line.accepted())
        assert question.get("Identifier") == "Ia"

    def test_everything(self) -> None:
        """Address, port, life and edits go in one message, the edits in order (A4, A7, A22)."""
        wire = Wire()
        _, question = wire.ask(
            wire.line.register(
                edits=["Add Ic,Ie", "Delete If"], address="192.0.2.1", port=1300, expires=60
            )
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
        outcome, _ = wire.ask(wire.line.register(edits=["Add Ib"]))
        wire.mediator.type(
            "NOTIFY\nRegistration Failed.\nCause:the list is full\nTransaction:1\nCode:400\n\n"
        )
        assert isinstance(outcome.error, RegistrationFailed)
        assert outcome.error.cause == "the list is full"

    def test_an_answer_that_makes_no_sense(self) -> None:
        """What is neither yes nor no is no yes (I3)."""
        wire = Wire()
        outcome, _ = wire.ask(wire.line.register())
        wire.mediator.type("NOTIFY\nSTATUS Acceptable.\nTransaction:1\n\n")
        assert isinstance(outcome.error, BadRequest)

    def test_accepted(self) -> None:
        """The terminal's own permits come as one list, over however many lines."""
        wire = Wire()
        outcome, question = wire.ask(wire.line.accepted())
        assert (question.verb, question.statement) == (QUERY, "PERMITS")
        wire.mediator.type(
            "NOTIFY\nAccept:Create Ib,If\nAdd Ic\nAdd @group\nTransaction:1\nCode:200\n\n"
        )
        assert outcome.value == ["Ib", "If", "Ic", "@group"]

    def test_nobody_accepted(self) -> None:
        """An empty list is one."""
        wire = Wire()
        outcome, _ = wire.ask(wire.line.accepted())
        wire.mediator.type("NOTIFY\nAccept:Create\nTransaction:1\nCode:200\n\n")
        assert outcome.value == []

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
            wire.line.register(**said)
        assert wire.mediator.text() == ""

    def test_identifier_is_checked(self) -> None:
        """Nobody acts as what is no identifier."""
        clock: Any = FakeReactor()
        with pytest.raises(ValueError, match="Identifier"):
            dial(clock, TCP4ClientEndpoint(clock, "127.0.0.1", 1201), "Ia\nCallee:Ib")
        assert not clock.dials

    def test_own_address(self) -> None:
        """What a terminal registers where it is told nothing: its end of this connection."""
        wire = Wire()
        assert wire.line.local_host == "192.0.2.99"
        wire.mediator.vanish()
        assert wire.line.local_host == "127.0.0.1"


def told(number: int) -> Disclosure:
    """A disclosure at that microsecond."""
    return Disclosure(CALLER, "Ic", "203.0.113.5", 1203, "S1", "@family", number, 3600)


def page(transaction: int, *numbers: int) -> str:
    """The answer that tells these."""
    lines = "".join(f"Disclosed:{format_line(told(number))}\n" for number in numbers)
    return f"NOTIFY\n{lines or NOTHING}Transaction:{transaction}\nCode:200\n\n"


NOTHING = "Nothing Disclosed.\n"


class DisclosuresTests:
    """Asking who was told where one is."""

    def test_pages(self) -> None:
        """Page after page is asked for, until nothing is left."""
        wire = Wire()
        outcome, question = wire.ask(wire.line.disclosures())
        assert question.fields == {"": "DISCLOSURES", "Identifier": CALLER, "Transaction": "1"}
        wire.mediator.type(page(1, 9, 7))
        (question,) = wire.mediator.received()
        assert question.fields["Before"] == format_time(7)
        wire.mediator.type(page(2, 6))
        wire.mediator.received()
        assert not outcome.done
        wire.mediator.type(page(3))
        assert outcome.value == [told(9), told(7), told(6)]

    def test_nobody(self) -> None:
        """An empty ledger is one; it may be asked from some time back."""
        wire = Wire()
        outcome, question = wire.ask(wire.line.disclosures(before=1_000_000))
        assert question.fields["Before"] == "1970-01-01T00:00:01.000000Z"
        wire.mediator.type(page(1))
        assert outcome.value == []

    def test_no_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It ends at a bound, however much there is (I15)."""
        monkeypatch.setattr("broker.terminal.registration.client.DISCLOSURES_MOST", 3)
        wire = Wire()
        outcome, _ = wire.ask(wire.line.disclosures())
        wire.mediator.type(page(1, 9, 8))
        wire.mediator.type(page(2, 7, 6))
        assert outcome.value == [told(9), told(8), told(7), told(6)]

    @pytest.mark.parametrize(
        "second",
        [
            page(2, 7),
            page(2, 9),
            "NOTIFY\nSTATUS Acceptable.\nTransaction:2\n\n",
            "NOTIFY\nTransaction:2\nCode:200\n\n",
            page(2, 6).replace("port=1203", "port=x"),
        ],
    )
    def test_no_sense(self, second: str) -> None:
        """A page that goes on for ever, or is none, is an error and no part of an answer (I3)."""
        wire = Wire()
        outcome, _ = wire.ask(wire.line.disclosures())
        wire.mediator.type(page(1, 9, 7))
        wire.mediator.type(second)
        assert isinstance(outcome.error, BadRequest)

    def test_refused(self) -> None:
        """A refusal is raised."""
        wire = Wire()
        outcome, _ = wire.ask(wire.line.disclosures())
        wire.mediator.type("NOTIFY\nService Unavailable.\nTransaction:1\nCode:503\n\n")
        assert isinstance(outcome.error, ServiceUnavailable)


class QueryTests:
    """Asking for a callee (S1101)."""

    def test_credentials(self) -> None:
        """*Request Accepted.* says that more follows; the credentials settle it (fig. 5b, 5d)."""
        wire = Wire()
        outcome, question = wire.ask(wire.line.query("Ib"))
        assert question.fields == {"Identifier": CALLER, "Callee": "Ib", "Transaction": "1"}
        wire.mediator.type("NOTIFY\nRequest Accepted.\nTransaction:1\nCode:100\n\n")
        assert not outcome.done
        wire.mediator.type(f"NOTIFY\n{CREDENTIALS}Transaction:1\nCode:200\n\n")
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
        outcome, _ = wire.ask(wire.line.query("Ib"))
        if after:
            wire.mediator.type("NOTIFY\nRequest Accepted.\nTransaction:1\nCode:100\n\n")
        wire.mediator.type(f"NOTIFY\n{statement}\nTransaction:1\nCode:403\n\n")
        assert type(outcome.error) is error

    @pytest.mark.parametrize(
        "missing",
        ["Callee Address", "Callee Port", "Password", "Encrypt Key", "Session", "Reply Password"],
    )
    def test_half_the_credentials(self, missing: str) -> None:
        """Credentials that leave anything out are none, the reply password included (A23, I3)."""
        wire = Wire()
        outcome, _ = wire.ask(wire.line.query("Ib"))
        lines = [line for line in CREDENTIALS.splitlines() if line.partition(":")[0] != missing]
        wire.mediator.type("NOTIFY\n" + "\n".join(lines) + "\nTransaction:1\nCode:200\n\n")
        assert isinstance(outcome.error, BadRequest)
        assert missing in outcome.error.cause

    @pytest.mark.parametrize("callee", ["", "I,b", "Ib\nCallee:Ic", "Ib\r", "x" * 129])
    def test_callee_is_checked(self, callee: str) -> None:
        """What is no identifier is never asked for, and smuggles in no line."""
        wire = Wire()
        with pytest.raises(ValueError, match=r"."):
            wire.line.query(callee)
        assert wire.mediator.text() == ""

    def test_answers_find_their_questions(self) -> None:
        """Answers may come in any order: each settles its own question (I11)."""
        wire = Wire()
        outcomes = [Outcome(wire.line.query(name)) for name in ("Ib", "Ic", "Id")]
        assert len(wire.mediator.received()) == 3
        wire.mediator.type("NOTIFY\nCallee is Busy.\nTransaction:3\nCode:486\n\n")
        wire.mediator.type("NOTIFY\nCallee not Found.\nTransaction:1\nCode:404\n\n")
        wire.mediator.type("NOTIFY\nPermission Denied.\nTransaction:2\nCode:403\n\n")
        assert [type(one.error) for one in outcomes] == [
            CalleeNotFound,
            PermissionDenied,
            CalleeBusy,
        ]

    @pytest.mark.parametrize(
        "answer",
        [
            f"NOTIFY\n{CREDENTIALS}\n",  # without a transaction: no answer to any question
            f"NOTIFY\n{CREDENTIALS}Transaction:2\n\n",
            f"NOTIFY\n{CREDENTIALS}Transaction:x\n\n",
        ],
    )
    def test_answers_to_nothing(self, answer: str) -> None:
        """What answers no open question settles none, and isn't taken for news (I11)."""
        wire = Wire()
        outcome, _ = wire.ask(wire.line.query("Ib"))
        wire.mediator.type(answer)
        assert not outcome.done
        assert wire.listener.told == []

    def test_answered_twice(self) -> None:
        """The first last answer counts."""
        wire = Wire()
        outcome, _ = wire.ask(wire.line.query("Ib"))
        wire.mediator.type("NOTIFY\nPermission Denied.\nTransaction:1\nCode:403\n\n")
        wire.mediator.type(f"NOTIFY\n{CREDENTIALS}Transaction:1\nCode:200\n\n")
        assert isinstance(outcome.error, PermissionDenied)

    def test_no_answer(self) -> None:
        """A mediator that doesn't answer is waited for 15 s; what comes later is nothing."""
        wire = Wire()
        outcome, _ = wire.ask(wire.line.query("Ib"))
        advance(wire.clock, ANSWER_TIMEOUT - 0.1)
        assert not outcome.done
        advance(wire.clock, 0.1)
        assert isinstance(outcome.error, ServiceUnavailable)
        assert outcome.error.cause == "the mediator did not answer"
        wire.mediator.type(f"NOTIFY\n{CREDENTIALS}Transaction:1\nCode:200\n\n")
        assert wire.listener.told == []
        assert wire.clock.getDelayedCalls() == []

    def test_answered_leaves_no_timer(self) -> None:
        """Once answered, a question leaves nothing behind."""
        wire = Wire()
        wire.ask(wire.line.query("Ib"))
        wire.mediator.type("NOTIFY\nPermission Denied.\nTransaction:1\nCode:403\n\n")
        assert wire.clock.getDelayedCalls() == []


class OutsideTests:
    """Where it is seen, and whether it is reached there (D10)."""

    def test_seen(self) -> None:
        """It is told its own source."""
        wire = Wire()
        outcome, question = wire.ask(wire.line.outside())
        assert (question.statement, question.get("Port")) == ("ADDRESS", None)
        assert question.get("Identifier") == CALLER
        wire.mediator.type("NOTIFY\nAddress:203.0.113.7\nPort:50000\nTransaction:1\nCode:200\n\n")
        assert outcome.value == ("203.0.113.7", 50000)

    def test_tried(self) -> None:
        """A port is tried."""
        wire = Wire()
        outcome, question = wire.ask(wire.line.outside(1203))
        assert question.get("Port") == "1203"
        wire.mediator.type("NOTIFY\nAddress:203.0.113.7\nPort:1203\nTransaction:1\nCode:200\n\n")
        assert outcome.value == ("203.0.113.7", 1203)

    def test_not_reached(self) -> None:
        """Nobody came there."""
        wire = Wire()
        outcome, _ = wire.ask(wire.line.outside(1203))
        wire.mediator.type(
            "NOTIFY\nNot Reached.\nCause:nothing answers\nTransaction:1\nCode:480\n\n"
        )
        assert isinstance(outcome.error, NotReached)
        assert (outcome.error.cause, outcome.error.code) == ("nothing answers", 480)

    @pytest.mark.parametrize("told", ["", "Port:1203\n", "Address:www.example.com\nPort:1203\n"])
    def test_nonsense(self, told: str) -> None:
        """Half an answer is none, and a name is no address."""
        wire = Wire()
        outcome, _ = wire.ask(wire.line.outside(1203))
        wire.mediator.type(f"NOTIFY\n{told}Transaction:1\nCode:200\n\n")
        assert isinstance(outcome.error, BadRequest)

    def test_no_port(self) -> None:
        """What is none is not asked for."""
        with pytest.raises(ValueError, match="Port"):
            Wire().line.outside(65536)


class ReportTests:
    """What a terminal reports (S5007)."""

    def test_reports(self) -> None:
        """The beginning and the end of a call are told, and expect no answer."""
        wire = Wire()
        wire.line.began(SESSION)
        wire.line.ended(SESSION, "Completed")
        assert wire.mediator.received() == [
            Message.of(NOTIFY, {"Session": SESSION, "": "Begin."}),
            Message(NOTIFY, Session=SESSION, End="Completed"),
        ]


class DialTests:
    """Connecting once."""

    def test_nobody_answers(self) -> None:
        """It fails as the endpoint does."""
        clock = FakeReactor()
        reactor: Any = clock
        outcome = Outcome(dial(reactor, TCP4ClientEndpoint(reactor, "127.0.0.1", 1201), CALLER))
        clock.dials[0].refuse()
        assert isinstance(outcome.error, ConnectError)
