"""The caller's side: it speaks to the one that has proven to be the callee, and to no other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost, DNSLookupError
from twisted.internet.interfaces import IProtocol
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
from broker.terminal.calls.wait_for_callee import WAIT_TIMEOUT, ConnectBackWaiter
from broker.terminal.candidates import BACK, DIRECT, HOLE_PUNCH, LOCAL, Candidate, FailedCandidate
from broker.terminal.channel.active_calls import ENDED_BEFORE, ENDED_BY_MEDIATOR, ActiveCalls
from broker.terminal.channel.handshake import BODY_BYTES
from broker.terminal.channel.records import Records, RecordType
from broker.terminal.errors import Aborted, CallDenied, CallFailed
from broker.terminal.incoming.listener import HANDSHAKES
from broker.terminal.outgoing.connector import SLOWER, Connector
from broker.terminal.outgoing.initiator import OutgoingCall
from broker.terminal.registration.client import MediatorClient, dial
from tests.support.clock import advance, result_of, settle
from tests.support.reactor import FakeReactor
from tests.support.transport import Client
from tests.terminal.calls.scene import Calling
from tests.terminal.keys import (
    CALLEE,
    CALLER,
    GRANTED,
    PASSWORD,
    REPLY_PASSWORD,
    SESSION,
    a_request,
    an_answer,
    framed,
)
from tests.terminal.meeting import MEETING, SHARED, WAITS, Simultaneous, stand_in, timers
from tests.terminal.network import HOST, Outcome
from tests.terminal.peers import Callee, ListenerScene, Opener
from tests.terminal.scene import mediator_at
from tests.terminal.speakers import Maker, Plain

REGISTERED = Candidate(DIRECT, "192.0.2.7", 1300)
CONNECTS_BACK = Candidate(BACK, HOST, WAITS)


@pytest.fixture(autouse=True)
def simultaneous(monkeypatch: pytest.MonkeyPatch) -> Simultaneous:
    """Both sides' sockets."""
    return stand_in(monkeypatch)


class PlacedTests:
    """A call that succeeds (fig. 11)."""

    def test_whole_way(self) -> None:
        """Query, dial, REQUEST, answer, first record: the protocol then speaks (A12, A22). The
        REQUEST shows neither identifier nor password in clear.
        """
        call = Calling().granted()
        assert call.asked.fields == {"Identifier": CALLER, "Callee": CALLEE, "Transaction": "1"}
        assert call.dials == [REGISTERED[1:]]
        callee = call.reached()
        assert callee.head == Message(REQUEST, Session=SESSION, Length=len(callee.body))
        assert PASSWORD.encode() not in callee.body
        assert b"Identifier" not in callee.body
        assert callee.request == a_request()
        assert not call.outcome.done
        for byte in framed(SESSION, callee.handshake.write(an_answer()), verb=NOTIFY):
            callee.client.send(bytes((byte,)))
        protocol = call.outcome.value
        assert call.maker.made == [protocol]
        assert protocol.transport.peer == CALLEE
        assert (len(call.calls), call.maker.started) == (1, 1)
        callee.records = Records(callee.handshake.cipher())
        assert callee.heard() == [(RecordType.DATA, b"")]  # at once: it spends the session (I7)
        protocol.transport.write(b"hello")
        settle(call.clock)
        assert callee.heard() == [(RecordType.DATA, b"hello")]

    @pytest.mark.parametrize("end", ["Completed", "Failed"])
    def test_end_is_reported(self, end: str) -> None:
        """To the mediator and the factory; the call no longer counts (S5007)."""
        call = Calling().granted()
        callee = call.stands(DIRECT)
        if end == "Completed":
            callee.client.send(callee.records.seal(RecordType.END))
        else:
            callee.client.vanish()
        assert call.ends == [(SESSION, end)]
        assert (len(call.calls), call.maker.started) == (0, 0)

    def test_ipv6(self) -> None:
        """An IPv6 address is dialled as one."""
        call = Calling().granted(Callee_Address="2001:db8::7")
        assert call.dials == [("2001:db8::7", 1300)]
        call.stands(DIRECT)
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
        call = Calling(**names).granted(**told)
        call.stands(DIRECT)
        assert call.outcome.value.transport.peer == CALLEE


class RefusedTests:
    """A call that comes to nothing before anything is dialled."""

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
        """The refusal is raised as what it is, and nothing is dialled (A20)."""
        call = Calling().answer(403, statement)
        assert type(call.outcome.error) is error
        assert (call.dials, call.maker.made) == ([], [])

    def test_no_identifier(self) -> None:
        """What is no identifier is not asked for."""
        clock: Any = FakeReactor()
        dialled = dial(clock, mediator_at(clock), CALLER)
        clock.dials[0].accept()
        context = CallContext(
            clock, result_of(dialled), ActiveCalls(ListenerScene()), dialling_hub(clock)
        )
        placing = place_call(context, "I,b", Maker())
        assert isinstance(Outcome(Deferred.fromCoroutine(placing)).error, ValueError)

    @pytest.mark.parametrize("asks", [False, True], ids=["waits", "asks"])
    @pytest.mark.parametrize(
        ("how", "error"),
        [
            ("refused", PermissionDenied),
            ("line lost", ConnectionLost),
            ("given up", CancelledError),
        ],
    )
    def test_no_session(self, how: str, error: type[Exception], asks: bool) -> None:
        """No callee is waited for: what was held for it is closed, and what was opened; an answer
        that comes later changes nothing.
        """
        call = Calling(how="asks" if asks else "waits")
        early = call.arrives()
        if how == "refused":
            call.answer(403, PERMISSION_DENIED)
        elif how == "line lost":
            call.mediator.vanish()
        else:
            call.outcome.deferred.cancel()
            call.granted()
        assert isinstance(call.outcome.error, error)
        assert (early.closed, early.bytes(), call.dials) == (True, b"", [])
        assert call.at_rest


NOT_PROVEN = "what answered at Ib's address could not prove that it is Ib"
NO_TERMINAL = "Ib did not answer as a terminal does"
CLOSED = "Ib closed the connection without an answer"


class ImpostorTests:
    """What answers must prove to be the callee before a byte of data goes (A23)."""

    @pytest.mark.parametrize(
        ("said", "failure"),
        [
            # Fig. 5c: the callee denied it.
            (Message(NOTIFY, PERMISSION_DENIED), "Ib denied the call: Permission Denied."),
            # An impostor with the key, but not the reply password.
            *(
                (an_answer(password), NOT_PROVEN)
                for password in (REPLY_PASSWORD[:-1], REPLY_PASSWORD + "x", PASSWORD, "пароль")
            ),
            (Message(NOTIFY, REQUEST_ACCEPTED), NOT_PROVEN),
            # Neither fig. 5b nor 5c is consent, whatever password it shows (I3).
            (Message(NOTIFY, "Callee is Busy.", Password=REPLY_PASSWORD), NOT_PROVEN),
            (Message(NOTIFY, Password=REPLY_PASSWORD), NOT_PROVEN),
            # Without the key.
            (framed(SESSION, bytes(80), verb=NOTIFY), "what answered at Ib's address is not it: "),
            # No terminal's answer, in clear or not (I26).
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", NO_TERMINAL),
            (Message(NOTIFY, PERMISSION_DENIED).encode(), NO_TERMINAL),
            (an_answer().encode(), NO_TERMINAL),
            (framed("S-other", bytes(60), verb=NOTIFY), NO_TERMINAL),
            (framed(SESSION, bytes(60), verb=REQUEST), NO_TERMINAL),
            (framed(SESSION, bytes(BODY_BYTES + 1), verb=NOTIFY), NO_TERMINAL),
            (Message(NOTIFY, Session=SESSION).encode(), NO_TERMINAL),
            (b"x" * 5000, NO_TERMINAL),
            # A second head in place of the body's rest.
            (Message(NOTIFY, Session=SESSION, Length=3).encode() * 2, ""),
            # A callee that does not expect the session closes without a byte.
            ("vanish", CLOSED),
            ("end_input", CLOSED),
            # A callee that says nothing is waited for 10 s.
            (None, ""),
        ],
        ids=repr,
    )
    def test_not_the_callee(self, said: Message | bytes | str | None, failure: str) -> None:
        """The call fails with the cause; nothing was sent after the REQUEST, no protocol made."""
        call = Calling().granted()
        callee = call.reached()
        if isinstance(said, Message):
            callee.answer(said)
        elif isinstance(said, bytes):
            callee.client.send(said)
        elif said is not None:
            getattr(callee.client, said)()
        else:
            advance(call.clock, DIAL_TIMEOUT - 0.1)
            assert not call.outcome.done
            advance(call.clock, 0.1)
        assert call.failure.startswith(failure)
        assert (callee.client.bytes(), callee.client.closed) == (b"", True)
        assert (call.maker.made, len(call.calls), call.ends) == ([], 0, [])

    def test_replay_of_an_old_answer(self) -> None:
        """What a callee answered to an earlier REQUEST is no answer to this one (I7, I21)."""
        old = Calling().granted().reached()
        assert old.request == a_request()
        recorded = framed(SESSION, old.handshake.write(an_answer()), verb=NOTIFY)
        second = Calling().granted()
        second.reached().client.send(recorded)
        assert "is not it" in second.failure


class ApplicationTests:
    """The caller's own application."""

    @pytest.mark.parametrize("fails", [False, True])
    @pytest.mark.parametrize("way", [DIRECT, BACK])
    def test_factory_gives_nothing(self, fails: bool, way: str) -> None:
        """A factory may give no protocol, or fail: the callee is told, this call ends (I24), and
        what was open for it.
        """

        def make() -> Plain | None:
            if fails:
                raise RuntimeError("the application is wrong")
            return None

        call = Calling(Maker(make), how="waits").granted()
        callee = call.stands(way)
        assert call.failure == "the application gave no protocol for the call"
        not_taken = (RecordType.ABORT, b"the call is not taken")
        assert callee.heard() == [(RecordType.DATA, b""), not_taken]
        assert callee.client.closed
        assert call.ends == [(SESSION, "Failed")]
        assert call.maker.started == 0
        assert call.at_rest

    def test_twisted_factory(self) -> None:
        """Any Twisted factory will do."""
        call = Calling(Factory.forProtocol(Plain)).granted()
        call.stands(DIRECT)
        assert isinstance(call.outcome.value, Plain)


class CandidatesTests:
    """Which candidates are dialled, and when; another is waited for besides (``BACK``)."""

    def test_what_it_asks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It says at which port it waits, and that its own may be told, if it can be dialled from
        (``Back``, ``Seen``).
        """
        asked = Calling(how="waits").asked
        assert (asked.get("Back"), asked.get("Seen")) == (str(WAITS), "Yes")
        monkeypatch.setattr(MediatorClient, "share_port", lambda line: None)
        assert "Seen" not in Calling(seen=True).asked.fields

    @pytest.mark.parametrize(
        ("seen", "told", "dialled"),
        [
            # The likeliest first: its own network, where it is registered, both dialling.
            (
                True,
                {"Callee_Local": "10.0.0.2 1203", "Callee_Seen": "198.50.100.7 40001"},
                [("10.0.0.2", 1203), REGISTERED[1:], (0.5, SHARED, MEETING, DIAL_TIMEOUT)],
            ),
            # A caller whose own place may not be told does not dial from there.
            (False, {"Callee_Seen": "198.50.100.7 40001"}, [REGISTERED[1:]]),
            # One place is dialled once.
            (True, {"Callee_Local": "192.0.2.7 1300"}, [REGISTERED[1:]]),
        ],
    )
    def test_each(
        self, seen: bool, told: dict[str, str], dialled: list[Any], simultaneous: Simultaneous
    ) -> None:
        """A quarter of a second one after the other."""
        call = Calling(seen=seen).granted(**told)
        for count in range(1, len(dialled) + 1):
            assert [*call.dials, *simultaneous.begun] == dialled[:count]
            advance(call.clock, 0.25)
        advance(call.clock, 1)
        assert [*call.dials, *simultaneous.begun] == dialled
        assert not call.outcome.done

    @pytest.mark.parametrize(
        ("host", "how"),
        [("192.0.2.7", "refused"), ("192.0.2.7", "silent"), ("nowhere.example", "unknown")],
    )
    def test_not_reached(self, host: str, how: str) -> None:
        """It is said which and where, and why: refused, silent for 10 s, or not to be looked up."""
        call = Calling().granted(Callee_Address=host)
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

    def test_none_leads_there(self) -> None:
        """The one error names each, by the name that the mediator gives, and nothing is open. The
        callee is waited for as long as it dials, and a little more.
        """
        call = Calling(how="waits").granted(Callee="Ic")
        call.clock.dials[1].refuse()
        assert WAIT_TIMEOUT == DIAL_TIMEOUT + 2
        advance(call.clock, WAIT_TIMEOUT - 0.1)
        assert not call.outcome.done
        advance(call.clock, 0.1)
        assert call.failure == (
            "Ic could not be reached: directly at 192.0.2.7:1300: Connection was refused by other"
            " side; by connecting back to us at 127.0.0.1:4000: Ic did not connect back in time"
        )
        assert call.at_rest

    @pytest.mark.parametrize(
        ("way", "won", "lost"),
        [(DIRECT, REGISTERED, CONNECTS_BACK), (BACK, CONNECTS_BACK, REGISTERED)],
    )
    def test_one_stands(self, way: str, won: Candidate, lost: Candidate) -> None:
        """The caller speaks first either way. The others are closed at once; what was opened for
        the callee stays while the call goes on there, and no longer.
        """
        call = Calling(how="waits").granted()
        callee = call.stands(way)
        assert callee.head == Message(REQUEST, Session=SESSION, Length=len(callee.body))
        transport = call.outcome.value.transport
        assert transport.candidate == won
        assert transport.failed_candidates == (FailedCandidate(lost, SLOWER),)
        assert call.clock.dials[1].over
        assert call.network.listens(WAITS) == (way == BACK)
        callee.client.vanish()
        advance(call.clock, 1)
        assert call.ends == [(SESSION, "Failed")]
        assert call.at_rest

    @pytest.mark.parametrize("way", [DIRECT, BACK])
    def test_denied(self, way: str) -> None:
        """The callee's own word ends it at once, along whichever way it comes; all is closed."""
        call = Calling(how="waits").granted()
        callee = call.reached() if way == DIRECT else Callee(call.arrives())
        callee.answer(Message(NOTIFY, PERMISSION_DENIED))
        assert type(call.outcome.error) is CallDenied
        assert call.at_rest

    @pytest.mark.parametrize("connected", ["nothing", "dialled", "came", "was asked, and came"])
    @pytest.mark.parametrize("how", ["given up", "terminated"])
    def test_ended(self, connected: str, how: str) -> None:
        """Given up, or its session void (I2, S5001): all is given up, and what has connected and
        proven nothing is closed on.
        """
        call = Calling(how="asks" if "asked" in connected else "waits").granted()
        clients: list[Client] = []
        if connected != "nothing":
            peer = call.reached().client if connected == "dialled" else call.arrives()
            clients.append(peer)
        call.terminate("S9")
        assert not call.outcome.done
        if how == "given up":
            call.outcome.deferred.cancel()
            assert isinstance(call.outcome.error, CancelledError)
        else:
            call.terminate()
            assert call.failure == ENDED_BEFORE
        assert all(client.closed for client in clients)
        assert call.maker.made == []
        assert call.at_rest

    def test_terminated_between_two(self, simultaneous: Simultaneous) -> None:
        """A session that is void is tried in no way any longer, begun or not (I2, S5001)."""
        told = {"Callee_Local": "10.0.0.2 1203", "Callee_Seen": "198.50.100.7 40001"}
        call = Calling(how="waits").granted(**told)
        advance(call.clock, 0.25)
        call.terminate()
        assert call.failure == ENDED_BEFORE
        assert isinstance(call.outcome.error, CallFailed)
        tried = {one.candidate.method: one.reason for one in call.outcome.error.failed_candidates}
        assert tried == dict.fromkeys([BACK, LOCAL, DIRECT, HOLE_PUNCH], ENDED_BEFORE)
        assert call.at_rest
        advance(call.clock, 1)
        assert simultaneous.begun == []

    @pytest.mark.parametrize("how", ["dialled", "came", "connect-back"])
    def test_terminated_thereafter(self, how: str) -> None:
        """So does one that stands, whichever side has dialled (I2, S5001)."""
        call = Calling(how="asks" if how == "connect-back" else "waits").granted()
        way = DIRECT if how == "dialled" else BACK
        call.stands(way)
        protocol = call.outcome.value
        assert protocol.transport.candidate.method == way
        call.terminate()
        assert call.outcome.error is None
        advance(call.clock, 1)
        assert protocol.why.cause == ENDED_BY_MEDIATOR
        assert call.ends == [(SESSION, "Terminated")]
        assert call.at_rest

    def test_cancelled_when_it_stands(self) -> None:
        """A call that stands isn't cancelled so; its transport ends it."""
        call = Calling().granted()
        callee = call.stands(DIRECT)
        call.outcome.deferred.cancel()
        protocol = call.outcome.value
        assert callee.heard() == [(RecordType.DATA, b"")]
        protocol.transport.abortConnection("enough")
        settle(call.clock)
        assert callee.heard() == [(RecordType.ABORT, b"enough")]
        assert isinstance(protocol.why, Aborted)

    def test_two_callees(self) -> None:
        """Of two connections of the callee's own the first to prove itself is the call."""
        call = Calling(how="waits").granted()
        first, second = Callee(call.arrives()), Callee(call.arrives())
        second.answer(an_answer())
        assert call.maker.made == [call.outcome.value]
        assert (first.client.closed, second.client.closed) == (True, False)

    def test_it_comes_before_the_answer(self) -> None:
        """A callee that overtakes the answer is held, silent, and spoken to thereafter; those that
        have left by then are not in the way. One for any other session is closed on once nothing
        is asked.
        """
        call = Calling(how="waits")
        for _ in range(HANDSHAKES):
            call.arrives().vanish()
        early, other = call.arrives(), call.arrives("S9")
        assert (early.closed, early.bytes()) == (False, b"")
        call.granted()
        assert (other.closed, other.bytes()) == (True, b"")
        assert not call.outcome.done
        Callee(early).answer(an_answer())
        assert call.outcome.value.transport.candidate == CONNECTS_BACK

    @pytest.mark.parametrize("seen", ["169.254.1.9", "fe80::9"])
    @pytest.mark.parametrize("opened", [False, True])
    def test_link_local(self, seen: str, opened: bool) -> None:
        """An address of one link is no use to others: it isn't offered, and the call goes on."""
        opener = Opener()
        call = Calling(how="waits", sees=seen, opener=opener if opened else None)
        assert "Back" not in call.asked.fields
        assert opener.asked == []
        assert not call.network.listens(WAITS)
        call.granted()
        call.stands(DIRECT)
        assert call.outcome.value.transport.candidate == REGISTERED

    def test_one_session_twice(self) -> None:
        """A mediator that gives two calls one session has both of them end as they end."""
        scene = ListenerScene()
        waiter = ConnectBackWaiter(scene.clock, scene.listener, scene.calls)
        scene.arrived = waiter.connected_back
        events: Any = None  # nothing is spoken

        def start(_: Connector) -> Deferred[IProtocol]:
            credentials = Message.of(NOTIFY, GRANTED)
            call = OutgoingCall(scene.clock, CALLER, CALLEE, credentials, Maker(), scene.calls)
            return waiter.wait(call, CONNECTS_BACK, events)

        attempt: Any = SimpleNamespace(candidate=CONNECTS_BACK, waits=True, start=start)
        first, second = (Connector(scene.clock, CALLEE, [attempt]) for _ in range(2))
        outcomes = [Outcome(first.done), Outcome(second.done)]
        for connector in (first, second):
            scene.calls.connecting(SESSION, connector)
        first.done.cancel()
        assert isinstance(outcomes[0].error, CancelledError)
        client = scene.connect()
        client.send(Message(NOTIFY, Session=SESSION))
        assert not client.closed
        scene.calls.terminate(SESSION)
        assert isinstance(outcomes[1].error, CallFailed)
        assert client.closed
        assert timers(scene.clock) == []
        second.give_up("it is over")  # which it is already: that is nothing new
