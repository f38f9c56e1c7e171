"""A terminal's registration by UDP (fig. 2, 7a, D1, E1), and the notices that come back (fig. 10).

The datagrams keep a way open through the terminal's router, along which the server can say that
a connection is asked for. That is all that it can say there (I26): who hears it connects to its
own mediator and is told the rest there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import ceil
from typing import Any, Final

from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.internet.protocol import DatagramProtocol

from broker.messages.datagram import parse_datagram
from broker.messages.grammar import NOTIFY, QUERY, REGISTER
from broker.messages.message import Malformed, Message
from broker.messages.signing import sign, verify
from broker.messages.statements import ADDRESS, CONNECTION_REQUESTED, REGISTRATION_COMPLETED
from broker.tables.grants import Randomness
from broker.terminal.registration.keepalive_interval import KeepaliveInterval

#: Seconds to wait for the answer to a keepalive and to its repetitions; then it has failed.
REPEATS: Final = (1.0, 2.0, 4.0)
#: Challenges that are met for one keepalive: there is one, or another if the way changes then.
CHALLENGES: Final = 3
#: Seconds for which the server is asked to remember us, at the least; else three intervals.
REMEMBERED: Final = 60
#: Bytes that make a question for our own address longer than any answer to it.
_PADDING: Final = "." * 100

Server = tuple[str, int]


class Keepalive(DatagramProtocol):
    """What a terminal says by UDP to one server, and hears from it.

    What does not come from that server, is not signed with the key of the last login, or is not new
    is ignored, and counted; so is all that it has no use for (E3).

    :ivar server: the server's address and port
    :ivar alive: the server has answered to the present key, and has not failed to since
    :ivar outside: the address and port that we are seen with from there, once they are known; not
        signed, and good for no more than to be shown and to find out how long mappings last
    :ivar ignored: how often something was, by the reason
    """

    noisy = False

    def __init__(
        self,
        reactor: Any,
        server: Server,
        pace: KeepaliveInterval,
        randomness: Randomness,
        *,
        noticed: Callable[[], object],
        failed: Callable[[], object],
        answered: Callable[[], object] = lambda: None,
        moved: Callable[[str, int], object] = lambda host, port: None,
    ) -> None:
        """
        :param reactor: an ``IReactorUDP`` and ``IReactorTime``
        :param server: an IP address, as the system writes it, and a port
        :param noticed: called when the server says that a connection is asked for
        :param failed: called when a keepalive stays without an answer; the next is sent after the
            usual time
        :param answered: called when a keepalive is answered
        :param moved: told how we look from outside, whenever that is new
        """
        self.server = server
        self.alive = False
        self.outside: Server | None = None
        self.ignored: Counter[str] = Counter()
        self._reactor = reactor
        self._pace = pace
        self._randomness = randomness
        self._on_notice = noticed
        self._on_failure = failed
        self._on_answer = answered
        self._on_move = moved
        self._port: IListeningPort | None = None
        self._identifier = ""
        self._key_id = ""
        self._key = b""
        self._sequence = 0  # of the last datagram we sent; it goes on under another key
        self._told = -1  # of the last notice
        self._first = 0  # of the keepalive that is under way
        self._tries = 0  # of it; none is under way, with 0
        self._challenges = 0
        self._cookie: str | None = None
        self._timer: IDelayedCall | None = None
        self._moved_at: float | None = None  # when a datagram last went through, either way
        self._silence: float | None = None  # before the keepalive that is under way
        self._suspect: float | None = None  # the silence after which we were taken for another
        self._asked: str | None = None  # the transaction of the question for our address

    def use(self, identifier: str, key_id: str, key: bytes, interval: float) -> None:
        """Register under a key, which takes the place of the one before it.

        :param interval: the seconds between keepalives that the server suggests
        :raises CannotListenError: there is no UDP port to be had
        """
        if self._port is None:
            interface = "::" if ":" in self.server[0] else ""
            self._port = self._reactor.listenUDP(0, self, interface=interface)
        self._identifier, self._key_id, self._key = identifier, key_id, key
        self._told = -1
        self.alive = False
        self._pace.suggest(interval)
        self._begin()

    def stop(self) -> Deferred[Any]:
        """Close the port; the key is forgotten."""
        self._rest()
        self.alive = False
        self._key = b""
        port, self._port = self._port, None
        return succeed(None) if port is None else maybeDeferred(port.stopListening)

    # What goes out.

    def _begin(self) -> None:
        """A keepalive is due."""
        now = self._reactor.seconds()
        self._silence = None if self._moved_at is None else now - self._moved_at
        self._first = self._sequence + 1
        self._tries = self._challenges = 0
        self._cookie = None
        self._try()

    def _try(self) -> None:
        if self._tries == len(REPEATS):
            self._fail()
            return
        self._wait(REPEATS[self._tries], self._try)
        self._tries += 1
        self._register()

    def _register(self) -> None:
        self._sequence += 1
        message = Message(REGISTER, Identifier=self._identifier)
        message.fields["Key ID"] = self._key_id
        message.fields["Expires"] = str(max(REMEMBERED, ceil(3 * self._pace.seconds)))
        if self._cookie is not None:
            message.fields["Challenge"] = self._cookie
        message.fields["Sequence"] = str(self._sequence)
        self._send(sign(message, self._key))

    def _fail(self) -> None:
        self._tries = 0
        self.alive = False
        self._wait(self._pace.seconds, self._begin)
        self._on_failure()

    def _ask(self) -> None:
        """Ask what we look like; a question that is lost is asked again after the next answer."""
        self._asked = self._randomness(8).hex()
        self._send(Message(QUERY, ADDRESS, Transaction=self._asked, Padding=_PADDING).encode())

    def _send(self, datagram: bytes) -> None:
        self._moved_at = self._reactor.seconds()
        if self.transport is not None:
            try:
                self.transport.write(datagram, self.server)
            except OSError:  # the network is away: it is lost, as it might have been on its way
                self.ignored["not sent"] += 1

    def _wait(self, seconds: float, then: Callable[[], object]) -> None:
        self._rest()
        self._timer = self._reactor.callLater(seconds, then)

    def _rest(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    # What comes.

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """A datagram, of whomever."""
        why = self._received(datagram, tuple(addr[:2]))
        if why:
            self.ignored[why] += 1

    def _received(self, datagram: bytes, source: Server) -> str:
        """Act on a datagram, or say why it is ignored."""
        if source != self.server:
            return "not from the server"
        try:
            message = parse_datagram(datagram)
        except Malformed:
            return "no message"
        if message.verb != NOTIFY:
            return "no use for it"
        if not message.statement and "Address" in message.fields:
            return self._looks(message)
        if not self._key or not verify(datagram, self._key):
            return "not signed with the key"
        return self._signed(message, int(message.fields.get("Sequence", -1)))

    def _signed(self, message: Message, sequence: int) -> str:
        if message.statement == CONNECTION_REQUESTED:
            return self._notified(message, sequence)
        if not self._tries or not self._first <= sequence <= self._sequence:
            return "not asked for"
        if message.statement == REGISTRATION_COMPLETED:
            return self._completed()
        if not message.statement and "Challenge" in message.fields:
            return self._challenged(message.fields["Challenge"])
        return "no use for it"

    def _challenged(self, cookie: str) -> str:
        """The server sees us where it has not seen us before: show that we read there."""
        if self._challenges == CHALLENGES:
            return "challenged too often"
        self._challenges += 1
        self._cookie = cookie
        self._register()
        return ""

    def _completed(self) -> str:
        """The keepalive is answered."""
        at_once = self._tries == 1
        self._tries = 0
        self._moved_at = self._reactor.seconds()
        self.alive = True
        self._pace.answered()
        if self._challenges:
            self._suspect = self._silence if at_once else None  # else what was lost is not known
            self._asked = None
            self._ask()
        elif self.outside is None or self._asked is not None:
            self._ask()
        elif at_once and self._shows and self._silence is not None:
            self._pace.lasted(self._silence)
        self._wait(self._pace.seconds, self._begin)
        self._on_answer()
        return ""

    @property
    def _shows(self) -> bool:
        """Whether a mapping that is made anew can be told from the old one.

        A router that keeps the port, if it can, gives the same one again: there, that an answer
        comes proves nothing of the way back while we were silent.
        """
        port: Any = self._port
        return self.outside is not None and self.outside[1] != port.getHost().port

    def _looks(self, message: Message) -> str:
        """How we look from the server."""
        fields = message.fields
        if self._asked is None or message.transaction != self._asked or "Port" not in fields:
            return "not asked for"
        self._asked = None
        before, self.outside = self.outside, (fields["Address"], int(fields["Port"]))
        silence, self._suspect = self._suspect, None
        self._moved_at = self._reactor.seconds()
        if before == self.outside:
            return ""
        # Another address altogether says nothing of how long mappings last.
        if before is not None and before[0] == self.outside[0] and silence:
            self._pace.lost(silence)
            if not self._tries:
                self._wait(self._pace.seconds, self._begin)
        self._on_move(*self.outside)
        return ""

    def _notified(self, message: Message, sequence: int) -> str:
        """Fig. 10: only what is for us, and later than any before it, wakes us (E3)."""
        fields = message.fields
        if fields.get("Identifier") != self._identifier or fields.get("Key ID") != self._key_id:
            return "for somebody else"
        if sequence <= self._told:
            return "old"
        self._told = sequence
        now = self._reactor.seconds()
        if self._moved_at is not None:
            self._pace.lasted(now - self._moved_at)
        self._moved_at = now
        self._on_notice()
        return ""
