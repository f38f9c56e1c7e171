"""A caller waits for its callee to come, and speaks first all the same (D7).

It has asked for that by the callee's call password, or it is permitted and waits besides dialling.

The caller waits where it has said, with the very doors at which calls arrive. Whoever comes there
says for which session; only to a session that the caller waits in does it speak, and what it says
first is its REQUEST (fig. 5f), of which a stranger can read the session alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredList,
    TimeoutError,
    maybeDeferred,
)
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.interfaces import IPortOpener, PortNotOpened
from broker.messages.errors import Refused
from broker.messages.message import Message, printable
from broker.net.connection import PeerConnection
from broker.net.hub import Trace
from broker.net.timers import DeadlineQueue
from broker.tables.address_policy import address_scope, parse_ip
from broker.tables.sessions import UNSPENT_SECONDS
from broker.terminal.calls.place_call import DIAL_TIMEOUT, MakeKnock, Waiting, place_call
from broker.terminal.candidates import BACK, Candidate, FailedCandidate
from broker.terminal.channel.active_calls import FAILED, ActiveCalls
from broker.terminal.errors import CallDenied, CallFailed
from broker.terminal.incoming.listener import (
    HANDSHAKES,
    HELD_MOST,
    HOLD_SECONDS,
    InboundConnection,
    InboundListener,
)
from broker.terminal.incoming.pending_calls import PendingCalls
from broker.terminal.outgoing.initiator import InitiatorHandshake
from broker.terminal.registration.client import MediatorClient, NullEvents

#: Seconds in which a port must be opened, or the call goes without.
OPENING: Final = 4.0
#: Seconds for which a router is not asked again that has opened none.
NOT_BEFORE: Final = 60.0
#: Seconds for which a callee is waited for that is dialled besides: a little longer than it dials.
COMING: Final = DIAL_TIMEOUT + 2.0


class ConnectBackWaiter:
    """The caller's side: it waits for callees that it has asked to come."""

    log = Logger()

    def __init__(self, clock: IReactorTime, doors: InboundListener, calls: ActiveCalls) -> None:
        """
        :param doors: those at which callees arrive
        :param calls: where the calls are counted
        """
        self._clock = clock
        self._doors = doors
        self._calls = calls
        self._asking = 0  # requests that the mediator has not answered
        self._waits: dict[str, _Wait] = {}
        self._held: dict[str, list[InboundConnection]] = {}
        self._holding: DeadlineQueue[InboundConnection] = DeadlineQueue(
            clock, HOLD_SECONDS, self._held_too_long
        )
        self._closing: set[Deferred[None]] = set()
        self._not_before = 0.0  # no port is asked for until then,
        self._unopened: FailedCandidate | None = None  # for this reason
        doors.came = self._came

    async def call(
        self,
        line: MediatorClient,
        callee: str,
        factory: IProtocolFactory,
        *,
        password: str,
        listen: IStreamServerEndpoint | None = None,
        port: IListeningPort | None = None,
        address: tuple[str, int] | None = None,
        opener: IPortOpener | None = None,
    ) -> IProtocol:
        """Ask a callee to come, and wait for it; the factory's protocol then speaks with it.

        :param password: the callee's call password
        :param listen: where it is to come, if for this call alone: closed with the call
        :param port: a listener of these doors that is there already, without
        :param address: the host and port by which that is reached from outside; by default the
            listener's port at our own address on the mediator's connection
        :param opener: opens a port to the outside for the call, where there is no address
        :raises Refused: the mediator refused; ``PermissionDenied`` says no more than that
        :raises CallFailed: the callee did not come, or there is nowhere for it to come to
        :raises ConnectionLost: the connection to the mediator went before it answered
        :raises ValueError: nobody can be called that, or that can be no password
        """
        inlet = _Inlet(opener)
        try:
            place = await inlet.open(self._doors, line, listen=listen, port=port, address=address)
            self._asking += 1
            try:
                told = await line.connect_back(callee, password, *place)
                told.fields["Password"] = password  # what it shows to whoever comes (fig. 5f)
                wait = self._expect(line, callee, factory, told, inlet, place)
            finally:
                self._answered()
            return await self._come(told.fields["Session"], wait)
        except BaseException:
            await self._close(inlet)
            raise

    async def open(
        self,
        line: MediatorClient,
        *,
        listen: IStreamServerEndpoint | None = None,
        port: IListeningPort | None = None,
        address: tuple[str, int] | None = None,
        opener: IPortOpener | None = None,
    ) -> Waiting | FailedCandidate | None:
        """Open where the callee of a permitted call can come to, at the address we are seen at.

        Parameters as of ``call``.

        :return: ``None`` where a router is in between, and nobody is to open a port in it; why it
            could not be opened, where somebody was
        :raises ConnectionLost: the connection to the mediator went
        """
        inlet = _Inlet(opener)
        try:
            seen, _ = await line.outside()
            if address_scope(parse_ip(seen)) == "link" or (
                opener is None and address is None and line.local_host != seen
            ):
                return None  # it is of no use to others, or a router is in between
            if address is not None and address[0] != seen:
                raise CallFailed(
                    f"the mediator sees us at {seen}, and callees come to nowhere else"
                )
            if self._clock.seconds() < self._not_before:
                return self._unopened
            opening = Deferred.fromCoroutine(
                inlet.open(self._doors, line, listen=listen, port=port, address=address)
            )
            place = await opening.addTimeout(OPENING, self._clock)
        except (CallFailed, Refused, TimeoutError) as error:
            await self._close(inlet)
            if isinstance(error, Refused) and opener is None:
                return None
            late = f"the router has not opened a port in {OPENING:g} seconds"
            why = late if isinstance(error, TimeoutError) else printable(str(error))
            failed = FailedCandidate(
                Candidate(BACK, *(address or (line.local_host, inlet.number))), why
            )
            if opener is not None:
                self._not_before, self._unopened = self._clock.seconds() + NOT_BEFORE, failed
            return failed
        except BaseException:
            await self._close(inlet)
            raise
        self._asking += 1
        answered = _once(self._answered)

        def wait(session: str, callee: str, knock: MakeKnock) -> Deferred[IProtocol]:
            waiting = self.wait(session, callee, knock)
            answered()
            return waiting

        def over() -> Deferred[None]:
            answered()
            return self._close(inlet)

        return Waiting(*place, wait, over)

    def wait(self, session: str, callee: str, knock: MakeKnock) -> Deferred[IProtocol]:
        """Wait in the session of a call that is permitted, and is tried along other ways besides.

        :param knock: makes what speaks to somebody who has come
        :return: as of ``call``; cancel to wait no longer
        """
        wait = self._wait_in(session, callee, knock, COMING)
        return Deferred.fromCoroutine(self._come(session, wait))

    def terminated(self, session: str, how: str | None) -> None:
        """A session is void: its callee is waited for no longer.

        :param how: how it has ended, where that is the callee's word
        """
        wait = self._waits.get(session)
        if wait is not None and how == FAILED:
            wait.fail(f"{wait.callee} could not connect to us")
        elif wait is not None:
            wait.fail("the mediator has ended the session")

    async def stop(self) -> None:
        """Close on whoever has come and is no callee yet; done when nothing is open for a call."""
        for wait in list(self._waits.values()):
            wait.fail("the terminal stops")
        for doors in self._held.values():
            for door in doors:
                door.stream.abort()
        self._held.clear()
        self._holding.stop()
        await DeferredList(list(self._closing))

    # The wait.

    def _expect(
        self,
        line: MediatorClient,
        callee: str,
        factory: IProtocolFactory,
        told: Message,
        inlet: _Inlet,
        place: tuple[str, int],
    ) -> _Wait:
        callee = told.fields.get("Callee", callee)

        def knock(stream: PeerConnection) -> InitiatorHandshake:
            return InitiatorHandshake(
                stream,
                self._clock,
                line.identifier,
                callee,
                told,
                factory,
                self._calls,
                candidate=Candidate(BACK, *place),
                over=lambda: self._close(inlet),
            )

        return self._wait_in(told.fields["Session"], callee, knock, UNSPENT_SECONDS)

    def _wait_in(self, session: str, callee: str, knock: MakeKnock, patience: float) -> _Wait:
        """Wait in a session; a callee that has come before we knew of it goes on now."""
        wait = self._waits[session] = _Wait(self._clock, self._doors, callee, knock, patience)
        for door in self._held.pop(session, ()):
            self._holding.discard(door)
            wait.met(door)
        return wait

    async def _come(self, session: str, wait: _Wait) -> IProtocol:
        try:
            return await wait.done
        finally:
            if self._waits.get(session) is wait:
                del self._waits[session]
            wait.over()

    def _close(self, inlet: _Inlet) -> Deferred[None]:
        """The call is over: so is what was opened for it. Never fails."""
        closing = Deferred.fromCoroutine(inlet.close())
        self._closing.add(closing)

        def closed(result: object) -> None:
            self._closing.discard(closing)
            if isinstance(result, Failure):
                self.log.failure("What was opened for a call could not be closed", result)

        return closing.addBoth(closed)

    # At the doors.

    def _came(self, door: InboundConnection, session: str) -> None:
        """Somebody has come, and says for which session; it may be before we know of it."""
        wait = self._waits.get(session)
        if wait is not None:
            wait.met(door)
        elif self._asking and sum(map(len, self._held.values())) < HELD_MOST:
            door.stream.hold()
            self._held.setdefault(session, []).append(door)
            self._holding.add(door)
        else:
            door.stream.abort()

    def _held_too_long(self, door: InboundConnection) -> None:
        held = self._held.get(door.session, [])
        if door in held:
            held.remove(door)
            if not held:
                del self._held[door.session]
        door.stream.abort()

    def _answered(self) -> None:
        self._asking -= 1
        self._let_go()

    def _let_go(self) -> None:
        """Once nothing is asked, whoever is held came for none of our sessions."""
        if not self._asking:
            for door in [door for doors in self._held.values() for door in doors]:
                self._holding.discard(door)
                self._held_too_long(door)


async def place_call_back(
    reactor: Any,
    line: MediatorClient,
    callee: str,
    factory: IProtocolFactory,
    *,
    password: str,
    listen: IStreamServerEndpoint,
    address: tuple[str, int] | None = None,
    opener: IPortOpener | None = None,
    trace: Trace | None = None,
) -> IProtocol:
    """The same once, with doors that are made for it and take no other calls.

    :param reactor: an ``IReactorTCP`` and ``IReactorTime``
    """
    with _alone(reactor, line, trace) as (call_backs, _):
        return await call_backs.call(
            line,
            callee,
            factory,
            password=password,
            listen=listen,
            address=address,
            opener=opener,
        )


async def place_one_call(
    reactor: Any,
    line: MediatorClient,
    callee: str,
    factory: IProtocolFactory,
    *,
    listen: IStreamServerEndpoint,
    address: tuple[str, int] | None = None,
    opener: IPortOpener | None = None,
    trace: Trace | None = None,
) -> IProtocol:
    """``place_call`` along all ways, with doors that are made for it and take no other calls.

    :param listen: where the callee is to come, where there is a way in
    """
    with _alone(reactor, line, trace) as (call_backs, calls):
        waiting = None
        if line.share_port() is not None:  # else both are within one machine
            waiting = await call_backs.open(line, listen=listen, address=address, opener=opener)
        return await place_call(
            reactor, line, callee, factory, calls=calls, trace=trace, seen=True, waiting=waiting
        )


@contextmanager
def _alone(
    reactor: Any, line: MediatorClient, trace: Trace | None
) -> Iterator[tuple[ConnectBackWaiter, ActiveCalls]]:
    """Wait with doors that take no other calls; the calls are those of the one line."""
    calls = ActiveCalls(line.ended)
    doors = InboundListener(
        reactor,
        line.identifier,
        PendingCalls(),
        calls,
        handler=None,
        woken=lambda: None,
        began=line.began,
        trace=trace,
    )
    call_backs = ConnectBackWaiter(reactor, doors, calls)
    line.events = _OneCall(call_backs, calls)  # for as long as the call may last
    try:
        yield call_backs, calls
    finally:
        doors.stop()


class _OneCall(NullEvents):
    """For a connection that only calls one callee, or waits for it: takes no call."""

    def __init__(self, call_backs: ConnectBackWaiter, calls: ActiveCalls) -> None:
        self._call_backs = call_backs
        self._calls = calls

    def session_terminated(self, session: str, how: str | None = None) -> None:
        """It is not called any more, and does not come."""
        self._calls.terminate(session)
        self._call_backs.terminated(session, how)


def _once(what: Callable[[], object]) -> Callable[[], None]:
    """The same, done the first time alone."""
    left = [what]

    def do() -> None:
        if left:
            left.pop()()

    return do


class _Wait:
    """A session in which a callee is waited for.

    :ivar callee: its identifier
    :ivar done: fires with the application's protocol once the callee has come; fails with
        ``CallFailed``
    """

    def __init__(
        self,
        clock: IReactorTime,
        doors: InboundListener,
        callee: str,
        knock: MakeKnock,
        patience: float,
    ) -> None:
        """
        :param knock: makes what speaks to somebody who has come
        :param patience: seconds for which it is waited for
        """
        self.done: Deferred[IProtocol] = Deferred()
        self._doors = doors
        self.callee = callee
        self._knock = knock
        self._knocking: dict[Deferred[IProtocol], InitiatorHandshake] = {}
        self._last = ""  # why the last one who came was not the callee
        self._timer = clock.callLater(patience, self._late)

    def met(self, door: InboundConnection) -> None:
        """Somebody has come for this session: ask it to prove that it is the callee."""
        stream = door.stream
        if self.done.called or len(self._knocking) >= HANDSHAKES or not stream.connected:
            stream.abort()
            return
        self._doors.leave(door)
        knock = self._knock(stream)
        stream.receiver = knock
        knocking = knock.request()
        self._knocking[knocking] = knock
        knocking.addCallbacks(
            self._stands,
            self._fell,
            callbackArgs=(stream, knocking),
            errbackArgs=(knock, knocking),
        )
        stream.go_on()

    def fail(self, why: str) -> None:
        """It is waited for no longer."""
        if not self.done.called:
            self.done.errback(CallFailed(why))

    def over(self) -> None:
        """Close on whoever else has come, and leave no timer behind."""
        if self._timer.active():
            self._timer.cancel()
        for knocking in list(self._knocking):
            knocking.cancel()

    def _stands(
        self, protocol: IProtocol, stream: PeerConnection, knocking: Deferred[IProtocol]
    ) -> None:
        del self._knocking[knocking]
        stream.authenticated()
        if not self.done.called:
            self.done.callback(protocol)

    def _fell(
        self, failure: Failure, knock: InitiatorHandshake, knocking: Deferred[IProtocol]
    ) -> None:
        """It was not the callee, as anybody may be who has heard the session: wait on."""
        failure.trap(CallFailed, CancelledError)
        del self._knocking[knocking]
        if failure.check(CallDenied) and not self.done.called:
            self.done.errback(failure)
            return
        self._last = failure.getErrorMessage()
        if knock.opened:  # it was: the session is spent
            self.fail(self._last)

    def _late(self) -> None:
        last = f" (of those who did: {self._last})" if self._last else ""
        self.fail(f"{self.callee} did not connect back in time{last}")


class _Inlet:
    """Where a callee is to come in, as far as it was opened for one call.

    :ivar number: of our own port, once it is listened on
    """

    def __init__(self, opener: IPortOpener | None) -> None:
        self._opener = opener
        self._port: IListeningPort | None = None
        self._mapped: int | None = None
        self.number = 0

    async def open(
        self,
        doors: InboundListener,
        line: MediatorClient,
        *,
        listen: IStreamServerEndpoint | None,
        port: IListeningPort | None,
        address: tuple[str, int] | None,
    ) -> tuple[str, int]:
        """Open it; give the host and port by which it is reached from outside.

        :raises CallFailed: it can't be opened
        """
        if listen is not None:
            try:
                self._port = port = await listen.listen(doors.factory())
            except CannotListenError as error:
                raise CallFailed(f"there is nowhere to wait for the callee: {error}") from None
        if port is None:
            raise ValueError("a terminal that listens nowhere needs somewhere to listen")
        if address is not None:
            return address
        number: int = getattr(port.getHost(), "port", 0)
        self.number = number
        if self._opener is None:
            return line.local_host, number
        try:
            place = await self._opener.open(number, line)
        except PortNotOpened as error:
            raise CallFailed(f"no way in could be opened for the callee: {error}") from None
        self._mapped = number
        return place

    async def close(self) -> None:
        """Close what was opened; once is enough."""
        port, self._port = self._port, None
        mapped, self._mapped = self._mapped, None
        if port is not None:
            await maybeDeferred(port.stopListening)
        if mapped is not None and self._opener is not None:
            await self._opener.close(mapped)
