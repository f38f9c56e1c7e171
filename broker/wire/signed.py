"""Signed datagrams: the last line of each is a MAC over every byte before it.

Verbs keep the two directions apart: what a terminal signs begins with ``REGISTER``, what a server
signs with ``NOTIFY``, so that nothing can be sent back to whoever has signed it.
"""

from __future__ import annotations

import hmac
from typing import Final

from broker.wire.message import Message

_NAME: Final = b"Signature:"
_END: Final = b"\r\n\r\n"
#: How many bytes of a signed datagram are its last line and the empty line.
TAIL: Final = len(_NAME) + 64 + len(_END)


def sign(message: Message, key: bytes) -> bytes:
    """A message as a datagram, signed.

    :param key: the Registration Key
    """
    return sign_head(message.encode()[:-2], key)


def sign_head(head: bytes, key: bytes) -> bytes:
    """The same for a message that is encoded already, without its empty line."""
    return head + _NAME + hmac.digest(key, head, "sha256").hex().encode() + _END


def is_signed(datagram: bytes) -> bool:
    """Whether a datagram has the form of a signed one."""
    return datagram[-TAIL:].startswith(_NAME) and datagram.endswith(_END)


def verify(datagram: bytes, key: bytes) -> bool:
    """Whether a datagram is signed with this key."""
    if not is_signed(datagram):
        return False
    made = hmac.digest(key, datagram[:-TAIL], "sha256").hex().encode()
    return hmac.compare_digest(made, datagram[-TAIL + len(_NAME) : -len(_END)])
