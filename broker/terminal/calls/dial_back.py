"""The callee dials its caller: one that knows its call password (D7), or one that is permitted.

The address is checked first: a caller must not make a terminal connect just anywhere.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Collection
from hashlib import sha256
from typing import Any, Final, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectingCancelledError
from twisted.internet.interfaces import IDelayedCall, IProtocol, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.messages.message import host_port, printable
from broker.net.connection import PeerConnection
from broker.net.endpoints import endpoint_at
from broker.tables.address_policy import (
    Network,
    address_scope,
    parse_ip,
    routable_ip,
    within,
)
from broker.tables.locations import AddressRefused
from broker.terminal.calls.place_call import DIAL_TIMEOUT, connect, why_not_connected
from broker.terminal.candidates import BACK, HOLE_PUNCH, Candidate
from broker.terminal.channel.active_calls import FAILED
from broker.terminal.incoming.listener import InboundConnection, InboundListener
from broker.terminal.incoming.pending_calls import PendingCalls
from broker.terminal.outgoing.connector import CONNECTION_ATTEMPT_DELAY
from broker.terminal.outgoing.hole_punch import HolePunchEndpoint
from broker.terminal.registration.client import MediatorClient
from broker.terminal.registration.notices import ConnectBackRequest, PendingCall

#: Callers that are being dialled at a time; one more is refused.
DIALS_MOST: Final = 8

#: Whether a caller that shows a password may have the terminal call back: its identifier and it.
Admits = Callable[[str, str], bool | Awaitable[bool]]


def knows(password: str | Callable[[], str]) -> Admits:
    """Admits a caller that shows the right password; compared in constant time.

    :param password: the password, or what gives it each time
    """

    def admits(caller: str, shown: str) -> bool:
        wanted = password if isinstance(password, str) else password()
        digests = (sha256(text.encode("utf-8")).digest() for text in (shown, wanted))
        return hmac.compare_digest(*digests)

    return admits


class DialBackEvents(Protocol):
    """The terminal that dials."""

    def acceptable(self) -> bool:
        """Whether one more call can be taken now."""
        ...

    def own_addresses(self, client: MediatorClient) -> Collection[tuple[str, int]]:
        """The hosts and ports at which it takes calls itself."""
        ...

    def ended(self, session: str, how: str) -> None:
        """The caller of a session could not be reached: it ended as ``FAILED``."""


class DialBack:
    """The dials of a callee, to callers that it expects or that ask it to connect."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        listener: InboundListener,
        pending: PendingCalls,
        events: DialBackEvents,
        *,
        admits: Admits | None,
        allowed: Collection[Network] = (),
    ) -> None:
        """
        :param reactor: an ``IReactorTCP`` and ``IReactorTime``
        :param listener: what serves the connections that are made, as if they had come in
        :param pending: the calls that the listener expects
        :param admits: decides by caller and password; without it no caller is admitted
        :param allowed: networks that it may dial, in addition to the Internet and to the kind of
            network that its mediator is in
        """
        self._reactor = reactor
        self._listener = listener
        self._pending = pending
        self._events = events
        self._admits = admits
        self._allowed = allowed
        self._deciding: set[str] = set()  # sessions
        self._dialling: dict[str, list[Deferred[IProtocol]]] = {}  # by session
        self._timers: dict[str, list[IDelayedCall]] = {}  # by session: dials that start later

    # By call password (D7).

    async def comes(self, client: MediatorClient, request: ConnectBackRequest) -> bool:
        """Whether it connects to a caller that its mediator announces (D7).

        First the password, then whether it has room, and last whether it dials such an address.
        """
        if self._admits is None:
            return False
        session = request.call.session
        self._deciding.add(session)
        try:
            decided = await self._decide(self._admits, client, request)
            return decided and session in self._deciding  # else the session has ended since
        finally:
            self._deciding.discard(session)

    async def _decide(
        self, admits: Admits, client: MediatorClient, request: ConnectBackRequest
    ) -> bool:
        caller = printable(request.call.caller)
        admitted = await self._ask(admits, request.call)
        if admitted is None:
            return False
        if not admitted:
            self.log.warn("{caller} showed a wrong call password", caller=caller)
            return False
        if not self._events.acceptable() or self._listener.full or self._dials >= DIALS_MOST:
            return False
        why = self._why_not(client, request.host, request.port)
        if why is not None:
            self.log.warn(
                "{caller} knows the call password, but is not called back: {why}",
                caller=caller,
                why=why,
            )
        return why is None

    async def _ask(self, admits: Admits, call: PendingCall) -> bool | None:
        """Ask what decides; ``None`` where it fails, which is logged."""
        try:
            admitted = admits(call.caller, call.password)
            return (admitted if isinstance(admitted, bool) else await admitted) is True
        except CancelledError:  # the mediator does not wait for it now
            raise
        except ValueError as error:  # there is no password to compare with
            self.log.warn(
                "Cannot check the call password that {caller} showed: {why}",
                caller=printable(call.caller),
                why=printable(str(error)),
            )
        except Exception:
            self.log.failure("Cannot check the call password of a caller")
        return None

    def come(self, request: ConnectBackRequest) -> None:
        """Dial the caller; what follows on that connection is as if it had come in (S207)."""
        self.expect(request.call)
        candidate = Candidate(BACK, request.host, request.port)
        endpoint = endpoint_at(self._reactor, request.host, request.port, DIAL_TIMEOUT)
        self._dial(request.call, candidate, endpoint, only=True)

    # For a call that is announced.

    def expect(self, call: PendingCall) -> None:
        """A call is announced: the calls that it replaces are not dialled for now."""
        for session in self._listener.expect(call):
            self.terminated(session)

    def meet(self, client: MediatorClient, call: PendingCall) -> None:
        """Dial a permitted caller that has offered that, while it dials us.

        Only if its own candidates have not connected after a little while.
        """
        shared = client.share_port() if call.seen is not None else None
        if call.seen is not None and shared is not None:
            punch = HolePunchEndpoint(self._reactor, shared, call.seen, DIAL_TIMEOUT)
            candidate = Candidate(HOLE_PUNCH, *call.seen)
            self._dial_later(CONNECTION_ATTEMPT_DELAY, client, call, candidate, punch)
        if call.back is not None:
            endpoint = endpoint_at(self._reactor, *call.back, DIAL_TIMEOUT)
            candidate = Candidate(BACK, *call.back)
            self._dial_later(2 * CONNECTION_ATTEMPT_DELAY, client, call, candidate, endpoint)

    def _dial_later(
        self,
        seconds: float,
        client: MediatorClient,
        call: PendingCall,
        candidate: Candidate,
        endpoint: IStreamClientEndpoint,
    ) -> None:
        why = self._why_not(client, candidate.host, candidate.port)
        if why is not None:
            self.log.info("{caller} is not dialled: {why}", caller=printable(call.caller), why=why)
            return

        def dial() -> None:
            self._timers[call.session].remove(timer)
            if not self._timers[call.session]:
                del self._timers[call.session]
            expected = self._pending.find(call.session, self._reactor.seconds()) is call
            if not expected or self._listener.is_proving(call.session):
                return
            if not self._listener.full and self._dials < DIALS_MOST:
                self._dial(call, candidate, endpoint)

        timer = self._reactor.callLater(seconds, dial)
        self._timers.setdefault(call.session, []).append(timer)

    # Dialling.

    def _why_not(self, client: MediatorClient, host: str, port: int) -> str | None:
        """Why an address is not dialled, or ``None``: a caller must not send us just anywhere."""
        try:
            ip = routable_ip(host)
            here = address_scope(parse_ip(client.remote_host.partition("%")[0]))
        except AddressRefused as error:
            return str(error)
        scope = address_scope(ip)
        if scope not in {"public", here} and not within(ip, self._allowed):
            return f"a {scope} address is not dialled"
        ours = [own for own in self._events.own_addresses(client) if own[1] == port]
        if ours and (ip.is_loopback or any(host == str(ip) for host, _ in ours)):
            return "the address is our own"
        return None

    def _dial(
        self,
        call: PendingCall,
        candidate: Candidate,
        endpoint: IStreamClientEndpoint,
        *,
        only: bool = False,
    ) -> None:
        """
        :param only: the caller does not dial us: if this fails, the call has
        """
        connection = PeerConnection(self._listener.hub, self._listener.accept)
        inbound = connection.receiver
        assert isinstance(inbound, InboundConnection)  # as made above
        dialling = connect(endpoint, connection)
        self._dialling.setdefault(call.session, []).append(dialling)

        def dialled(result: object) -> None:
            dials = self._dialling[call.session]
            dials.remove(dialling)
            if not dials:
                del self._dialling[call.session]
            if isinstance(result, Failure):
                self._listener.gone(inbound)
                self._not_reached(result, call, candidate, only)
            else:
                inbound.dialled(call.session, candidate)

        dialling.addBoth(dialled)

    def _not_reached(
        self, failure: Failure, call: PendingCall, candidate: Candidate, only: bool
    ) -> None:
        failure.trap(ConnectError, ConnectingCancelledError, CancelledError)
        if only and self._pending.find(call.session, self._reactor.seconds()) is call:
            self._pending.discard(call.session)
            self._events.ended(call.session, FAILED)
        if failure.check(ConnectingCancelledError, CancelledError):
            return  # given up by us
        self.log.info(
            "{caller} could not be reached at {place}: {why}",
            caller=printable(call.caller),
            place=host_port(candidate.host, candidate.port),
            why=why_not_connected(failure),
        )

    @property
    def _dials(self) -> int:
        return sum(map(len, self._dialling.values()))

    def terminated(self, session: str) -> None:
        """A session has ended, or has begun: its caller is not dialled now."""
        self._deciding.discard(session)
        for timer in self._timers.pop(session, ()):
            timer.cancel()
        for dialling in list(self._dialling.get(session, ())):
            dialling.cancel()

    def stop(self) -> None:
        """Give up every dial."""
        for session in [*self._timers, *self._dialling]:
            self.terminated(session)
