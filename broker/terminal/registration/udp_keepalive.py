"""A terminal's registration by UDP (fig. 2, 7a, D1, E1), and the notices that come back (fig. 10).

The datagrams keep a mapping open in the terminal's router, along which the server can notify the
terminal that it should connect. A notice says only that (I26): the terminal connects
to its own mediator, and learns the rest there.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import ceil
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import DatagramProtocol

from broker.messages.datagram import parse_datagram
from broker.messages.grammar import NOTIFY, QUERY, REGISTER
from broker.messages.message import Malformed, Message
from broker.messages.signing import sign, verify
from broker.messages.statements import ADDRESS, CONNECTION_REQUESTED, REGISTRATION_COMPLETED
from broker.net.timers import Timer
from broker.states import StateTable
from broker.tables.grants import Randomness
from broker.terminal.registration.keepalive_interval import KeepaliveInterval

#: Seconds to wait for an answer after each datagram of a keepalive; then it has failed.
REPEATS: Final = (1.0, 2.0, 4.0)
#: Challenges met in one keepalive: one is usual, another comes if the mapping changes.
CHALLENGES: Final = 3
#: Seconds for which the server must remember us: this at least, or three intervals.
REMEMBERED: Final = 60
#: Makes a query for our own address longer than any answer to it, so that nothing is amplified.
_PADDING: Final = "." * 100

# The states of a keepalive, and what leads from one to another.
STOPPED: Final = "stopped"  # no key, no port
REGISTERING: Final = "registering"  # sent; not answered under this key, or not since it failed
REGISTERED: Final = "registered"  # answered; the next one is due after the interval
REFRESHING: Final = "refreshing"  # sent; the one before was answered
UNANSWERED: Final = "unanswered"  # failed; another is sent after the interval

USE_KEY: Final = "use key"
DUE: Final = "due"
ANSWERED: Final = "answered"
FAILED: Final = "failed"
STOP: Final = "stop"

STATES: Final = StateTable(
    "UDP keepalive",
    STOPPED,
    {
        STOPPED: {USE_KEY: REGISTERING, STOP: STOPPED},
        REGISTERING: {
            USE_KEY: REGISTERING,
            ANSWERED: REGISTERED,
            FAILED: UNANSWERED,
            STOP: STOPPED,
        },
        REGISTERED: {USE_KEY: REGISTERING, DUE: REFRESHING, STOP: STOPPED},
        REFRESHING: {
            USE_KEY: REGISTERING,
            ANSWERED: REGISTERED,
            FAILED: UNANSWERED,
            STOP: STOPPED,
        },
        UNANSWERED: {USE_KEY: REGISTERING, DUE: REGISTERING, STOP: STOPPED},
    },
)

Server = tuple[str, int]


class KeepaliveEvents(Protocol):
    """What a keepalive tells its owner."""

    def connection_requested(self) -> None:
        """The server notifies us: a connection to the mediator is requested (fig. 10)."""

    def keepalive_answered(self) -> None:
        """A keepalive was answered."""

    def keepalive_failed(self) -> None:
        """A keepalive was not answered; the next is sent after the usual time."""

    def source_changed(self, host: str, port: int) -> None:
        """Our datagrams now come from this address and port, as the server sees them."""


@dataclass(slots=True)
class _Key:
    """The key of the last login.

    :ivar last_notice: the sequence number of the last notice under it: older ones are replayed
    """

    identifier: str
    key_id: str
    secret: bytes
    last_notice: int = -1


@dataclass(slots=True)
class _Attempt:
    """One keepalive: datagrams sent until one of them is answered.

    :ivar first: the sequence number of its first datagram: answers to earlier ones do not count
    :ivar silence: seconds without a datagram either way before it; ``None`` before the first one
    :ivar sent: how often it was sent, not counting the answers to challenges
    :ivar challenges: how often the server challenged it
    :ivar cookie: the last challenge, to be shown
    """

    first: int
    silence: float | None
    sent: int = 0
    challenges: int = 0
    cookie: str | None = None


class _Source:
    """The address and port that our datagrams come from, as the server sees them.

    What the server says of it is not signed. It is only logged, and used to find out how long the
    router keeps a mapping.

    :ivar seen: that address and port, once they are known
    :ivar query: the transaction of the open query for them
    :ivar suspect: the silence after which the server took us for another, until it is known
        whether the router has made another mapping
    """

    __slots__ = ("query", "seen", "suspect")

    def __init__(self) -> None:
        self.seen: Server | None = None
        self.query: str | None = None
        self.suspect: float | None = None

    def answered(self, seen: Server) -> tuple[bool, float | None]:
        """The query is answered.

        :return: whether that is news; and the silence in which the mapping was lost, if it was
        """
        before, self.seen, self.query = self.seen, seen, None
        silence, self.suspect = self.suspect, None
        # Another host altogether says nothing about how long a mapping lasts.
        same_host = before is not None and before[0] == seen[0]
        return before != seen, silence if same_host else None


class Keepalive(DatagramProtocol):
    """What a terminal sends by UDP to one server, and receives from it.

    A datagram that is not from that server, is not signed with the key of the last login, is not
    new, or has no use is ignored, and counted (E3).

    :ivar server: the server's address and port
    :ivar state: one of ``STATES``
    :ivar ignored: how often a datagram was ignored, by the reason
    """

    noisy = False

    def __init__(
        self,
        reactor: Any,
        server: Server,
        interval: KeepaliveInterval,
        randomness: Randomness,
        events: KeepaliveEvents,
    ) -> None:
        """
        :param reactor: an ``IReactorUDP`` and ``IReactorTime``
        :param server: an IP address, as the system writes it, and a port
        """
        self.server = server
        self.state = STATES.initial
        self.ignored: Counter[str] = Counter()
        self._reactor = reactor
        self._interval = interval
        self._randomness = randomness
        self._events = events
        self._port: IListeningPort | None = None
        self._key: _Key | None = None
        self._sequence = 0  # of the last datagram sent; it goes on under another key
        self._attempt = _Attempt(0, None)
        self._source = _Source()
        self._last_passed: float | None = None  # when a datagram last went through, either way
        self._timer = Timer(reactor, self._timer_fired)

    def _advance(self, event: str) -> None:
        self.state = STATES.advance(self.state, event)

    @property
    def alive(self) -> bool:
        """Whether the server has answered under the present key, and has not failed to since."""
        return self.state in (REGISTERED, REFRESHING)

    @property
    def _awaiting(self) -> bool:
        """Whether a keepalive is sent and not yet answered."""
        return self.state in (REGISTERING, REFRESHING)

    @property
    def outside(self) -> Server | None:
        """The address and port that we are seen at, once they are known; not signed."""
        return self._source.seen

    def use(self, identifier: str, key_id: str, key: bytes, interval: float) -> None:
        """Register under a key, which replaces the one before it.

        :param interval: the seconds between keepalives that the server suggests
        :raises CannotListenError: there is no free UDP port
        """
        if self._port is None:
            interface = "::" if ":" in self.server[0] else ""
            self._port = self._reactor.listenUDP(0, self, interface=interface)
        # The port stays, and with it the router's mapping.
        self._key = _Key(identifier, key_id, key)
        self._advance(USE_KEY)
        self._interval.suggest(interval)
        self._begin()

    def stop(self) -> Deferred[Any]:
        """Close the port, and forget the key."""
        self._timer.stop()
        self._advance(STOP)
        # Datagrams that the reactor has read by now still arrive: none of them counts.
        self._key = self._source.query = None
        port, self._port = self._port, None
        return succeed(None) if port is None else maybeDeferred(port.stopListening)

    # Sending.

    def _timer_fired(self) -> None:
        """Send a keepalive again, or the next one."""
        if self._awaiting:
            self._send_attempt()
        else:
            self._advance(DUE)
            self._begin()

    def _begin(self) -> None:
        last = self._last_passed
        silence = None if last is None else self._reactor.seconds() - last
        self._attempt = _Attempt(self._sequence + 1, silence)
        self._send_attempt()

    def _send_attempt(self) -> None:
        attempt = self._attempt
        if attempt.sent == len(REPEATS):
            self._advance(FAILED)
            self._timer.start(self._interval.seconds)
            self._events.keepalive_failed()
            return
        self._timer.start(REPEATS[attempt.sent])
        attempt.sent += 1
        self._register()

    def _register(self) -> None:
        key = self._key
        assert key is not None
        self._sequence += 1
        message = Message(REGISTER, Identifier=key.identifier)
        message.fields["Key ID"] = key.key_id
        message.fields["Expires"] = str(max(REMEMBERED, ceil(3 * self._interval.seconds)))
        if self._attempt.cookie is not None:
            message.fields["Challenge"] = self._attempt.cookie
        message.fields["Sequence"] = str(self._sequence)
        self._send(sign(message, key.secret))

    def _query_source(self) -> None:
        """Ask where we are seen; a query that is lost is asked again after the next answer."""
        # The answer is not signed: the random transaction keeps out those who cannot read us.
        query = self._source.query = self._randomness(8).hex()
        self._send(Message(QUERY, ADDRESS, Transaction=query, Padding=_PADDING).encode())

    def _send(self, datagram: bytes) -> None:
        self._last_passed = self._reactor.seconds()
        if self.transport is not None:
            try:
                self.transport.write(datagram, self.server)
            except OSError:  # no network: it is lost, as it could have been on its way
                self.ignored["not sent"] += 1

    # Receiving.

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Act on a datagram, or ignore and count it: anybody may have sent it."""
        why = self._received(datagram, tuple(addr[:2]))
        if why:
            self.ignored[why] += 1

    def _received(self, datagram: bytes, source: Server) -> str:
        """Act on a datagram, or give the reason why it is ignored."""
        if source != self.server:
            return "not from the server"
        try:
            message = parse_datagram(datagram)
        except Malformed:
            return "no message"
        if message.verb != NOTIFY:
            return "no use for it"
        if not message.statement and "Address" in message.fields:
            return self._source_received(message)
        key = self._key
        if key is None or not verify(datagram, key.secret):
            return "not signed with the key"
        sequence = int(message.fields.get("Sequence", -1))
        if message.statement == CONNECTION_REQUESTED:
            return self._notified(key, message, sequence)
        return self._answered(message, sequence)

    def _answered(self, message: Message, sequence: int) -> str:
        if not self._awaiting or not self._attempt.first <= sequence <= self._sequence:
            return "not asked for"
        if message.statement == REGISTRATION_COMPLETED:
            return self._completed()
        if not message.statement and "Challenge" in message.fields:
            return self._challenged(message.fields["Challenge"])
        return "no use for it"

    def _challenged(self, cookie: str) -> str:
        """The server has not seen us at this address before: show that we receive there."""
        attempt = self._attempt
        if attempt.challenges == CHALLENGES:
            return "challenged too often"
        attempt.challenges += 1
        attempt.cookie = cookie
        self._register()
        return ""

    def _completed(self) -> str:
        """The keepalive is answered."""
        attempt, source = self._attempt, self._source
        at_once = attempt.sent == 1
        self._advance(ANSWERED)
        self._last_passed = self._reactor.seconds()
        self._interval.answered()
        if attempt.challenges:
            # After a repetition it is not known which datagram found the mapping gone.
            source.suspect = attempt.silence if at_once else None
            self._query_source()
        elif source.seen is None or source.query is not None:
            self._query_source()
        elif at_once and self._shows_mapping and attempt.silence is not None:
            self._interval.lasted(attempt.silence)
        self._timer.start(self._interval.seconds)
        self._events.keepalive_answered()
        return ""

    @property
    def _shows_mapping(self) -> bool:
        """Whether a new mapping can be told from the old one.

        A router that keeps our port number, if it can, gives the same one again: then an answer
        proves nothing about the mapping while we were silent.
        """
        port: Any = self._port
        seen = self._source.seen
        return seen is not None and seen[1] != port.getHost().port

    def _source_received(self, message: Message) -> str:
        """The server says where it sees us."""
        fields, query = message.fields, self._source.query
        if query is None or message.transaction != query or "Port" not in fields:
            return "not asked for"
        seen = (fields["Address"], int(fields["Port"]))
        is_new, silence = self._source.answered(seen)
        self._last_passed = self._reactor.seconds()
        if not is_new:
            return ""
        if silence:  # the interval is shorter now: the next keepalive is due earlier
            self._interval.lost(silence)
            if not self._awaiting:
                self._timer.start(self._interval.seconds)
        self._events.source_changed(*seen)
        return ""

    def _notified(self, key: _Key, message: Message, sequence: int) -> str:
        """Fig. 10: only a notice for us that is later than the last one wakes us (E3)."""
        fields = message.fields
        if fields.get("Identifier") != key.identifier or fields.get("Key ID") != key.key_id:
            return "for another terminal"
        if sequence <= key.last_notice:
            return "old"
        key.last_notice = sequence
        now = self._reactor.seconds()
        if self._last_passed is not None:  # it came through a mapping that has outlived the silence
            self._interval.lasted(now - self._last_passed)
        self._last_passed = now
        self._events.connection_requested()
        return ""
