"""The caller's side: it speaks to whoever has proven to be the callee, and to nobody else."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionLost, DNSLookupError
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from broker.messages.errors import (
    CalleeBusy,
    CalleeNotConnected,
    CalleeNotFound,
    PermissionDenied,
    ServiceUnavailable,
)
from broker.messages.grammar import NOTIFY, REQUEST
from broker.messages.message import Message
from broker.messages.statements import PERMISSION_DENIED, REQUEST_ACCEPTED
from broker.terminal.calls.place_call import DIAL_TIMEOUT, CallContext, dialling_hub, place_call
from broker.terminal.channel.active_calls import ActiveCalls
from broker.terminal.channel.handshake import BODY_BYTES
from broker.terminal.channel.records import Records, RecordType
from broker.terminal.errors import Aborted, CallFailed
from broker.terminal.registration.client import MediatorClient, dial
from tests.support.clock import advance, result_of, settle
from tests.support.reactor import FakeReactor
from tests.terminal.keys import (
    CALLEE,
    CALLER,
    KEY,
    PASSWORD,
    REPLY_PASSWORD,
    SESSION,
    a_request,
    an_answer,
    framed,
)
from tests.terminal.network import Outcome
from tests.terminal.peers import Callee
from tests.terminal.speakers import Maker, Plain, Reports

HOST = "192.0.2.7"


class Try:
    """A call that a terminal makes, where a test plays the mediator and the callee.

    :ivar outcome: what becomes of it
    :ivar maker: the application's factory
    :ivar reports: what the mediator is told of how it ended
    """

    def __init__(
        self,
        maker: Any = None,
        *,
        caller: str = CALLER,
        callee: str = CALLEE,
        counted: bool = True,
    ) -> None:
        self.clock = FakeReactor()
        reactor: Any = self.clock
        dialled = dial(reactor, TCP4ClientEndpoint(reactor, "127.0.0.1", 1201), caller)
        self.mediator = self.clock.dials[0].accept()
        client: MediatorClient = result_of(dialled)
        self.maker: Any = maker or Maker()
        reported = Reports()
        self.reports = reported.ends
        self.calls = ActiveCalls(reported if counted else client)
        context = CallContext(reactor, client, self.calls, dialling_hub(reactor))
        placing = place_call(context, callee, self.maker)
        self.outcome = Outcome(Deferred.fromCoroutine(placing))
        self.mediator.received()

    def granted(self, host: str = HOST, **other: str) -> Try:
        """The mediator gives the credentials (fig. 5d)."""
        self.mediator.send(Message(NOTIFY, REQUEST_ACCEPTED, Transaction="1", Code=100))
        fields = {
            "Callee Address": host,
            "Password": PASSWORD,
            "Encrypt Key": KEY,
            "Callee Port": "1300",
            "Callee": CALLEE,
            "Session": SESSION,
            "Expires": "3600",
            "Reply Password": REPLY_PASSWORD,
            "Transaction": "1",
            "Code": "200",
        }
        fields.update({name.replace("_", " "): value for name, value in other.items()})
        self.mediator.send(Message.of(NOTIFY, fields))
        return self

    def refused(self, statement: str) -> Try:
        """The mediator refuses."""
        self.mediator.send(Message(NOTIFY, statement, Transaction="1", Code=403))
        return self

    def reached(self) -> Callee:
        """Somebody answers at the callee's address."""
        return Callee(self.clock.dials[1].accept())

    @property
    def failure(self) -> str:
        """Why it failed, in words."""
        assert isinstance(self.outcome.error, CallFailed)
        return str(self.outcome.error)


class PlacedTests:
    """A call that succeeds (fig. 11)."""

    def test_whole_way(self) -> None:
        """Query, dial, REQUEST, answer, first record: the protocol then speaks (A12, A22)."""
        call = Try().granted()
        assert [(dial.host, dial.port) for dial in call.clock.dials[1:]] == [(HOST, 1300)]
        callee = call.reached()
        assert callee.head == Message(REQUEST, Session=SESSION, Length=len(callee.body))
        assert callee.request == a_request()
        assert not call.outcome.done
        (body,) = [callee.handshake.write(an_answer())]
        callee.client.send(framed(SESSION, body, verb=NOTIFY))
        protocol = call.outcome.value
        assert call.maker.made == [protocol]
        assert protocol.transport.peer == CALLEE
        assert len(call.calls) == 1
        callee.records = Records(callee.handshake.cipher())
        assert callee.heard() == [(RecordType.DATA, b"")]  # at once: it spends the session (I7)
        protocol.transport.write(b"hello")
        settle(call.clock)
        assert callee.heard() == [(RecordType.DATA, b"hello")]

    def test_nothing_in_clear(self) -> None:
        """Identifier and password go encrypted alone (A12)."""
        call = Try().granted()
        client = call.clock.dials[1].accept()
        sent = client.bytes()
        assert PASSWORD.encode() not in sent
        assert b"Identifier" not in sent

    def test_end_is_reported(self) -> None:
        """The end is reported, the factory told, and the call no longer counted (S5007)."""
        call = Try().granted()
        callee = call.reached().answer(an_answer())
        assert call.maker.started == 1
        callee.client.send(callee.records.seal(RecordType.END))
        assert call.reports == [(SESSION, "Completed")]
        assert len(call.calls) == 0
        assert call.maker.started == 0

    def test_reported_to_the_mediator(self) -> None:
        """The connection to the mediator is what ends are reported to."""
        call = Try(counted=False).granted()
        call.reached().answer(an_answer()).client.vanish()
        assert call.mediator.received() == [Message(NOTIFY, Session=SESSION, End="Failed")]

    def test_ipv6(self) -> None:
        """An IPv6 address is dialled as one."""
        call = Try().granted("2001:db8::7")
        assert (call.clock.dials[1].host, call.clock.dials[1].port) == ("2001:db8::7", 1300)
        call.reached().answer(an_answer())
        assert call.outcome.value is not None

    @pytest.mark.parametrize(
        ("names", "told"),
        [
            ({"callee": "the office"}, {"Callee": CALLEE}),
            ({"caller": "太郎"}, {"Identifier": CALLER}),
        ],
    )
    def test_by_another_name(self, names: dict[str, Any], told: dict[str, str]) -> None:
        """The handshake names both as the mediator does, whatever they were called by (A18, C1)."""
        call = Try(**names).granted(**told)
        call.reached().answer(an_answer())
        assert call.outcome.value.transport.peer == CALLEE

    def test_answer_in_pieces(self) -> None:
        """The answer may come byte by byte."""
        call = Try().granted()
        callee = call.reached()
        assert callee.request == a_request()
        for byte in framed(SESSION, callee.handshake.write(an_answer()), verb=NOTIFY):
            callee.client.send(bytes((byte,)))
        assert call.outcome.value is not None


class RefusedTests:
    """A call that the mediator refuses."""

    @pytest.mark.parametrize(
        ("statement", "error"),
        [
            ("Permission Denied.", PermissionDenied),
            ("Callee not Found.", CalleeNotFound),
            ("Callee not Connected.", CalleeNotConnected),
            ("Callee is Busy.", CalleeBusy),
            ("Service Unavailable.", ServiceUnavailable),
        ],
    )
    def test_each_cause(self, statement: str, error: type[Exception]) -> None:
        """The refusal is raised as what it is, and nobody is dialled (A20)."""
        call = Try().refused(statement)
        assert type(call.outcome.error) is error
        assert len(call.clock.dials) == 1
        assert call.maker.made == []

    def test_line_lost(self) -> None:
        """A mediator that goes before it answers fails the call with the connection."""
        call = Try()
        call.mediator.vanish()
        assert isinstance(call.outcome.error, ConnectionLost)

    def test_no_identifier(self) -> None:
        """What is no identifier is not asked for."""
        clock: Any = FakeReactor()
        dialled = dial(clock, TCP4ClientEndpoint(clock, "127.0.0.1", 1201), CALLER)
        clock.dials[0].accept()
        context = CallContext(
            clock, result_of(dialled), ActiveCalls(Reports()), dialling_hub(clock)
        )
        placing = place_call(context, "I,b", Maker())
        assert isinstance(Outcome(Deferred.fromCoroutine(placing)).error, ValueError)


class NotReachedTests:
    """A callee that can't be reached directly."""

    @pytest.mark.parametrize(
        ("host", "how"), [(HOST, "refused"), (HOST, "silent"), ("nowhere.example", "unknown")]
    )
    def test_not_reached(self, host: str, how: str) -> None:
        """It is said which and where, and why: refused, silent for 10 s, or not to be looked up."""
        call = Try().granted(host)
        dial: Any = call.clock.dials[1]
        if how == "refused":
            dial.refuse()
        elif how == "silent":
            advance(call.clock, DIAL_TIMEOUT - 0.1)
            assert not call.outcome.done
            advance(call.clock, 0.1)
        else:
            dial.over = True
            dial.factory.clientConnectionFailed(dial, Failure(DNSLookupError("no such host")))
        assert call.failure.startswith(f"Ib could not be reached directly at {host}:1300: ")
        assert call.maker.made == []


class ImpostorTests:
    """Whoever answers must prove to be the callee before a byte of data goes (A23)."""

    def silent(self, call: Try, callee: Callee) -> bool:
        """Whether nothing was sent after the REQUEST, the connection closed, no protocol made."""
        return callee.client.bytes() == b"" and callee.client.closed and call.maker.made == []

    def test_denied(self) -> None:
        """Fig. 5c: the callee denied it."""
        call = Try().granted()
        callee = call.reached().answer(Message(NOTIFY, PERMISSION_DENIED))
        assert call.failure == "Ib denied the call: Permission Denied."
        assert self.silent(call, callee)
        assert call.reports == []

    @pytest.mark.parametrize(
        "password", ["", REPLY_PASSWORD[:-1], REPLY_PASSWORD + "x", PASSWORD, "пароль"]
    )
    def test_wrong_reply_password(self, password: str) -> None:
        """An impostor with the key, but not the reply password, gets no data (A23)."""
        call = Try().granted()
        answer = an_answer(password) if password else Message(NOTIFY, REQUEST_ACCEPTED)
        callee = call.reached().answer(answer)
        assert call.failure == "what answered at Ib's address could not prove that it is Ib"
        assert self.silent(call, callee)
        assert len(call.calls) == 0

    @pytest.mark.parametrize(
        "answer",
        [
            Message(NOTIFY, "Callee is Busy.", Password=REPLY_PASSWORD),
            Message(NOTIFY, Password=REPLY_PASSWORD),
        ],
        ids=repr,
    )
    def test_neither_yes_nor_no(self, answer: Message) -> None:
        """What is neither fig. 5b nor 5c is no consent, whatever password it shows (I3)."""
        call = Try().granted()
        callee = call.reached().answer(answer)
        assert "could not prove" in call.failure
        assert self.silent(call, callee)

    def test_without_the_key(self) -> None:
        """An impostor without the key can't answer at all."""
        call = Try().granted()
        callee = call.reached()
        callee.client.send(framed(SESSION, bytes(80), verb=NOTIFY))
        assert call.failure.startswith("what answered at Ib's address is not it: ")
        assert self.silent(call, callee)

    @pytest.mark.parametrize(
        "said",
        [
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            b"NOTIFY\r\nPermission Denied.\r\n\r\n",
            b"NOTIFY\r\nRequest Accepted.\r\nPassword:" + REPLY_PASSWORD.encode() + b"\r\n\r\n",
            framed("S-other", bytes(60), verb=NOTIFY),
            framed(SESSION, bytes(60), verb=REQUEST),
            framed(SESSION, bytes(BODY_BYTES + 1), verb=NOTIFY),
            b"NOTIFY\r\nSession:" + SESSION.encode() + b"\r\n\r\n",
            b"x" * 5000,
        ],
        ids=repr,
    )
    def test_something_else(self, said: bytes) -> None:
        """What is no terminal's answer fails the call, in clear or not (I26)."""
        call = Try().granted()
        callee = call.reached()
        callee.client.send(said)
        assert call.failure.startswith("Ib did not answer as a terminal does")
        assert self.silent(call, callee)

    def test_two_heads(self) -> None:
        """A second head in place of the body's rest is no answer either."""
        call = Try().granted()
        callee = call.reached()
        head = Message(NOTIFY, Session=SESSION, Length=3).encode()
        callee.client.send(head + b"abc" + head)
        assert isinstance(call.outcome.error, CallFailed)
        assert self.silent(call, callee)

    @pytest.mark.parametrize("how", ["vanish", "end_input"])
    def test_closed_without_an_answer(self, how: str) -> None:
        """A callee that doesn't expect the session closes without a byte: so it is said."""
        call = Try().granted()
        callee = call.reached()
        getattr(callee.client, how)()
        assert call.failure == "Ib closed the connection without an answer"

    def test_no_answer(self) -> None:
        """A callee that says nothing is waited for 10 s."""
        call = Try().granted()
        callee = call.reached()
        advance(call.clock, DIAL_TIMEOUT - 0.1)
        assert not call.outcome.done
        advance(call.clock, 0.1)
        assert isinstance(call.outcome.error, CallFailed)
        assert callee.client.closed

    def test_replay_of_an_old_answer(self) -> None:
        """What a callee answered to an earlier REQUEST is no answer to this one (I7, I21)."""
        first = Try().granted()
        old = first.reached()
        assert old.request == a_request()
        recorded = framed(SESSION, old.handshake.write(an_answer()), verb=NOTIFY)
        second = Try().granted()
        callee = second.reached()
        callee.client.send(recorded)
        assert "is not it" in second.failure


class ApplicationTests:
    """The caller's own application."""

    @pytest.mark.parametrize("fails", [False, True])
    def test_factory_gives_nothing(self, fails: bool) -> None:
        """A factory may give no protocol, or fail: the callee is told, this call ends (I24)."""

        def make() -> Plain | None:
            if fails:
                raise RuntimeError("the application is wrong")
            return None

        call = Try(Maker(make)).granted()
        callee = call.reached().answer(an_answer())
        assert call.failure == "the application gave no protocol for the call"
        not_taken = (RecordType.ABORT, b"the call is not taken")
        assert callee.heard() == [(RecordType.DATA, b""), not_taken]
        assert callee.client.closed
        assert call.reports == [(SESSION, "Failed")]
        assert (len(call.calls), call.maker.started) == (0, 0)

    def test_twisted_factory(self) -> None:
        """Any Twisted factory will do."""
        call = Try(Factory.forProtocol(Plain)).granted()
        call.reached().answer(an_answer())
        assert isinstance(call.outcome.value, Plain)


class CancelTests:
    """Giving up, at any step: nothing stays behind."""

    def test_while_asking(self) -> None:
        """The mediator's late answer is nothing to us."""
        call = Try()
        call.outcome.deferred.cancel()
        assert isinstance(call.outcome.error, CancelledError)
        call.granted()
        assert len(call.clock.dials) == 1

    def test_while_dialling(self) -> None:
        """The dial is given up."""
        call = Try().granted()
        call.outcome.deferred.cancel()
        assert isinstance(call.outcome.error, CancelledError)
        assert call.clock.dials[1].over

    def test_while_waiting_for_the_answer(self) -> None:
        """The connection is closed, and an answer changes nothing."""
        call = Try().granted()
        callee = call.reached()
        call.outcome.deferred.cancel()
        assert isinstance(call.outcome.error, CancelledError)
        assert callee.client.closed
        assert call.maker.made == []

    def test_afterwards(self) -> None:
        """A call that stands isn't cancelled so; its transport ends it."""
        call = Try().granted()
        callee = call.reached().answer(an_answer())
        call.outcome.deferred.cancel()
        protocol = call.outcome.value
        assert callee.heard() == [(RecordType.DATA, b"")]
        protocol.transport.abortConnection("enough")
        settle(call.clock)
        assert callee.heard() == [(RecordType.ABORT, b"enough")]
        assert isinstance(protocol.why, Aborted)
