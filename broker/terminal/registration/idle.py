"""A connection to the mediator that may be closed while it is idle.

A terminal that registers by UDP does not need its connection while there is nothing to do. It is
closed then; keepalives by UDP keep the terminal reachable, and a notice along the same mapping
makes it connect again. All else follows over the connection (D1–D5, I26).
"""

from __future__ import annotations

from collections.abc import Awaitable
from ipaddress import ip_address
from math import inf
from typing import Any, Final, Protocol

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionLost, DNSLookupError
from twisted.internet.interfaces import IAddress, IHostResolution, IResolutionReceiver
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from broker.messages.errors import Refused
from broker.messages.grammar import DEFAULT_EXPIRES
from broker.messages.message import Message, printable
from broker.net.reconnecting import ReconnectingClient
from broker.net.timers import Timer
from broker.states import StateTable
from broker.terminal.registration.client import MediatorClient
from broker.terminal.registration.keepalive_interval import LONGEST, KeepaliveInterval
from broker.terminal.registration.udp_keepalive import Keepalive, Server
from broker.terminal.settings import TerminalSettings

#: A key outlives its connection for some time: the part of it after which another is requested.
RENEWAL: Final = 0.75
#: Seconds in which a connection that may be dead must answer. A live one does within a round trip,
#: even if a packet is lost. Another can then be made within the five seconds of the call that
#: needs it.
CHECK_TIMEOUT: Final = 1.5
#: The limit for a connection that is slow rather than dead: something has just arrived over it.
#: The mediator's own request has been under way for about a second when it wakes us.
SLOW_TIMEOUT: Final = 5.0
#: What arrived within this many seconds has just arrived.
RECENT: Final = 1.5
#: Seconds in which a key that gets no answers is replaced over an open connection only once.
KEY_INTERVAL: Final = 60.0

NO_KEY: Final = "The mediator gave no key for registration by UDP: the connection to it stays open"
NO_HOST: Final = "{host} is not in DNS: the connection to the mediator stays open"
IDLE_CLOSED: Final = "Idle: closing the connection to the mediator"
WOKEN: Final = "Woken: connecting to the mediator"
NO_ANSWER_CONNECT: Final = "No answer to keepalives: connecting to the mediator"
NO_ANSWER_KEY: Final = "No answer to keepalives: requesting a new key"
NO_NEW_KEY: Final = "No new key for keepalives: {why}"
SEEN: Final = "Seen from outside at {host} port {port}"

# The states of the connection, and what leads from one to another.
ACTIVE: Final = "active"  # open, or being made
CLOSING: Final = "closing"  # idle: it is being closed
IDLE: Final = "idle"  # closed, until something needs it
REOPENING: Final = "reopening"  # needed again while it is still being closed

CLOSE: Final = "close"
CLOSED: Final = "closed"
WAKE: Final = "wake"
STOP: Final = "stop"

STATES: Final = StateTable(
    "idle connection",
    ACTIVE,
    {
        # One that was stopped while it was being closed hears of that only now.
        ACTIVE: {CLOSE: CLOSING, CLOSED: ACTIVE, WAKE: ACTIVE, STOP: ACTIVE},
        CLOSING: {CLOSED: IDLE, WAKE: REOPENING, STOP: ACTIVE},
        # Closed twice, from "reopening" again, it hears of that twice.
        IDLE: {CLOSED: IDLE, WAKE: ACTIVE, STOP: ACTIVE},
        REOPENING: {CLOSE: CLOSING, CLOSED: ACTIVE, WAKE: REOPENING, STOP: ACTIVE},
    },
)


class IdleEvents(Protocol):
    """What the connection asks of its owner, and tells it."""

    def busy(self) -> bool:
        """Whether the connection is needed."""
        ...

    def register(self, client: MediatorClient) -> Awaitable[Message]:
        """Register over a connection, which requests a new key for UDP."""
        ...

    def connect_now(self) -> None:
        """A signed notice has arrived, or the network is back: call ``wake``, but not too often."""


class IdleConnection:
    """Closes a terminal's connection while it is idle, and registers by UDP all the time.

    :ivar state: one of ``STATES``
    :ivar keepalive: the registration by UDP, after the first login
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        connection: ReconnectingClient[MediatorClient],
        settings: TerminalSettings,
        events: IdleEvents,
    ) -> None:
        """
        :param settings: ``hold``, ``linger``, ``keepalive_most`` and ``udp``, which is set
        """
        assert settings.udp is not None
        self.state = STATES.initial
        self.keepalive: Keepalive | None = None
        self._reactor = reactor
        self._connection = connection
        self._settings = settings
        self._events = events
        self._interval = KeepaliveInterval(settings.keepalive_most)
        self._last_activity = 0.0
        self._linger = Timer(reactor, self._close_if_idle)
        self._renewal = Timer(reactor, self.wake)  # of the key, while it is closed
        self._waiting: list[Deferred[None]] = []  # until the connection is not a closing one
        self._checking = False  # whether the connection is dead
        self._outside: Server | None = None
        self._next_key = 0.0

    def _advance(self, event: str) -> None:
        self.state = STATES.advance(self.state, event)

    # For the registration.

    @property
    def idle(self) -> bool:
        """Whether the connection is closed, or being closed, until it is needed."""
        return self.state in (CLOSING, IDLE)

    async def registered(self, client: MediatorClient, answer: Message) -> None:
        """A login was answered: send keepalives under the key that it brought."""
        key_id, key = answer.get("Key ID"), answer.get("Registration Key")
        if key_id is None or key is None:
            self.log.warn(NO_KEY)
            return
        try:
            server = await self._find_server(client)
        except DNSLookupError:
            assert self._settings.udp is not None
            self.log.warn(NO_HOST, host=self._settings.udp[0])
            return
        keepalive = self.keepalive
        if keepalive is None or keepalive.server != server:
            # The interval is kept: it is a property of the router, not of the server.
            if keepalive is not None:
                keepalive.stop()
            keepalive = self.keepalive = Keepalive(
                self._reactor, server, self._interval, self._settings.randomness, self
            )
        self._next_key = self._reactor.seconds() + KEY_INTERVAL
        interval = float(answer.get("Interval") or LONGEST)
        keepalive.use(client.identifier, key_id, bytes.fromhex(key), interval)
        self.note_activity()

    def note_activity(self) -> None:
        """The connection is in use: it stays open for ``linger`` seconds from now."""
        self._last_activity = self._reactor.seconds()
        # The timer is not restarted: it looks at the time of the last activity when it fires.
        if not (self._linger.active or self._settings.hold or self.idle):
            self._linger.start(self._settings.linger)

    def superseded(self) -> None:
        """Another connection is the active one: a new key must not take that back."""
        self._next_key = inf

    def wake(self) -> None:
        """Connect, if the connection is closed."""
        was_idle = self.idle
        self._advance(WAKE)
        if not was_idle:
            self.note_activity()
            return
        self._stop_timers()
        self._connection.startService()  # while it is being closed: it connects after that

    def awake(self) -> Deferred[None]:
        """Like ``wake``; fires when the old connection is not being closed now."""
        self.wake()
        if self.state != REOPENING:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        return waiting

    def stop(self) -> Deferred[Any]:
        """Close the UDP port, and leave no timer behind."""
        self._stop_timers()
        self._advance(STOP)
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            deferred.cancel()
        keepalive, self.keepalive = self.keepalive, None
        return succeed(None) if keepalive is None else keepalive.stop()

    # Closing.

    def _close_if_idle(self) -> None:
        """Close the connection if it has been idle for long enough and a notice would arrive."""
        linger = self._settings.linger
        left = self._last_activity + linger - self._reactor.seconds()
        if left > 0:
            self._linger.start(left)
        elif self._events.busy() or self._connection.dialogue is None or not self._reachable:
            # Without answers to keepalives, no notice would arrive: the terminal would be lost.
            self._linger.start(linger)
        else:
            self._close()

    @property
    def _reachable(self) -> bool:
        return self.keepalive is not None and self.keepalive.alive

    def _close(self) -> None:
        self.log.info(IDLE_CLOSED)
        self._advance(CLOSE)
        self._renewal.start(RENEWAL * DEFAULT_EXPIRES)
        self._connection.stopService().addCallback(self._closed)

    def _closed(self, _: object) -> None:
        self._advance(CLOSED)
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            deferred.callback(None)

    def _stop_timers(self) -> None:
        self._linger.stop()
        self._renewal.stop()

    # From the keepalive.

    def connection_requested(self) -> None:
        """A notice: the mediator has no live connection of ours, whatever we believe."""
        self.log.info(WOKEN)
        self._check()
        self._events.connect_now()

    def keepalive_answered(self) -> None:
        """The network is there: connect, if that is being waited for."""
        if not self.idle and self._connection.dialogue is None:
            self._events.connect_now()

    def keepalive_failed(self) -> None:
        """No answer arrives: log in again, which brings another key (E1)."""
        client = self._connection.dialogue
        if self.idle:
            self.log.info(NO_ANSWER_CONNECT)
            self.wake()
        elif client is not None and self._reactor.seconds() >= self._next_key:
            self.log.info(NO_ANSWER_KEY)
            Deferred.fromCoroutine(self._renew_key(client))

    def source_changed(self, host: str, port: int) -> None:
        """The router has changed: a connection through its old mappings may be dead."""
        self.log.info(SEEN, host=host, port=port)
        before, self._outside = self._outside, (host, port)
        if before is not None:  # at first, there is no older mapping that could be dead
            self._check()

    async def _renew_key(self, client: MediatorClient) -> None:
        self._next_key = self._reactor.seconds() + KEY_INTERVAL
        try:
            await self.registered(client, await self._events.register(client))
        except (Refused, ConnectionLost) as error:
            self.log.info(NO_NEW_KEY, why=printable(str(error)))
            client.stream.abort()  # the next connection logs in again

    def _check(self) -> None:
        """Find out whether the connection is dead; if it is, another is made."""
        client = self._connection.dialogue
        if client is None or self.idle or self._checking:
            return
        self._checking = True
        began = self._reactor.seconds()
        patience = SLOW_TIMEOUT if began - client.heard < RECENT else CHECK_TIMEOUT
        # Any request would do: this one changes nothing, and every mediator answers it.
        checked = client.accepted().addTimeout(patience, self._reactor)

        def failed(_: Failure) -> None:
            if client.heard <= began:  # else the answer is on its way, or delayed
                client.stream.abort()

        checked.addErrback(failed)
        checked.addBoth(self._checked)

    def _checked(self, _: object) -> None:
        self._checking = False

    # Where the resolver is.

    async def _find_server(self, client: MediatorClient) -> Server:
        """The address that datagrams are sent to.

        :raises DNSLookupError: the configured host has no address
        """
        assert self._settings.udp is not None
        host, port = self._settings.udp
        if host is None:
            return client.remote_host, port
        try:
            return str(ip_address(host)), port
        except ValueError:
            found = _FirstAddress()
            self._reactor.nameResolver.resolveHostName(
                found, host, addressTypes=[IPv4Address, IPv6Address], transportSemantics="UDP"
            )
            return await found.first, port


@implementer(IResolutionReceiver)
class _FirstAddress:
    """The first address of a name.

    :ivar first: fires with it; fails with ``DNSLookupError`` where there is none
    """

    def __init__(self) -> None:
        self.first: Deferred[str] = Deferred()
        self._host: str | None = None

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """No address is known yet."""

    def addressResolved(self, address: IAddress) -> None:
        """Keep the first address."""
        if self._host is None:
            self._host = str(getattr(address, "host", ""))

    def resolutionComplete(self) -> None:
        """That was the last address."""
        if self._host is None:
            self.first.errback(DNSLookupError())
        else:
            self.first.callback(self._host)
