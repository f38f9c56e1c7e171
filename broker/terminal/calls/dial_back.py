"""The callee comes to its caller: to one that knows its call password (D7), or that is permitted.

What is dialled is judged first: a caller must not send a terminal just anywhere.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Collection
from hashlib import sha256
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectError, ConnectingCancelledError
from twisted.internet.interfaces import IDelayedCall, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.messages.message import host_port, printable
from broker.net.connection import PeerConnection
from broker.net.endpoints import endpoint_at
from broker.tables.address_policy import Network, address_scope, parse_ip, routable_ip, within
from broker.tables.locations import AddressRefused
from broker.terminal.calls.place_call import DIAL_TIMEOUT, connect, reason
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

#: Whether whoever shows a password may have the terminal call back: given the caller and it.
Admits = Callable[[str, str], bool | Awaitable[bool]]


def knows(password: str | Callable[[], str]) -> Admits:
    """Admits whoever knows a password, which is found in constant time.

    :param password: the password, or what gives it each time
    """

    def admits(caller: str, shown: str) -> bool:
        wanted = password if isinstance(password, str) else password()
        digests = (sha256(text.encode("utf-8")).digest() for text in (shown, wanted))
        return hmac.compare_digest(*digests)

    return admits


class DialBack:
    """The dials of a callee, for calls that it expects, or that it is asked to come for."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        doors: InboundListener,
        expected: PendingCalls,
        *,
        admits: Admits | None,
        acceptable: Callable[[], bool],
        listening: Callable[[MediatorClient], Collection[tuple[str, int]]],
        failed: Callable[[str, str], object],
        allowed: Collection[Network] = (),
    ) -> None:
        """
        :param reactor: an ``IReactorTCP`` and ``IReactorTime``
        :param doors: what serves the connections that it makes
        :param expected: the calls that those doors expect
        :param admits: decides by caller and password; nobody is admitted, without
        :param acceptable: whether one more call can be taken now
        :param listening: where it takes calls itself, by the addresses that lead there
        :param failed: told the session of each call to which it could not come, and ``FAILED``
        :param allowed: networks that it may dial besides the Internet, and the kind of network in
            which its mediator is
        """
        self._reactor = reactor
        self._doors = doors
        self._expected = expected
        self._admits = admits
        self._acceptable = acceptable
        self._listening = listening
        self._failed = failed
        self._allowed = allowed
        self._deciding: set[str] = set()  # sessions
        self._dialling: dict[str, list[Deferred[Any]]] = {}  # by session
        self._timers: dict[str, list[IDelayedCall]] = {}  # of dials that are to be begun

    async def comes(self, line: MediatorClient, wanted: ConnectBackRequest) -> bool:
        """Whether it comes to a caller that its mediator tells of (D7).

        First the password, then whether it can, and last whether it dials such an address.
        """
        if self._admits is None:
            return False
        session = wanted.call.session
        self._deciding.add(session)
        try:
            decided = await self._decide(self._admits, line, wanted)
            return decided and session in self._deciding  # else nobody waits for it any more
        finally:
            self._deciding.discard(session)

    async def _decide(
        self, admits: Admits, line: MediatorClient, wanted: ConnectBackRequest
    ) -> bool:
        try:
            admitted = admits(wanted.call.caller, wanted.call.password)
            if not isinstance(admitted, bool):
                admitted = await admitted
        except CancelledError:  # nobody waits any more
            raise
        except ValueError as error:  # it can't be had
            self.log.warn(
                "It can't be told whether {caller} knows the call password: {why}",
                caller=printable(wanted.call.caller),
                why=printable(str(error)),
            )
            return False
        except Exception:
            self.log.failure("It can't be told whether a caller knows the call password")
            return False
        if admitted is not True:
            self.log.warn(
                "{caller} has shown a call password that is not right",
                caller=printable(wanted.call.caller),
            )
            return False
        if not self._acceptable() or self._doors.full or self._dials >= DIALS_MOST:
            return False
        why = self._why_not(line, wanted.host, wanted.port)
        if why is not None:
            self.log.warn(
                "{caller} knows the call password, and can't be called back: {why}",
                caller=printable(wanted.call.caller),
                why=why,
            )
        return why is None

    def _why_not(self, line: MediatorClient, host: str, port: int) -> str | None:
        """Why an address is not dialled, or ``None``: a caller must not send us just anywhere."""
        try:
            ip = routable_ip(host)
            here = address_scope(parse_ip(line.remote_host.partition("%")[0]))
        except AddressRefused as error:
            return str(error)
        its = address_scope(ip)
        if its not in {"public", here} and not within(ip, self._allowed):
            return f"a {its} address is not dialled"
        ours = [listener for listener in self._listening(line) if listener[1] == port]
        if ours and (ip.is_loopback or any(host == str(ip) for host, _ in ours)):
            return "the address is our own"
        return None

    def come(self, wanted: ConnectBackRequest) -> None:
        """Dial a caller; what follows on that connection is as at the doors (S207)."""
        self.expect(wanted.call)
        candidate = Candidate(BACK, wanted.host, wanted.port)

        def failed() -> None:
            if self._expected.find(wanted.call.session, self._reactor.seconds()) is wanted.call:
                self._expected.discard(wanted.call.session)
                self._failed(wanted.call.session, FAILED)

        endpoint = endpoint_at(self._reactor, candidate.host, candidate.port, DIAL_TIMEOUT)
        self._dial(wanted.call, candidate, endpoint, failed)

    def expect(self, call: PendingCall) -> None:
        """A call is announced: what it replaces is not dialled for any more."""
        for session in self._doors.expect(call):
            self.terminated(session)

    def meet(self, line: MediatorClient, call: PendingCall) -> None:
        """Dial a caller that is permitted and dials us, too, where it has offered that.

        Only if its own ways don't lead here in a little while.
        """
        shared = line.share_port() if call.seen is not None else None
        if call.seen is not None and shared is not None:
            candidate = Candidate(HOLE_PUNCH, *call.seen)
            place = HolePunchEndpoint(self._reactor, shared, call.seen, DIAL_TIMEOUT)
            self._later(CONNECTION_ATTEMPT_DELAY, line, call, candidate, place)
        if call.back is not None:
            candidate = Candidate(BACK, *call.back)
            endpoint = endpoint_at(self._reactor, *call.back, DIAL_TIMEOUT)
            self._later(2 * CONNECTION_ATTEMPT_DELAY, line, call, candidate, endpoint)

    def _later(
        self,
        seconds: float,
        line: MediatorClient,
        call: PendingCall,
        candidate: Candidate,
        endpoint: IStreamClientEndpoint,
    ) -> None:
        why = self._why_not(line, candidate.host, candidate.port)
        if why is not None:
            self.log.info("{caller} is not dialled: {why}", caller=printable(call.caller), why=why)
            return

        def dial() -> None:
            self._timers[call.session].remove(timer)
            if not self._timers[call.session]:
                del self._timers[call.session]
            now = self._reactor.seconds()
            if self._expected.find(call.session, now) is not call or self._doors.asked(
                call.session
            ):
                return
            if not self._doors.full and self._dials < DIALS_MOST:
                self._dial(call, candidate, endpoint)

        timer = self._reactor.callLater(seconds, dial)
        self._timers.setdefault(call.session, []).append(timer)

    def _dial(
        self,
        call: PendingCall,
        candidate: Candidate,
        endpoint: IStreamClientEndpoint,
        failed: Callable[[], object] = lambda: None,
    ) -> None:
        stream = PeerConnection(self._doors.exchange, self._doors.door)
        door = stream.receiver
        assert isinstance(door, InboundConnection)  # as made above
        dialling = connect(endpoint, stream)
        self._dialling.setdefault(call.session, []).append(dialling)

        def over(result: object) -> None:
            dials = self._dialling[call.session]
            dials.remove(dialling)
            if not dials:
                del self._dialling[call.session]
            if not isinstance(result, Failure):
                door.come(call.session, candidate)
                return
            self._doors.gone(door)
            result.trap(ConnectError, ConnectingCancelledError, CancelledError)
            failed()
            if result.check(ConnectingCancelledError, CancelledError):
                return  # by us
            self.log.info(
                "{caller} could not be reached at {place}: {why}",
                caller=printable(call.caller),
                place=host_port(candidate.host, candidate.port),
                why=reason(result),
            )

        dialling.addBoth(over)

    @property
    def _dials(self) -> int:
        return sum(map(len, self._dialling.values()))

    def terminated(self, session: str) -> None:
        """A session is void, or has begun: nobody is dialled for it any more."""
        self._deciding.discard(session)
        for timer in self._timers.pop(session, ()):
            timer.cancel()
        for dialling in list(self._dialling.get(session, ())):
            dialling.cancel()

    def stop(self) -> None:
        """Give up every dial."""
        for session in [*self._timers, *self._dialling]:
            self.terminated(session)
