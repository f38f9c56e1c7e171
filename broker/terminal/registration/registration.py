"""A terminal's registration: kept over one connection to the mediator, by UDP, or both."""

from __future__ import annotations

from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred, TimeoutError, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort, IStreamClientEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.messages.errors import Refused, ServiceUnavailable
from broker.messages.grammar import DEFAULT_PORT
from broker.messages.message import Message, printable
from broker.net.connection import PeerConnection
from broker.net.hub import ConnectionHub
from broker.net.reconnecting import ClientEvents, ReconnectingClient
from broker.terminal.ports.published_port import PublishedPort
from broker.terminal.registration.client import MediatorClient, MediatorEvents
from broker.terminal.registration.idle import IdleConnection
from broker.terminal.registration.login import LOGIN_PATIENCE, Login
from broker.terminal.settings import TerminalSettings

#: Seconds for which a call waits for the connection to the mediator.
CONNECT_TIMEOUT: Final = 10.0
#: Seconds in which notices from outside, which prove nothing, make it connect at once only once.
WAKE_UP_INTERVAL: Final = 1.0


class RegistrationEvents(MediatorEvents, Protocol):
    """What a terminal hears of its registration, and of what the mediator says."""

    def logged_in(self, client: MediatorClient) -> None:
        """The terminal is logged in, as ``client.identifier``."""

    def busy(self) -> bool:
        """Whether the connection is needed: a call is open, being made, or announced."""
        ...


class Registration(ClientEvents[MediatorClient]):
    """Keeps one terminal registered.

    :ivar identifier: what the terminal acts as; after a login by a name, the identifier it stands
        for
    :ivar port: the direct listener, while there is one
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        identifier: str,
        mediator: IStreamClientEndpoint,
        settings: TerminalSettings,
        events: RegistrationEvents,
    ) -> None:
        self.identifier = identifier
        self._logs_in_as = identifier
        self.port: IListeningPort | None = None
        self._reactor = reactor
        self._settings = settings
        self._events = events
        self._login = Login(settings)
        self._next_wake_up = 0.0
        self._published: PublishedPort | None = None
        if settings.open_port and settings.opener is not None:
            self._published = PublishedPort(settings.opener, self)
        self._hub = ConnectionHub.of_client(reactor, trace=settings.trace)
        self._connection: ReconnectingClient[MediatorClient] = ReconnectingClient(
            mediator,
            self._hub,
            self,
            jitter=settings.jitter,
            patience=LOGIN_PATIENCE,
        )
        self._idle: IdleConnection | None = None
        if settings.udp is not None:
            self._idle = IdleConnection(reactor, self._connection, settings, self)

    # As the events of its connection.

    def make_dialogue(self, connection: PeerConnection) -> MediatorClient:
        """Make the client that speaks over a new connection."""
        return MediatorClient(
            connection,
            self._reactor,
            # The configured name: each login gives the identifier that it stands for now.
            self._logs_in_as,
            self._events,
            allow_clear_text=self._settings.allow_clear_text,
        )

    # For the terminal.

    def start(self) -> None:
        """Connect, log in and register, and keep doing so."""
        self._connection.startService()

    async def close_published(self) -> None:
        """Close the listener's port in the router."""
        if self._published is not None:
            await self._published.stop()

    async def stop(self) -> None:
        """Close the connection and the UDP port."""
        if self._idle is not None:
            await self._idle.stop()
        await maybeDeferred(self._connection.stopService)
        self._hub.stop()

    @property
    def client(self) -> MediatorClient | None:
        """The connection to the mediator, while it is open and logged in."""
        return self._connection.dialogue

    def ready(self) -> Deferred[None]:
        """Fires once the terminal is connected and registered, or registered by UDP alone."""
        if self._idle is not None and self._idle.idle:
            return succeed(None)
        return self._connection.wait().addCallback(lambda _: None)

    def connected(self) -> Deferred[MediatorClient]:
        """The connection to the mediator, made if it was closed because it was idle.

        :return: fails with ``ServiceUnavailable`` after ``CONNECT_TIMEOUT``
        """

        def late(failure: Failure) -> MediatorClient:
            failure.trap(TimeoutError)
            raise ServiceUnavailable("there is no connection to the mediator")

        awake = succeed(None) if self._idle is None else self._idle.awake()
        connected = awake.addCallback(lambda _: self._connection.wait())
        return connected.addTimeout(CONNECT_TIMEOUT, self._reactor).addErrback(late)

    def connect_now(self) -> None:
        """Connect at once, if not connected: once in ``WAKE_UP_INTERVAL``, whatever comes (I16)."""
        now = self._reactor.seconds()
        if now >= self._next_wake_up and not self._login.refused:  # else: refused as often
            self._next_wake_up = now + WAKE_UP_INTERVAL
            # One of the two does something: an idle connection is closed, a lost one waits.
            if self._idle is not None:
                self._idle.wake()
            self._connection.retry_now()

    def note_activity(self) -> None:
        """Something is done over the connection: it is not idle now."""
        if self._idle is not None:
            self._idle.note_activity()

    def superseded(self) -> None:
        """Another connection has registered as this terminal: it is not taken back."""
        if self._idle is not None:
            self._idle.superseded()

    def began(self, session: str) -> None:
        """Report that a call has begun, if there is a connection."""
        client = self.client
        if client is not None:
            client.began(session)

    def ended(self, session: str, how: str) -> None:
        """Report that a call has ended, if there is a connection."""
        self.note_activity()
        client = self.client
        if client is not None:
            client.ended(session, how)

    # For the idle connection.

    def busy(self) -> bool:
        """Whether the connection is needed: for a call, or while a port is being opened."""
        published = self._published
        return self._events.busy() or (published is not None and published.busy)

    def register(self, client: MediatorClient) -> Deferred[Message]:
        """Register where the terminal is; with UDP, this requests a key."""
        return client.register(**self.contact(client))

    # Where the terminal is.

    def contact(self, client: MediatorClient) -> dict[str, Any]:
        """Where to say that the terminal is, as arguments of ``MediatorClient.register``.

        Registered by UDP, it is where its datagrams come from, unless an address is configured.
        """
        settings, published = self._settings, self._published
        contact: dict[str, Any] = {}
        if published is not None and self._idle is None and not published.known(client):
            return contact  # it is not known yet how it can be reached
        if self._idle is not None:
            contact["udp"] = True  # requests a key, which the answer brings
        if self.port is not None:
            number = port_number(self.port)
            contact["port"] = settings.port or number
            if settings.address is not None or self._idle is None:
                contact["address"] = settings.address or client.local_host
            # With a configured address, callers must not learn any other address of ours.
            if settings.address is None and client.share_port() is not None:
                contact["local"] = (client.local_host, number)
                contact["seen"] = True
        outside = None if published is None else published.address(client)
        if outside is not None:
            contact["address"], contact["port"] = outside
        return contact

    def own_addresses(self, client: MediatorClient) -> list[tuple[str, int]]:
        """The addresses at which the terminal itself takes calls: it must not dial these."""
        if self.port is None:
            return []
        contact = self.contact(client)
        number = port_number(self.port)
        hosts = {client.local_host, contact.get("address", client.local_host)}
        ports = {contact.get("port", number), number}
        return [(host, port) for host in hosts for port in ports]

    # Logging in and registering.

    async def prepare(self, client: MediatorClient) -> None:
        """Log in over a new connection and register: the connection is up after that."""
        try:
            answer = await self._login.log_in(client, self.contact(client))
            self.identifier = client.identifier
            self._events.logged_in(client)
            await self._login.add_permits(client, answer.get("Epoch"))
            if self._idle is not None:
                await self._idle.registered(client, answer)
            if self._published is not None and self.port is not None:
                self._published.begin(client, port_number(self.port))
        except Refused as refusal:
            self._refused(refusal)
            raise
        self._login.succeeded()
        self.log.info("{identifier} is registered", identifier=printable(self.identifier))

    async def register_published(self, client: MediatorClient, stale: bool) -> None:
        """Register what is known now: whether the router has opened a port, and which.

        :param stale: the address registered over this connection is not reached now
        """
        assert self._published is not None
        try:
            if stale:
                await client.register(expires=0)
            elif self._idle is not None and self._published.address(client) is None:
                return  # registered so already
            answer = await self.register(client)
            if self._idle is not None:
                await self._idle.registered(client, answer)
        except Refused as refusal:
            self._refused(refusal)

    def _refused(self, refusal: Refused) -> None:
        if self._login.note_refusal(refusal, self.identifier):
            self._connection.slow_down()


def port_number(port: IListeningPort) -> int:
    """The number of a listening port."""
    number: int = getattr(port.getHost(), "port", DEFAULT_PORT)
    return number
