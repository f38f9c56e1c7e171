"""The caller's side of a call: ask, go whichever way leads there, speak (fig. 11)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

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

from broker.messages.grammar import parse_place
from broker.messages.message import Message
from broker.net.connection import PeerConnection
from broker.net.endpoints import endpoint_at
from broker.net.hub import ConnectionHub, Trace
from broker.terminal.candidates import BACK, DIRECT, HOLE_PUNCH, LOCAL, Candidate, FailedCandidate
from broker.terminal.channel.active_calls import ActiveCalls
from broker.terminal.errors import NotMet
from broker.terminal.incoming.listener import OUTSIDE
from broker.terminal.outgoing.connector import Claim, ConnectAttempt, Connector
from broker.terminal.outgoing.hole_punch import HolePunchEndpoint
from broker.terminal.outgoing.initiator import InitiatorHandshake
from broker.terminal.registration.client import MediatorClient

T = TypeVar("T")

#: Seconds in which the direct connection must stand, and again the handshake be over.
DIAL_TIMEOUT: Final = 10.0

#: A host and a port.
Place = tuple[str, int]
#: Makes what speaks to somebody who has come.
MakeKnock = Callable[[PeerConnection], InitiatorHandshake]
#: Waits for the callee to come: given the session, and who that is.
Wait = Callable[[str, str, MakeKnock], Deferred[IProtocol]]


def _nothing() -> None:
    """Nothing is to be done."""


class Waiting(NamedTuple):
    """Where a caller can be come to.

    :ivar host: the address at which its mediator sees it
    :ivar port: the port there
    :ivar wait: waits there
    :ivar over: called when nobody is waited for there any more, and no call goes on there
    """

    host: str
    port: int
    wait: Wait
    over: Callable[[], object] = _nothing


async def place_call(
    reactor: Any,
    line: MediatorClient,
    callee: str,
    factory: IProtocolFactory,
    *,
    calls: ActiveCalls | None = None,
    exchange: ConnectionHub | None = None,
    trace: Trace | None = None,
    seen: bool = False,
    waiting: Waiting | FailedCandidate | None = None,
) -> IProtocol:
    """Call a terminal; the protocol that the factory makes then speaks with it.

    It is asked for once; then each way to it is tried that the mediator has told (``ways``).

    :param reactor: an ``IReactorTCP`` and ``IReactorTime``
    :param calls: where the call is counted; by default it is only reported to the mediator
    :param exchange: what direct connections share (``direct_exchange``); one of its own, without
    :param seen: the callee may be told where our line comes from, so that both can dial from there
    :param waiting: where it can come to us, or why it can't, where it should
    :raises Refused: the mediator refused (``PermissionDenied``, ``CalleeBusy``, …)
    :raises CallFailed: the callee could not be reached in any way, or did not take the call
    :raises ConnectionLost: the connection to the mediator went before it answered
    :raises ValueError: nobody can be called that
    """
    shared = line.share_port() if seen else None
    back = waiting.port if isinstance(waiting, Waiting) else None
    try:
        told = await line.query(callee, seen=shared is not None, back=back)  # S1101–S1106
    except BaseException:
        if isinstance(waiting, Waiting):
            waiting.over()
        raise
    call = _Call(
        reactor,
        line,
        told.fields.get("Callee", callee),  # its identifier, where it was called by a name
        told,
        factory,
        ActiveCalls(line.ended) if calls is None else calls,
        direct_exchange(reactor, trace) if exchange is None else exchange,
        shared,
        waiting,
    )
    return await call.race()  # S1107–S1110


def direct_exchange(clock: IReactorTime, trace: Trace | None = None) -> ConnectionHub:
    """What the connections that we dial to callees share."""
    return ConnectionHub(
        clock,
        login_timeout=DIAL_TIMEOUT,
        unauthenticated=OUTSIDE,
        authenticated=OUTSIDE,
        trace=trace,
    )


class _Call(NamedTuple):
    """One call that was granted, and what its ways need.

    :ivar told: the credentials (fig. 5d)
    :ivar shared: our line's own address and port, if both sides can dial
    """

    reactor: Any
    line: MediatorClient
    callee: str
    told: Message
    factory: IProtocolFactory
    calls: ActiveCalls
    exchange: ConnectionHub
    shared: Place | None
    waiting: Waiting | FailedCandidate | None

    def race(self) -> Deferred[IProtocol]:
        """Go the ways to the callee, until one of them leads there."""
        attempts = [
            ConnectAttempt(candidate, partial(self._dial, candidate)) for candidate in self._ways()
        ]
        if not isinstance(self.waiting, Waiting):
            failed = [] if self.waiting is None else [self.waiting]
            return self._begin(Connector(self.reactor, self.callee, attempts, failed))
        candidate = Candidate(BACK, self.waiting.host, self.waiting.port)
        waiting = ConnectAttempt(candidate, partial(self._wait, candidate), waits=True)
        race = Connector(self.reactor, self.callee, [waiting, *attempts])
        return self._begin(race).addBoth(self._raced, race, self.waiting)

    def _begin(self, race: Connector) -> Deferred[IProtocol]:
        self.calls.racing(self.told.fields["Session"], race)
        return race.done

    def _raced(self, result: T, race: Connector, waiting: Waiting) -> T:
        """Unless the callee has come, nobody is waited for any more."""
        if race.won is None or race.won.method != BACK:
            waiting.over()
        return result

    def _ways(self) -> Iterator[Candidate]:
        """The ways on which we dial, the likeliest first."""
        fields = self.told.fields
        host, port = fields["Callee Address"], int(fields["Callee Port"])
        local, seen = fields.get("Callee Local"), fields.get("Callee Seen")
        if local is not None and parse_place(local) != (host, port):
            yield Candidate(LOCAL, *parse_place(local))
        yield Candidate(DIRECT, host, port)
        if seen is not None and self.shared is not None:
            yield Candidate(HOLE_PUNCH, *parse_place(seen))

    def _dial(self, candidate: Candidate, opening: Claim) -> Deferred[IProtocol]:
        return Deferred.fromCoroutine(self._reach(candidate, opening))

    async def _reach(self, candidate: Candidate, opening: Claim) -> IProtocol:
        stream = PeerConnection(self.exchange, partial(self._knock, candidate, opening))
        try:
            await connect(self._endpoint(candidate), stream)
        except (ConnectError, ConnectingCancelledError, DNSLookupError):
            raise NotMet(reason(Failure())) from None
        knock = stream.receiver
        assert isinstance(knock, InitiatorHandshake)  # as made above
        return await knock.request()

    def _endpoint(self, candidate: Candidate) -> IStreamClientEndpoint:
        if candidate.method == HOLE_PUNCH:
            assert self.shared is not None  # else there is no such way
            place = (candidate.host, candidate.port)
            return HolePunchEndpoint(self.reactor, self.shared, place, DIAL_TIMEOUT)
        return endpoint_at(self.reactor, candidate.host, candidate.port, DIAL_TIMEOUT)

    def _wait(self, candidate: Candidate, opening: Claim) -> Deferred[IProtocol]:
        assert isinstance(self.waiting, Waiting)  # else there is no such way
        session = self.told.fields["Session"]
        return self.waiting.wait(session, self.callee, partial(self._knock, candidate, opening))

    def _knock(
        self, candidate: Candidate, opening: Claim, stream: PeerConnection
    ) -> InitiatorHandshake:
        over: Callable[[], object] = _nothing
        if candidate.method == BACK and isinstance(self.waiting, Waiting):
            over = self.waiting.over
        return InitiatorHandshake(
            stream,
            self.reactor,
            self.line.identifier,
            self.callee,
            self.told,
            self.factory,
            self.calls,
            candidate=candidate,
            opening=opening,
            over=over,
        )


def connect(endpoint: IStreamClientEndpoint, stream: PeerConnection) -> Deferred[IProtocol]:
    """Have a stream connected."""
    return endpoint.connect(_Gives(stream))


class _Gives(Factory):
    """Gives the stream of the one connection, and says nothing of that in the log."""

    noisy = False

    def __init__(self, stream: PeerConnection) -> None:
        self._stream: Any = stream

    def buildProtocol(self, addr: IAddress | None) -> Any:
        return self._stream


def reason(failure: Failure) -> str:
    """Why nobody was met, in few words."""
    if failure.check(TimeoutError):
        return f"no answer in {DIAL_TIMEOUT:g} seconds"
    if type(failure.value) is ConnectError and failure.value.osError is None:
        return "the connection broke off as it was made"  # Twisted tells a traceback there
    return failure.getErrorMessage().removesuffix(".")
