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

DENIED, BUSY = "Permission Denied.", "Callee is Busy."
NOT_FOUND, ACCEPTED = "Callee not Found.", "Request Accepted."
MARKED = "QUERY\nTransaction:a\n\n"


def ask(*numbers: int) -> str:
    """Bare requests, told apart by their callees."""
    return "".join(f"QUERY\nCallee:I{number}\n\n" for number in numbers)


def callees(talk: Talk) -> list[str]:
    """The callees of the requests so far."""
    return [request.message.fields["Callee"] for request in talk.requests]


class Question:
    """A question of ours, and what became of it.

    :ivar outcome: the statement that answered it, or the kind of error; empty so far, or never
    """

    def __init__(self, question: Deferred[Message]) -> None:
        self.question = question
        self.outcome: str | type[BaseException] = ""
        question.addCallbacks(self._answered, self._failed)

    def _answered(self, message: Message) -> None:
        self.outcome = message.statement

    def _failed(self, failure: Failure) -> None:
        assert failure.type is not None
        self.outcome = failure.type


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

    def setup_method(self) -> None:
        """One client that is logged in."""
        self.hub = ConnectionHub(Clock())
        self.client, self.talk = converse(self.hub)

    def replies(self, statement: str, *, to: list[Request] | None = None) -> None:
        """Answer each of these requests, or all."""
        for request in self.talk.requests if to is None else to:
            request.reply(statement)

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
        self.talk.stream.send(Message("NOTIFY", "Superseded."))
        assert self.said() == ["Superseded."]  # a message of our own waits behind no reply (A11)
        for number, statement, left in steps:
            self.talk.requests[number - 1].reply(statement, more=statement == "More")
            assert self.said() == left

    def test_more_than_one_reply(self) -> None:
        """A request with several replies keeps them together, in their order (A11)."""
        self.client.type(ask(1, 2))
        first, second = self.talk.requests
        second.reply(ACCEPTED, more=True)
        first.reply(ACCEPTED, more=True)
        assert self.said() == [ACCEPTED]
        second.reply("", {"Callee Address": "192.0.2.2"})
        assert self.client.received() == []
        first.reply("", {"Callee Address": "192.0.2.1"})
        assert self.client.received() == [
            Message("NOTIFY", Callee_Address="192.0.2.1"),
            Message("NOTIFY", ACCEPTED),
            Message("NOTIFY", Callee_Address="192.0.2.2"),
        ]

    def test_bare_looks_like_the_figure(self) -> None:
        """A bare reply carries neither code nor transaction (fig. 5c); a request's transaction
        comes back in every reply, with a code.
        """
        self.client.type(ask(1) + "QUERY\nTransaction:t.1\n\n")
        bare, marked = self.talk.requests
        assert (bare.bare, marked.bare) == (True, False)
        bare.reply(DENIED, code=403)
        assert self.client.bytes() == b""  # it leaves with the end of the turn
        assert self.client.text() == "NOTIFY\nPermission Denied.\n\n"
        marked.reply(ACCEPTED, more=True)
        marked.reply("", {"Callee Address": "192.0.2.1"}, code=200)
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
        b.reply(NOT_FOUND)
        other.reply(BUSY)
        a.reply(DENIED)
        assert [message.transaction for message in self.client.received()] == ["b", "a"]
        bare.reply(DENIED)
        assert self.said() == [DENIED, BUSY]

    def test_turn(self) -> None:
        """What must decide at the moment of telling can wait for its turn (I1, I11); when that has
        come it may still take its time: what is behind it waits.
        """
        self.client.type(ask(1, 2, 3, 4, 5) + MARKED)
        first, second, third, fourth, fifth, marked = self.talk.requests
        order: list[str] = []

        async def in_turn(name: str, request: Request) -> None:
            await request.until_next()
            order.append(name)
            if request is not third:
                request.reply(DENIED)

        for name, request in (("3", third), ("2", second), ("a", marked), ("4", fourth)):
            Deferred.fromCoroutine(in_turn(name, request))
        fifth.reply(NOT_FOUND)
        assert order == ["a"]
        first.reply(BUSY)
        assert order == ["a", "2", "3"]
        assert self.said() == [DENIED, BUSY, DENIED]
        third.reply(ACCEPTED)
        assert order == ["a", "2", "3", "4"]
        assert self.said() == [ACCEPTED, DENIED, NOT_FOUND]
        assert self.talk.outstanding == 0

    def test_last_reply_is_the_last(self) -> None:
        """What is said after the last reply is not sent: each request ends once (I11), also where
        two bear the same transaction.
        """
        self.client.type(ask(1) + MARKED * 2)
        for _ in range(2):
            self.replies(DENIED)
        self.replies(ACCEPTED)
        assert all(request.done for request in self.talk.requests)
        assert self.said() == [DENIED] * 3
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
        """Bad Message stands among the replies where its request stood (I11); what was asked before
        a fatal message is answered, then that, then the connection closes.
        """
        self.client.type(ask(1) + "QUERY\nPort:x\n\n" + ask(2))
        self.client.send(b"QUERY\nCallee:\xff\n\n")
        first, second = self.talk.requests
        second.reply(BUSY)
        assert self.said() == []
        assert not self.client.closed
        first.reply(DENIED)
        assert self.client.text() == (
            "NOTIFY\nPermission Denied.\n\n"
            "NOTIFY\nBad Message.\nCause:Port: must be a number\n\n"
            "NOTIFY\nCallee is Busy.\n\n"
            "NOTIFY\nBad Message.\nCause:not UTF-8\n\n"
        )
        assert self.client.closed

    def test_with_its_transaction(self) -> None:
        """With a transaction it is told apart by that, with its code, and at once; a broken limit
        of size is answered Too Large, then the connection closes.
        """
        self.client.type(ask(1) + "QUERY\nPort:x\nTransaction:7\n\n")
        assert self.client.text() == (
            "NOTIFY\nBad Message.\nCause:Port: must be a number\nTransaction:7\nCode:400\n\n"
        )
        assert not self.client.closed
        self.replies(DENIED)
        self.client.type("QUERY\nCallee:" + "x" * 2000)
        assert self.client.text().endswith(
            "\n\nNOTIFY\nToo Large.\nCause:a line has at most 1024 bytes\n\n"
        )
        assert self.client.closed

    @pytest.mark.parametrize(
        ("data", "closed"),
        [
            (b"NOTIFY\nPort:x\n\n", False),
            (b"notify\nCallee:@\nTransaction:7\n\n", False),
            (b"NOTIFY\nCallee:\xff\n\n", True),
            (b"NOTIFY\n" + b"x" * 1025, True),
        ],
    )
    def test_notify_is_never_answered(self, data: bytes, closed: bool) -> None:
        """A NOTIFY is never answered, malformed or not; the connection goes on, unless the framing
        is lost.
        """
        self.client.send(data)
        assert self.client.text() == ""
        assert self.client.closed is closed


class EndTests(Conversing):
    """The end of a peer's input, and of its connection."""

    def test_answer_before_closing(self) -> None:
        """All that a peer asked before it ended its input is answered, then it closes."""
        self.client.type(ask(1, 2) + MARKED)
        self.client.end_input()
        first, second, third = self.talk.requests
        assert not self.client.closed
        second.reply(BUSY)
        first.reply(ACCEPTED, more=True)
        assert self.said() == [ACCEPTED]
        first.reply(NOT_FOUND)
        assert self.said() == [NOT_FOUND, BUSY]
        assert not self.client.closed
        third.reply(DENIED)
        assert self.said() == [DENIED]
        assert self.client.closed

    def test_nothing_to_answer(self) -> None:
        """Where nothing is open it closes at once."""
        self.client.type(ask(1))
        self.replies(DENIED)
        self.client.end_input()
        assert self.said() == [DENIED]
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
        """What works on a peer's requests learns that it is gone, once, and sends nothing then."""
        self.client.type(ask(1, 2) + MARKED)
        gone: list[str] = []
        for name, request in zip("abc", self.talk.requests, strict=True):
            request.work = Work(name, gone)
        self.talk.requests[1].reply(DENIED)  # ready, and never to leave
        self.client.vanish()
        assert sorted(gone) == ["a", "b", "c"]
        assert all(request.done for request in self.talk.requests)
        self.replies(ACCEPTED)
        assert self.client.text() == ""
        assert self.talk.outstanding == 0


class OutstandingTests(Conversing):
    """How much a peer may have open."""

    def test_hold_and_go_on(self) -> None:
        """At 64 open requests nothing more is read: what comes stays in the peer's own buffers;
        each answer lets one more in (I15).
        """
        self.client.type(ask(*range(70)))
        assert len(self.talk.requests) == 64
        assert not self.client.transport.reading
        self.client.feed(b"x" * 100_000)
        assert self.client.transport.waiting == 100_000
        self.replies(DENIED, to=self.talk.requests[:1])
        self.client.type("")
        assert len(self.talk.requests) == 65
        self.replies(DENIED, to=self.talk.requests[1:40])
        self.client.type("")
        assert callees(self.talk) == [f"I{number}" for number in range(70)]
        assert self.said() == [DENIED] * 40

    def test_before_login(self) -> None:
        """Before login it is 4 (I14), with transactions or without."""
        client, talk = converse(self.hub, known=False)
        client.type(ask(1, 2) + "QUERY\nCallee:I3\nTransaction:a\n\n" + ask(4, 5))
        assert callees(talk) == ["I1", "I2", "I3", "I4"]
        talk.requests[2].reply("Login Required.")
        client.type("")
        assert callees(talk) == ["I1", "I2", "I3", "I4", "I5"]

    @pytest.mark.parametrize("at_once", [True, False])
    def test_all_are_answered_in_the_end(self, at_once: bool) -> None:
        """500 requests in one piece and the end of input: 500 replies, then it closes; also where
        the peer is held as its input ends.
        """
        self.talk.at_once = at_once
        self.client.feed(ask(*range(500)).encode())
        self.client.end_input()
        for number in range(0 if at_once else 500):
            self.talk.requests[number].reply(ACCEPTED)
            self.client.type("")
        assert self.said() == [ACCEPTED] * 500
        assert callees(self.talk) == [f"I{number}" for number in range(500)]
        assert self.client.closed


class QuestionsTests(Conversing):
    """Our own questions, and what answers them."""

    def ask(self, many: int = 1) -> list[Question]:
        """Ask for the status."""
        return [Question(self.talk.ask(Message("QUERY", "STATUS"))) for _ in range(many)]

    def uses_transactions(self) -> None:
        """The peer sends a request with one."""
        self.client.type("REGISTER\nTransaction:x\n\n")

    def answers(self, statement: str, more: str = "") -> None:
        """The peer sends a notice."""
        self.client.type(f"NOTIFY\nSTATUS {statement}.\n{more}\n")

    def test_oldest_first(self) -> None:
        """On a connection that used no transaction, a question is the bare figure 17a; a bare
        answer settles the oldest open question (I11).
        """
        first, second = self.ask(2)
        assert self.client.text() == "QUERY\nSTATUS\n\n" * 2
        self.answers("Busy")
        assert (first.outcome, second.outcome) == ("STATUS Busy.", "")
        self.answers("Acceptable")
        assert second.outcome == "STATUS Acceptable."
        assert self.talk.unasked == []

    def test_by_transaction(self) -> None:
        """On a connection that has used one, each question bears a transaction of its own."""
        self.uses_transactions()
        first, second = self.ask(2)
        one, two = (message.fields["Transaction"] for message in self.client.received())
        assert one != two
        self.answers("Busy", f"Transaction:{two}\n")
        assert (first.outcome, second.outcome) == ("", "STATUS Busy.")
        self.answers("Acceptable", f"Transaction:{one}\n")
        assert first.outcome == "STATUS Acceptable."

    def test_bare_answer_where_transactions_are_used(self) -> None:
        """A bare answer settles the oldest there, too, asked bare or not."""
        questions = self.ask()
        self.uses_transactions()
        questions += self.ask(2)
        self.answers("Busy")
        self.answers("Busy")
        assert [one.outcome for one in questions] == ["STATUS Busy.", "STATUS Busy.", ""]

    def test_no_question(self) -> None:
        """A NOTIFY that answers nothing settles nothing: none open, another's, a late one (I11); an
        answer with code 100 says that another follows.
        """
        self.answers("Busy")
        assert len(self.talk.unasked) == 1
        self.uses_transactions()
        (asked,) = self.ask()
        (question,) = self.client.received()
        answered = f"Transaction:{question.transaction}\n"
        self.answers("Busy", "Transaction:other\n")
        assert len(self.talk.unasked) == 2
        self.answers("Waiting", f"{answered}Code:100\n")
        assert asked.outcome == ""
        assert len(self.talk.unasked) == 2
        for _ in range(2):
            self.answers("Acceptable", f"{answered}Code:200\n")
        assert asked.outcome == "STATUS Acceptable."
        assert len(self.talk.unasked) == 3

    def test_given_up(self) -> None:
        """A question that is given up is settled by no answer; the next one is."""
        first, second = self.ask(2)
        first.question.cancel()
        assert first.outcome is CancelledError
        self.answers("Busy")
        assert second.outcome == "STATUS Busy."

    @pytest.mark.parametrize("end", ["vanish", "end_input"])
    def test_lost(self, end: str) -> None:
        """The connection's end fails every open question, also where the peer only sends nothing
        more: then the connection closes.
        """
        questions = self.ask(2)
        getattr(self.client, end)()
        assert self.client.closed
        assert [one.outcome for one in questions] == [ConnectionLost] * 2

    def test_asked_too_late(self) -> None:
        """A question on a connection that is gone, or closing, fails at once."""
        self.talk.stream.close()
        questions = self.ask()
        self.client.vanish()
        questions += self.ask()
        assert [one.outcome for one in questions] == [ConnectionLost] * 2
