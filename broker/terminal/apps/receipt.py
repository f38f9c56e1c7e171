"""What a receiver answers once it has everything: a receipt, which the sender compares.

It goes over the channel as a message, ``NOTIFY`` with ``Received`` and ``Digest``, after the
sender's data has ended. Pure.
"""

from __future__ import annotations

from hashlib import sha256
from typing import NamedTuple

from broker.messages.framing import Decoder
from broker.messages.grammar import NOTIFY
from broker.messages.message import Message


class TransferFailed(Exception):
    """What was sent did not arrive whole, as far as the callee has confirmed; the text says why."""


class Receipt(NamedTuple):
    """What a receiver confirms that it has.

    :ivar octets: how many bytes
    :ivar digest: their SHA-256 in hexadecimal
    """

    octets: int
    digest: str

    def encode(self) -> bytes:
        """The receipt as it goes over the channel."""
        return Message(NOTIFY, Received=self.octets, Digest=self.digest).encode()


def read_receipt(data: bytes) -> Receipt | None:
    """Read a receipt; ``None`` if the bytes are not one receipt, from the first to the last."""
    decoder = Decoder()
    decoder.feed(data)
    message = decoder.next_event()
    if not isinstance(message, Message) or decoder.pending or message.verb != NOTIFY:
        return None
    if "Received" not in message.fields or "Digest" not in message.fields:
        return None
    return Receipt(int(message.fields["Received"]), message.fields["Digest"])


class Tally:
    """Counts bytes and computes their digest."""

    def __init__(self) -> None:
        self.octets = 0
        self._hash = sha256()

    def add(self, data: bytes) -> None:
        """Take in the bytes that come next."""
        self.octets += len(data)
        self._hash.update(data)

    @property
    def receipt(self) -> Receipt:
        """The receipt for what was taken in so far."""
        return Receipt(self.octets, self._hash.hexdigest())

    def confirm(self, receipt: Receipt | None) -> Receipt:
        """Compare what was sent with what the other side confirms.

        :param receipt: ``None`` where it has sent none
        :raises TransferFailed: they differ, or it sent none
        """
        if receipt is None:
            raise TransferFailed("the callee ended the call without a receipt")
        if receipt.octets != self.octets:
            raise TransferFailed(
                f"the callee has {receipt.octets} bytes of the {self.octets} that were sent"
            )
        if receipt != self.receipt:
            raise TransferFailed("what the callee has is not what was sent: the digests differ")
        return receipt
