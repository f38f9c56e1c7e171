"""A terminal's client: what it answers, what it believes, and how its questions are settled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
from twisted.internet.error import ConnectionLost

from broker.messages.errors import (
    BadRequest,
    CalleeBusy,
    CalleeNotConnected,
    CalleeNotFound,
    NotReached,
    PermissionDenied,
    Refused,
    RegistrationFailed,
    ServiceUnavailable,
)
from broker.messages.grammar import NOTIFY, QUERY, REGISTER
from broker.messages.message import Message
from broker.tables.disclosures import Disclosure, format_line, format_time
from broker.tables.sessions import UNSPENT_SECONDS
from broker.terminal.registration.client import (
    ANSWER_TIMEOUT,
    NOT_FOR_TERMINALS,
    NOT_VALID,
    MediatorClient,
    NullEvents,
    dial,
)
from tests.support.clock import advance, result_of
from tests.support.reactor import FakeReactor
from tests.terminal.keys import (
    ANNOUNCEMENT,
    CALLER,
    KEY,
    PASSWORD,
    REPLY_PASSWORD,
    SESSION,
    TERMINATE,
)
from tests.terminal.network import HOST, Outcome
from tests.terminal.scene import Wire, mediator_at

CREDENTIALS: Final = (
    f"Callee Address:192.0.2.7\nPassword:{PASSWORD}\nEncrypt Key:{KEY}\nCallee Port:1203\n"
    f"Callee:Ib\nSession:{SESSION}\nExpires:3600\nReply Password:{REPLY_PASSWORD}"
)
#: An answer that does not fit any question of a terminal.
SENSELESS: Final = "STATUS Acceptable."
STATUS: Final = "QUERY\nSTATUS\n"
NOT_TAKEN: Final = f"NOTIFY\nBad Message.\nCause:{NOT_FOR_TERMINALS}\n\n"

Ask = Callable[[MediatorClient], Any]


def ask(question: str, *args: Any, **values: Any) -> Ask:
    """Ask by that method of the client."""
    return lambda client: getattr(client, question)(*args, **values)


def settled(outcome: Outcome) -> Any:
    """What a question gave, or why its answer is not valid."""
    assert isinstance(outcome.error, BadRequest | None)
    return outcome.value if outcome.error is None else outcome.error.cause


class MediatorSaysTests:
    """What the mediator asks (fig. 17), and what it tells, over this connection alone (I26)."""

    @pytest.mark.parametrize(
        ("said", "answer", "heard"),
        [
            # The status is answered as in the figures, as the terminal is (A13, A14).
            (STATUS + "\n", "NOTIFY\nSTATUS Acceptable.\n\n", [("status",)]),
            (STATUS + "\n", "NOTIFY\nSTATUS Busy.\n\n", [("status",)]),
            (
                STATUS + "Transaction:t7\n\n",
                "NOTIFY\nSTATUS Acceptable.\nTransaction:t7\nCode:200\n\n",
                [("status",)],
            ),
            # Another request is answered as bad, and changes nothing.
            ("REGISTER\nIdentifier:Ia\n\n", NOT_TAKEN, []),
            ("REQUEST\nSession:S1\n\n", NOT_TAKEN, []),
            # Credentials of a call with anything missing are not (I3).
            ("NOTIFY\nCaller ID:Ic\nPassword:p\n\n", "", []),
            # The end of a session is handed on (I2), if the session is named.
            (f"{TERMINATE}NOTIFY\nTerminate.\n\n", "", [("terminated", SESSION)]),
            # So is that the terminal is reached elsewhere.
            ("NOTIFY\nSuperseded.\n\n", "", [("superseded",)]),
        ],
    )
    def test_each_message(self, said: str, answer: str, heard: list[Any]) -> None:
        """It is answered, or handed on whole, or ignored."""
        wire = Wire()
        wire.events.free = "Busy" not in answer
        wire.mediator.type(said)
        assert (wire.mediator.text(), wire.events.heard) == (answer, heard)

    def test_announcement(self) -> None:
        """Credentials (fig. 5e) are handed on, valid for 30 s (A11, I7), and not answered."""
        wire = Wire()
        advance(wire.clock, 5)
        wire.mediator.type(ANNOUNCEMENT)
        ((what, call),) = wire.events.heard
        assert (what, call.session, call.caller) == ("announced", SESSION, CALLER)
        assert (call.password, call.until) == (PASSWORD, 5 + UNSPENT_SECONDS)
        assert wire.mediator.text() == ""

    def test_malformed(self) -> None:
        """What is not a message is answered; the connection goes on."""
        wire = Wire()
        wire.mediator.type("HELLO\n\nQUERY\nSTATUS\n\n")
        assert wire.mediator.text().startswith("NOTIFY\nBad Message.\nCause:")
        assert wire.events.heard == [("status",)]

    def test_without_a_terminal(self) -> None:
        """A connection that only asks takes no call, and says so."""
        clock: Any = FakeReactor()
        dialled = dial(clock, mediator_at(clock), CALLER)
        mediator = clock.dials[0].accept()
        mediator.type(f"{STATUS}\n{ANNOUNCEMENT}{TERMINATE}NOTIFY\nSuperseded.\n\n")
        assert mediator.text() == "NOTIFY\nSTATUS Busy.\n\n"
        gone = Outcome(result_of(dialled).gone)
        mediator.vanish()
        assert gone.done
        assert not NullEvents().acceptable()

    def test_lost(self) -> None:
        """When the connection is lost, its owner is told, and open questions fail."""
        wire = Wire()
        assert wire.client.local_host == "192.0.2.99"  # what a terminal registers as its address
        outcome, _ = wire.ask(wire.client.register())
        gone = Outcome(wire.client.gone)
        wire.mediator.vanish()
        assert isinstance(outcome.error, ConnectionLost)
        assert (wire.events.heard, gone.done) == ([("lost", wire.client)], True)
        assert wire.client.local_host == "127.0.0.1"
        with pytest.raises(ConnectionLost):
            result_of(wire.client.query("Ib"))
        wire.client.ended(SESSION, "Completed")  # it goes nowhere, and nothing fails
        wire.client.close()

    def test_closed_by_us(self) -> None:
        """A connection that was closed here asks nothing more."""
        wire = Wire()
        wire.client.close()
        with pytest.raises(ConnectionLost):
            result_of(wire.client.accepted())
        assert wire.mediator.closed


class QuestionTests:
    """What a terminal asks, and by what a question is settled."""

    @pytest.mark.parametrize(
        ("ask", "verb", "fields"),
        [
            # With nothing else, only the identifier is sent (fig. 3, ¶77).
            (ask("register"), REGISTER, {}),
            # Address, port, life and edits go in one message, the edits in order (A4, A7, A22).
            (
                ask(
                    "register",
                    edits=["Add Ic,Ie", "Delete If"],
                    address=HOST,
                    port=1300,
                    expires=60,
                ),
                REGISTER,
                {
                    "Address": HOST,
                    "Port": "1300",
                    "Expires": "60",
                    "Accept": "Add Ic,Ie\nDelete If",
                },
            ),
            (ask("accepted"), QUERY, {"": "PERMITS"}),
            (ask("query", "Ib"), QUERY, {"Callee": "Ib"}),  # S1101
            (ask("outside"), QUERY, {"": "ADDRESS"}),  # D10
            (ask("outside", 1203), QUERY, {"": "ADDRESS", "Port": "1203"}),
            (ask("disclosures"), QUERY, {"": "DISCLOSURES"}),
            (
                ask("disclosures", before=1_000_000),
                QUERY,
                {"": "DISCLOSURES", "Before": "1970-01-01T00:00:01.000000Z"},
            ),
        ],
    )
    def test_asked(self, ask: Ask, verb: str, fields: dict[str, str]) -> None:
        """A question says who asks, and what."""
        wire = Wire()
        _, question = wire.ask(ask(wire.client))
        expected = {"Identifier": CALLER, "Transaction": "1", **fields}
        assert (question.verb, question.fields) == (verb, expected)

    @pytest.mark.parametrize(
        ("ask", "answer", "result"),
        [
            (ask("register"), SENSELESS, NOT_VALID),  # neither yes nor no is not yes (I3)
            # The terminal's own permits come as one list, from any number of lines.
            (ask("accepted"), "Accept:Create Ib,If\nAdd Ic\nAdd @g", ["Ib", "If", "Ic", "@g"]),
            (ask("accepted"), "Accept:Create", []),
            # It is told its own source; half an answer is not valid, and a name is not an address.
            (ask("outside"), "Address:203.0.113.7\nPort:50000", ("203.0.113.7", 50000)),
            (ask("outside"), "Address:203.0.113.7", NOT_VALID),
            (ask("outside", 1203), "", NOT_VALID),
            (ask("outside", 1203), "Port:1203", NOT_VALID),
            (ask("outside", 1203), "Address:www.example.com\nPort:1203", NOT_VALID),
        ],
    )
    def test_answered(self, ask: Ask, answer: str, result: Any) -> None:
        """The answer is read; one that is not valid is an error."""
        assert settled(Wire().outcome(ask, answer)) == result

    @pytest.mark.parametrize(
        ("ask", "statement", "code", "error"),
        [
            (ask("register", edits=["Add Ib"]), "Registration Failed.", 400, RegistrationFailed),
            (ask("outside", 1203), "Not Reached.", 480, NotReached),
            (ask("disclosures"), "Service Unavailable.", 503, ServiceUnavailable),
            (ask("query", "Ib"), "Service Unavailable.", 503, ServiceUnavailable),
            (ask("query", "Ib"), "Permission Denied.", 403, PermissionDenied),
            (ask("query", "Ib"), "Callee not Found.", 404, CalleeNotFound),
            (ask("query", "Ib"), "Callee is Busy.", 486, CalleeBusy),
            (ask("query", "Ib"), "Callee not Connected.", 480, CalleeNotConnected),
        ],
    )
    @pytest.mark.parametrize("after", [True, False])
    def test_refused(
        self, ask: Ask, statement: str, code: int, error: type[Refused], after: bool
    ) -> None:
        """A refusal is raised, with code and cause (A5), *Request Accepted.* or not (A20)."""
        wire = Wire()
        outcome, _ = wire.ask(ask(wire.client))
        if after:  # it says that more follows
            wire.answer("Request Accepted.", 100)
        assert not outcome.done
        wire.answer(f"{statement}\nCause:it is so", code)
        wire.answer(CREDENTIALS)  # the first final answer counts
        failed: Any = outcome.error
        assert (type(failed), failed.code, failed.cause) == (error, code, "it is so")
        assert wire.clock.getDelayedCalls() == []

    def test_by_name(self) -> None:
        """A terminal that logs in by a name then acts as the identifier it is given (C1)."""
        wire = Wire("太郎")
        _, question = wire.ask(wire.client.register())
        assert question.get("Identifier") == "太郎"
        wire.answer("Registration Failed.\nIdentifier:Ix", 400)
        assert wire.client.identifier == "太郎"
        outcome, _ = wire.ask(wire.client.register())
        wire.answer("Registration Completed.\nEpoch:e1\nIdentifier:Ia", transaction=2)
        assert (outcome.value.get("Epoch"), wire.client.identifier) == ("e1", "Ia")
        _, question = wire.ask(wire.client.accepted())
        assert question.get("Identifier") == "Ia"

    @pytest.mark.parametrize("missing", [None, *CREDENTIALS.split("\n")])
    def test_credentials(self, missing: str | None) -> None:
        """Credentials are valid only whole, the reply password included (fig. 5d, A23, I3)."""
        name = str(missing).partition(":")[0]
        lines = [line for line in CREDENTIALS.split("\n") if line != missing]
        result = settled(Wire().outcome(ask("query", "Ib"), "\n".join(lines)))
        if name in ("None", "Callee", "Expires"):  # a call can be made without these two
            assert result.get("Callee Address") == "192.0.2.7"
        else:
            assert result == f"the mediator's answer has no {name}"

    @pytest.mark.parametrize(
        "ask",
        [
            *[ask("query", name) for name in ("", "I,b", "Ib\nCallee:Ic", "Ib\r", "x" * 129)],
            ask("outside", 65536),
            ask("register", edits=["Add Ic\r\nPort:1"]),
            ask("register", edits=["Add Ic\nDelete Ib"]),
            ask("register", edits=["Remove Ic"]),
            ask("register", edits=["Add"]),
            ask("register", address="192.0.2.1\nExpires:0"),
            ask("register", address="192.0.2.1", port=70000),
            ask("register", address="192.0.2.1", expires=-1),
        ],
    )
    def test_not_valid(self, ask: Ask) -> None:
        """An application's value that is not valid is refused here, and smuggles in no field."""
        wire = Wire()
        with pytest.raises(ValueError, match=r"^(Callee|Port|Accept|Address|Expires): "):
            ask(wire.client)
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

    @pytest.mark.parametrize("transaction", ["", "Transaction:2\n", "Transaction:x\n"])
    def test_answers_to_nothing(self, transaction: str) -> None:
        """An answer to no open question settles none, and is not taken for news (I11)."""
        wire = Wire()
        outcome, _ = wire.ask(wire.client.query("Ib"))
        wire.mediator.type(f"NOTIFY\n{CREDENTIALS}\n{transaction}\n")
        assert (outcome.done, wire.events.heard) == (False, [])

    def test_no_answer(self) -> None:
        """A mediator that does not answer is waited for 15 s; what comes later is ignored."""
        wire = Wire()
        outcome, _ = wire.ask(wire.client.query("Ib"))
        advance(wire.clock, ANSWER_TIMEOUT - 0.1)
        assert not outcome.done
        advance(wire.clock, 0.1)
        assert isinstance(outcome.error, ServiceUnavailable)
        assert outcome.error.cause == "the mediator did not answer"
        wire.answer(CREDENTIALS)
        assert (wire.events.heard, wire.clock.getDelayedCalls()) == ([], [])

    def test_reports(self) -> None:
        """The beginning and the end of a call are told, and expect no answer (S5007)."""
        wire = Wire()
        wire.client.began(SESSION)
        wire.client.ended(SESSION, "Completed")
        assert wire.mediator.received() == [
            Message.of(NOTIFY, {"Session": SESSION, "": "Begin."}),
            Message(NOTIFY, Session=SESSION, End="Completed"),
        ]


def disclosed(number: int) -> Disclosure:
    """A disclosure at that microsecond."""
    return Disclosure(CALLER, "Ic", "203.0.113.5", 1203, "S1", "@family", number, 3600)


def page(*numbers: int) -> str:
    """The answer that tells these."""
    lines = [f"Disclosed:{format_line(disclosed(number))}" for number in numbers]
    return "\n".join(lines) or "Nothing Disclosed."


class DisclosuresTests:
    """Asking who has received our address: page after page, until there are no more."""

    @pytest.mark.parametrize(
        ("pages", "most", "found"),
        [
            ([page(9, 7), page(6), page()], 10, [9, 7, 6]),
            ([page()], 10, []),
            ([page(9, 7), page(6, 5)], 3, [9, 7, 6, 5]),  # it ends at a bound (I15)
            # A page that does not go on, or is not valid, is an error, not part of an answer (I3).
            *[
                ([page(9, 7), last], 10, None)
                for last in (page(7), page(9), SENSELESS, "", page(6).replace("=1203", "=x"))
            ],
        ],
    )
    def test_pages(
        self, monkeypatch: pytest.MonkeyPatch, pages: list[str], most: int, found: Any
    ) -> None:
        """Each page is asked for from the end of the one before."""
        monkeypatch.setattr("broker.terminal.registration.client.DISCLOSURES_MOST", most)
        wire = Wire()
        outcome = Outcome(wire.client.disclosures())
        asked = []
        for number, text in enumerate(pages, 1):
            assert not outcome.done
            (question,) = wire.mediator.received()
            asked.append(question.get("Before"))
            wire.answer(text, transaction=number)
        assert asked == [None, format_time(7), format_time(6)][: len(pages)]
        assert isinstance(outcome.error, BadRequest) is (found is None)
        assert outcome.value == (found if found is None else [*map(disclosed, found)])
