"""The one connection that a client keeps to its server (broker.net.reconnecting)."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.error import ConnectionLost
from twisted.logger import capturedLogs, formatEvent

from broker.messages.errors import RegistrationFailed
from broker.messages.grammar import NOTIFY, REGISTER
from broker.messages.message import Message
from broker.net.connection import PeerConnection
from broker.net.hub import ConnectionHub
from broker.net.reconnecting import ClientEvents, ReconnectingClient
from tests.net.recorder import Talk
from tests.resolver.apart import Outcome
from tests.support.clock import advance, settle
from tests.support.reactor import FakeReactor
from tests.support.transport import Client


class World(ClientEvents[Talk]):
    """A client that keeps a connection, and what became of it.

    :ivar events: ``up`` and ``down``, in order
    """

    def __init__(
        self,
        *,
        prepare: Callable[[Talk], Awaitable[object]] | None = None,
        login_timeout: float | None = None,
        jitter: Callable[[], float] = lambda: 1.0,
        **options: float,
    ) -> None:
        """Have it connect.

        :param login_timeout: that of the hub, where it is not a client's own
        """
        self.clock = FakeReactor()
        reactor: Any = self.clock
        self.events: list[str] = []
        self.hub = (
            ConnectionHub(self.clock, login_timeout=login_timeout)
            if login_timeout
            else ConnectionHub.of_client(self.clock)
        )
        self.link: ReconnectingClient[Talk] = ReconnectingClient(
            TCP4ClientEndpoint(reactor, "127.0.0.1", 1201), self.hub, self, jitter=jitter, **options
        )
        self._prepare = prepare
        self.link.startService()

    def make_dialogue(self, connection: PeerConnection) -> Talk:
        """Make what speaks over a new connection."""
        return Talk(connection, transactions=True)

    async def prepare(self, dialogue: Talk) -> None:
        """Do what the test says, if it says something."""
        if self._prepare is not None:
            await self._prepare(dialogue)

    def up(self, dialogue: Talk) -> None:
        """Write it down."""
        self.events.append("up")

    def down(self, dialogue: Talk) -> None:
        """Write it down."""
        self.events.append("down")

    def accept(self) -> Client:
        """Answer the dial that is open."""
        return self.clock.dials[-1].accept()

    def refuse(self) -> None:
        """Refuse it."""
        self.clock.dials[-1].refuse()

    def talk(self) -> Talk:
        """What is said over the link, which is up."""
        assert self.link.dialogue is not None
        return self.link.dialogue

    def stop(self) -> Outcome[None]:
        """Stop it."""
        return Outcome(self.link.stopService())

    def has_ended(self) -> bool:
        """Whether it does not dial, and has left no timer behind."""
        self.hub.stop()
        return not self.dialling() and not self.clock.getDelayedCalls()

    def dialling(self) -> bool:
        """Whether a dial is open."""
        settle(self.clock)
        return bool(self.clock.dials) and not self.clock.dials[-1].over

    def until_dial(self, most: float = 100) -> float:
        """Let time pass until it dials; how long that was, to the microsecond."""
        began = self.clock.seconds()
        while not self.dialling():
            assert self.clock.seconds() - began < most, "it never dials"
            due = min(call.getTime() for call in self.clock.getDelayedCalls())
            self.clock.advance(due - self.clock.seconds())
        return round(self.clock.seconds() - began, 6)


def said(clients: Client) -> list[str]:
    """The statements that came."""
    return [message.statement for message in clients.received()]


@pytest.fixture
def world() -> World:
    """A client that dials."""
    return World()


class LinkTests:
    """Made, kept, and made again."""

    def test_up(self, world: World) -> None:
        """Once connected there is a conversation, and who waited has it."""
        early = Outcome(world.link.wait())
        assert not early.over
        assert world.link.dialogue is None
        server = world.accept()
        assert world.events == ["up"]
        talk = world.talk()
        assert early.value is talk
        assert Outcome(world.link.wait()).value is talk
        talk.stream.send(Message(NOTIFY, "Hello."))
        assert said(server) == ["Hello."]
        server.type("NOTIFY\nGood day.\n\n")
        assert [message.statement for message in talk.unasked] == ["Good day."]

    def test_lost(self, world: World) -> None:
        """When it is lost there is none, before its questions fail; then it dials again."""
        server = world.accept()
        talk = world.talk()
        seen: list[object] = []
        asked = talk.ask(Message(REGISTER))
        asked.addErrback(lambda failure: seen.append((failure.type, world.link.dialogue)))
        server.vanish()
        assert seen == [(ConnectionLost, None)]
        assert world.events == ["up", "down"]
        assert world.until_dial() == 0.2
        world.accept()
        assert world.events == ["up", "down", "up"]
        assert world.talk() is not talk

    def test_back_off(self) -> None:
        """Each attempt that fails is waited for longer, up to the most; success ends that."""
        world = World(initial=0.2, longest=3.0)
        waits = []
        for _ in range(7):
            assert world.dialling()
            world.refuse()
            waits.append(world.until_dial())
        assert waits == [0.2, 0.4, 0.8, 1.6, 3.0, 3.0, 3.0]
        world.accept().vanish()
        assert world.until_dial() == 0.2

    def test_jitter(self) -> None:
        """A wait is from half of itself to the whole, so that many spread their attempts."""
        waits = set()
        source = random.Random(7).random
        for _ in range(50):
            world = World(jitter=source, initial=8.0)
            world.refuse()
            waits.add(world.until_dial())
        assert len(waits) == 50
        assert min(waits) < 4.4
        assert max(waits) > 7.6
        assert all(4.0 <= wait <= 8.0 for wait in waits)

    def test_half_close(self, world: World) -> None:
        """The server's end of input reaches the stream: what it asked is still answered.

        So ``IHalfCloseableProtocol`` survives the wrapping by endpoint and ClientService.
        """
        server = world.accept()
        talk = world.talk()
        server.feed(b"QUERY\nSTATUS\n\n")
        (request,) = talk.requests
        server.end_input()
        assert not server.closed
        request.reply("STATUS Acceptable.")
        assert said(server) == ["STATUS Acceptable."]
        assert server.closed

    def test_no_login_deadline(self) -> None:
        """We know which server we called: no limits of a stranger hold, whatever the hub's are."""
        world = World(login_timeout=10)
        server = world.accept()
        advance(world.clock, 60)
        assert not server.closed
        assert world.talk().stream.decoder.limits is world.hub.authenticated

    def test_retry_now(self) -> None:
        """Woken while it waits to dial, it dials at once, and goes on as ever; woken after its end,
        it does not dial.
        """
        world = World(initial=20.0)
        waiting = Outcome(world.link.wait())
        world.refuse()
        assert not world.dialling()
        world.link.retry_now()
        assert world.dialling()
        world.refuse()
        advance(world.clock, 25)
        assert not world.dialling(), "the wait it cut short has ended"
        assert world.until_dial() == 5
        assert not waiting.over
        world.refuse()
        world.stop()
        world.link.retry_now()
        assert not world.dialling()

    def test_retry_now_while_dialling(self, world: World) -> None:
        """Woken while it dials or is connected, it does nothing more: no one can keep it away."""
        for _ in range(3):
            world.link.retry_now()
        assert len(world.clock.dials) == 1, "a dial that is open is left alone"
        world.accept()
        world.link.retry_now()
        assert len(world.clock.dials) == 1
        assert world.events == ["up"]

    def test_given_up(self, world: World) -> None:
        """Who gave up waiting is not called when the link comes up."""
        outcome = Outcome(waiting := world.link.wait())
        waiting.cancel()
        assert outcome.error is CancelledError
        world.accept()
        assert outcome.values == []

    def test_stopped(self, world: World) -> None:
        """Stopping closes the connection, ends dialling, leaves no timer; what was sent just before
        the end still arrives.
        """
        server = world.accept()
        world.talk().stream.send(Message(NOTIFY, "Goodbye."))
        stopping = world.stop()
        assert said(server) == ["Goodbye."]
        assert server.closed
        assert stopping.value is None
        assert world.has_ended()

    def test_stopped_while_dialling(self, world: World) -> None:
        """Stopping gives up a dial that is open, and who waits for it learns so."""
        waiting = Outcome(world.link.wait())
        assert world.stop().value is None
        assert waiting.error is CancelledError
        assert world.has_ended()

    def test_stopped_on_one_that_does_not_read(self, world: World) -> None:
        """A server that reads nothing now holds up the end for ten seconds at most."""
        server = world.accept()
        server.transport.stop_reading_peer()
        world.talk().stream.write(b"x" * 1000)
        settle(world.clock)
        stopping = world.stop()
        advance(world.clock, 9.9)
        assert stopping.values == []
        advance(world.clock, 0.1)
        assert stopping.values == [None]
        assert server.closed


class PreparingTests:
    """What must be said before anything else is."""

    @staticmethod
    def logging_in() -> World:
        """One that asks something first."""
        return World(prepare=lambda talk: talk.ask(Message(REGISTER, Identifier="Ia")))

    def test_up_once_prepared(self) -> None:
        """The link is up when its owner has had the answer, not before; a connection that is lost
        while it is prepared never was up.
        """
        world = self.logging_in()
        waiting = Outcome(world.link.wait())
        world.accept().vanish()
        world.until_dial()
        server = world.accept()
        (login,) = server.received()
        assert login.get("Identifier") == "Ia"
        assert not waiting.over
        assert world.events == []
        server.type(f"NOTIFY\nTransaction:{login.transaction}\nCode:200\n\n")
        assert waiting.value is world.link.dialogue
        advance(world.clock, 60)
        assert world.events == ["up"]

    def test_refused(self) -> None:
        """A server that takes the connection and refuses is closed, and asked ever more seldom.

        The log holds a refusal's cause on one line, whatever it would do to a screen (I19).
        """

        async def refused(talk: Talk) -> None:
            raise RegistrationFailed("no\u2028\x9b2Jm\u202eore")

        world = World(prepare=refused, initial=0.2, longest=3.0)
        waits = []
        with capturedLogs() as events:
            for _ in range(6):
                assert world.accept().closed
                waits.append(world.until_dial())
        assert waits == [0.2, 0.4, 0.8, 1.6, 3.0, 3.0]
        assert world.events == []
        told = [formatEvent(event) for event in events]
        assert r"A connection was not taken up: no\u2028\u009b2Jm\u202eore" in told

    def test_no_answer(self) -> None:
        """A server that takes the connection and says nothing is given up after a while."""
        world = World(prepare=lambda _: Deferred(), patience=3.0)
        server = world.accept()
        closed = []
        for seconds in (2.9, 0.1):
            advance(world.clock, seconds)
            closed.append(server.closed)
        assert closed == [False, True]
        world.until_dial()

    def test_prepared_too_late(self) -> None:
        """What is ready only when its connection is gone brings no link up."""
        ready: Deferred[None] = Deferred()
        world = World(prepare=lambda _: ready)
        world.accept().vanish()
        ready.callback(None)
        assert world.events == []
        assert world.link.dialogue is None

    def test_stopped_before_it_is_up(self) -> None:
        """Stopping while a connection is prepared leaves no timer behind either."""
        world = self.logging_in()
        server = world.accept()
        world.stop()
        assert server.closed
        assert world.has_ended()
        assert world.events == []

    def test_our_own_fault(self) -> None:
        """An unforeseen exception is logged whole, and another attempt is made (I24)."""

        async def broken(talk: Talk) -> None:
            raise ZeroDivisionError

        world = World(prepare=broken)
        with capturedLogs() as logged:
            assert world.accept().closed
        (failure,) = [event["log_failure"] for event in logged if "log_failure" in event]
        assert failure.check(ZeroDivisionError)
        world.until_dial()
