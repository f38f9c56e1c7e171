"""The caller's side of a call: ask the mediator, connect by a candidate, speak (fig. 11)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.error import (
    ConnectError,
    ConnectingCancelledError,
    DNSLookupError,
    TimeoutError,
)
from twisted.internet.interfaces import (
    IAddress,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure

from broker.messages.grammar import parse_transport_address
from broker.messages.message import Message
from broker.net.connection import PeerConnection
from broker.net.endpoints import endpoint_at
from broker.net.hub import ConnectionHub, Trace
from broker.terminal.candidates import BACK, DIRECT, HOLE_PUNCH, LOCAL, Candidate, FailedCandidate
from broker.terminal.channel.active_calls import ActiveCalls
from broker.terminal.errors import NotMet
from broker.terminal.incoming.listener import OUTSIDE
from broker.terminal.outgoing.connector import ConnectAttempt, Connector
from broker.terminal.outgoing.hole_punch import HolePunchEndpoint
from broker.terminal.outgoing.initiator import InitiatorEvents, InitiatorHandshake, OutgoingCall
from broker.terminal.registration.client import MediatorClient

T = TypeVar("T")

#: Seconds in which a dialled connection must be made, and again the handshake be done.
DIAL_TIMEOUT: Final = 10.0


@dataclass(frozen=True, slots=True)
class CallContext:
    """What the calls of a terminal share.

    :ivar reactor: an ``IReactorTCP`` and ``IReactorTime``
    :ivar mediator: the connection to the mediator
    :ivar calls: where calls are counted while they are open
    :ivar hub: what the connections that we dial share (``dialling_hub``)
    """

    reactor: Any
    mediator: MediatorClient
    calls: ActiveCalls
    hub: ConnectionHub


class ConnectBackOffer(Protocol):
    """A port of ours at which the callee may connect to us, while we dial it.

    :ivar host: the address at which the mediator sees us
    :ivar port: the port there
    """

    @property
    def host(self) -> str: ...

    @property
    def port(self) -> int: ...

    def wait(
        self, call: OutgoingCall, candidate: Candidate, events: InitiatorEvents
    ) -> Deferred[IProtocol]:
        """Wait for the callee to connect there; fails with ``CallFailed``; cancel to give up."""
        ...

    def close(self) -> object:
        """Nothing is waited for there now, and no call goes on there."""


async def place_call(
    context: CallContext,
    callee: str,
    factory: IProtocolFactory,
    *,
    seen: bool = False,
    offer: ConnectBackOffer | FailedCandidate | None = None,
) -> IProtocol:
    """Call a terminal; the protocol that the factory makes then speaks with it.

    The mediator is asked once; then each candidate is tried that its answer allows.

    :param seen: tell the callee where our connection to the mediator comes from, for hole punching
    :param offer: a port at which the callee may connect to us; or why there is none, for the
        caller to see
    :raises Refused: the mediator refused (``PermissionDenied``, ``CalleeBusy``, …)
    :raises CallFailed: no candidate connected, or the callee did not take the call
    :raises ConnectionLost: the connection to the mediator was lost before it answered
    :raises ValueError: this is no identifier, and no name
    """
    mediator = context.mediator
    shared = mediator.share_port() if seen else None
    failed = [offer] if isinstance(offer, FailedCandidate) else []
    port = None if isinstance(offer, FailedCandidate) else offer
    try:
        credentials = await mediator.query(  # S1101–S1106
            callee, seen=shared is not None, back=None if port is None else port.port
        )
    except BaseException:
        if port is not None:
            port.close()
        raise
    call = OutgoingCall(
        context.reactor,
        mediator.identifier,
        credentials.fields.get("Callee", callee),  # its identifier, if it was called by a name
        credentials,
        factory,
        context.calls,
    )
    attempts: list[ConnectAttempt] = [
        _Dial(context, call, candidate, shared)
        for candidate in candidates_in(credentials, hole_punch=shared is not None)
    ]
    if port is not None:
        attempts.insert(0, _AwaitCallee(call, port))
    connector = Connector(call.clock, call.callee, attempts, failed)
    call.calls.connecting(call.session, connector)
    return await connector.done  # S1107–S1110


def dialling_hub(clock: IReactorTime, trace: Trace | None = None) -> ConnectionHub:
    """What the connections that we dial to callees share."""
    return ConnectionHub(
        clock,
        login_timeout=DIAL_TIMEOUT,
        unauthenticated=OUTSIDE,
        authenticated=OUTSIDE,
        trace=trace,
    )


def candidates_in(credentials: Message, *, hole_punch: bool) -> Iterator[Candidate]:
    """The candidates that we dial, the likeliest first, by what the mediator has answered.

    :param hole_punch: whether the callee was told where we come from, so that it dials us too
    """
    fields = credentials.fields
    host, port = fields["Callee Address"], int(fields["Callee Port"])
    local, seen = fields.get("Callee Local"), fields.get("Callee Seen")
    if local is not None and parse_transport_address(local) != (host, port):
        yield Candidate(LOCAL, *parse_transport_address(local))
    yield Candidate(DIRECT, host, port)
    if seen is not None and hole_punch:
        yield Candidate(HOLE_PUNCH, *parse_transport_address(seen))


class _Dial:
    """Dials the callee at one candidate."""

    waits = False

    def __init__(
        self,
        context: CallContext,
        call: OutgoingCall,
        candidate: Candidate,
        shared: tuple[str, int] | None,
    ) -> None:
        """
        :param shared: our connection to the mediator's own address and port, for hole punching
        """
        self.candidate = candidate
        self._context = context
        self._call = call
        self._shared = shared
        self._connector: Connector | None = None

    def start(self, connector: Connector) -> Deferred[IProtocol]:
        """Dial; the handshake follows."""
        self._connector = connector
        return Deferred.fromCoroutine(self._dial())

    async def _dial(self) -> IProtocol:
        handshake = partial(
            InitiatorHandshake, call=self._call, candidate=self.candidate, events=self
        )
        connection = PeerConnection(self._context.hub, handshake)
        try:
            await connect(self._endpoint(), connection)
        except (ConnectError, ConnectingCancelledError, DNSLookupError):
            raise NotMet(why_not_connected(Failure())) from None
        initiator = connection.receiver
        assert isinstance(initiator, InitiatorHandshake)  # as made above
        return await initiator.request()

    def _endpoint(self) -> IStreamClientEndpoint:
        reactor, (method, host, port) = self._context.reactor, self.candidate
        if method == HOLE_PUNCH:
            assert self._shared is not None  # else there is no such candidate
            return HolePunchEndpoint(reactor, self._shared, (host, port), DIAL_TIMEOUT)
        return endpoint_at(reactor, host, port, DIAL_TIMEOUT)

    def opening(self) -> Sequence[FailedCandidate]:
        """It has connected first."""
        assert self._connector is not None  # it was started
        return self._connector.claim(self.candidate)

    def channel_closed(self) -> None:
        """Nothing of ours is left to close."""


class _AwaitCallee:
    """Waits for the callee to connect to a port of ours."""

    waits = True

    def __init__(self, call: OutgoingCall, offer: ConnectBackOffer) -> None:
        self.candidate = Candidate(BACK, offer.host, offer.port)
        self._call = call
        self._offer = offer
        self._connector: Connector | None = None

    def start(self, connector: Connector) -> Deferred[IProtocol]:
        """Wait; if the call connects in another way, or fails, the port is closed."""
        self._connector = connector
        connector.done.addBoth(self._decided, connector)
        return self._offer.wait(self._call, self.candidate, self)

    def _decided(self, result: T, connector: Connector) -> T:
        if connector.won != self.candidate:
            self._offer.close()
        return result

    def opening(self) -> Sequence[FailedCandidate]:
        """The callee has connected first."""
        assert self._connector is not None  # it was started
        return self._connector.claim(self.candidate)

    def channel_closed(self) -> None:
        """The port was open for this call."""
        self._offer.close()


def connect(endpoint: IStreamClientEndpoint, connection: PeerConnection) -> Deferred[IProtocol]:
    """Have a connection made."""
    return endpoint.connect(_OneConnection(connection))


class _OneConnection(Factory):
    """Gives one connection, and says nothing of that in the log."""

    noisy = False

    def __init__(self, connection: PeerConnection) -> None:
        self._connection: Any = connection

    def buildProtocol(self, addr: IAddress | None) -> Any:
        return self._connection


def why_not_connected(failure: Failure) -> str:
    """Why a connection could not be made, in few words."""
    if failure.check(TimeoutError):
        return f"no answer in {DIAL_TIMEOUT:g} seconds"
    if type(failure.value) is ConnectError and failure.value.osError is None:
        return "the connection broke off as it was made"  # Twisted's text would be a traceback
    return failure.getErrorMessage().removesuffix(".")
