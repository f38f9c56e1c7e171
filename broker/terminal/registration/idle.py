"""How a terminal that registers by UDP is reached: by its line while it has one, else by a notice.

Where it need not hold its line it closes it when there is nothing to do, and lives on keepalives;
a notice along its mapping makes it connect, and all else follows over the line (D1–D5, I26).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from math import inf
from typing import Any, Final

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionLost, DNSLookupError
from twisted.internet.interfaces import IAddress, IDelayedCall, IHostResolution, IResolutionReceiver
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from broker.messages.errors import Refused
from broker.messages.grammar import DEFAULT_EXPIRES
from broker.messages.message import Message, printable
from broker.net.reconnecting import ReconnectingClient
from broker.tables.grants import Randomness
from broker.terminal.registration.client import ANSWER_TIMEOUT, MediatorClient
from broker.terminal.registration.keepalive_interval import MOST, KeepaliveInterval
from broker.terminal.registration.udp_keepalive import Keepalive, Server

#: Seconds for which a line with nothing to do is kept: whatever was asked there may be answered.
LINGER: Final = ANSWER_TIMEOUT
#: Of the time for which a key outlives its connection, the part after which another is asked for.
RENEWAL: Final = 0.75
#: Seconds in which a line that may be dead must answer: a good one does in a round trip, though a
#: packet be lost. Another can then be made within the five seconds of the call that asks for it.
CHECK_TIMEOUT: Final = 1.5
#: The same of one that is slow rather than dead: something has come over it of late. What the
#: mediator asked has, before it took the silence for an answer, about a second ago.
SLOW_TIMEOUT: Final = 5.0
#: Seconds that are of late.
LATE: Final = 1.5
#: Seconds in which a key that gets no answers is replaced over a standing line only one time.
KEY_INTERVAL: Final = 60.0


class IdleConnection:
    """The registration by UDP of one terminal, and whether it holds its line.

    :ivar quiet: the line is closed, or is being closed, until something is to be done
    :ivar keepalive: what is said by UDP, once there was a login
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        link: ReconnectingClient[MediatorClient],
        register: Callable[[MediatorClient], Awaitable[Message]],
        *,
        server: tuple[str | None, int],
        randomness: Randomness,
        busy: Callable[[], bool],
        woken: Callable[[], object],
        hold: bool = True,
        most: float = MOST,
        linger: float = LINGER,
    ) -> None:
        """
        :param register: registers over a line, and so asks for a key
        :param server: the host and port of the resolver's datagrams; without a host, wherever the
            line goes
        :param busy: whether a call is on, or on its way
        :param woken: called when a genuine notice has come, or the network is back; it is to call
            ``wake`` unless that would be too often
        :param hold: keep the line, whatever there is to do
        :param most: the longest interval between keepalives, in seconds
        :param linger: seconds for which a line with nothing to do is kept
        """
        self.quiet = False
        self.keepalive: Keepalive | None = None
        self._reactor = reactor
        self._link = link
        self._register = register
        self._host, self._udp_port = server
        self._randomness = randomness
        self._busy = busy
        self._woken = woken
        self._hold = hold
        self._linger = linger
        self._pace = KeepaliveInterval(most)
        self._touched = 0.0
        self._looking: IDelayedCall | None = None  # whether the line may be closed
        self._renewing: IDelayedCall | None = None  # the key, while it is
        self._closing = False  # the line is being closed
        self._waiting: list[Deferred[None]] = []  # who waits for that
        self._checking = False  # whether the line is dead
        self._outside: Server | None = None
        self._next_key = 0.0

    # For the terminal.

    async def registered(self, line: MediatorClient, answer: Message) -> None:
        """A login was answered: go on under the key that it brought."""
        key_id, key = answer.get("Key ID"), answer.get("Registration Key")
        if key_id is None or key is None:
            self.log.warn("The mediator gave no key for registration by UDP: the line is held")
            return
        try:
            server = await self._server(line)
        except DNSLookupError:
            self.log.warn("{host} is not known: the line is held", host=self._host)
            return
        keepalive = self.keepalive
        if keepalive is None or keepalive.server != server:
            if keepalive is not None:
                keepalive.stop()
            keepalive = self.keepalive = Keepalive(
                self._reactor,
                server,
                self._pace,
                self._randomness,
                noticed=self._noticed,
                failed=self._failed,
                answered=self._answered,
                moved=self._moved,
            )
        self._next_key = self._reactor.seconds() + KEY_INTERVAL
        interval = float(answer.get("Interval") or MOST)
        keepalive.use(line.identifier, key_id, bytes.fromhex(key), interval)
        self.touch()

    def touch(self) -> None:
        """Something is done on the line: it is kept a while."""
        self._touched = self._reactor.seconds()
        if self._looking is None and not self._hold and not self.quiet:
            self._looking = self._reactor.callLater(self._linger, self._look)

    def superseded(self) -> None:
        """Another connection has taken the reach over: it is not taken back by a new key."""
        self._next_key = inf

    def wake(self) -> None:
        """Connect, if the line is closed."""
        if not self.quiet:
            self.touch()
        else:  # where it is still being closed, the next is made after that
            self.quiet = False
            self._cancel()
            self._link.startService()

    def awake(self) -> Deferred[None]:
        """The same; fires when the line is not a closing one."""
        self.wake()
        if not self._closing:
            return succeed(None)
        waiting: Deferred[None] = Deferred()
        self._waiting.append(waiting)
        return waiting

    def stop(self) -> Deferred[Any]:
        """Close the UDP port, and leave no timer behind."""
        self._cancel()
        self.quiet = self._closing = False
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.cancel()
        keepalive, self.keepalive = self.keepalive, None
        return succeed(None) if keepalive is None else keepalive.stop()

    # The line.

    def _look(self) -> None:
        """Close the line, if there is nothing to do on it and a notice would come."""
        self._looking = None
        left = self._touched + self._linger - self._reactor.seconds()
        if left > 0:
            self._looking = self._reactor.callLater(left, self._look)
        elif self._busy() or self._link.conversation is None or not self._reached:
            self._looking = self._reactor.callLater(self._linger, self._look)
        else:
            self._go_quiet()

    @property
    def _reached(self) -> bool:
        return self.keepalive is not None and self.keepalive.alive

    def _go_quiet(self) -> None:
        self.log.info("The connection to the mediator is closed until something is to be done")
        self.quiet = self._closing = True
        self._renewing = self._reactor.callLater(RENEWAL * DEFAULT_EXPIRES, self.wake)
        self._link.stopService().addCallback(self._closed)

    def _closed(self, _: object) -> None:
        self._closing = False
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(None)

    def _cancel(self) -> None:
        for timer in (self._looking, self._renewing):
            if timer is not None and timer.active():
                timer.cancel()
        self._looking = self._renewing = None

    # Told by the keepalive.

    def _noticed(self) -> None:
        self.log.info("A connection is asked for")
        self._check()  # whoever asks for one has none, whatever we believe
        self._woken()

    def _check(self) -> None:
        """See that the line is not dead: else it is made again."""
        line = self._link.conversation
        if line is None or self.quiet or self._checking:
            return
        self._checking = True
        began = self._reactor.seconds()
        patience = SLOW_TIMEOUT if began - line.heard < LATE else CHECK_TIMEOUT
        checking = line.accepted().addTimeout(patience, self._reactor)

        def failed(_: Failure) -> None:
            if line.heard <= began:  # else what was asked is on its way, or lost for a while
                line.stream.abort()

        checking.addErrback(failed)
        checking.addBoth(self._checked)

    def _checked(self, _: object) -> None:
        self._checking = False

    def _answered(self) -> None:
        if not self.quiet and self._link.conversation is None:  # the network is there
            self._woken()

    def _failed(self) -> None:
        """Nothing comes back: log in again, which brings another key (E1)."""
        line = self._link.conversation
        if self.quiet:
            self.log.info("Keepalives stay without an answer: connecting")
            self.wake()
        elif line is not None and self._reactor.seconds() >= self._next_key:
            self.log.info("Keepalives stay without an answer: asking for another key")
            Deferred.fromCoroutine(self._ask_again(line))

    async def _ask_again(self, line: MediatorClient) -> None:
        self._next_key = self._reactor.seconds() + KEY_INTERVAL
        try:
            await self.registered(line, await self._register(line))
        except (Refused, ConnectionLost) as error:
            self.log.info("There is no other key: {why}", why=printable(str(error)))
            line.stream.abort()  # it is logged in again on another

    def _moved(self, host: str, port: int) -> None:
        """We look otherwise from outside: what went through the old way may be dead."""
        self.log.info("Seen from outside at {host} port {port}", host=host, port=port)
        before, self._outside = self._outside, (host, port)
        if before is not None:
            self._check()

    # Where the resolver is.

    async def _server(self, line: MediatorClient) -> Server:
        if self._host is None:
            return line.remote_host, self._udp_port
        try:
            return str(ip_address(self._host)), self._udp_port
        except ValueError:
            found = _Found()
            self._reactor.nameResolver.resolveHostName(
                found, self._host, addressTypes=[IPv4Address, IPv6Address], transportSemantics="UDP"
            )
            return await found.first, self._udp_port


@implementer(IResolutionReceiver)
class _Found:
    """The first address of a name.

    :ivar first: fires with it; fails with ``DNSLookupError`` where there is none
    """

    def __init__(self) -> None:
        self.first: Deferred[str] = Deferred()
        self._host: str | None = None

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None:
        """Nothing is known yet."""

    def addressResolved(self, address: IAddress) -> None:
        """One of its addresses."""
        if self._host is None:
            self._host = str(getattr(address, "host", ""))

    def resolutionComplete(self) -> None:
        """That was all."""
        if self._host is None:
            self.first.errback(DNSLookupError())
        else:
            self.first.callback(self._host)
