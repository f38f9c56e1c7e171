"""Requests and replies in order, questions and answers (broker.net.dialogue)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from broker.messages.message import Message
from broker.net.dialogue import Request
from broker.net.hub import ConnectionHub
from tests.net.recorder import Talk, converse
from tests.support.transport import Client


def ask(*numbers: int) -> str:
    """Bare requests, told apart by whom they call."""
    return "".join(f"QUERY\nCallee:I{number}\n\n" for number in numbers)


def callees(talk: Talk) -> list[str]:
    """Whom the requests so far call."""
    return [request.message.fields["Callee"] for request in talk.requests]


class Outcome:
    """What became of a question."""

    def __init__(self, question: Deferred[Message]) -> None:
        self.answer: Message | None = None
        self.failure: Failure | None = None
        question.addCallbacks(self._answered, self._failed)

    def _answered(self, message: Message) -> None:
        self.answer = message

    def _failed(self, failure: Failure) -> None:
        self.failure = failure

    def failed_with(self, kind: type[Exception]) -> bool:
        """Whether it failed, and so."""
        return self.failure is not None and self.failure.check(kind) is not None

    @property
    def statement(self) -> str:
        """What was answered, in a word; nothing so far, or never."""
        return "" if self.answer is None else self.answer.statement


class Work:
    """What serves a request, until it is given up."""

    def __init__(self, name: str, gone: list[str]) -> None:
        self.name = name
        self.gone = gone

    def cancel(self) -> None:
        """Write it down."""
        self.gone.append(self.name)


class Conversing:
    """A client and our side of the conversation."""

    client: Client
    talk: Talk

    def setup_method(self) -> None:
        """One client that is logged in."""
        self.hub = ConnectionHub(Clock())
        self.client, self.talk = converse(self.hub)

    def said(self) -> list[str]:
        """The statements that the client received."""
        return [message.statement for message in self.client.received()]


class RepliesTests(Conversing):
    """Our replies to a peer's requests."""

    @pytest.mark.parametrize(
        "steps",
        [
            # Whichever is ready first, they leave in the order of their requests.
            [(3, "Not", []), (2, "Busy", []), (1, "Denied", ["Denied", "Busy", "Not"])],
            # Each leaves at once when nothing before it is open.
            [(1, "Denied", ["Denied"]), (3, "Not", []), (2, "Busy", ["Busy", "Not"])],
            # After that, each of several replies leaves when it is ready.
            [(2, "More", []), (1, "Denied", ["Denied", "More"]), (2, "Busy", ["Busy"])],
        ],
    )
    def test_bare_in_order(self, steps: list[tuple[int, str, list[str]]]) -> None:
        """Bare replies leave in the order of their requests, as far as they are ready (I11)."""
        self.client.type(ask(1, 2, 3))
        for number, statement, left in steps:
            self.talk.requests[number - 1].reply(statement, more=statement == "More")
            assert self.said() == left

    def test_more_than_one_reply(self) -> None:
        """A request with several replies keeps them together, in their order (A11)."""
        self.client.type(ask(1, 2))
        first, second = self.talk.requests
        second.reply("Request Accepted.", more=True)
        first.reply("Request Accepted.", more=True)
        assert self.said() == ["Request Accepted."]
        second.reply("", {"Callee Address": "192.0.2.2"})
        assert self.client.received() == []
        first.reply("", {"Callee Address": "192.0.2.1"})
        assert self.client.received() == [
            Message("NOTIFY", Callee_Address="192.0.2.1"),
            Message("NOTIFY", "Request Accepted."),
            Message("NOTIFY", Callee_Address="192.0.2.2"),
        ]

    def test_bare_looks_like_the_figure(self) -> None:
        """A bare reply carries neither code nor transaction (fig. 5c)."""
        self.client.type(ask(1))
        assert self.talk.requests[0].bare
        self.talk.requests[0].reply("Permission Denied.", code=403)
        assert self.client.bytes() == b""  # it leaves with the end of the turn
        assert self.client.text() == "NOTIFY\nPermission Denied.\n\n"

    def test_transaction_comes_back(self) -> None:
        """A request's transaction comes back in every reply, with a code."""
        self.client.type("QUERY\nTransaction:t.1\n\n")
        (request,) = self.talk.requests
        assert not request.bare
        request.reply("Request Accepted.", more=True)
        request.reply("", {"Callee Address": "192.0.2.1"}, code=200)
        assert self.client.text() == (
            "NOTIFY\nRequest Accepted.\nTransaction:t.1\nCode:100\n\n"
            "NOTIFY\nCallee Address:192.0.2.1\nTransaction:t.1\nCode:200\n\n"
        )

    @pytest.mark.parametrize(
        ("statement", "code"),
        [
            ("Request Accepted.", 100),
            ("Registration Completed.", 200),
            ("Bad Message.", 400),
            ("Registration Failed.", 400),
            ("Login Required.", 401),
            ("Permission Denied.", 403),
            ("Callee not Found.", 404),
            ("Too Large.", 413),
            ("Too Many Requests.", 429),
            ("Callee not Connected.", 480),
            ("Callee is Busy.", 486),
            ("Service Unavailable.", 503),
        ],
    )
    def test_codes(self, statement: str, code: int) -> None:
        """Each statement has its code, as SIP numbers it (A5, A20)."""
        self.client.type("QUERY\nTransaction:7\n\n")
        self.talk.requests[0].reply(statement)
        assert self.client.received()[0].get("Code") == str(code)

    def test_transactions_out_of_order(self) -> None:
        """Replies with a transaction leave when they are ready, past all that waits."""
        self.client.type(ask(1) + "QUERY\nTransaction:a\n\nQUERY\nTransaction:b\n\n" + ask(2))
        bare, a, b, other = self.talk.requests
        b.reply("Callee not Found.")
        other.reply("Callee is Busy.")
        a.reply("Permission Denied.")
        assert [message.transaction for message in self.client.received()] == ["b", "a"]
        bare.reply("Permission Denied.")
        assert self.said() == ["Permission Denied.", "Callee is Busy."]

    def test_turn(self) -> None:
        """Whoever must decide at the moment of telling can wait for its turn (I1, I11)."""
        self.client.type(ask(1, 2, 3, 4) + "QUERY\nTransaction:a\n\n")
        first, second, third, fourth, marked = self.talk.requests
        order: list[str] = []

        async def in_turn(name: str, request: Request) -> None:
            await request.until_next()
            order.append(name)
            request.reply("Permission Denied.")

        for name, request in (("3", third), ("2", second), ("a", marked)):
            Deferred.fromCoroutine(in_turn(name, request))
        fourth.reply("Callee not Found.")
        assert order == ["a"]
        first.reply("Callee is Busy.")
        assert order == ["a", "2", "3"]
        assert self.said() == [
            "Permission Denied.",
            "Callee is Busy.",
            "Permission Denied.",
            "Permission Denied.",
            "Callee not Found.",
        ]
        assert self.talk.outstanding == 0

    def test_turn_that_is_not_used_at_once(self) -> None:
        """Whose turn has come may still take its time; those behind it wait."""
        self.client.type(ask(1, 2, 3))
        first, second, third = self.talk.requests
        came = Deferred.fromCoroutine(second.until_next())
        third.reply("Callee not Found.")
        first.reply("Callee is Busy.")
        assert came.called
        assert self.said() == ["Callee is Busy."]
        second.reply("Permission Denied.")
        assert self.said() == ["Permission Denied.", "Callee not Found."]

    def test_what_we_send_never_waits(self) -> None:
        """A message of our own doesn't wait behind a reply (A11)."""
        self.client.type(ask(1))
        self.talk.stream.send(Message("NOTIFY", "Superseded."))
        assert self.said() == ["Superseded."]

    def test_last_reply_is_the_last(self) -> None:
        """What is said after the last reply is not sent: each request ends once (I11)."""
        self.client.type(ask(1) + "QUERY\nTransaction:a\n\n")
        for request in self.talk.requests:
            request.reply("Permission Denied.")
            request.reply("Request Accepted.")
        assert [request.done for request in self.talk.requests] == [True, True]
        assert self.said() == ["Permission Denied.", "Permission Denied."]
        assert self.talk.outstanding == 0

    def test_same_transaction_twice(self) -> None:
        """Two requests may bear the same transaction; each is answered."""
        self.client.type("QUERY\nTransaction:a\n\n" * 2)
        for request in self.talk.requests:
            request.reply("Permission Denied.")
        assert len(self.client.received()) == 2
        assert self.talk.outstanding == 0

    @settings(deadline=None, max_examples=100)
    @given(st.permutations(range(12)), st.lists(st.booleans(), min_size=12, max_size=12))
    def test_any_order(self, order: Sequence[int], bare: Sequence[bool]) -> None:
        """However replies become ready, each is sent once, and bare ones in order (I11)."""
        self.setup_method()
        for number in range(12):
            transaction = "" if bare[number] else f"Transaction:t{number}\n"
            self.client.type(f"QUERY\nCallee:I{number}\n{transaction}\n")
        got: list[Message] = []
        for number in order:
            self.talk.requests[number].reply("", {"Session": f"s{number}"}, code=200)
            got += self.client.received()
        assert sorted(m.fields["Session"] for m in got) == sorted(f"s{n}" for n in range(12))
        in_order = [m.fields["Session"] for m in got if m.transaction is None]
        assert in_order == [f"s{number}" for number in range(12) if bare[number]]
        with_transaction = [m for m in got if m.transaction is not None]
        assert all(m.fields["Session"][1:] == str(m.transaction)[1:] for m in with_transaction)
        ready = [f"s{number}" for number in order if not bare[number]]
        assert [m.fields["Session"] for m in with_transaction] == ready
        assert self.talk.outstanding == 0


class MalformedTests(Conversing):
    """What is said of what is no message."""

    def test_in_its_place(self) -> None:
        """Bad Message stands among the replies where its request stood (I11)."""
        self.client.type(ask(1) + "QUERY\nPort:x\n\n" + ask(2))
        first, second = self.talk.requests
        second.reply("Callee is Busy.")
        assert self.said() == []
        first.reply("Permission Denied.")
        assert self.client.text() == (
            "NOTIFY\nPermission Denied.\n\n"
            "NOTIFY\nBad Message.\nCause:Port: must be a number\n\n"
            "NOTIFY\nCallee is Busy.\n\n"
        )
        assert not self.client.closed

    def test_with_its_transaction(self) -> None:
        """With a transaction it is told apart by that, with its code, and at once."""
        self.client.type(ask(1) + "QUERY\nPort:x\nTransaction:7\n\n")
        assert self.client.text() == (
            "NOTIFY\nBad Message.\nCause:Port: must be a number\nTransaction:7\nCode:400\n\n"
        )

    def test_too_large(self) -> None:
        """A broken limit of size is answered Too Large, then the connection closes."""
        self.client.type("QUERY\nCallee:" + "x" * 2000)
        assert self.client.text() == "NOTIFY\nToo Large.\nCause:a line has at most 1024 bytes\n\n"
        assert self.client.closed

    def test_fatal_after_what_was_asked(self) -> None:
        """What was asked before a fatal message is answered, then that, then it closes."""
        self.client.type(ask(1))
        self.client.send(b"QUERY\nCallee:\xff\n\n")
        assert self.client.bytes() == b""
        assert not self.client.closed
        self.talk.requests[0].reply("Permission Denied.")
        assert self.client.text() == (
            "NOTIFY\nPermission Denied.\n\nNOTIFY\nBad Message.\nCause:not UTF-8\n\n"
        )
        assert self.client.closed

    @pytest.mark.parametrize(
        "data", [b"NOTIFY\nPort:x\n\n", b"notify\nCallee:@\nTransaction:7\n\n"]
    )
    def test_notify_is_never_answered(self, data: bytes) -> None:
        """A NOTIFY is never answered, malformed or not; the connection goes on."""
        self.client.send(data)
        assert self.client.text() == ""
        assert not self.client.closed

    @pytest.mark.parametrize("data", [b"NOTIFY\nCallee:\xff\n\n", b"NOTIFY\n" + b"x" * 1025])
    def test_fatal_notify(self, data: bytes) -> None:
        """A NOTIFY that loses the framing closes the connection without a word."""
        self.client.send(data)
        assert self.client.text() == ""
        assert self.client.closed


class EndTests(Conversing):
    """The end of a peer's input, and of its connection."""

    def test_answer_before_closing(self) -> None:
        """All that a peer asked before it ended its input is answered, then it closes."""
        self.client.type(ask(1, 2) + "QUERY\nTransaction:a\n\n")
        self.client.end_input()
        first, second, third = self.talk.requests
        assert not self.client.closed
        second.reply("Callee is Busy.")
        first.reply("Request Accepted.", more=True)
        assert self.said() == ["Request Accepted."]
        first.reply("Callee not Found.")
        assert self.said() == ["Callee not Found.", "Callee is Busy."]
        assert not self.client.closed
        third.reply("Permission Denied.")
        assert self.said() == ["Permission Denied."]
        assert self.client.closed

    def test_nothing_to_answer(self) -> None:
        """Where nothing is open it closes at once."""
        self.client.type(ask(1))
        self.talk.requests[0].reply("Permission Denied.")
        self.client.end_input()
        assert self.said() == ["Permission Denied."]
        assert self.client.closed

    def test_ends_within_a_message(self) -> None:
        """A message that the input's end cuts off is said to be so."""
        self.client.type("QUERY\nCallee:Ib\n")
        self.client.end_input()
        (message,) = self.client.received()
        assert message.statement == "Bad Message."
        assert "empty line" in message.fields["Cause"]
        assert self.talk.requests == []
        assert self.client.closed

    def test_requests_are_abandoned(self) -> None:
        """Whoever works on a peer's requests learns that it is gone, once, and sends no more."""
        self.client.type(ask(1, 2) + "QUERY\nTransaction:a\n\n")
        gone: list[str] = []
        for name, request in zip("abc", self.talk.requests, strict=True):
            request.work = Work(name, gone)
        self.talk.requests[1].reply("Permission Denied.")  # ready, and never to leave
        self.client.vanish()
        assert sorted(gone) == ["a", "b", "c"]
        assert all(request.done for request in self.talk.requests)
        for request in self.talk.requests:
            request.reply("Request Accepted.")
        assert self.client.text() == ""
        assert self.talk.outstanding == 0


class OutstandingTests(Conversing):
    """How much a peer may have open."""

    def held(self) -> bool:
        """Whether nothing more is read from the client."""
        return not self.client.transport.reading

    def test_hold_and_go_on(self) -> None:
        """At 64 open requests no more is read; each answer lets one more in (I15)."""
        self.client.type(ask(*range(70)))
        assert len(self.talk.requests) == 64
        assert self.held()
        self.talk.requests[0].reply("Permission Denied.")
        self.client.type("")
        assert len(self.talk.requests) == 65
        for request in self.talk.requests[1:40]:
            request.reply("Permission Denied.")
        self.client.type("")
        assert callees(self.talk) == [f"I{number}" for number in range(70)]
        assert not self.held()
        for request in self.talk.requests[40:]:
            request.reply("Permission Denied.")
        assert self.said() == ["Permission Denied."] * 70

    def test_before_login(self) -> None:
        """Before login it is 4 (I14), with transactions or without."""
        client, talk = converse(self.hub, known=False)
        client.type(ask(1, 2) + "QUERY\nCallee:I3\nTransaction:a\n\n" + ask(4, 5))
        assert callees(talk) == ["I1", "I2", "I3", "I4"]
        talk.requests[2].reply("Login Required.")
        client.type("")
        assert callees(talk) == ["I1", "I2", "I3", "I4", "I5"]

    def test_bytes_stay_with_the_peer(self) -> None:
        """What a peer sends while it is held stays in its own buffers (I15)."""
        self.client.type(ask(*range(64)))
        self.client.feed(b"x" * 100_000)
        assert self.client.transport.waiting == 100_000

    def test_all_are_answered_in_the_end(self) -> None:
        """500 requests at once and the end of input: 500 replies, then it closes."""
        self.talk.at_once = True
        self.client.feed(ask(*range(500)).encode())
        self.client.end_input()
        assert self.said() == ["Request Accepted."] * 500
        assert callees(self.talk) == [f"I{number}" for number in range(500)]
        assert self.client.closed

    def test_held_at_the_end_of_input(self) -> None:
        """A peer that is held as its input ends has everything answered all the same."""
        self.client.feed(ask(*range(130)).encode())
        self.client.end_input()
        for number in range(130):
            self.talk.requests[number].reply("Permission Denied.")
            self.client.type("")
        assert self.said() == ["Permission Denied."] * 130
        assert self.client.closed


class QuestionsTests(Conversing):
    """Our own questions, and what answers them."""

    def ask(self) -> Outcome:
        """Ask for the status."""
        return Outcome(self.talk.ask(Message("QUERY", "STATUS")))

    def test_bare(self) -> None:
        """On a connection that used no transaction, a question is the bare figure 17a."""
        outcome = self.ask()
        assert self.client.text() == "QUERY\nSTATUS\n\n"
        self.client.type("NOTIFY\nSTATUS Acceptable.\n\n")
        assert outcome.statement == "STATUS Acceptable."
        assert self.talk.unasked == []

    def test_oldest_first(self) -> None:
        """A bare answer settles the oldest open question (I11)."""
        first, second = self.ask(), self.ask()
        self.client.type("NOTIFY\nSTATUS Busy.\n\n")
        assert (first.statement, second.statement) == ("STATUS Busy.", "")
        self.client.type("NOTIFY\nSTATUS Acceptable.\n\n")
        assert second.statement == "STATUS Acceptable."

    def test_by_transaction(self) -> None:
        """On a connection that has used one, each question bears a transaction of its own."""
        self.client.type("REGISTER\nTransaction:x\n\n")
        first, second = self.ask(), self.ask()
        one, two = (message.transaction for message in self.client.received())
        assert one is not None
        assert two is not None
        assert one != two
        self.client.type(f"NOTIFY\nSTATUS Busy.\nTransaction:{two}\n\n")
        assert (first.statement, second.statement) == ("", "STATUS Busy.")
        self.client.type(f"NOTIFY\nSTATUS Acceptable.\nTransaction:{one}\n\n")
        assert first.statement == "STATUS Acceptable."

    def test_bare_answer_where_transactions_are_used(self) -> None:
        """A bare answer settles the oldest there, too, asked bare or not."""
        first = self.ask()
        self.client.type("REGISTER\nTransaction:x\n\n")
        second, third = self.ask(), self.ask()
        self.client.type("NOTIFY\nSTATUS Busy.\n\n" * 2)
        statements = (first.statement, second.statement, third.statement)
        assert statements == ("STATUS Busy.", "STATUS Busy.", "")

    def test_no_question(self) -> None:
        """A NOTIFY that answers nothing settles nothing: none open, another's, a late one (I11)."""
        self.client.type("NOTIFY\nSTATUS Busy.\n\n")
        assert len(self.talk.unasked) == 1
        self.client.type("REGISTER\nTransaction:x\n\n")
        outcome = self.ask()
        (question,) = self.client.received()
        self.client.type("NOTIFY\nSTATUS Busy.\nTransaction:other\n\n")
        assert outcome.answer is None
        assert len(self.talk.unasked) == 2
        for _ in range(2):
            self.client.type(f"NOTIFY\nSTATUS Busy.\nTransaction:{question.transaction}\n\n")
        assert len(self.talk.unasked) == 3

    def test_100_goes_on(self) -> None:
        """An answer with code 100 says that another follows."""
        self.client.type("REGISTER\nTransaction:x\n\n")
        outcome = self.ask()
        (question,) = self.client.received()
        for code, statement in ((100, "Request Accepted."), (200, "STATUS Acceptable.")):
            assert outcome.answer is None
            self.client.type(
                f"NOTIFY\n{statement}\nTransaction:{question.transaction}\nCode:{code}\n\n"
            )
        assert outcome.statement == "STATUS Acceptable."

    def test_given_up(self) -> None:
        """A question that is given up is settled by no answer; the next one is."""
        question = self.talk.ask(Message("QUERY", "STATUS"))
        first = Outcome(question)
        second = self.ask()
        question.cancel()
        assert first.failed_with(CancelledError)
        self.client.type("NOTIFY\nSTATUS Busy.\n\n")
        assert second.statement == "STATUS Busy."

    def test_lost(self) -> None:
        """The connection's end fails every open question."""
        outcomes = [self.ask(), self.ask()]
        self.client.vanish()
        for outcome in outcomes:
            assert outcome.failed_with(ConnectionLost)

    def test_asked_too_late(self) -> None:
        """A question on a connection that is gone, or closing, fails at once."""
        self.talk.stream.close()
        closing = self.ask()
        self.client.vanish()
        for outcome in (closing, self.ask()):
            assert outcome.failed_with(ConnectionLost)

    def test_after_the_end_of_input(self) -> None:
        """Who sends nothing more answers no question: it fails when the connection closes."""
        outcome = self.ask()
        self.client.end_input()
        assert self.client.closed
        assert outcome.failed_with(ConnectionLost)
