"""Registration by UDP (fig. 2, 7, D1, E1): where each terminal's datagrams come from, as seen here.

A datagram of nobody who is known gets silence, whatever it says, and leaves nothing behind (I14).
One that is signed moves a mapping only once its sender has shown that it reads there too. No answer
is longer than its question (I13).
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import DatagramProtocol
from twisted.internet.task import LoopingCall

from broker.resolver.cookies import Cookies
from broker.tables.grants import Randomness
from broker.tables.keys import Key, KeyTable
from broker.tables.mappings import MAPPING_SECONDS, Mapping, MappingTable, Source
from broker.wire.datagram import parse_datagram
from broker.wire.grammar import DIGITS, NOTIFY, QUERY, REGISTER
from broker.wire.message import Malformed, Message
from broker.wire.signed import TAIL, sign, sign_head, verify
from broker.wire.statements import ADDRESS, CONNECTION_REQUESTED, REGISTRATION_COMPLETED

#: What a question for one's own address has at the least, so that its answer is no longer.
PADDED: Final = 128
#: Seconds between two sweeps of what has expired.
PRUNE_INTERVAL: Final = 60.0
_SEQUENCE: Final = b"Sequence:"
_SEQUENCE_DIGITS: Final = 15


class Registrar(DatagramProtocol):
    """The resolver's UDP port.

    :ivar keys: the keys that mediators have handed over
    :ivar mappings: where the terminals are, as seen
    :ivar counts: how often each outcome was had, for the operator
    """

    noisy = False

    def __init__(self, clock: IReactorTime, randomness: Randomness) -> None:
        self.keys = KeyTable()
        self.mappings = MappingTable()
        self.counts: Counter[str] = Counter()
        self._clock = clock
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

    # What comes.

    def datagramReceived(self, datagram: bytes, addr: Source) -> None:
        """A datagram: nearly always a keepalive, of which only sequence and signature are new."""
        mapping = self.mappings.at(addr)
        if mapping is not None and datagram.startswith(mapping.prefix):
            self._kept_alive(mapping, datagram)
        else:
            self._other(datagram, addr)

    def _kept_alive(self, mapping: Mapping, datagram: bytes) -> None:
        digits = datagram[len(mapping.prefix) : -TAIL - 2]
        key = mapping.key
        now = self._clock.seconds()
        if (
            not digits.isdigit()
            or len(digits) > _SEQUENCE_DIGITS
            or datagram[-TAIL - 2 : -TAIL] != b"\r\n"
            or (sequence := int(digits)) <= key.heard
            or key.until <= now
            or not verify(datagram, key.secret)
        ):
            self.counts["ignored"] += 1
            return
        key.heard = sequence
        mapping.until = now + mapping.lasts
        self._answer(mapping, digits)

    def _answer(self, mapping: Mapping, digits: bytes) -> None:
        head = _COMPLETED + digits + b"\r\n"
        self._send(sign_head(head, mapping.key.secret), mapping.source)

    def _other(self, datagram: bytes, source: Source) -> None:
        try:
            message = parse_datagram(datagram)
        except Malformed:
            self.counts["ignored"] += 1
            return
        kind = (message.verb, message.statement)
        if kind == (REGISTER, ""):
            self._registers(message, datagram, source)
        elif kind == (QUERY, ADDRESS):
            self._asks(message, datagram, source)
        else:
            self.counts["ignored"] += 1

    def _registers(self, message: Message, datagram: bytes, source: Source) -> None:
        """A signed registration: of a source that is new, or in other words than before."""
        fields = message.fields
        now = self._clock.seconds()
        key = self.keys.get(fields.get("Key ID", ""), now)
        sequence = int(fields.get("Sequence", -1))
        if (
            key is None
            or key.identifier != fields.get("Identifier")
            or sequence <= key.heard
            or not verify(datagram, key.secret)
        ):
            self.counts["ignored"] += 1
            return
        before = self.mappings.of(key, now)
        if before is None or before.source != source:
            cookie = fields.get("Challenge", "")
            if not self._cookies.good(cookie, source, key.name):
                self._challenge(key, datagram, source)
                return
            self.counts["moved" if before is not None else "registered"] += 1
        key.heard = sequence
        lasts = int(fields.get("Expires", MAPPING_SECONDS))
        mapping = Mapping(key, source, now + lasts, _prefix(datagram), lasts)
        self.mappings.put(mapping)
        self._answer(mapping, b"%d" % sequence)

    def _challenge(self, key: Key, datagram: bytes, source: Source) -> None:
        message = Message(NOTIFY, Challenge=self._cookies.make(source, key.name))
        answer = sign(message, key.secret)
        if len(answer) <= len(datagram):
            self.counts["challenged"] += 1
            self._send(answer, source)

    def _asks(self, message: Message, datagram: bytes, source: Source) -> None:
        """What the sender looks like from here."""
        if len(datagram) < PADDED:
            self.counts["ignored"] += 1
            return
        answer = Message(NOTIFY, Address=source[0], Port=source[1])
        transaction = message.transaction
        if transaction is not None:
            answer.fields["Transaction"] = transaction
        data = answer.encode()
        if len(data) <= len(datagram):
            self._send(data, source)

    # What goes out.

    def notify(self, identifier: str, statement: str = CONNECTION_REQUESTED) -> bool:
        """Tell a terminal, along each mapping that it has, to connect to its mediator (fig. 8a).

        It says its type and the terminal's own identifier, and nothing of anybody else.

        :return: whether there was a mapping to send along
        """
        now = self._clock.seconds()
        sent = False
        for key in self.keys.of(identifier, now):
            mapping = self.mappings.of(key, now)
            if mapping is not None:
                key.told += 1
                notice = Message(NOTIFY, statement, Identifier=identifier)
                notice.fields["Key ID"] = key.name
                notice.fields["Sequence"] = str(key.told)
                self._send(sign(notice, key.secret), mapping.source)
                sent = True
        return sent

    def seen(self, identifier: str) -> Mapping | None:
        """The mapping of a terminal's newest key that has one."""
        now = self._clock.seconds()
        for key in reversed(self.keys.of(identifier, now)):
            mapping = self.mappings.of(key, now)
            if mapping is not None:
                return mapping
        return None

    def _send(self, data: bytes, to: Source) -> None:
        if self.transport is not None:
            try:
                self.transport.write(data, to)
            except OSError:  # what can't be sent is lost, as it might have been on the way
                self.counts["not sent"] += 1

    def _prune(self) -> None:
        now = self._clock.seconds()
        self.mappings.prune(now)
        self.keys.prune(now)


_COMPLETED: Final = Message(NOTIFY, REGISTRATION_COMPLETED).encode()[:-2] + _SEQUENCE


def _prefix(datagram: bytes) -> bytes:
    """What the next keepalive begins with, if it has the sequence as its last line but one."""
    head, found, rest = datagram[:-TAIL].rpartition(_SEQUENCE)
    if not found or not head.endswith(b"\r\n") or b"Challenge:" in head:
        return datagram  # so that no keepalive begins with it
    if not rest.endswith(b"\r\n") or not set(rest[:-2].decode("ascii", "replace")) <= DIGITS:
        return datagram
    return head + found
