"""A terminal as a service: it keeps itself registered, takes calls and makes them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredLock,
    TimeoutError,
    maybeDeferred,
    succeed,
)
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
)
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.interfaces import ICallHandler, IConsent, ILoad, IPortOpener
from broker.messages.errors import LoginRequired, Refused, ServiceUnavailable
from broker.messages.grammar import DEFAULT_PORT, entry
from broker.messages.grammar import identifier as canonical
from broker.messages.message import Message, printable
from broker.net.connection import ConnectionHub, Trace
from broker.net.reconnecting import ReconnectingClient
from broker.tables.consent_lists import NOBODY_ACCEPTED, Lists, check_lists
from broker.tables.grants import Randomness
from broker.tables.locations import Network
from broker.tables.permits import as_edits
from broker.terminal.calls.dial_back import Admits, DialBack, knows
from broker.terminal.calls.place_call import Waiting, direct_exchange, place_call
from broker.terminal.calls.wait_for_callee import ConnectBackWaiter
from broker.terminal.candidates import FailedCandidate
from broker.terminal.channel.active_calls import Calls
from broker.terminal.errors import CannotLogIn
from broker.terminal.incoming.listener import InboundListener
from broker.terminal.incoming.pending_calls import ConnectBackRequest, PendingCall, PendingCalls
from broker.terminal.load import Unlimited
from broker.terminal.ports.published_port import PublishedPort
from broker.terminal.registration.client import ANSWER_TIMEOUT, MediatorClient
from broker.terminal.registration.idle import LINGER, IdleConnection
from broker.terminal.registration.keepalive_interval import MOST

#: Seconds for which a call waits for the connection to the mediator.
LINE_TIMEOUT: Final = 10.0
#: Seconds in which a stranger's word makes it connect at once only one time.
WOKEN_INTERVAL: Final = 1.0
#: Seconds that logging in and registering may take: a token that is refused, then the password.
LOGIN_PATIENCE: Final = 2 * ANSWER_TIMEOUT

#: The code of a login that is refused: what was shown is not good, or nothing was.
_NOT_PROVEN: Final = 401
#: The code of one that is not even looked at, since too many have failed; its cause counts seconds.
_TOO_MANY: Final = 429
#: The codes of refusals that the next attempt will have again, and that are counted (I23): what was
#: shown is not good, or proves another; too many attempts already.
_IN_VAIN: Final = frozenset((_NOT_PROVEN, 403, _TOO_MANY))


class Terminal(Service):
    """One terminal.

    :ivar identifier: whom it acts as; once it has logged in by another name, its identifier
    :ivar calls: those it is in
    :ivar listening: fires with the direct listener's port; fails where it can't be opened. Each
        start of the service has a new one
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        identifier: str,
        mediator: IStreamClientEndpoint,
        *,
        listen: IStreamServerEndpoint | None = None,
        address: str | None = None,
        port: int | None = None,
        accept: Sequence[str] = (),
        name: str | None = None,
        policy: str | None = None,
        consent: IConsent | None = None,
        call_password: str | Admits | None = None,
        call_back_to: Collection[Network] = (),
        password: str | Callable[[], str | None] | None = None,
        allow_clear_text: bool = False,
        handler: ICallHandler | None = None,
        load: ILoad | None = None,
        one_at_a_time: bool = False,
        udp: tuple[str | None, int] | None = None,
        hold: bool = True,
        keepalive_most: float = MOST,
        linger: float = LINGER,
        opener: IPortOpener | None = None,
        open_port: bool = False,
        jitter: Callable[[], float] = random.random,
        randomness: Randomness = os.urandom,
        trace: Trace | None = None,
    ) -> None:
        """
        :param reactor: an ``IReactorTCP`` and ``IReactorTime``
        :param mediator: the only place from which it takes credentials (I26)
        :param listen: where it takes calls; nowhere, without
        :param address: what it registers; by default our own address on the mediator's connection
        :param port: what it registers; by default the one it listens on
        :param accept: whom it permits, once for each epoch of the mediator's store
        :param name: a further name that it registers (C1)
        :param policy: how its consent is had, which it registers: ``'List'``, ``'Ask'`` or
            ``'Password'``; as it was, without
        :param consent: says whom it accepts where it is asked (C3); nobody, without
        :param call_password: by which whoever knows it is called back (D7), or what decides that,
            given the caller and what it shows; nobody is, without
        :param call_back_to: networks where it calls back to, besides the Internet and the kind of
            network in which the mediator is
        :param password: what it logs in with, or what gives that each time it is needed: ``None``
            where there is none, ``ValueError`` raised where it can't be had. It is needed at first,
            and whenever the mediator no longer takes the token of the last login
        :param allow_clear_text: whether password and token may go to another machine in clear
        :param handler: the application that takes calls
        :param load: how it decides its status
        :param one_at_a_time: it is busy while it is in a call (A25)
        :param udp: where it registers by UDP (D1), a host and a port; without a host, where the
            mediator is. It is then found where its datagrams come from, unless there is an address
        :param hold: keep the connection to the mediator; else it is closed while there is nothing
            to do, and made when a notice or a call asks for it
        :param keepalive_most: the longest interval between datagrams, in seconds
        :param linger: seconds for which a connection is kept that has nothing to do
        :param opener: opens ports to the outside, for ``call_back`` where nothing else is said
        :param open_port: has it keep the listener's port open, too, and registers where that is
            reached in place of ``address`` and ``port``; where it can't be had, it goes without
        :param jitter: spreads reconnections, from 0 to 1
        :raises ValueError: that is no identifier
        """
        identifier = canonical(identifier)
        self.identifier = identifier
        self.calls = Calls(self._ended)
        self.listening: Deferred[IListeningPort] = Deferred()
        self._reactor = reactor
        self._listen = listen
        self._address = address
        self._port = port
        self._accept = tuple(accept)
        self._name = name
        self._policy = policy
        self._consent = consent
        self._handler = handler
        self._load = Unlimited() if load is None else load
        self._one_at_a_time = one_at_a_time
        self._expected = PendingCalls()
        self._epoch: str | None = None
        self._password = password
        self._token: str | None = None
        self._refusal: str | None = None  # of the last login, so that it is logged once
        self._locks: dict[str, DeferredLock] = {}
        self._placing: set[Deferred[IProtocol]] = set()
        self._next_woken = 0.0
        self._opened_port: IListeningPort | None = None
        self._doors = InboundListener(
            reactor,
            identifier,
            self._expected,
            self.calls,
            handler=handler,
            woken=self._woken,
            began=self._began,
            may_take=self._idle_enough,
            trace=trace,
        )
        self._comings = DialBack(
            reactor,
            self._doors,
            self._expected,
            admits=knows(call_password) if isinstance(call_password, str) else call_password,
            acceptable=self.acceptable,
            listening=self._listening_at,
            failed=self._ended,
            allowed=call_back_to,
        )
        self._call_backs = ConnectBackWaiter(reactor, self._doors, self.calls)
        self._opener = opener
        self._standing: PublishedPort | None = None
        if open_port:
            if opener is None:
                raise ValueError("nobody is there to open the port")
            self._standing = PublishedPort(opener, self._register_outside)
        self._calling = direct_exchange(reactor, trace)
        self._exchange = ConnectionHub.of_client(reactor, trace=trace)
        self._link: ReconnectingClient[MediatorClient] = ReconnectingClient(
            mediator,
            self._exchange,
            lambda stream: MediatorClient(
                stream, reactor, identifier, self, allow_clear_text=allow_clear_text
            ),
            prepare=self._log_in,
            jitter=jitter,
            patience=LOGIN_PATIENCE,
        )
        self._presence: IdleConnection | None = None
        if udp is not None:
            self._presence = IdleConnection(
                reactor,
                self._link,
                lambda line: line.register(**self._where(line)),
                server=udp,
                randomness=randomness,
                busy=self._busy,
                woken=self._woken,
                hold=hold,
                most=keepalive_most,
                linger=linger,
            )

    # As a service.

    def startService(self) -> None:
        """Open the direct listener, then connect and register."""
        super().startService()  # type: ignore[no-untyped-call]
        if self._listen is None:
            self._link.startService()
            return
        self.listening = Deferred()
        opening = self._listen.listen(self._doors.factory())
        opening.addCallback(self._listens)
        opening.addErrback(self.listening.errback)

    def _listens(self, port: IListeningPort) -> None:
        self._opened_port = port
        self._link.startService()
        self.listening.callback(port)

    async def _stop(self) -> None:
        port, self._opened_port = self._opened_port, None
        if port is not None:
            await maybeDeferred(port.stopListening)
        for placing in list(self._placing):
            placing.cancel()
        self._comings.stop()
        self._doors.stop()
        if self._standing is not None:
            await self._standing.stop()
        self.calls.end_all("the terminal stops")
        await self.calls.none()  # and so their ends are reported
        await self._call_backs.stop()
        if self._presence is not None:
            await self._presence.stop()
        await maybeDeferred(self._link.stopService)
        self._calling.stop()
        self._exchange.stop()

    def stopService(self) -> Deferred[None]:
        """Break off the calls, close the listener and the connection to the mediator.

        :return: fires when all of them are closed; a peer that does not read holds that up for as
            long as a channel lingers
        """
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    # For its application.

    def ready(self) -> Deferred[None]:
        """Fires once the terminal is connected and registered, or is so by UDP alone."""
        if self._presence is not None and self._presence.quiet:
            return succeed(None)
        return self._link.wait().addCallback(lambda _: None)

    def call(self, callee: str, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Call a terminal; the protocol that the factory makes speaks over the channel.

        Whichever way leads there: directly, within our own network, by both sides dialling, or by
        the callee's coming to us. The channel's ``way`` says which, and its ``tried`` what became
        of the others (``ISessionTransport``).

        Calls to one callee are made one after the other, since a new query voids what an earlier
        one was granted and has not yet used.

        :return: fires with that protocol; fails with a ``Refused``, ``CallFailed``, or
            ``ConnectionLost`` where the connection to the mediator goes; cancel to give up
        """
        return self._place(callee, lambda line: self._call(line, callee, factory))

    async def _call(
        self, line: MediatorClient, callee: str, factory: IProtocolFactory
    ) -> IProtocol:
        return await place_call(
            self._reactor,
            line,
            callee,
            factory,
            calls=self.calls,
            exchange=self._calling,
            seen=self._address is None,
            waiting=await self._waiting(line),
        )

    async def _waiting(self, line: MediatorClient) -> Waiting | FailedCandidate | None:
        """Where a callee can come to us, if no router is in its way, or the router opens a port."""
        if self._opened_port is None or line.share_port() is None:
            return None
        address, opener = None, self._opener
        if self._address is not None:  # nothing else is told of us
            address, opener = (self._address, self._port or _number(self._opened_port)), None
        elif self._port is not None and opener is None:
            address = (line.local_host, self._port)
        return await self._call_backs.open(
            line, port=self._opened_port, address=address, opener=opener
        )

    def call_back(
        self,
        callee: str,
        factory: IProtocolFactory,
        *,
        password: str,
        address: tuple[str, int] | None = None,
        listen: IStreamServerEndpoint | None = None,
        opener: IPortOpener | None = None,
    ) -> Deferred[IProtocol]:
        """Ask a terminal to connect to us for a call (D3): its call password is the permission.

        It comes to the direct listener, or to one that is opened for this call alone. The protocol
        that the factory makes speaks over the channel, as in ``call``.

        :param password: the callee's call password
        :param address: the host and port by which it reaches us from outside; by default our own
            address on the mediator's connection, and the listener's port
        :param listen: where it is to come, if not to the direct listener
        :param opener: opens a port to the outside for this call, where there is no ``address``; by
            default the terminal's own, if it has one
        :return: as of ``call``; ``PermissionDenied``, whatever the callee has against it
        """
        return self._place(
            callee,
            lambda line: self._call_backs.call(
                line,
                callee,
                factory,
                password=password,
                listen=listen,
                port=self._opened_port,
                address=address,
                opener=self._opener if opener is None else opener,
            ),
        )

    def _place(
        self,
        callee: str,
        place: Callable[[MediatorClient], Coroutine[Deferred[Any], Any, IProtocol]],
    ) -> Deferred[IProtocol]:
        placing = Deferred.fromCoroutine(self._one_by_one(callee, place))
        self._placing.add(placing)

        def over(result: object) -> object:
            self._placing.discard(placing)
            return result

        placing.addBoth(over)
        return placing

    def edit(self, edits: Sequence[str]) -> Deferred[Message]:
        """Edit the terminal's permits: ``['Add Ic,Ie', 'Delete If']``."""
        return self._connected().addCallback(lambda line: line.register(edits=edits))

    def accepted(self) -> Deferred[list[str]]:
        """The terminal's permits, as the mediator has them."""
        return self._connected().addCallback(lambda line: line.accepted())

    async def _one_by_one(
        self,
        callee: str,
        place: Callable[[MediatorClient], Coroutine[Deferred[Any], Any, IProtocol]],
    ) -> IProtocol:
        """Place a call when those to the same callee before it stand, or have failed."""
        lock = self._locks.setdefault(callee, DeferredLock())
        await lock.acquire()
        try:
            return await place(await self._connected())
        finally:
            lock.release()
            if not lock.locked:
                self._locks.pop(callee, None)

    def _connected(self) -> Deferred[MediatorClient]:
        def late(failure: Failure) -> MediatorClient:
            failure.trap(TimeoutError)
            raise ServiceUnavailable("there is no connection to the mediator")

        awake = succeed(None) if self._presence is None else self._presence.awake()
        wait = awake.addCallback(lambda _: self._link.wait())
        return wait.addTimeout(LINE_TIMEOUT, self._reactor).addErrback(late)

    # Registering.

    async def _log_in(self, line: MediatorClient) -> None:
        """Say who and where we are, and once for each epoch whom we permit."""
        try:
            answer = await self._register(line)
            self.identifier = self._doors.identifier = line.identifier
            epoch = answer.get("Epoch")
            # A token is good for one epoch: none is kept beyond it.
            self._token = answer.get("Token") or (self._token if epoch == self._epoch else None)
            if self._accept and epoch != self._epoch:
                await line.register(edits=as_edits(self._accept, "Add"))
            self._epoch = epoch
            if self._presence is not None:
                await self._presence.registered(line, answer)
            if self._standing is not None and self._opened_port is not None:
                self._standing.begin(line, _number(self._opened_port))
        except Refused as refusal:
            self._refused(refusal)
            raise
        self._refusal = None
        self.log.info("{identifier} is registered", identifier=printable(self.identifier))

    async def _register(self, line: MediatorClient) -> Message:
        """Log in and register where we are, in one message: by the token, else the password."""
        where = {**self._where(line), "name": self._name, "policy": self._policy}
        if self._token is not None:
            try:
                return await line.register(token=self._token, **where)
            except Refused as refusal:
                if refusal.code != _NOT_PROVEN:
                    raise
                self._token = None
        try:
            password = self._password() if callable(self._password) else self._password
            return await line.register(password=password, **where)
        except ValueError as error:  # there is none to be had, or it is none
            raise CannotLogIn(str(error)) from None

    def _where(self, line: MediatorClient) -> dict[str, Any]:
        """What it says of where it is; by UDP it is where its datagrams come from."""
        where: dict[str, Any] = {}
        standing = self._standing
        if standing is not None and self._presence is None and not standing.known(line):
            return where  # nobody knows yet how it could be reached
        if self._presence is not None:
            where["udp"] = True
        if self._opened_port is not None:
            where["port"] = self._port or _number(self._opened_port)
            if self._address is not None or self._presence is None:
                where["address"] = self._address or line.local_host
            if self._address is None and line.share_port() is not None:
                where["local"] = (line.local_host, _number(self._opened_port))
                where["seen"] = True
        outside = None if standing is None else standing.place(line)
        if outside is not None:
            where["address"], where["port"] = outside
        return where

    async def _register_outside(self, line: MediatorClient, stale: bool) -> None:
        """It is known by now whether there is a way in: register accordingly."""
        assert self._standing is not None
        try:
            if stale:
                await line.register(expires=0)
            elif self._presence is not None and self._standing.place(line) is None:
                return  # as it is registered already
            answer = await line.register(**self._where(line))
            if self._presence is not None:
                await self._presence.registered(line, answer)
        except Refused as refusal:
            self._refused(refusal)

    def _refused(self, refusal: Refused) -> None:
        """Say so; a login that is refused as the last one was, only once."""
        told = "The mediator refused the registration of {identifier}: {statement} {cause}"
        cause = refusal.cause
        if refusal.code in _IN_VAIN or isinstance(refusal, CannotLogIn):
            self._link.slow_down()
            told = (
                "{identifier} could not log in, and tries again now and then: {statement} {cause}"
            )
            if isinstance(refusal, LoginRequired) and self._password is not None:
                cause += "; no password is at hand: name a file, or do broker login"
            said = refusal.statement if refusal.code == _TOO_MANY else cause
            if said == self._refusal:
                return
            self._refusal = said
        self.log.warn(
            told,
            identifier=printable(self.identifier),
            statement=refusal.statement,
            cause=printable(cause),
        )

    # Told by the mediator.

    def acceptable(self) -> bool:
        """The status (fig. 18)."""
        self._touch()
        able = self._handler is not None and bool(self.running)
        return able and self._idle_enough() and self._load.acceptable()

    async def lists(self) -> Lists:
        """Whom it accepts now; nobody, where that can't be had (I3)."""
        self._touch()
        if self._consent is None:
            return NOBODY_ACCEPTED
        try:
            accepted, rejected = await self._consent.lists()
            lists = Lists([*map(entry, accepted)], [*map(entry, rejected)])
            return check_lists(lists)
        except CancelledError:  # nobody waits any more
            raise
        except Exception:
            self.log.failure("It can't be told whom {who} accepts", who=printable(self.identifier))
            return NOBODY_ACCEPTED

    def announced(self, line: MediatorClient, call: PendingCall) -> None:
        """Fig. 5e."""
        self._touch()
        if self.running:
            self._comings.expect(call)
            if self._address is None:  # else whoever is dialled would see where we really are
                self._comings.meet(line, call)

    async def comes(self, line: MediatorClient, wanted: ConnectBackRequest) -> bool:
        """Whether it comes to a caller that shows its call password (D7)."""
        self._touch()
        return await self._comings.comes(line, wanted)

    def come(self, wanted: ConnectBackRequest) -> None:
        """It has said that it does."""
        self._touch()
        self._comings.come(wanted)

    def _listening_at(self, line: MediatorClient) -> list[tuple[str, int]]:
        """Where it takes calls itself."""
        if self._opened_port is None:
            return []
        where = self._where(line)
        hosts = {line.local_host, where.get("address", line.local_host)}
        number = _number(self._opened_port)
        ports = {where.get("port", number), number}
        return [(host, port) for host in hosts for port in ports]

    def terminated(self, session: str, how: str | None = None) -> None:
        """A session is void, or must end."""
        self._expected.void(session)
        self._comings.terminated(session)
        self.calls.terminate(session)
        self._call_backs.terminated(session, how)

    def superseded(self) -> None:
        """Somebody else registered as us; that is worth an operator's look."""
        if self._presence is not None:
            self._presence.superseded()
        self.log.warn(
            "{identifier} is now reached elsewhere: another connection has registered its address",
            identifier=printable(self.identifier),
        )

    def line_lost(self, line: MediatorClient, reason: Failure) -> None:
        """A withdrawal could not be told to us now: what is not begun is void (I2)."""
        self._expected.void_all()
        self._comings.stop()

    # Told by the doors and the calls.

    def _idle_enough(self) -> bool:
        return not (self._one_at_a_time and len(self.calls))

    def _woken(self) -> None:
        now = self._reactor.seconds()
        if now >= self._next_woken and self._refusal is None:  # else it would be refused as often
            self._next_woken = now + WOKEN_INTERVAL
            if self._presence is not None:
                self._presence.wake()
            self._link.retry_now()

    def _busy(self) -> bool:
        """Whether a call is on, or on its way, or a port is being opened."""
        opening = self._standing is not None and self._standing.busy
        expected = self._expected.any(self._reactor.seconds())
        return bool(len(self.calls) or self._placing or expected or opening)

    def _touch(self) -> None:
        if self._presence is not None:
            self._presence.touch()

    def _began(self, session: str) -> None:
        self._comings.terminated(session)  # nobody need be dialled for it any more
        line = self._link.conversation
        if line is not None:
            line.began(session)

    def _ended(self, session: str, how: str) -> None:
        self._touch()
        line = self._link.conversation
        if line is not None:
            line.ended(session, how)


def _number(port: IListeningPort) -> int:
    """The number of a port that is listened on."""
    number: int = getattr(port.getHost(), "port", DEFAULT_PORT)
    return number
