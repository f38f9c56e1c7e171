"""The caller waits for its callee beside its other ways, and what becomes of it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import (
    CannotListenError,
    ConnectionLost,
)
from twisted.internet.interfaces import IProtocol

from broker.messages.errors import PermissionDenied
from broker.messages.grammar import NOTIFY, QUERY, REQUEST
from broker.messages.message import Message
from broker.messages.statements import ADDRESS, PERMISSION_DENIED, REQUEST_ACCEPTED, TERMINATE
from broker.net.connection import PeerConnection
from broker.terminal.calls.callee_port import CalleePort
from broker.terminal.calls.one_call import place_call_back, place_one_call
from broker.terminal.calls.place_call import DIAL_TIMEOUT, CallContext, dialling_hub, place_call
from broker.terminal.calls.wait_for_callee import (
    OPEN_TIMEOUT,
    RETRY_AFTER,
    WAIT_TIMEOUT,
    ConnectBackWaiter,
)
from broker.terminal.candidates import BACK, DIRECT, HOLE_PUNCH, LOCAL, Candidate, FailedCandidate
from broker.terminal.channel.active_calls import ENDED_BY_MEDIATOR, ActiveCalls
from broker.terminal.channel.records import RecordType
from broker.terminal.errors import CallDenied, CallFailed
from broker.terminal.outgoing.connector import SLOWER, Connector
from broker.terminal.outgoing.initiator import InitiatorEvents, InitiatorHandshake, OutgoingCall
from broker.terminal.registration.client import MediatorClient, dial
from broker.terminal.terminal import Terminal
from tests.support.clock import advance, result_of
from tests.support.reactor import FakeReactor
from tests.support.transport import Client, connect, tcp_address
from tests.terminal.keys import (
    CALLEE,
    CALLER,
    KEY,
    PASSWORD,
    REPLY_PASSWORD,
    SESSION,
    an_answer,
)
from tests.terminal.meeting import (
    MEETING,
    NOWHERE,
    SHARED,
    TAKES,
    WAITS,
    Simultaneous,
    stand_in,
    timers,
)
from tests.terminal.network import HOST, MEDIATOR_PORT, Listener, Outcome, World
from tests.terminal.peers import Callee, ListenerScene, Opener
from tests.terminal.speakers import Echo, Handler, Maker, Reports


@pytest.fixture(autouse=True)
def simultaneous(monkeypatch: pytest.MonkeyPatch) -> Simultaneous:
    """Both sides' sockets."""
    return stand_in(monkeypatch)


#: What the mediator gives a caller (fig. 5d).
TOLD = Message.of(
    NOTIFY,
    {
        "Callee Address": "192.0.2.7",
        "Password": PASSWORD,
        "Encrypt Key": KEY,
        "Callee Port": "1300",
        "Callee": CALLEE,
        "Session": SESSION,
        "Expires": "3600",
        "Reply Password": REPLY_PASSWORD,
    },
)


def outgoing(clock: FakeReactor, maker: Any, calls: ActiveCalls) -> OutgoingCall:
    """A call that the mediator has granted."""
    return OutgoingCall(clock, CALLER, CALLEE, TOLD, maker, calls)


def waiter_of(scene: ListenerScene) -> ConnectBackWaiter:
    """What waits for callees at these doors."""
    waiter = ConnectBackWaiter(scene.clock, scene.listener, scene.calls)
    scene.arrived = waiter.connected_back
    return waiter


class Wait:
    """A caller that waits for its callee in a call that is permitted.

    :ivar outcome: what becomes of it
    :ivar opened: how often a channel was about to open
    :ivar over: how often it was said that one is gone
    """

    def __init__(self, scene: ListenerScene | None = None, maker: Any = None) -> None:
        self.scene = scene or ListenerScene()
        self.maker = maker or Maker()
        self.opened = self.over = 0
        self.waiter = waiter_of(self.scene)
        self.outcome = Outcome(self.wait())

    def wait(self) -> Deferred[IProtocol]:
        """Wait in the session."""
        call = outgoing(self.scene.clock, self.maker, self.scene.calls)
        return self.waiter.wait(call, Candidate(BACK, HOST, WAITS), self)

    def opening(self) -> list[FailedCandidate]:
        """A channel is about to open."""
        self.opened += 1
        return [FailedCandidate(Candidate(DIRECT, HOST, TAKES), "no route")]

    def channel_closed(self) -> None:
        """It is gone."""
        self.over += 1

    def arrives(self, session: str = SESSION) -> Client:
        """Somebody comes."""
        client = self.scene.connect()
        client.send(Message(NOTIFY, Session=session))
        return client

    def comes(self, message: Message | None = None) -> Callee:
        """The callee comes, and answers."""
        return Callee(self.arrives()).answer(message or an_answer())

    @property
    def at_rest(self) -> bool:
        """Whether nobody is waited for, and no timer is left."""
        self.scene.advance(0)
        return not (self.waiter._waits or self.scene.listener._unproven or timers(self.scene.clock))


class WaitTests:
    """The caller's side of ``BACK``, beside its other ways."""

    def test_it_comes(self) -> None:
        """The caller speaks first; the channel knows by which way, and what else was tried."""
        wait = Wait()
        callee = wait.comes()
        assert callee.head == Message(REQUEST, Session=SESSION, Length=len(callee.body))
        protocol = wait.outcome.value
        assert protocol.transport.candidate == Candidate(BACK, HOST, WAITS)
        assert protocol.transport.failed_candidates == (
            FailedCandidate(Candidate(DIRECT, HOST, TAKES), "no route"),
        )
        assert (wait.opened, wait.over) == (1, 0)
        assert wait.waiter._waits == {}
        callee.client.send(callee.records.seal(RecordType.END))
        protocol.transport.loseConnection()
        wait.scene.advance(1)
        assert wait.over == 1
        assert wait.at_rest

    def test_it_does_not(self) -> None:
        """It is waited for as long as it dials, and a little more."""
        wait = Wait()
        assert WAIT_TIMEOUT == DIAL_TIMEOUT + 2
        wait.scene.advance(WAIT_TIMEOUT - 0.1)
        assert not wait.outcome.done
        wait.scene.advance(0.1)
        assert isinstance(wait.outcome.error, CallFailed)
        assert str(wait.outcome.error) == "Ib did not connect back in time"
        assert wait.at_rest

    def test_two_callees(self) -> None:
        """Of two connections of the callee's own the first to prove itself is the call."""
        wait = Wait()
        first, second = Callee(wait.arrives()), Callee(wait.arrives())
        second.answer(an_answer())
        assert wait.outcome.value is not None
        assert first.client.closed
        assert wait.opened == 1
        assert len(wait.maker.made) == 1

    def test_denied(self) -> None:
        """Its own word ends the wait at once, as a word of a stranger's does not."""
        wait = Wait()
        wait.comes(Message(NOTIFY, PERMISSION_DENIED))
        assert type(wait.outcome.error) is CallDenied
        assert wait.opened == 0
        assert wait.at_rest

    @pytest.mark.parametrize("how", ["given up", "terminated", "stopped"])
    def test_ended(self, how: str) -> None:
        """Given up, its session void (I2), or the terminal stopped: nobody is waited for, and a
        peer that has connected and proven nothing is closed on.
        """
        wait = Wait()
        client = wait.arrives()
        if how == "given up":
            wait.outcome.deferred.cancel()
            assert isinstance(wait.outcome.error, CancelledError)
        elif how == "terminated":
            wait.waiter.terminated(SESSION, None)
            assert str(wait.outcome.error) == "the mediator has ended the session"
        else:
            assert Outcome(Deferred.fromCoroutine(wait.waiter.stop())).done
            assert str(wait.outcome.error) == "the terminal stops"
        assert client.closed
        assert wait.at_rest
        assert wait.arrives().closed

    def test_one_session_twice(self) -> None:
        """A mediator that gives two calls one session has neither of them fall over the other."""
        wait = Wait()
        other = Outcome(wait.wait())
        wait.outcome.deferred.cancel()
        assert isinstance(wait.outcome.error, CancelledError)
        client = wait.arrives()
        assert not client.closed
        other.deferred.cancel()
        assert isinstance(other.error, CancelledError)
        assert client.closed
        assert wait.at_rest

    def test_no_protocol(self) -> None:
        """Where the application has none after all, the session is spent, and the call over."""
        wait = Wait(maker=Maker(lambda: None))
        wait.comes()
        assert str(wait.outcome.error) == "the application gave no protocol for the call"
        assert (wait.opened, wait.over) == (1, 1)


class Asking:
    """A caller that can be come to; a test plays its mediator, its callee, and the wait.

    :ivar waited: what it was to wait for: the session, and who
    :ivar wait: what the wait comes to
    :ivar over: when it was said that nobody is waited for any more
    """

    def __init__(self, maker: Any = None, **options: Any) -> None:
        self.clock = FakeReactor()
        reactor: Any = self.clock
        dialled = dial(reactor, TCP4ClientEndpoint(reactor, HOST, MEDIATOR_PORT), CALLER)
        self.mediator = self.clock.dials[0].accept()
        client: MediatorClient = result_of(dialled)
        self.maker: Any = maker or Maker()
        reported = Reports()
        self.reports = reported.ends
        self.waited: list[tuple[str, str]] = []
        self.waiting: Deferred[IProtocol] = Deferred()
        self.over = 0
        self.host, self.port = HOST, WAITS  # of what it offers
        self.calls = ActiveCalls(reported)
        context = CallContext(reactor, client, self.calls, dialling_hub(reactor))
        placing = place_call(context, CALLEE, self.maker, offer=self, **options)
        self.outcome = Outcome(Deferred.fromCoroutine(placing))
        (self.asked,) = self.mediator.received()

    def wait(
        self, call: OutgoingCall, candidate: Candidate, events: InitiatorEvents
    ) -> Deferred[IProtocol]:
        """The callee is waited for."""
        self.waited.append((call.session, call.callee))
        self._handshake = partial(InitiatorHandshake, call=call, candidate=candidate, events=events)
        return self.waiting

    def close(self) -> None:
        """Nobody is waited for any more."""
        self.over += 1

    def granted(self, **other: str) -> Asking:
        """The mediator gives the credentials (fig. 5d)."""
        self.mediator.send(Message(NOTIFY, REQUEST_ACCEPTED, Transaction="1", Code=100))
        fields = {name.replace("_", " "): value for name, value in other.items()}
        fields = {**TOLD.fields, **fields, "Transaction": "1", "Code": "200"}
        self.mediator.send(Message.of(NOTIFY, fields))
        return self

    @property
    def dials(self) -> list[tuple[str, int]]:
        """Whom it has dialled, beside the mediator."""
        return [(dial.host, dial.port) for dial in self.clock.dials[1:]]

    def comes(self) -> Callee:
        """The callee comes, is spoken to, and answers."""
        client = connect(self._stream, self.clock, port=WAITS)
        callee = Callee(client)
        callee.answer(an_answer())
        return callee

    def _stream(self) -> Any:
        class Meets(PeerConnection):
            def makeConnection(self, transport: Any) -> None:
                super().makeConnection(transport)
                receiver: Any = self.receiver
                receiver.request().addCallbacks(meets, lambda failure: None)

        def meets(protocol: IProtocol) -> None:
            self.waiting.callback(protocol)

        return Meets(dialling_hub(self.clock), self._handshake)


class CallerTests:
    """A caller that goes all ways, and waits besides."""

    def test_asks(self) -> None:
        """It says at which port, and what else it allows (``Seen``, ``Back``)."""
        assert Asking().asked.fields == {
            "Identifier": CALLER, "Callee": CALLEE, "Back": str(WAITS), "Transaction": "1",
        }  # fmt: skip
        assert Asking(seen=True).asked.fields["Seen"] == "Yes"

    def test_not_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whose port can't be dialled from does not let it be told."""
        monkeypatch.setattr(MediatorClient, "share_port", lambda line: None)
        assert "Seen" not in Asking(seen=True).asked.fields

    def test_waits_and_dials(self) -> None:
        """For whom the mediator names, at once, beside the rest."""
        call = Asking().granted(Callee="Ic")
        assert call.waited == [(SESSION, "Ic")]
        assert call.dials == [("192.0.2.7", 1300)]

    def test_each_way(self, simultaneous: Simultaneous) -> None:
        """The likeliest first: its own network, where it is registered, both dialling."""
        told = {"Callee_Local": "10.0.0.2 1203", "Callee_Seen": "198.50.100.7 40001"}
        call = Asking(seen=True).granted(**told)
        assert call.dials == [("10.0.0.2", 1203)]
        advance(call.clock, 0.25)
        assert call.dials == [("10.0.0.2", 1203), ("192.0.2.7", 1300)]
        assert simultaneous.begun == []
        advance(call.clock, 0.25)
        assert simultaneous.begun == [(0.5, SHARED, MEETING, DIAL_TIMEOUT)]

    def test_not_allowed(self, simultaneous: Simultaneous) -> None:
        """Who has not let its own place be told does not dial from there, whatever it is told."""
        call = Asking().granted(Callee_Seen="198.50.100.7 40001")
        advance(call.clock, 1)
        assert simultaneous.begun == []
        assert not call.outcome.done

    def test_the_same_place(self) -> None:
        """One place is dialled once."""
        call = Asking().granted(Callee_Local="192.0.2.7 1300")
        advance(call.clock, 1)
        assert call.dials == [("192.0.2.7", 1300)]

    @pytest.mark.parametrize("how", ["refused", "given up", "line lost"])
    def test_not_granted(self, how: str) -> None:
        """Where there is no session nobody is waited for: what was opened for it is closed."""
        call = Asking()
        if how == "refused":
            call.mediator.send(Message(NOTIFY, PERMISSION_DENIED, Transaction="1", Code=403))
            assert isinstance(call.outcome.error, PermissionDenied)
        elif how == "given up":
            call.outcome.deferred.cancel()
        else:
            call.mediator.vanish()
        assert call.outcome.error is not None
        assert (call.waited, call.over) == ([], 1)

    def test_another_way_stands(self) -> None:
        """It is closed as soon as it is of no use; the call goes on elsewhere."""
        call = Asking().granted()
        Callee(call.clock.dials[1].accept()).answer(an_answer())
        protocol = call.outcome.value
        assert protocol.transport.candidate == Candidate(DIRECT, "192.0.2.7", 1300)
        assert protocol.transport.failed_candidates == (
            FailedCandidate(Candidate(BACK, HOST, WAITS), SLOWER),
        )
        assert call.waiting.called
        assert call.over == 1
        protocol.transport.abortConnection()
        advance(call.clock, 1)
        assert call.over == 1
        assert timers(call.clock) == []

    def test_it_comes(self) -> None:
        """It is open as long as the call lasts, and no longer; the dials are given up."""
        call = Asking().granted()
        callee = call.comes()
        protocol = call.outcome.value
        assert protocol.transport.candidate == Candidate(BACK, HOST, WAITS)
        assert [tried.candidate.method for tried in protocol.transport.failed_candidates] == [
            DIRECT
        ]
        assert call.clock.dials[1].over
        assert call.over == 0
        callee.client.vanish()
        advance(call.clock, 1)
        assert call.over == 1
        assert call.reports == [(SESSION, "Failed")]
        assert timers(call.clock) == []

    def test_none_leads_there(self) -> None:
        """The one error names each, and nothing is left open."""
        call = Asking().granted()
        call.clock.dials[1].refuse()
        assert not call.outcome.done
        call.waiting.errback(CallFailed("Ib did not connect back in time"))
        assert str(call.outcome.error) == (
            "Ib could not be reached: directly at 192.0.2.7:1300: Connection was refused by other"
            " side; by connecting back to us at 127.0.0.1:4000: Ib did not connect back in time"
        )
        assert call.over == 1

    @pytest.mark.parametrize("kind", [DIRECT, BACK])
    def test_denied(self, kind: str) -> None:
        """The callee's own word ends it at once, along whichever way it comes; all is closed."""
        call = Asking().granted()
        if kind == DIRECT:
            callee = Callee(call.clock.dials[1].accept())
            callee.answer(Message(NOTIFY, PERMISSION_DENIED))
            assert call.waiting.called
        else:
            call.waiting.errback(CallDenied("Ib denied the call"))
            assert call.clock.dials[1].over
        assert type(call.outcome.error) is CallDenied
        assert call.over == 1
        assert timers(call.clock) == []

    def test_given_up(self) -> None:
        """All is given up."""
        call = Asking().granted()
        call.outcome.deferred.cancel()
        assert isinstance(call.outcome.error, CancelledError)
        assert call.waiting.called
        assert call.clock.dials[1].over
        assert call.over == 1
        assert timers(call.clock) == []

    def test_terminated(self, simultaneous: Simultaneous) -> None:
        """A session that is void is tried in no way any more, begun or not (I2, S5001)."""
        told = {"Callee_Local": "10.0.0.2 1203", "Callee_Seen": "198.50.100.7 40001"}
        call = Asking(seen=True).granted(**told)
        advance(call.clock, 0.25)
        call.calls.terminate("S9")
        assert not call.outcome.done
        call.calls.terminate(SESSION)
        assert isinstance(call.outcome.error, CallFailed)
        ended = "the mediator has ended the session"
        assert str(call.outcome.error) == ended
        tried = {one.candidate.method: one.reason for one in call.outcome.error.failed_candidates}
        assert tried == dict.fromkeys([BACK, LOCAL, DIRECT, HOLE_PUNCH], ended)
        assert call.waiting.called
        assert call.over == 1
        assert all(dial.over for dial in call.clock.dials)
        assert timers(call.clock) == []
        advance(call.clock, 1)
        assert simultaneous.begun == []
        assert call.maker.made == []

    def test_one_session_twice(self) -> None:
        """A mediator that gives two calls one session has both of them end as they end."""
        call = Asking().granted()
        attempt: Any = SimpleNamespace(
            candidate=Candidate(DIRECT, HOST, TAKES), waits=False, start=lambda _: Deferred()
        )
        other = Connector(call.clock, CALLEE, [attempt])
        second = Outcome(other.done)
        call.calls.connecting(SESSION, other)
        call.outcome.deferred.cancel()
        assert isinstance(call.outcome.error, CancelledError)
        call.calls.terminate(SESSION)
        assert isinstance(second.error, CallFailed)
        assert call.calls._connecting == {}
        other.give_up("it is over")  # which it is already: that is nothing new

    def test_terminated_thereafter(self) -> None:
        """Once it stands it is the channel that ends; until then, what is being spoken to."""
        call = Asking().granted()
        client = call.clock.dials[1].accept()
        call.calls.terminate(SESSION)
        assert str(call.outcome.error) == "the mediator has ended the session"
        assert (client.closed, call.maker.made) == (True, [])
        call = Asking().granted()
        Callee(call.clock.dials[1].accept()).answer(an_answer())
        call.calls.terminate(SESSION)
        assert call.outcome.error is None
        advance(call.clock, 1)
        assert call.outcome.value.why.cause == ENDED_BY_MEDIATOR
        assert call.reports == [(SESSION, "Terminated")]

    def test_no_protocol(self) -> None:
        """An application that has none ends its own call, and what was open for it."""
        call = Asking(Maker(lambda: None)).granted()
        Callee(call.clock.dials[1].accept()).answer(an_answer())
        assert str(call.outcome.error) == "the application gave no protocol for the call"
        assert call.over == 1


class Opens:
    """A caller that opens its doors for a call; a test plays its mediator and its callee.

    :ivar outcome: what becomes of the call
    """

    def __init__(self, seen: str = HOST, opener: Opener | None = None) -> None:
        self.scene = ListenerScene()
        reactor: Any = self.scene.clock
        dialled = dial(reactor, TCP4ClientEndpoint(reactor, HOST, MEDIATOR_PORT), CALLER)
        self.mediator = reactor.dials[0].accept(local_host=seen)
        self._client: MediatorClient = result_of(dialled)
        self._waiter = waiter_of(self.scene)
        self.outcome = Outcome(Deferred.fromCoroutine(self._place(opener)))
        (asked,) = self.mediator.received()
        assert asked.statement == ADDRESS
        self.mediator.send(
            Message(NOTIFY, Transaction="1", Code=200, Address=seen, Port=str(50000))
        )
        (self.asked,) = self.mediator.received()

    async def _place(self, opener: Opener | None) -> IProtocol:
        port: Any = SimpleNamespace(getHost=lambda: tcp_address(HOST, WAITS))
        offer = await self._waiter.offer(self._client, CalleePort(port=port, opener=opener))
        clock, calls = self.scene.clock, self.scene.calls
        context = CallContext(clock, self._client, calls, dialling_hub(clock))
        return await place_call(context, CALLEE, Maker(), offer=offer)

    def arrives(self, session: str = SESSION) -> Client:
        """Somebody comes."""
        client = self.scene.connect()
        client.send(Message(NOTIFY, Session=session))
        return client

    def granted(self) -> None:
        """The mediator gives the credentials."""
        self.mediator.send(Message.of(NOTIFY, {**TOLD.fields, "Transaction": "2", "Code": "200"}))

    @property
    def takes_nobody(self) -> bool:
        """Whether somebody who comes now is closed on at once, without a byte."""
        client = self.arrives()
        return bool(client.closed) and not client.bytes()


class OpenTests:
    """The doors of a caller that can be come to, while its mediator has not answered."""

    def test_before_the_answer(self) -> None:
        """A callee that overtakes the answer is held, silent, and spoken to thereafter; one for any
        other session is closed on once nothing is asked.
        """
        call = Opens()
        assert call.asked.get("Back") == str(WAITS)  # where it can be connected to
        early, other = call.arrives(), call.arrives("S9")
        assert (early.closed, early.bytes()) == (False, b"")
        call.granted()
        assert (other.closed, other.bytes()) == (True, b"")
        assert not call.outcome.done
        Callee(early).answer(an_answer())
        assert call.outcome.value.transport.candidate == Candidate(BACK, HOST, WAITS)
        early.vanish()
        assert call.takes_nobody

    @pytest.mark.parametrize("how", ["refused", "line lost", "given up"])
    def test_no_answer(self, how: str) -> None:
        """Where there is no session nobody is held for it."""
        call = Opens()
        early = call.arrives()
        if how == "refused":
            call.mediator.send(Message(NOTIFY, PERMISSION_DENIED, Transaction="2", Code=403))
            assert isinstance(call.outcome.error, PermissionDenied)
        elif how == "line lost":
            call.mediator.vanish()
            assert isinstance(call.outcome.error, ConnectionLost)
        else:
            call.outcome.deferred.cancel()
            assert isinstance(call.outcome.error, CancelledError)
        assert (early.closed, early.bytes()) == (True, b"")
        assert call.takes_nobody
        call.scene.advance(0)
        assert timers(call.scene.clock) == []

    @pytest.mark.parametrize("seen", ["169.254.1.9", "fe80::9"])
    @pytest.mark.parametrize("opened", [False, True])
    def test_link_local(self, seen: str, opened: bool) -> None:
        """An address of one link leads nobody to us: it isn't offered, and the call goes on."""
        opener = Opener() if opened else None
        call = Opens(seen, opener)
        assert "Back" not in call.asked.fields
        assert opener is None or opener.opened == []
        assert call.takes_nobody
        call.granted()
        Callee(call.scene.clock.dials[1].accept()).answer(an_answer())
        assert call.outcome.value.transport.candidate == Candidate(DIRECT, "192.0.2.7", 1300)


class NoWayInTests:
    """A caller that can't be come to: its call goes on without, and it is told why (C12, D9)."""

    SEEN: ClassVar = "the mediator sees us at 127.0.0.1, and callees connect to nowhere else"

    def world(self) -> World:
        """Ib is where no other way leads, and dials nobody."""
        world = World()
        options: dict[str, Any] = {"handler": Handler(Echo), "accept": ["Ia"]}
        world.terminal("Ib", TAKES, address=HOST, port=NOWHERE, **options)
        return world

    def back(self, world: World, calling: Deferred[IProtocol]) -> tuple[str | None, Outcome]:
        """The port at which Ib could come, as Ia has asked with; and what becomes of its call."""
        world.heard.clear()
        outcome = Outcome(calling)
        world.run()
        (asked,) = [one for one in world.heard if one.verb == QUERY and "Callee" in one.fields]
        return asked.get("Back"), outcome

    def fails(self, why: str, world: World, caller: Terminal, place: str = HOST) -> None:
        """Ia calls; what it waits at can't be had, for this reason, which it is told at once."""
        now = world.clock.seconds()
        back, outcome = self.back(world, caller.call("Ib", Maker()))
        assert back is None
        self.named(outcome, why, place)
        assert world.clock.seconds() == now

    def named(self, outcome: Outcome, why: str, place: str = HOST) -> None:
        """The one error names it, beside the way that was gone."""
        assert str(outcome.error) == (
            f"Ib could not be reached: by connecting back to us at {place}:{WAITS}: {why};"
            " directly at 127.0.0.1:4999: Connection was refused by other side"
        )

    @pytest.mark.parametrize("opens", [False, True])
    def test_its_own_address(self, opens: bool) -> None:
        """Where it has named an address at which it is not seen nobody can come to it, and no port
        is opened where it is (I1). Once it is seen there they can, at once: no router has failed.
        """
        world, opener = self.world(), Opener()
        options = {"opener": opener} if opens else {}
        caller = world.terminal("Ia", WAITS, address="127.0.0.77", **options)
        self.fails(self.SEEN, world, caller, "127.0.0.77")
        caller.settings = replace(caller.settings, address=HOST)
        back, _ = self.back(world, caller.call("Ib", Maker()))
        assert (back, opener.asked) == (str(WAITS), 0)

    @pytest.mark.parametrize("opens", [False, True])
    def test_where_it_is_seen(self, opens: bool) -> None:
        """Where it is seen at that address they come to its port there."""
        world, opener = self.world(), Opener()
        options = {"opener": opener} if opens else {}
        caller = world.terminal("Ia", 4100, address=HOST, port=WAITS, **options)
        back, _ = self.back(world, caller.call("Ib", Maker()))
        assert (back, opener.asked) == (str(WAITS), 0)

    def one_call(self, world: World, **options: Any) -> tuple[str | None, Outcome]:
        """Ia calls once."""
        reactor: Any = world.clock
        dialled = dial(reactor, TCP4ClientEndpoint(reactor, HOST, MEDIATOR_PORT), "Ia")
        world.run()
        port = CalleePort(**{"listen": Listener(world, WAITS), **options})
        placing = place_one_call(reactor, result_of(dialled), "Ib", Maker(), port=port)
        return self.back(world, Deferred.fromCoroutine(placing))

    def test_one_call_elsewhere(self) -> None:
        """So it is with an address for one call."""
        back, outcome = self.one_call(self.world(), address=("127.0.0.77", WAITS))
        assert back is None
        self.named(outcome, self.SEEN, "127.0.0.77")
        assert self.one_call(self.world(), address=(HOST, 4444))[0] == "4444"

    def test_no_listener(self) -> None:
        """Where nobody can listen, that is why."""
        world = self.world()
        fails = Listener(world, fails=CannotListenError(HOST, WAITS, OSError("in use")))
        back, outcome = self.one_call(world, listen=fails, address=(HOST, WAITS))
        assert back is None
        why = "there is nowhere to wait for the callee: Couldn't listen on 127.0.0.1:4000: in use."
        self.named(outcome, why)

    def test_no_port_is_opened(self) -> None:
        """A router that has opened none is asked again after a minute; till then the reason is
        told at once.
        """
        world, opener = self.world(), Opener(fails=True)
        caller = world.terminal("Ia", WAITS, opener=opener)
        why = "no port could be opened for the callee: no router answers"
        self.fails(why, world, caller)
        opener.fails = False
        world.advance(RETRY_AFTER - 0.1)
        self.fails(why, world, caller)
        assert opener.asked == 1
        world.advance(0.1)
        back, _ = self.back(world, caller.call("Ib", Maker()))
        assert (back, opener.asked) == (str(WAITS), 2)

    def test_slow(self) -> None:
        """Nor is one waited for anew that has said nothing in time."""
        world, opener = self.world(), Opener()
        opener.silent = True
        caller = world.terminal("Ia", WAITS, opener=opener)
        world.heard.clear()
        outcome = Outcome(caller.call("Ib", Maker()))
        world.advance(OPEN_TIMEOUT - 0.1)
        assert not [one for one in world.heard if "Callee" in one.fields]
        world.advance(0.1)
        why = "the router has not opened a port in 4 seconds"
        self.named(outcome, why)
        for _ in range(2):
            world.advance(20)
            self.fails(why, world, caller)
        assert opener.asked == 1
        world.advance(20)  # what is told meanwhile does not put it off
        world.heard.clear()
        caller.call("Ib", Maker()).addErrback(lambda _: None)
        world.advance(OPEN_TIMEOUT)
        assert opener.asked == 2


class Once:
    """One call on a line that is there for it alone; a test plays its mediator and its callee.

    :ivar outcome: what becomes of the call
    """

    def __init__(self, *, connect_back: bool = False) -> None:
        self.world = World()
        self.clock: Any = FakeReactor()
        dialled = dial(self.clock, TCP4ClientEndpoint(self.clock, HOST, MEDIATOR_PORT), CALLER)
        self.mediator: Client = self.clock.dials[0].accept()
        client: MediatorClient = result_of(dialled)
        port = CalleePort(Listener(self.world, WAITS))
        maker = Maker()
        if connect_back:
            placing = place_call_back(
                self.clock, client, CALLEE, maker, password=PASSWORD, port=port
            )
        else:
            placing = place_one_call(self.clock, client, CALLEE, maker, port=port)
        self.outcome = Outcome(Deferred.fromCoroutine(placing))
        if not connect_back:
            where = {"Address": HOST, "Port": "50000"}
            self.mediator.send(Message(NOTIFY, Transaction="1", Code=200, **where))
        transaction = "1" if connect_back else "2"
        told = {**TOLD.fields, "Transaction": transaction, "Code": "200"}
        self.mediator.send(Message.of(NOTIFY, told))
        self.mediator.received()

    def terminate(self) -> None:
        """The mediator says that it is void."""
        self.mediator.send(Message.of(NOTIFY, {"Session": SESSION, "": TERMINATE}))

    def arrives(self) -> Callee:
        """The callee comes, and answers."""
        client = connect(self.world.factory_at(WAITS), self.clock, port=WAITS)
        client.send(Message(NOTIFY, Session=SESSION))
        return Callee(client).answer(an_answer())


class OneCallTests:
    """A call that is made once (``place_one_call``, ``place_call_back``)."""

    def test_terminated(self) -> None:
        """It ends with its session, too, and so does what was opened for it (I2, S5001)."""
        once = Once()
        assert once.world.listens(WAITS)
        assert not once.clock.dials[1].over
        once.terminate()
        assert str(once.outcome.error) == "the mediator has ended the session"
        assert once.clock.dials[1].over
        assert not once.world.listens(WAITS)
        assert timers(once.clock) == []

    @pytest.mark.parametrize("how", ["dialled", "came", "connect-back"])
    def test_terminated_thereafter(self, how: str) -> None:
        """So does one that stands, whichever side has dialled (I2, S5001)."""
        once = Once(connect_back=how == "connect-back")
        if how == "dialled":
            Callee(once.clock.dials[1].accept()).answer(an_answer())
        else:
            once.arrives()
        protocol = once.outcome.value
        assert protocol.transport.candidate.method == (DIRECT if how == "dialled" else BACK)
        once.mediator.received()
        once.terminate()
        advance(once.clock, 1)
        assert protocol.why.cause == ENDED_BY_MEDIATOR
        ends = [one.get("End") for one in once.mediator.received() if "End" in one.fields]
        assert ends == ["Terminated"]
        assert not once.world.listens(WAITS)
