"""Registration by UDP (fig. 2, 7, D1, E1): where each terminal's datagrams come from, as seen here.

A datagram of nobody who is known gets silence, whatever it says, and leaves nothing behind (I14).
One that is signed moves a mapping only once its sender has shown that it reads there too. No answer
is longer than its question (I13).
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
from broker.tables.nat_bindings import MAPPING_SECONDS, Mapping, MappingTable, Source
from broker.tables.udp_keys import Key, KeyTable

#: What a question for one's own address has at the least, so that its answer is no longer.
PADDED: Final = 128
#: Seconds from one notice under a key to the next, at the least (I17).
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
    :ivar counts: how often each outcome was had, for the operator
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
        :param wall: the time in seconds since 1970, from which the notices under a key are counted
        """
        self.keys = KeyTable()
        self.mappings = MappingTable()
        self.counts: Counter[str] = Counter()
        self._clock = clock
        self._wall = wall
        self._cookies = Cookies(clock.seconds, randomness)
        self._pruning = LoopingCall(self._prune)
        self._pruning.clock = clock

    def startProtocol(self) -> None:
        """The port is open."""
        self._pruning.start(PRUNE_INTERVAL, now=False)

    def stopProtocol(self) -> None:
        """The port is closed: leave no timer behind."""
        if self._pruning.running:
            self._pruning.stop()

    # What mediators say.

    def add_key(self, key: Key) -> None:
        """Take a key in, or anew.

        :raises KeyRefused: it can't be
        """
        # A terminal takes no notice that is not later than any before under the same key, and this
        # process may have sent it some before it was started anew: less than one a millisecond.
        self.keys.add(replace(key, told=int(self._wall() * 1000)))

    def drop_keys(self, identifier: str) -> None:
        """From now on nothing is believed that is signed with a key of this terminal (I2)."""
        for key in self.keys.of(identifier, self._clock.seconds()):
            self.keys.drop(key)
            self.mappings.drop(key)

    # What comes.

    def datagramReceived(self, datagram: bytes, addr: Source) -> None:
        """A datagram: nearly always a keepalive, of which only sequence and signature are new."""
        mapping = self.mappings.at(addr)
        if mapping is not None and datagram.startswith(mapping.prefix):
            self._kept_alive(mapping, datagram)
        elif is_signed(datagram):
            self._signed(datagram, addr)
        elif len(datagram) >= PADDED:
            self._asks(datagram, addr)
        else:
            self.counts["datagrams ignored"] += 1

    def _kept_alive(self, mapping: Mapping, datagram: bytes) -> None:
        digits = datagram[len(mapping.prefix) : -TAIL - 2]
        key = mapping.key
        now = self._clock.seconds()
        if (
            not digits.isdigit()
            or len(digits) > _SEQUENCE_DIGITS
            or (sequence := int(digits)) <= key.heard
            or not verify_by(datagram, mapping.mac)
        ):
            self.counts["datagrams ignored"] += 1
        elif mapping.good(now):
            key.heard = sequence
            mapping.until = now + mapping.lasts
            self._answer(mapping, digits)
        else:  # it was silent for too long: it shows anew that it reads there
            self._signed(datagram, mapping.source)

    def _answer(self, mapping: Mapping, digits: bytes) -> None:
        self.counts["registrations by UDP"] += 1
        head = b"%s%s\r\n" % (_COMPLETED, digits)
        self._send(sign_head(head, mapping.mac), mapping.source)

    def _signed(self, datagram: bytes, source: Source) -> None:
        """One that is signed, and new here: from where it comes, or in what it says.

        Nothing is read of it but its Key ID until the signature has shown whose it is.
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
            or sequence <= key.heard
        ):
            self.counts["datagrams ignored"] += 1
            return
        self._registers(key, message, datagram, source)

    def _registers(self, key: Key, message: Message, datagram: bytes, source: Source) -> None:
        now = self._clock.seconds()
        fields = message.fields
        before = self.mappings.of(key, now)
        moves = before is None or before.source != source
        if moves and not self._cookies.good(fields.get("Challenge", ""), source, key.name):
            self._challenge(key, fields["Sequence"], datagram, source)
            return
        key.heard = int(fields["Sequence"])
        lasts = int(fields.get("Expires", MAPPING_SECONDS))
        since = now if before is None or moves else before.since
        mac = quick_mac_of(key.secret)
        mapping = Mapping(key, source, since, now + lasts, _prefix(datagram), lasts, mac)
        self.mappings.put(mapping)
        if moves:
            self.counts["mappings moved" if before is not None else "mappings made"] += 1
        self._answer(mapping, fields["Sequence"].encode())

    def _challenge(self, key: Key, sequence: str, datagram: bytes, source: Source) -> None:
        cookie = self._cookies.make(source, key.name)
        answer = sign(Message(NOTIFY, Challenge=cookie, Sequence=sequence), key.secret)
        if len(answer) <= len(datagram):
            self.counts["challenges"] += 1
            self._send(answer, source)

    def _asks(self, datagram: bytes, source: Source) -> None:
        """What the sender looks like from here; anybody may ask that of himself (E1)."""
        try:
            message = parse_datagram(datagram)
            if message.verb != QUERY or message.statement != ADDRESS:
                raise Malformed("nothing else is answered")
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
        """Tell a terminal, along each mapping that it has, to connect to its mediator (fig. 8a).

        It says its type and the terminal's own identifier, and nothing of anybody else. Along one
        mapping no more than one goes in ``NOTICE_INTERVAL``.

        :return: whether there is a mapping to send along
        """
        now = self._clock.seconds()
        there = False
        for key in self.keys.of(identifier, now):
            mapping = self.mappings.of(key, now)
            if mapping is not None:
                there = True
                if now - key.noticed >= NOTICE_INTERVAL:
                    key.noticed = now
                    self._notice(key, statement, mapping.source)
        return there

    def _notice(self, key: Key, statement: str, to: Source) -> None:
        key.told += 1
        notice = Message(NOTIFY, statement, Identifier=key.identifier)
        notice.fields["Key ID"] = key.name
        notice.fields["Sequence"] = str(key.told)
        self.counts["notices"] += 1
        self._send(sign(notice, key.secret), to)

    def seen(self, identifier: str) -> Binding | None:
        """Where a terminal is seen: the mapping of its newest key that has one (I10, I12).

        It may not be dialled there: its router alone knows who comes through.
        """
        now = self._clock.seconds()
        for key in reversed(self.keys.of(identifier, now)):
            mapping = self.mappings.of(key, now)
            if mapping is not None:
                host = str(routable_ip(mapping.source[0]))
                until = min(mapping.until, key.until)
                return Binding(Contact(host, key.port, mapping.since, mapping.lasts), until)
        return None

    def _send(self, data: bytes, to: Source) -> None:
        if self.transport is not None:
            try:
                self.transport.write(data, to)
            except OSError:  # it is lost, as it might have been on its way
                self.counts["datagrams not sent"] += 1

    def _prune(self) -> None:
        now = self._clock.seconds()
        self.keys.prune(now)
        self.mappings.prune(now)


_COMPLETED: Final = Message(NOTIFY, REGISTRATION_COMPLETED).encode()[:-2] + _SEQUENCE


def _possible(source: Source) -> bool:
    """Whether a terminal may be where a datagram says that it comes from (I12)."""
    try:
        return routable_ip(source[0]) is not None and source[1] > 0
    except AddressRefused:
        return False


def _prefix(datagram: bytes) -> bytes:
    """What the next keepalive begins with, if it has the sequence as its last line but one.

    Where it hasn't, or a cookie is in it, the datagram itself: with that none begins.
    """
    head, found, rest = datagram[:-TAIL].rpartition(_SEQUENCE)
    plain = head.endswith(_LINE) and rest[:-2].isdigit() and b"Challenge:" not in head
    return head + found if found and plain else datagram
