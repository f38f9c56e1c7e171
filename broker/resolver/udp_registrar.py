"""Registration by UDP (fig. 2, 7, D1, E1): where each terminal's datagrams come from, as seen here.

A datagram that is not signed with a known key gets no answer, whatever it says, and leaves no state
behind (I14). A signed one moves a mapping only after its sender has shown, by a cookie, that it
also receives at the new source. No answer is longer than its question (I13), so that the port
amplifies nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import LoopingCall

from broker.messages.datagram import parse_datagram
from broker.messages.grammar import NOTIFY, QUERY, REGISTER
from broker.messages.message import Malformed, Message
from broker.messages.signing import (
    TAIL,
    is_signed,
    quick_mac_of,
    sign,
    sign_head,
    verify,
    verify_by,
)
from broker.messages.statements import ADDRESS, CONNECTION_REQUESTED, REGISTRATION_COMPLETED
from broker.resolver.cookies import Cookies
from broker.tables.address_policy import routable_ip
from broker.tables.grants import Randomness
from broker.tables.locations import AddressRefused, Binding, Contact
from broker.tables.nat_bindings import BINDING_SECONDS, NatBinding, NatBindingTable, Source
from broker.tables.udp_keys import UdpKey, UdpKeyTable

#: The least bytes of a question for the own address, so that its answer is not longer.
PADDED: Final = 128
#: The least seconds from one notice under a key to the next (I17).
NOTICE_INTERVAL: Final = 0.2
#: Seconds between two sweeps of what has expired.
PRUNE_INTERVAL: Final = 60.0

_LINE: Final = b"\r\n"
_KEY_ID: Final = b"\r\nKey ID:"
_SEQUENCE: Final = b"Sequence:"
_SEQUENCE_DIGITS: Final = 15


class UdpRegistrar(DatagramProtocol):
    """The resolver's UDP port.

    :ivar keys: the keys that mediators have handed over
    :ivar mappings: where the terminals are, as seen
    :ivar counts: how often each outcome occurred, for the operator
    """

    noisy = False

    def __init__(
        self,
        clock: IReactorTime,
        randomness: Randomness,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """
        :param wall: the time in seconds since 1970: the first sequence number of the notices under
            a key
        """
        self.keys = UdpKeyTable()
        self.mappings = NatBindingTable()
        self.counts: Counter[str] = Counter()
        self._clock = clock
        self._wall = wall
        self._cookies = Cookies(clock, randomness)
        self._pruning = LoopingCall(self._prune)
        self._pruning.clock = clock

    def startProtocol(self) -> None:
        """The port is open."""
        self._pruning.start(PRUNE_INTERVAL, now=False)

    def stopProtocol(self) -> None:
        """The port is closed: leave no timer behind."""
        if self._pruning.running:
            self._pruning.stop()

    # Called for mediators.

    def add_key(self, key: UdpKey) -> None:
        """Accept signatures by a key from now on, or for longer than so far.

        :raises KeyRefused: there is no room, or another key has its name
        """
        # A terminal ignores a notice whose sequence is not above that of all earlier ones under
        # the same key. Before a restart this process may have sent some: fewer than one a
        # millisecond, so that the time in milliseconds is above them.
        self.keys.add(replace(key, last_sent=int(self._wall() * 1000)))

    def drop_keys(self, identifier: str) -> None:
        """Accept no signature by a key of this terminal from now on (I2)."""
        for key in self.keys.of(identifier, self._clock.seconds()):
            self.keys.drop(key)
            self.mappings.drop(key)

    # What comes in.

    def datagramReceived(self, datagram: bytes, addr: Source) -> None:
        """A datagram came: nearly always a keepalive.

        The keepalives of one source differ in sequence and signature alone, so that the prefix of
        its mapping recognizes them without parsing.
        """
        mapping = self.mappings.at(addr)
        if mapping is not None and datagram.startswith(mapping.prefix):
            self._keepalive(mapping, datagram)
        elif is_signed(datagram):
            self._signed(datagram, addr)
        elif len(datagram) >= PADDED:
            self._source_query(datagram, addr)
        else:
            self.counts["datagrams ignored"] += 1

    def _keepalive(self, mapping: NatBinding, datagram: bytes) -> None:
        digits = datagram[len(mapping.prefix) : -TAIL - 2]
        key = mapping.key
        now = self._clock.seconds()
        if (
            not digits.isdigit()
            or len(digits) > _SEQUENCE_DIGITS
            or (sequence := int(digits)) <= key.last_received
            or not verify_by(datagram, mapping.mac)
        ):
            self.counts["datagrams ignored"] += 1
        elif mapping.is_valid(now):
            key.last_received = sequence
            mapping.until = now + mapping.lifetime
            self._answer(mapping, digits)
        else:  # it was silent for too long: it must show again that it receives there
            self._signed(datagram, mapping.source)

    def _answer(self, mapping: NatBinding, digits: bytes) -> None:
        self.counts["registrations by UDP"] += 1
        head = b"%s%s\r\n" % (_COMPLETED, digits)
        self._send(sign_head(head, mapping.mac), mapping.source)

    def _signed(self, datagram: bytes, source: Source) -> None:
        """A signed datagram that is no known keepalive: its source or its content is new.

        Only its Key ID is read before the signature is verified.
        """
        now = self._clock.seconds()
        name = datagram.partition(_KEY_ID)[2].partition(_LINE)[0]
        key = self.keys.get(name.decode("utf-8", "replace"), now)
        if key is None or not verify(datagram, key.secret) or not _possible(source):
            self.counts["datagrams ignored"] += 1
            return
        try:
            message = parse_datagram(datagram)
        except Malformed:
            self.counts["datagrams ignored"] += 1
            return
        fields = message.fields
        sequence = int(fields.get("Sequence", -1))
        if (
            message.verb != REGISTER
            or message.statement
            or fields.get("Key ID") != key.name
            or fields.get("Identifier") != key.identifier
            or sequence <= key.last_received
        ):
            self.counts["datagrams ignored"] += 1
            return
        self._register(key, message, datagram, source)

    def _register(self, key: UdpKey, message: Message, datagram: bytes, source: Source) -> None:
        now = self._clock.seconds()
        fields = message.fields
        before = self.mappings.of(key, now)
        moves = before is None or before.source != source
        if moves and not self._cookies.is_valid(fields.get("Challenge", ""), source, key.name):
            self._challenge(key, fields["Sequence"], datagram, source)
            return
        key.last_received = int(fields["Sequence"])
        lasts = int(fields.get("Expires", BINDING_SECONDS))
        since = now if before is None or moves else before.since
        mac = quick_mac_of(key.secret)
        mapping = NatBinding(key, source, since, now + lasts, _prefix(datagram), lasts, mac)
        self.mappings.put(mapping)
        if moves:
            self.counts["mappings moved" if before is not None else "mappings made"] += 1
        self._answer(mapping, fields["Sequence"].encode())

    def _challenge(self, key: UdpKey, sequence: str, datagram: bytes, source: Source) -> None:
        cookie = self._cookies.make(source, key.name)
        answer = sign(Message(NOTIFY, Challenge=cookie, Sequence=sequence), key.secret)
        if len(answer) <= len(datagram):
            self.counts["challenges"] += 1
            self._send(answer, source)

    def _source_query(self, datagram: bytes, source: Source) -> None:
        """Tell a sender the source that we see; anyone may ask for its own (E1)."""
        try:
            message = parse_datagram(datagram)
            if message.verb != QUERY or message.statement != ADDRESS:
                raise Malformed("no other question is answered")
            host = routable_ip(source[0])
        except (Malformed, AddressRefused):
            self.counts["datagrams ignored"] += 1
            return
        answer = Message(NOTIFY, Address=str(host), Port=source[1])
        transaction = message.transaction
        if transaction is not None:
            answer.fields["Transaction"] = transaction
            answer.fields["Code"] = "200"
        data = answer.encode()
        if len(data) <= len(datagram):
            self.counts["addresses told"] += 1
            self._send(data, source)

    # What goes out.

    def notify(self, identifier: str, statement: str = CONNECTION_REQUESTED) -> bool:
        """Tell a terminal, through each of its mappings, to connect to its mediator (fig. 8a).

        The notice holds its type and the terminal's own identifier, and nothing about any other.
        Each mapping gets at most one in ``NOTICE_INTERVAL``.

        :return: whether there is a mapping to send through
        """
        now = self._clock.seconds()
        has_mapping = False
        for key in self.keys.of(identifier, now):
            mapping = self.mappings.of(key, now)
            if mapping is not None:
                has_mapping = True
                if now - key.sent_at >= NOTICE_INTERVAL:
                    key.sent_at = now
                    self._notice(key, statement, mapping.source)
        return has_mapping

    def _notice(self, key: UdpKey, statement: str, to: Source) -> None:
        key.last_sent += 1
        notice = Message(NOTIFY, statement, Identifier=key.identifier)
        notice.fields["Key ID"] = key.name
        notice.fields["Sequence"] = str(key.last_sent)
        self.counts["notices"] += 1
        self._send(sign(notice, key.secret), to)

    def seen(self, identifier: str) -> Binding | None:
        """Where a terminal is seen: the mapping of its newest key that has one (I10, I12).

        The mediator must not dial it there: the terminal's router decides what it lets in.
        """
        now = self._clock.seconds()
        for key in reversed(self.keys.of(identifier, now)):
            mapping = self.mappings.of(key, now)
            if mapping is not None:
                host = str(routable_ip(mapping.source[0]))
                until = min(mapping.until, key.until)
                return Binding(Contact(host, key.port, mapping.since, mapping.lifetime), until)
        return None

    def _send(self, data: bytes, to: Source) -> None:
        if self.transport is not None:
            try:
                self.transport.write(data, to)
            except OSError:  # as if it had been lost on its way
                self.counts["datagrams not sent"] += 1

    def _prune(self) -> None:
        now = self._clock.seconds()
        self.keys.prune(now)
        self.mappings.prune(now)


_COMPLETED: Final = Message(NOTIFY, REGISTRATION_COMPLETED).encode()[:-2] + _SEQUENCE


def _possible(source: Source) -> bool:
    """Whether a terminal can be at the source of a datagram (I12)."""
    try:
        return routable_ip(source[0]) is not None and source[1] > 0
    except AddressRefused:
        return False


def _prefix(datagram: bytes) -> bytes:
    """What the next keepalive begins with, if the sequence is its last line but one.

    Otherwise, and where it holds a cookie: the datagram itself, with which no later one begins.
    """
    head, name, digits = datagram[:-TAIL].rpartition(_SEQUENCE)
    is_plain = head.endswith(_LINE) and digits[:-2].isdigit() and b"Challenge:" not in head
    return head + name if name and is_plain else datagram
