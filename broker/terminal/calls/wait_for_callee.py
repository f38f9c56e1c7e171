"""A caller waits for its callee to connect, and speaks first then too (D7).

It has asked for that with the callee's call password, or it is permitted, and waits while it dials.

The callee connects to a port of the listener at which calls arrive, and says for which session.
Only in a session that the caller waits in does it speak, and the first it says is its REQUEST
(fig. 5f), of which anyone but the callee can read the session alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from twisted.internet.defer import CancelledError, Deferred, DeferredList, TimeoutError
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.messages.errors import Refused
from broker.messages.message import printable
from broker.net.connection import PeerConnection
from broker.tables.address_policy import address_scope, parse_ip
from broker.tables.sessions import UNSPENT_SECONDS
from broker.terminal.calls.callee_port import CalleePort, OpenCalleePort
from broker.terminal.calls.place_call import DIAL_TIMEOUT
from broker.terminal.candidates import BACK, Candidate, FailedCandidate
from broker.terminal.channel.active_calls import ENDED_BEFORE, FAILED, ActiveCalls
from broker.terminal.errors import CallDenied, CallFailed
from broker.terminal.incoming.listener import (
    HANDSHAKES,
    HeldConnections,
    InboundConnection,
    InboundListener,
)
from broker.terminal.outgoing.initiator import InitiatorEvents, InitiatorHandshake, OutgoingCall
from broker.terminal.registration.client import MediatorClient

#: Seconds in which a port must be opened in the router, or the call goes on without it.
OPEN_TIMEOUT: Final = 4.0
#: Seconds for which a router that has not opened a port is not asked again.
RETRY_AFTER: Final = 60.0
#: Seconds for which a callee is waited for that is dialled too: a little longer than it dials.
WAIT_TIMEOUT: Final = DIAL_TIMEOUT + 2.0


class ConnectBackWaiter:
    """The caller's side: waits for callees that connect to it."""

    log = Logger()

    def __init__(self, clock: IReactorTime, listener: InboundListener, calls: ActiveCalls) -> None:
        """
        :param listener: where callees connect; its events must call ``connected_back`` here
        :param calls: where the calls are counted
        """
        self._clock = clock
        self._listener = listener
        self._calls = calls
        self._asking = 0  # requests that the mediator has not answered
        self._waits: dict[str, _Wait] = {}
        self._held = HeldConnections(clock)
        self._closing: set[Deferred[None]] = set()
        self._not_before = 0.0  # no router is asked for a port until then,
        self._not_opened: FailedCandidate | None = None  # for this reason

    async def call(
        self,
        client: MediatorClient,
        callee: str,
        factory: IProtocolFactory,
        password: str,
        port: CalleePort,
    ) -> IProtocol:
        """Ask a callee to connect, and wait for it; the factory's protocol then speaks with it.

        :param password: the callee's call password
        :raises Refused: the mediator refused; ``PermissionDenied`` does not say why
        :raises CallFailed: the callee did not connect, or there is no port to connect to
        :raises ConnectionLost: the connection to the mediator was lost before it answered
        :raises ValueError: this is no identifier and no name, or no password
        """
        opened = OpenCalleePort(port)
        try:
            address = await opened.open(self._listener, client)
            self._asking += 1
            try:
                credentials = await client.connect_back(callee, password, *address)
                credentials.fields["Password"] = password  # what the callee is shown (fig. 5f)
                call = OutgoingCall(
                    self._clock,
                    client.identifier,
                    credentials.fields.get("Callee", callee),
                    credentials,
                    factory,
                    self._calls,
                )
                events = _ByPassword(self, opened)
                wait = self._wait_in(call, Candidate(BACK, *address), events, UNSPENT_SECONDS)
            finally:
                self.answered()
            return await self._outcome(call.session, wait)
        except BaseException:
            await self.close(opened)
            raise

    async def offer(
        self, client: MediatorClient, port: CalleePort
    ) -> PortOffer | FailedCandidate | None:
        """Open a port for the callee of a permitted call, at the address the mediator sees us at.

        :return: ``None`` if a router is in between, and there is nothing to open a port in it with;
            why it could not be opened, if there is
        :raises ConnectionLost: the connection to the mediator was lost
        """
        opened = OpenCalleePort(port)
        try:
            seen, _ = await client.outside()
            if not _useful(seen, port, client):
                return None
            if self._clock.seconds() < self._not_before:
                return self._not_opened
            address = await self._open_in_time(opened, client)
        except (CallFailed, Refused) as error:
            await self.close(opened)
            if isinstance(error, Refused) and port.opener is None:
                return None
            address = port.address or (client.local_host, opened.number)
            failed = FailedCandidate(Candidate(BACK, *address), printable(str(error)))
            if port.opener is not None:
                self._not_before = self._clock.seconds() + RETRY_AFTER
                self._not_opened = failed
            return failed
        except BaseException:
            await self.close(opened)
            raise
        self._asking += 1
        return PortOffer(self, opened, *address)

    async def _open_in_time(
        self, opened: OpenCalleePort, client: MediatorClient
    ) -> tuple[str, int]:
        opening = Deferred.fromCoroutine(opened.open(self._listener, client))
        try:
            return await opening.addTimeout(OPEN_TIMEOUT, self._clock)
        except TimeoutError:
            raise CallFailed(
                f"the router has not opened a port in {OPEN_TIMEOUT:g} seconds"
            ) from None

    def wait(
        self, call: OutgoingCall, candidate: Candidate, events: InitiatorEvents
    ) -> Deferred[IProtocol]:
        """Wait in the session of a permitted call, whose other candidates are tried too.

        :return: fires as ``call``; cancel to stop waiting
        """
        wait = self._wait_in(call, candidate, events, WAIT_TIMEOUT)
        return Deferred.fromCoroutine(self._outcome(call.session, wait))

    def terminated(self, session: str, how: str | None) -> None:
        """A session has ended: its callee is not waited for now.

        :param how: how, where the callee has said so
        """
        wait = self._waits.get(session)
        if wait is not None and how == FAILED:
            wait.fail(f"{wait.callee} could not connect to us")
        elif wait is not None:
            wait.fail(ENDED_BEFORE)

    async def stop(self) -> None:
        """Close what is no call yet; done when nothing is open for a call."""
        for wait in list(self._waits.values()):
            wait.fail("the terminal stops")
        self._held.stop()
        await DeferredList(list(self._closing))

    # The wait.

    def _wait_in(
        self, call: OutgoingCall, candidate: Candidate, events: InitiatorEvents, patience: float
    ) -> _Wait:
        """Wait in a session; a callee that has connected before we knew of it goes on now."""
        wait = self._waits[call.session] = _Wait(self._listener, call, candidate, events, patience)
        for inbound in self._held.take(call.session):
            wait.connected(inbound)
        return wait

    async def _outcome(self, session: str, wait: _Wait) -> IProtocol:
        try:
            return await wait.done
        finally:
            if self._waits.get(session) is wait:
                del self._waits[session]
            wait.stop()

    def close(self, opened: OpenCalleePort) -> Deferred[None]:
        """The call is over: so is what was opened for it. Never fails."""
        closing = Deferred.fromCoroutine(opened.close())
        self._closing.add(closing)

        def closed(result: object) -> None:
            self._closing.discard(closing)
            if isinstance(result, Failure):
                self.log.failure("Cannot close what was opened for a call", result)

        return closing.addBoth(closed)

    # From the listener.

    def connected_back(self, inbound: InboundConnection, session: str) -> None:
        """A callee has connected, and says for which session; it may be before we know of it."""
        wait = self._waits.get(session)
        if wait is not None:
            wait.connected(inbound)
        elif self._asking:
            inbound.connection.hold()
            self._held.hold(inbound)
        else:
            inbound.connection.abort()

    def answered(self) -> None:
        """The mediator has answered a request: once none is left, what is held was not for us."""
        self._asking -= 1
        if not self._asking:
            self._held.close_all()


def _useful(seen: str, port: CalleePort, client: MediatorClient) -> bool:
    """Whether a callee could connect to a port at the address that the mediator sees us at.

    :raises CallFailed: the address that is configured is another one
    """
    if address_scope(parse_ip(seen)) == "link-local":
        return False  # it means nothing to others
    if port.address is None:
        # Another address than our own: a router is in between.
        return port.opener is not None or client.local_host == seen
    if port.address[0] != seen:
        raise CallFailed(f"the mediator sees us at {seen}, and callees connect to nowhere else")
    return True


class PortOffer:
    """A port that is open for the callee of a permitted call.

    :ivar host: by which it is reached from outside
    :ivar port: there
    """

    def __init__(
        self, waiter: ConnectBackWaiter, opened: OpenCalleePort, host: str, port: int
    ) -> None:
        self.host = host
        self.port = port
        self._waiter = waiter
        self._opened = opened
        self._asking = True

    def wait(
        self, call: OutgoingCall, candidate: Candidate, events: InitiatorEvents
    ) -> Deferred[IProtocol]:
        """The mediator has granted the call: wait for the callee."""
        waiting = self._waiter.wait(call, candidate, events)
        self._answered()
        return waiting

    def close(self) -> Deferred[None]:
        """Nothing is waited for there now, and no call goes on there."""
        self._answered()
        return self._waiter.close(self._opened)

    def _answered(self) -> None:
        if self._asking:
            self._asking = False
            self._waiter.answered()


class _ByPassword:
    """A call to which the callee's connection is the only candidate."""

    def __init__(self, waiter: ConnectBackWaiter, opened: OpenCalleePort) -> None:
        self._waiter = waiter
        self._opened = opened

    def opening(self) -> Sequence[FailedCandidate]:
        """Nothing else was tried."""
        return ()

    def channel_closed(self) -> Deferred[None]:
        """The port was open for this call."""
        return self._waiter.close(self._opened)


class _Wait:
    """A session in which a callee is waited for.

    :ivar callee: its identifier
    :ivar done: fires with the application's protocol once the callee has proven itself; fails with
        ``CallFailed``
    """

    def __init__(
        self,
        listener: InboundListener,
        call: OutgoingCall,
        candidate: Candidate,
        events: InitiatorEvents,
        patience: float,
    ) -> None:
        """
        :param patience: seconds for which it is waited for
        """
        self.done: Deferred[IProtocol] = Deferred()
        self.callee = call.callee
        self._listener = listener
        self._call = call
        self._candidate = candidate
        self._events = events
        self._handshakes: dict[Deferred[IProtocol], InitiatorHandshake] = {}
        self._last = ""  # why the last one that connected was not the callee
        self._timer = call.clock.callLater(patience, self._late)

    def connected(self, inbound: InboundConnection) -> None:
        """A connection came for this session: have the other side prove that it is the callee."""
        connection = inbound.connection
        if self.done.called or len(self._handshakes) >= HANDSHAKES or not connection.connected:
            connection.abort()
            return
        self._listener.hand_off(inbound)
        handshake = InitiatorHandshake(connection, self._call, self._candidate, self._events)
        connection.receiver = handshake
        proving = handshake.request()
        self._handshakes[proving] = handshake
        proving.addCallbacks(
            self._proven,
            self._not_callee,
            callbackArgs=(connection, proving),
            errbackArgs=(handshake, proving),
        )
        connection.go_on()

    def fail(self, why: str) -> None:
        """Stop waiting."""
        if not self.done.called:
            self.done.errback(CallFailed(why))

    def stop(self) -> None:
        """Close what else has connected, and leave no timer behind."""
        if self._timer.active():
            self._timer.cancel()
        for proving in list(self._handshakes):
            proving.cancel()

    def _proven(
        self, protocol: IProtocol, connection: PeerConnection, proving: Deferred[IProtocol]
    ) -> None:
        del self._handshakes[proving]
        connection.authenticated()
        if not self.done.called:
            self.done.callback(protocol)

    def _not_callee(
        self, failure: Failure, handshake: InitiatorHandshake, proving: Deferred[IProtocol]
    ) -> None:
        """It was not the callee, as anyone may be that has seen the session: wait on."""
        failure.trap(CallFailed, CancelledError)
        del self._handshakes[proving]
        if failure.check(CallDenied) and not self.done.called:
            self.done.errback(failure)
            return
        self._last = failure.getErrorMessage()
        if handshake.opened:  # it was the callee: the session is spent
            self.fail(self._last)

    def _late(self) -> None:
        last = f" (the last connection: {self._last})" if self._last else ""
        self.fail(f"{self.callee} did not connect back in time{last}")
