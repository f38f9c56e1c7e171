"""Connect-back, both sides: the callee comes to its caller, which speaks first all the same (D7).

The caller waits where it has said, with the very doors at which calls arrive. Whoever comes there
says for which session; only to a session that the caller waits in does it speak, and what it says
first is its REQUEST (fig. 5f), of which a stranger can read the session alone.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Collection
from hashlib import sha256
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred, DeferredList, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, connectProtocol
from twisted.internet.error import CannotListenError, ConnectError, ConnectingCancelledError
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
from broker.tables.addresses import AddressRefused, Network, kind, parse_ip, usable, within
from broker.tables.sessions import UNSPENT_SECONDS
from broker.terminal.calling import DIAL_TIMEOUT, Knock
from broker.terminal.calls import FAILED, Calls
from broker.terminal.doors import HANDSHAKES, HELD_MOST, HOLD_SECONDS, Door, Doors
from broker.terminal.errors import CallFailed
from broker.terminal.expected import Expected, WantedCall
from broker.terminal.line import Line
from broker.wire.message import Message, printable
from broker.wire.stream import Stream, Trace
from broker.wire.timing import Deadlines

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


class Comings:
    """The callee's side: it comes to callers that know its call password."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        doors: Doors,
        expected: Expected,
        *,
        admits: Admits | None,
        acceptable: Callable[[], bool],
        listening: Callable[[Line], Collection[tuple[str, int]]],
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
        self._dialling: dict[str, Deferred[Any]] = {}

    async def comes(self, line: Line, wanted: WantedCall) -> bool:
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

    async def _decide(self, admits: Admits, line: Line, wanted: WantedCall) -> bool:
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
        if not self._acceptable() or self._doors.full or len(self._dialling) >= DIALS_MOST:
            return False
        why = self._why_not(line, wanted)
        if why is not None:
            self.log.warn(
                "{caller} knows the call password, and can't be called back: {why}",
                caller=printable(wanted.call.caller),
                why=why,
            )
        return why is None

    def _why_not(self, line: Line, wanted: WantedCall) -> str | None:
        """Why an address is not dialled, or ``None``: a caller must not send us just anywhere."""
        try:
            ip = usable(wanted.host)
            here = kind(parse_ip(line.remote_host.partition("%")[0]))
        except AddressRefused as error:
            return str(error)
        its = kind(ip)
        if its not in {"public", here} and not within(ip, self._allowed):
            return f"a {its} address is not dialled"
        if any(port == wanted.port for _, port in self._listening(line)) and (
            ip.is_loopback or any(host == str(ip) for host, _ in self._listening(line))
        ):
            return "the address is our own"
        return None

    def come(self, wanted: WantedCall) -> None:
        """Dial a caller; what follows on that connection is as at the doors (S207)."""
        self._doors.expect(wanted.call)
        made = TCP6ClientEndpoint if ":" in wanted.host else TCP4ClientEndpoint
        endpoint = made(self._reactor, wanted.host, wanted.port, timeout=DIAL_TIMEOUT)
        stream = Stream(self._doors.exchange, self._doors.door)
        door = stream.receiver
        assert isinstance(door, Door)  # as made above
        session = wanted.call.session
        dialling = connectProtocol(endpoint, stream)
        self._dialling[session] = dialling

        def over(result: object) -> None:
            del self._dialling[session]
            if not isinstance(result, Failure):
                door.come(session)
                return
            self._doors.gone(door)
            result.trap(ConnectError, ConnectingCancelledError)
            if self._expected.find(session, self._reactor.seconds()) is wanted.call:
                self._expected.void(session)
                self._failed(session, FAILED)
            self.log.info(
                "{caller} could not be called back: {why}",
                caller=printable(wanted.call.caller),
                why=result.getErrorMessage(),
            )

        dialling.addBoth(over)

    def terminated(self, session: str) -> None:
        """A session is void: it comes no more."""
        self._deciding.discard(session)
        dialling = self._dialling.get(session)
        if dialling is not None:
            dialling.cancel()

    def stop(self) -> None:
        """Give up every dial."""
        for dialling in list(self._dialling.values()):
            dialling.cancel()


class CallBacks:
    """The caller's side: it waits for callees that it has asked to come."""

    log = Logger()

    def __init__(self, clock: IReactorTime, doors: Doors, calls: Calls) -> None:
        """
        :param doors: those at which callees arrive
        :param calls: where the calls are counted
        """
        self._clock = clock
        self._doors = doors
        self._calls = calls
        self._asking = 0  # requests that the mediator has not answered
        self._waits: dict[str, _Wait] = {}
        self._held: dict[str, list[Door]] = {}
        self._holding: Deadlines[Door] = Deadlines(clock, HOLD_SECONDS, self._held_too_long)
        self._closing: set[Deferred[None]] = set()
        doors.came = self._came

    async def call(
        self,
        line: Line,
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
                wait = self._expect(line, callee, factory, told, inlet)
            finally:
                self._asking -= 1
                self._let_go()
            return await self._come(told.fields["Session"], wait)
        except BaseException:
            await self._close(inlet)
            raise

    def terminated(self, session: str) -> None:
        """A session is void: its callee is waited for no longer."""
        wait = self._waits.get(session)
        if wait is not None:
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
        self, line: Line, callee: str, factory: IProtocolFactory, told: Message, inlet: _Inlet
    ) -> _Wait:
        """Wait in a session; a callee that has come before we knew of it goes on now."""
        session = told.fields["Session"]
        callee = told.fields.get("Callee", callee)

        def knock(stream: Stream) -> Knock:
            return Knock(
                stream,
                self._clock,
                line.identifier,
                callee,
                told,
                factory,
                self._calls,
                over=lambda: self._close(inlet),
            )

        wait = self._waits[session] = _Wait(self._clock, self._doors, callee, knock)
        for door in self._held.pop(session, ()):
            self._holding.discard(door)
            wait.met(door)
        return wait

    async def _come(self, session: str, wait: _Wait) -> IProtocol:
        try:
            return await wait.done
        finally:
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

    def _came(self, door: Door, session: str) -> None:
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

    def _held_too_long(self, door: Door) -> None:
        held = self._held.get(door.session, [])
        if door in held:
            held.remove(door)
            if not held:
                del self._held[door.session]
        door.stream.abort()

    def _let_go(self) -> None:
        """Once nothing is asked, whoever is held came for none of our sessions."""
        if not self._asking:
            for door in [door for doors in self._held.values() for door in doors]:
                self._holding.discard(door)
                self._held_too_long(door)


async def place_call_back(
    reactor: Any,
    line: Line,
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
    calls = Calls(line.ended)
    doors = Doors(
        reactor,
        line.identifier,
        Expected(),
        calls,
        handler=None,
        woken=lambda: None,
        began=line.began,
        trace=trace,
    )
    try:
        return await CallBacks(reactor, doors, calls).call(
            line,
            callee,
            factory,
            password=password,
            listen=listen,
            address=address,
            opener=opener,
        )
    finally:
        doors.stop()


class _Wait:
    """A session in which a callee is waited for.

    :ivar done: fires with the application's protocol once the callee has come; fails with
        ``CallFailed``
    """

    def __init__(
        self,
        clock: IReactorTime,
        doors: Doors,
        callee: str,
        knock: Callable[[Stream], Knock],
    ) -> None:
        """
        :param knock: makes what speaks to somebody who has come
        """
        self.done: Deferred[IProtocol] = Deferred()
        self._doors = doors
        self._callee = callee
        self._knock = knock
        self._knocking: dict[Deferred[IProtocol], Knock] = {}
        self._last = ""  # why the last one who came was not the callee
        self._timer = clock.callLater(UNSPENT_SECONDS, self._late)

    def met(self, door: Door) -> None:
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

    def _stands(self, protocol: IProtocol, stream: Stream, knocking: Deferred[IProtocol]) -> None:
        del self._knocking[knocking]
        stream.authenticated()
        if not self.done.called:
            self.done.callback(protocol)

    def _fell(self, failure: Failure, knock: Knock, knocking: Deferred[IProtocol]) -> None:
        """It was not the callee, as anybody may be who has heard the session: wait on."""
        failure.trap(CallFailed, CancelledError)
        del self._knocking[knocking]
        self._last = failure.getErrorMessage()
        if knock.opened:  # it was: the session is spent
            self.fail(self._last)

    def _late(self) -> None:
        last = f" (of those who did: {self._last})" if self._last else ""
        self.fail(f"{self._callee} did not connect back in time{last}")


class _Inlet:
    """Where a callee is to come in, as far as it was opened for one call."""

    def __init__(self, opener: IPortOpener | None) -> None:
        self._opener = opener
        self._port: IListeningPort | None = None
        self._mapped: int | None = None

    async def open(
        self,
        doors: Doors,
        line: Line,
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
        if self._opener is None:
            return line.local_host, number
        self._mapped = number
        try:
            return await self._opener.open(number)
        except PortNotOpened as error:
            self._mapped = None
            raise CallFailed(f"no way in could be opened for the callee: {error}") from None

    async def close(self) -> None:
        """Close what was opened; once is enough."""
        port, self._port = self._port, None
        mapped, self._mapped = self._mapped, None
        if port is not None:
            await maybeDeferred(port.stopListening)
        if mapped is not None and self._opener is not None:
            await self._opener.close(mapped)
