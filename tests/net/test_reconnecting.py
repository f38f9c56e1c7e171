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
from twisted.python.failure import Failure

from broker.messages.errors import PermissionDenied, RegistrationFailed
from broker.messages.framing import Body
from broker.messages.grammar import NOTIFY, REGISTER
from broker.messages.message import Malformed, Message
from broker.net.connection import PeerConnection
from broker.net.dialogue import Dialogue
from broker.net.hub import ConnectionHub
from broker.net.reconnecting import ClientEvents, ReconnectingClient
from tests.resolver.apart import Outcome
from tests.support.clock import advance, settle
from tests.support.reactor import FakeReactor
from tests.support.transport import Client


class Talk(Dialogue):
    """A conversation that keeps what came."""

    def __init__(self, stream: PeerConnection) -> None:
        super().__init__(stream, transactions=True)
        self.came: list[Message] = []

    def message_received(self, message: Message) -> None:
        if message.verb != NOTIFY or not self.answered(message):
            self.came.append(message)

    def body_received(self, body: Body) -> None:
        raise NotImplementedError

    def malformed_received(self, malformed: Malformed) -> None:
        self.malformed(malformed)

    def connection_lost(self, reason: Failure) -> None:
        self.lost()


class World(ClientEvents[Talk]):
    """A client that keeps a connection, and what became of it.

    :ivar events: ``up`` and ``down``, in order
    """

    def __init__(
        self,
        *,
        prepare: Callable[[Talk], Awaitable[object]] | None = None,
        hub: ConnectionHub | None = None,
        jitter: Callable[[], float] = lambda: 1.0,
        **options: float,
    ) -> None:
        self.clock = FakeReactor()
        reactor: Any = self.clock
        self.events: list[str] = []
        self.link: ReconnectingClient[Talk] = ReconnectingClient(
            TCP4ClientEndpoint(reactor, "127.0.0.1", 1201),
            hub or ConnectionHub.of_client(self.clock),
            self,
            jitter=jitter,
            **options,
        )
        self._prepare = prepare

    def make_dialogue(self, connection: PeerConnection) -> Talk:
        """Make what speaks over a new connection."""
        return Talk(connection)

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

    def start(self) -> World:
        """Have it connect."""
        self.link.startService()
        return self

    def accept(self) -> Client:
        """Answer the dial that is open."""
        return self.clock.dials[-1].accept()

    def talk(self) -> Talk:
        """What is said over the link, which is up."""
        assert self.link.dialogue is not None
        return self.link.dialogue

    def dialling(self) -> bool:
        """Whether a dial is open."""
        settle(self.clock)
        return bool(self.clock.dials) and not self.clock.dials[-1].over

    def until_dial(self, most: float = 100) -> float:
        """Let time pass until it dials; how long that was."""
        began = self.clock.seconds()
        while not self.dialling():
            assert self.clock.seconds() - began < most, "it never dials"
            due = min(call.getTime() for call in self.clock.getDelayedCalls())
            self.clock.advance(due - self.clock.seconds())
        return self.clock.seconds() - began


def said(clients: Client) -> list[str]:
    """The statements that came."""
    return [message.statement for message in clients.received()]


@pytest.fixture
def world() -> World:
    """A client that dials."""
    return World().start()


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
        assert [message.statement for message in talk.came] == ["Good day."]

    def test_refused(self) -> None:
        """The log holds a refusal's cause on one line, whatever it would do to a screen (I19)."""

        async def refuse(talk: Talk) -> None:
            raise RegistrationFailed("no\u2028\x9b2Jm\u202eore")

        world = World(prepare=refuse).start()
        with capturedLogs() as events:
            world.accept()
        told = [formatEvent(event) for event in events]
        assert r"A connection was not taken up: no\u2028\u009b2Jm\u202eore" in told

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
        assert world.until_dial() == pytest.approx(0.2)
        world.accept()
        assert world.events == ["up", "down", "up"]
        assert world.talk() is not talk

    def test_back_off(self) -> None:
        """Each attempt that fails is waited for longer, up to the most; success ends that."""
        world = World(initial=0.2, longest=3.0).start()
        waits = []
        for _ in range(7):
            assert world.dialling()
            world.clock.dials[-1].refuse()
            waits.append(round(world.until_dial(), 6))
        assert waits == [0.2, 0.4, 0.8, 1.6, 3.0, 3.0, 3.0]
        world.accept().vanish()
        assert world.until_dial() == pytest.approx(0.2)

    def test_jitter(self) -> None:
        """A wait is from half of itself to the whole, so that many spread their attempts."""
        waits = set()
        source = random.Random(7).random
        for _ in range(50):
            world = World(jitter=source, initial=8.0).start()
            world.clock.dials[-1].refuse()
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
        (asked,) = talk.came
        request = talk.open_request(asked)
        server.end_input()
        assert not server.closed
        request.reply("STATUS Acceptable.")
        assert said(server) == ["STATUS Acceptable."]
        assert server.closed

    def test_no_login_deadline(self) -> None:
        """We know whom we called: no limits of a stranger hold, whatever the hub's are."""
        world = World(hub=None)
        hub = ConnectionHub(world.clock, login_timeout=10)
        world.link._hub = hub
        world.start()
        server = world.accept()
        advance(world.clock, 60)
        assert not server.closed
        talk = world.talk()
        assert talk.stream.decoder.limits is hub.authenticated

    def test_retry_now(self) -> None:
        """Woken while it waits to dial, it dials at once, and goes on as ever."""
        world = World(initial=20.0).start()
        waiting = Outcome(world.link.wait())
        world.clock.dials[-1].refuse()
        assert not world.dialling()
        world.link.retry_now()
        assert world.dialling()
        world.link.retry_now()
        assert len(world.clock.dials) == 2, "a dial that is open is left alone"
        assert not waiting.over
        world.clock.dials[-1].refuse()
        advance(world.clock, 25)
        assert not world.dialling(), "the wait it cut short is over and done with"
        assert world.until_dial() == pytest.approx(5)
        world.accept()
        assert waiting.over

    def test_retry_now_while_dialling(self, world: World) -> None:
        """Woken while it dials or is connected, it does nothing more: nobody can keep it away."""
        for _ in range(3):
            world.link.retry_now()
        assert len(world.clock.dials) == 1
        world.accept()
        world.link.retry_now()
        assert len(world.clock.dials) == 1
        assert world.events == ["up"]

    def test_retry_now_when_stopped(self) -> None:
        """Woken after its end, it stays where it is."""
        world = World(initial=20.0).start()
        world.clock.dials[-1].refuse()
        Outcome(world.link.stopService())
        world.link.retry_now()
        assert not world.dialling()

    def test_given_up(self, world: World) -> None:
        """Who gave up waiting is not called when the link comes up."""
        waiting = world.link.wait()
        outcome = Outcome(waiting)
        waiting.cancel()
        assert outcome.error is CancelledError
        world.accept()
        assert outcome.values == []

    def test_stopped(self, world: World) -> None:
        """Stopping closes the connection, ends waiting, dials no more, leaves no timer."""
        server = world.accept()
        stopping = Outcome(world.link.stopService())
        assert server.closed
        assert stopping.value is None
        assert not world.dialling()
        world.link._hub.stop()
        assert not world.clock.getDelayedCalls()

    def test_last_words(self, world: World) -> None:
        """What was sent just before the end still arrives."""
        server = world.accept()
        world.talk().stream.send(Message(NOTIFY, "Goodbye."))
        Outcome(world.link.stopService())
        assert said(server) == ["Goodbye."]

    def test_stopped_while_dialling(self, world: World) -> None:
        """Stopping gives up a dial that is open, and who waits for it learns so."""
        waiting = Outcome(world.link.wait())
        assert Outcome(world.link.stopService()).value is None
        assert waiting.error is CancelledError
        assert not world.clock.getDelayedCalls()

    def test_stopped_on_one_that_does_not_read(self, world: World) -> None:
        """A server that reads nothing more holds up the end for ten seconds at most."""
        server = world.accept()
        server.transport.stop_reading_peer()
        talk = world.talk()
        talk.stream.write(b"x" * 1000)
        settle(world.clock)
        stopping = Outcome(world.link.stopService())
        advance(world.clock, 9.9)
        assert stopping.values == []
        advance(world.clock, 0.1)
        assert stopping.values == [None]
        assert server.closed


class PreparingTests:
    """What must be said before anything else is."""

    def test_up_once_prepared(self) -> None:
        """The link is up when its owner has had the answer, not before."""
        world = World(prepare=lambda talk: talk.ask(Message(REGISTER, Identifier="Ia"))).start()
        waiting = Outcome(world.link.wait())
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
        """A server that takes the connection and refuses is closed, and asked ever more seldom."""

        async def refused(talk: Talk) -> None:
            raise PermissionDenied

        world = World(prepare=refused, initial=0.2, longest=3.0).start()
        waits = []
        for _ in range(6):
            server = world.accept()
            assert server.closed
            waits.append(round(world.until_dial(), 6))
        assert waits == [0.2, 0.4, 0.8, 1.6, 3.0, 3.0]
        assert world.events == []

    def test_no_answer(self) -> None:
        """A server that takes the connection and says nothing is given up after a while."""
        world = World(prepare=lambda _: Deferred(), patience=3.0).start()
        server = world.accept()
        closed = []
        for seconds in (2.9, 0.1):
            advance(world.clock, seconds)
            closed.append(server.closed)
        assert closed == [False, True]
        world.until_dial()

    def test_lost_meanwhile(self) -> None:
        """A connection that is lost while it is prepared never was up."""
        world = World(prepare=lambda talk: talk.ask(Message(REGISTER))).start()
        world.accept().vanish()
        assert world.events == []
        world.until_dial()
        server = world.accept()
        (login,) = server.received()
        server.type(f"NOTIFY\nTransaction:{login.transaction}\nCode:200\n\n")
        assert world.events == ["up"]

    def test_prepared_too_late(self) -> None:
        """What is ready only when its connection is gone brings no link up."""
        ready: Deferred[None] = Deferred()
        world = World(prepare=lambda _: ready).start()
        world.accept().vanish()
        ready.callback(None)
        assert world.events == []
        assert world.link.dialogue is None

    def test_stopped_meanwhile(self) -> None:
        """Stopping while a connection is prepared leaves no timer behind either."""
        world = World(prepare=lambda talk: talk.ask(Message(REGISTER))).start()
        server = world.accept()
        Outcome(world.link.stopService())
        assert server.closed
        world.link._hub.stop()
        assert not world.clock.getDelayedCalls()
        assert world.events == []

    def test_our_own_fault(self) -> None:
        """An exception that nobody foresaw is logged whole, and another attempt is made (I24)."""

        async def broken(talk: Talk) -> None:
            raise ZeroDivisionError

        world = World(prepare=broken).start()
        with capturedLogs() as logged:
            assert world.accept().closed
        (failure,) = [event["log_failure"] for event in logged if "log_failure" in event]
        assert failure.check(ZeroDivisionError)
        world.until_dial()
