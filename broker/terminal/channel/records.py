"""The records that follow a handshake: two bytes of length, then one Noise message each.

The plaintext of each is a type byte and data. The nonce of a direction counts its records, so that
a record that is left out, repeated or moved does not decrypt (I21). Pure: bytes in, records out.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Final

from noise.connection import NoiseConnection
from noise.exceptions import NoiseInvalidMessage, NoiseMaxNonceError

#: The longest Noise message, its tag, and so the most data in one record, in bytes.
MESSAGE_BYTES: Final = 65535
TAG_BYTES: Final = 16
DATA_BYTES: Final = MESSAGE_BYTES - TAG_BYTES - 1
#: Records after which a direction changes its key.
REKEY_RECORDS: Final = 65536


class RecordType(IntEnum):
    """The type byte of a record."""

    DATA = 0
    END = 1
    ABORT = 2
    REKEY = 3


class BadRecord(Exception):
    """What arrived is no record of this channel; nothing after it can be trusted."""


class Records:
    """Both directions of one channel, as bytes.

    :ivar eof: the input has ended: nothing comes after what was fed
    """

    def __init__(self, cipher: NoiseConnection, *, rekey: int = REKEY_RECORDS) -> None:
        """
        :param cipher: a finished handshake
        :param rekey: records after which our direction changes its key
        """
        self._cipher = cipher
        self._rekey = rekey
        self._sealed = 0
        self._broken = False
        self._buffer = b""
        self._start = 0  # the records before it have been given out
        self.eof = False

    def seal(self, kind: RecordType, data: bytes = b"") -> bytes:
        """The records that carry data of any length to the other side."""
        if len(data) <= DATA_BYTES:
            return self._seal(kind, data)
        return b"".join(
            self._seal(kind, data[start : start + DATA_BYTES])
            for start in range(0, len(data), DATA_BYTES)
        )

    def _seal(self, kind: RecordType, data: bytes) -> bytes:
        framed = b""
        if self._sealed and self._sealed % self._rekey == 0:
            # Before a record, not after one: nothing follows the last record of a channel.
            framed = self._frame(RecordType.REKEY, b"")
            self._cipher.rekey_outbound_cipher()
        self._sealed += 1
        return framed + self._frame(kind, data)

    def _frame(self, kind: RecordType, data: bytes) -> bytes:
        sealed: bytes = self._cipher.encrypt(bytes((kind,)) + data)
        return len(sealed).to_bytes(2, "big") + sealed

    def feed(self, data: bytes) -> None:
        """Store what arrived."""
        self._buffer = self._buffer[self._start :] + data
        self._start = 0

    def feed_eof(self) -> None:
        """The input has ended."""
        self.eof = True

    def __iter__(self) -> Iterator[tuple[RecordType, bytes]]:
        """The complete records in what arrived, each authenticated before it is given out.

        Stop at any time; the others stay.

        :raises BadRecord: one is forged, damaged, out of order, or of an unknown type; nothing is
            given out after it, whatever arrives
        """
        if self._broken:
            raise BadRecord("an earlier record was not what the other side sent")
        while len(self._buffer) - self._start >= 2:
            start = self._start + 2
            length = int.from_bytes(self._buffer[start - 2 : start], "big")
            if length < TAG_BYTES + 1:
                self._broken = True
                raise BadRecord("a record is too short")
            if len(self._buffer) - start < length:
                return
            self._start = start + length
            yield self._open(self._buffer[start : self._start])

    def _open(self, sealed: bytes) -> tuple[RecordType, bytes]:
        self._broken = True  # until it is authenticated: then the channel may go on
        try:
            plain = self._cipher.decrypt(sealed)
            kind = RecordType(plain[0])
        except (NoiseInvalidMessage, NoiseMaxNonceError):
            raise BadRecord("a record is not what the other side sent") from None
        except ValueError:
            raise BadRecord("a record of an unknown type") from None
        self._broken = False
        if kind is RecordType.REKEY:
            self._cipher.rekey_inbound_cipher()
        return kind, plain[1:]
