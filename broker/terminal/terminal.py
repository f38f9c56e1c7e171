"""A terminal as a service: it stays registered, takes calls and makes them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    maybeDeferred,
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

from broker.interfaces import IPortOpener
from broker.messages.grammar import entry
from broker.messages.grammar import identifier as canonical
from broker.messages.message import Message, printable
from broker.net.keyed_lock import KeyedLock
from broker.tables.consent_lists import NONE_ACCEPTED, ConsentLists, check_lists
from broker.terminal.calls.callee_port import CalleePort
from broker.terminal.calls.dial_back import DialBack, knows
from broker.terminal.calls.place_call import CallContext, dialling_hub, place_call
from broker.terminal.calls.wait_for_callee import ConnectBackWaiter, PortOffer
from broker.terminal.candidates import FailedCandidate
from broker.terminal.channel.active_calls import ActiveCalls
from broker.terminal.incoming.listener import InboundConnection, InboundListener
from broker.terminal.incoming.pending_calls import PendingCalls
from broker.terminal.load import Unlimited
from broker.terminal.registration.client import MediatorClient
from broker.terminal.registration.notices import ConnectBackRequest, PendingCall
from broker.terminal.registration.registration import Registration, port_number
from broker.terminal.settings import TerminalSettings

#: Makes one call over the connection to the mediator.
MakeCall = Callable[[MediatorClient], Coroutine[Deferred[Any], Any, IProtocol]]

READ_NO_LISTS: Final = "Cannot read the lists of {identifier}: every caller is refused"
SUPERSEDED: Final = (
    "{identifier} is now reached elsewhere: another connection has registered its address"
)


class Terminal(Service):
    """One terminal, as a service of your application.

    :ivar settings: what it is configured with
    :ivar calls: the calls that are open
    :ivar listening: fires with the direct listener's port; fails where it cannot be opened. Each
        start of the service sets a new one

    The methods from ``acceptable`` on are not for the application: the terminal's own parts call
    them (``RegistrationEvents`` and the other ``…Events`` protocols).
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        identifier: str,
        mediator: IStreamClientEndpoint,
        settings: TerminalSettings | None = None,
    ) -> None:
        """
        :param reactor: an ``IReactorTCP`` and ``IReactorTime``
        :param identifier: the identifier or name to log in as
        :param mediator: the only place from which it takes credentials (I26)
        :raises ValueError: that is no identifier
        """
        settings = TerminalSettings() if settings is None else settings
        identifier = canonical(identifier)
        self.settings = settings
        self.calls = ActiveCalls(self)
        self.listening: Deferred[IListeningPort] = Deferred()
        self._reactor = reactor
        self._load = Unlimited() if settings.load is None else settings.load
        self._pending = PendingCalls()
        self._turns = KeyedLock()  # by callee
        self._placing: set[Deferred[IProtocol]] = set()
        self._registration = Registration(reactor, identifier, mediator, settings, self)
        self._listener = InboundListener(
            reactor,
            identifier,
            self._pending,
            self.calls,
            self,
            handler=settings.handler,
            trace=settings.trace,
        )
        password = settings.call_password
        self._dial_back = DialBack(
            reactor,
            self._listener,
            self._pending,
            self,
            admits=knows(password) if isinstance(password, str) else password,
            allowed=settings.call_back_to,
        )
        self._connect_back = ConnectBackWaiter(reactor, self._listener, self.calls)
        self._hub = dialling_hub(reactor, settings.trace)

    @property
    def identifier(self) -> str:
        """The identifier it acts as: after a login by a name, the one that the name stands for."""
        return self._registration.identifier

    # As a service.

    def startService(self) -> None:
        """Open the direct listener, then connect and register."""
        super().startService()  # type: ignore[no-untyped-call]
        if self.settings.listen is None:
            self._registration.start()
            return
        self.listening = Deferred()
        listening = self.settings.listen.listen(self._listener.factory())
        listening.addCallback(self._listens)
        listening.addErrback(self.listening.errback)

    def _listens(self, port: IListeningPort) -> None:
        self._registration.port = port
        self._registration.start()
        self.listening.callback(port)

    async def _stop(self) -> None:
        # First nothing new may come in; the connection to the mediator goes last, since the ends of
        # the calls are reported over it.
        port, self._registration.port = self._registration.port, None
        if port is not None:
            await maybeDeferred(port.stopListening)
        for placing in list(self._placing):
            placing.cancel()
        self._dial_back.stop()
        self._listener.stop()
        await self._registration.close_published()
        self.calls.end_all("the terminal stops")
        await self.calls.none()
        await self._connect_back.stop()
        await self._registration.stop()
        self._hub.stop()

    def stopService(self) -> Deferred[None]:
        """Abort the calls; close the listener and the connection to the mediator.

        :return: fires when all of them are closed; a peer that does not read delays that for as
            long as a channel lingers
        """
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    # For its application.

    def ready(self) -> Deferred[None]:
        """Fires once the terminal is connected and registered, or registered by UDP alone."""
        return self._registration.ready()

    def call(self, callee: str, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Call a terminal; the protocol that the factory makes speaks over the channel.

        By whichever candidate connects first: directly, within our own network, by hole punching,
        or by the callee's connecting to us. The channel's ``candidate`` says which, and its
        ``failed_candidates`` why the others failed (``ISessionTransport``).

        Calls to one callee are made one after the other, since a new query voids what an earlier
        one was granted and has not used yet.

        :return: fires with that protocol; fails with a ``Refused``, ``CallFailed``, or
            ``ConnectionLost`` where the connection to the mediator is lost; cancel to give up
        """
        return self._place(callee, lambda client: self._call(client, callee, factory))

    async def _call(
        self, client: MediatorClient, callee: str, factory: IProtocolFactory
    ) -> IProtocol:
        context = CallContext(self._reactor, client, self.calls, self._hub)
        offer = await self._offer(client)
        hidden = self.settings.address is not None  # only that address is told to callees
        return await place_call(context, callee, factory, seen=not hidden, offer=offer)

    async def _offer(self, client: MediatorClient) -> PortOffer | FailedCandidate | None:
        """Where a callee can connect to us, if no router is in its way, or it opens a port."""
        if self._registration.port is None or client.share_port() is None:
            return None
        settings = self.settings
        address, opener = None, settings.opener
        if settings.address is not None:  # no other address of ours is disclosed
            address = (settings.address, settings.port or port_number(self._registration.port))
            opener = None
        elif settings.port is not None and opener is None:
            address = (client.local_host, settings.port)
        port = CalleePort(port=self._registration.port, address=address, opener=opener)
        return await self._connect_back.offer(client, port)

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

        It connects to the direct listener, or to one that is opened for this call alone. The
        protocol that the factory makes speaks over the channel, as in ``call``.

        :param password: the callee's call password
        :param address: the host and port at which we are reached from outside; default: our own
            address on the mediator's connection, and the listener's port
        :param listen: a listener for this call alone; default: the direct listener
        :param opener: opens a port in the router for this call, where there is no ``address``;
            default: the terminal's own, if it has one
        :return: like ``call``; every refusal is ``PermissionDenied``
        """
        opener = self.settings.opener if opener is None else opener

        def place(client: MediatorClient) -> Coroutine[Deferred[Any], Any, IProtocol]:
            port = CalleePort(listen, self._registration.port, address, opener)
            return self._connect_back.call(client, callee, factory, password, port)

        return self._place(callee, place)

    def _place(self, callee: str, make: MakeCall) -> Deferred[IProtocol]:
        placing = Deferred.fromCoroutine(self._one_by_one(callee, make))
        self._placing.add(placing)

        def placed(result: object) -> object:
            self._placing.discard(placing)
            return result

        placing.addBoth(placed)
        return placing

    def edit(self, edits: Sequence[str]) -> Deferred[Message]:
        """Edit the terminal's permits: ``['Add Ic,Ie', 'Delete If']``."""
        return self._registration.connected().addCallback(
            lambda client: client.register(edits=edits)
        )

    def accepted(self) -> Deferred[list[str]]:
        """The terminal's permits, as the mediator has them."""
        return self._registration.connected().addCallback(lambda client: client.accepted())

    async def _one_by_one(self, callee: str, make: MakeCall) -> IProtocol:
        """Make a call once those to the same callee before it are open, or have failed."""
        await self._turns.acquire(callee)
        try:
            return await make(await self._registration.connected())
        finally:
            self._turns.release(callee)

    # From the mediator.

    def acceptable(self) -> bool:
        """The status (fig. 18)."""
        self._registration.note_activity()
        able = self.settings.handler is not None and bool(self.running)
        return able and self.has_room() and self._load.acceptable()

    async def consent_lists(self) -> ConsentLists:
        """The callers that it accepts and refuses now; none accepted, where that fails (I3)."""
        self._registration.note_activity()
        if self.settings.consent is None:
            return NONE_ACCEPTED
        try:
            accepted, rejected = await self.settings.consent.lists()
            lists = ConsentLists([*map(entry, accepted)], [*map(entry, rejected)])
            return check_lists(lists)
        except CancelledError:  # the mediator has stopped waiting
            raise
        except Exception:
            self.log.failure(READ_NO_LISTS, identifier=printable(self.identifier))
            return NONE_ACCEPTED

    def call_announced(self, client: MediatorClient, call: PendingCall) -> None:
        """Expect the caller (fig. 5e), and connect to it where it has asked for that."""
        self._registration.note_activity()
        if self.running:
            self._dial_back.expect(call)
            # With a configured address, a caller we dial would see where we really are.
            if self.settings.address is None:
                self._dial_back.meet(client, call)

    async def admits_dial_back(self, client: MediatorClient, request: ConnectBackRequest) -> bool:
        """Whether it connects to a caller that shows its call password (D7)."""
        self._registration.note_activity()
        return await self._dial_back.comes(client, request)

    def dial_back(self, request: ConnectBackRequest) -> None:
        """Connect to a caller, as it has said that it does."""
        self._registration.note_activity()
        self._dial_back.come(request)

    def session_terminated(self, session: str, how: str | None = None) -> None:
        """End what belongs to a session: it is void."""
        self._pending.discard(session)
        self._dial_back.terminated(session)
        self.calls.terminate(session)
        self._connect_back.terminated(session, how)

    def superseded(self) -> None:
        """Another connection registered as this terminal; that is worth an operator's look."""
        self._registration.superseded()
        self.log.warn(SUPERSEDED, identifier=printable(self.identifier))

    def mediator_lost(self, client: MediatorClient, reason: Failure) -> None:
        """No withdrawal could reach us now: calls that have not begun are void (I2)."""
        self._pending.clear()
        self._dial_back.stop()

    # From the registration, the listener and the calls.

    def logged_in(self, client: MediatorClient) -> None:
        """Callers address it by the identifier that it is logged in as."""
        self._listener.identifier = client.identifier

    def busy(self) -> bool:
        """Whether a call is open, being made, or announced."""
        pending = self._pending.any(self._reactor.seconds())
        return bool(len(self.calls) or self._placing or pending)

    def has_room(self) -> bool:
        """Whether one more call can be taken now (A25)."""
        return not (self.settings.one_at_a_time and len(self.calls))

    def woken(self) -> None:
        """The mediator waits for a connection, as a notice from outside says (I26)."""
        self._registration.connect_now()

    def own_addresses(self, client: MediatorClient) -> list[tuple[str, int]]:
        """The hosts and ports at which it takes calls itself: it does not dial these."""
        return self._registration.own_addresses(client)

    def connected_back(self, inbound: InboundConnection, session: str) -> None:
        """A callee has connected to us, for a call of ours (D7)."""
        self._connect_back.connected_back(inbound, session)

    def began(self, session: str) -> None:
        """A call has begun: report it."""
        self._dial_back.terminated(session)  # it need not be dialled for it now
        self._registration.began(session)

    def ended(self, session: str, how: str) -> None:
        """A call is over: report how (S5007)."""
        self._registration.ended(session, how)
