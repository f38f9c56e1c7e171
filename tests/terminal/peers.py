"""A terminal's peers, played by a test: callers, callees, a router; and a listener for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol
from zope.interface import implementer

from broker.interfaces import IOutsideView, IPortOpener, PortNotOpened
from broker.messages.grammar import NOTIFY, REQUEST
from broker.messages.message import Message
from broker.tables.sessions import UNSPENT_SECONDS
from broker.terminal.channel.active_calls import ActiveCalls
from broker.terminal.channel.handshake import Handshake
from broker.terminal.channel.records import Records, RecordType
from broker.terminal.incoming.listener import InboundConnection, InboundListener
from broker.terminal.incoming.pending_calls import PendingCalls
from tests.support.clock import advance
from tests.support.reactor import FakeReactor
from tests.support.transport import Client, connect, parse_all
from tests.terminal.keys import (
    CALLEE,
    CALLER,
    PASSWORD,
    SESSION,
    a_handshake,
    a_request,
    an_answer,
    an_expected_call,
    framed,
)
from tests.terminal.meeting import WAITS
from tests.terminal.network import HOST
from tests.terminal.speakers import Handler, Plain, Reports


def _closed(inbound: InboundConnection, session: str) -> None:
    inbound.connection.abort()


class ListenerScene(Reports):
    """The listener of a callee, and what becomes of those that connect.

    :ivar wakes: how often it was said that a connection is asked for
    :ivar room: whether it takes one more call
    :ivar arrived: what waits for callees
    """

    def __init__(
        self,
        protocol: Callable[[], IProtocol | None] = Plain,
        *,
        taken: bool = True,
        **options: Any,
    ) -> None:
        self.clock = FakeReactor()
        super().__init__()
        self.wakes = 0
        self.room = True
        self.arrived: Callable[[InboundConnection, str], object] = _closed
        self.handler = Handler(protocol)
        self.expected = PendingCalls()
        self.calls = ActiveCalls(self)
        self.listener = InboundListener(
            self.clock,
            CALLEE,
            self.expected,
            self.calls,
            self,
            handler=self.handler if taken else None,
            **options,
        )
        self.factory = self.listener.factory()

    def woken(self) -> None:
        """A wake-up came."""
        self.wakes += 1

    def has_room(self) -> bool:
        """As a test says."""
        return self.room

    def connected_back(self, inbound: InboundConnection, session: str) -> None:
        """A callee came; a test may wait for it."""
        self.arrived(inbound, session)

    def announce(self, **call: Any) -> ListenerScene:
        """The mediator says that a call will come."""
        until = self.clock.seconds() + UNSPENT_SECONDS
        self.listener.expect(an_expected_call(**{"until": until, **call}))
        return self

    def connect(self, host: str = "127.0.0.1") -> Client:
        """A peer connects."""
        return connect(self.factory, self.clock, peer_host=host, port=1203)

    def requests(self, *, host: str = "127.0.0.1", send: bool = True, **caller: Any) -> Requester:
        """A caller connects and sends its REQUEST."""
        requester = Requester(self.connect(host), **caller)
        return requester.send() if send else requester

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        advance(self.clock, seconds)

    @property
    def untouched(self) -> bool:
        """Whether no call has reached the application or the mediator."""
        return not (self.handler.calls or self.begun or self.ends or len(self.calls))


class _Side:
    """One side of a call over a connection, once its handshake is over."""

    client: Client
    records: Any = None

    def heard(self) -> list[tuple[RecordType, bytes]]:
        """What records came."""
        self.records.feed(self.client.bytes())
        return list(self.records)


class Requester(_Side):
    """A caller that connects.

    :ivar body: its REQUEST, encrypted
    """

    def __init__(
        self,
        client: Client,
        *,
        identifier: str = CALLER,
        password: str = PASSWORD,
        session: str = SESSION,
        request: Message | None = None,
        **handshake: str,
    ) -> None:
        self.client = client
        self.session = session
        self.handshake: Handshake = a_handshake(initiator=True, session=session, **handshake)
        self.body = self.handshake.write(request or a_request(identifier, password))

    def send(self) -> Requester:
        """Send the REQUEST."""
        self.client.send(framed(self.session, self.body))
        return self

    def answer(self) -> Message:
        """What the callee answered, decrypted."""
        (head,), body = parse_all(self.client.bytes())
        assert head == Message(NOTIFY, Session=self.session, Length=len(body))
        return self.handshake.read(body)

    def prove(self, data: bytes = b"") -> Requester:
        """Read the answer, and send the first record."""
        assert self.answer() == an_answer()
        self.records = Records(self.handshake.cipher())
        return self.say(data)

    def say(self, data: bytes) -> Requester:
        """Send a record of data."""
        self.client.send(self.records.seal(RecordType.DATA, data))
        return self

    @property
    def shut_out(self) -> bool:
        """Whether the connection is closed, and not a byte came over it."""
        return self.client.closed and not self.client.bytes()


class Callee(_Side):
    """What answers at the callee's address, or connects back.

    :ivar request: what it was sent, decrypted
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        (self.head,), self.body = parse_all(client.bytes())
        self.handshake: Handshake = a_handshake(initiator=False)

    @property
    def request(self) -> Message:
        """The REQUEST (fig. 5f)."""
        return self.handshake.read(self.body)

    def answer(self, message: Message) -> Callee:
        """Answer, encrypted."""
        assert self.request.verb == REQUEST
        self.client.send(framed(SESSION, self.handshake.write(message), verb=NOTIFY))
        self.records = Records(self.handshake.cipher())
        return self


@implementer(IPortOpener)
class Opener:
    """A router in which ports are opened, as a test says.

    :ivar place: where the next is reached; why it can't be had; nothing yet, without
    :ivar opened: the ports that are open, one for each that has it
    :ivar closed: how many were closed
    :ivar asked: the lines by which each was asked for
    :ivar lost: each tells that a port is open no longer
    :ivar pending: what has no answer yet
    """

    def __init__(self, place: tuple[str, int] | str | None = (HOST, WAITS)) -> None:
        self.place = place
        self.opened: list[int] = []
        self.closed = 0
        self.asked: list[IOutsideView] = []
        self.lost: list[Callable[[str], object]] = []
        self.pending: list[Deferred[tuple[str, int]]] = []

    async def open(
        self, port: int, line: IOutsideView, lost: Callable[[str], object] | None = None
    ) -> tuple[str, int]:
        """Open one."""
        self.asked.append(line)
        place = self.place
        if place is None:
            self.pending.append(Deferred())
            place = await self.pending[-1]
        if isinstance(place, str):
            raise PortNotOpened(place)
        self.opened.append(port)
        if lost is not None:
            self.lost.append(lost)
        return place

    async def close(self, port: int) -> None:
        """It was open."""
        self.opened.remove(port)
        self.closed += 1
