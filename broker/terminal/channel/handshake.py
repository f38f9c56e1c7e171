"""``REQUEST`` and its answer (fig. 5f, 5b, 5c) inside the two messages of Noise ``NNpsk0``.

Both sides draw a fresh key pair for each handshake, so that the Encrypt Key, learnt later, opens no
past call (I22), and the prologue binds the handshake to its session, caller and callee. Pure: bytes
in, bytes out.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidTag
from noise.connection import NoiseConnection
from noise.exceptions import NoiseInvalidMessage, NoiseValueError

from broker.messages.message import Malformed, Message, parse

PROTOCOL: Final = b"Noise_NNpsk0_25519_ChaChaPoly_SHA256"
#: The longest body of a REQUEST or its answer, in bytes.
BODY_BYTES: Final = 1024
_END: Final = b"\r\n\r\n"


class HandshakeFailed(Exception):
    """The other side does not hold this session's key, or breaks the protocol."""


class Handshake:
    """One side of one handshake.

    The caller is the initiator, whichever side dials: ``write`` its REQUEST, ``read`` the answer.
    The callee reads first, then writes.
    """

    def __init__(
        self, session: str, caller: str, callee: str, key: str, *, initiator: bool
    ) -> None:
        """
        :param key: the Encrypt Key, 64 hexadecimal digits
        """
        noise = NoiseConnection.from_name(PROTOCOL)
        noise.set_psks(bytes.fromhex(key))
        noise.set_prologue("\n".join(("broker/1", session, caller, callee)).encode("utf-8"))
        if initiator:
            noise.set_as_initiator()
        else:
            noise.set_as_responder()
        noise.start_handshake()
        self._noise = noise

    def write(self, message: Message) -> bytes:
        """Encrypt the message of this side."""
        return bytes(self._noise.write_message(message.encode()))

    def read(self, body: bytes) -> Message:
        """Decrypt the message of the other side.

        :raises HandshakeFailed: it can't be decrypted, or it holds no message
        """
        try:
            plain = bytes(self._noise.read_message(body))
        except (InvalidTag, NoiseInvalidMessage, NoiseValueError, ValueError):
            raise HandshakeFailed("it is not encrypted with this session's key") from None
        if not plain.endswith(_END):
            raise HandshakeFailed("it holds no whole message")
        try:
            return parse(plain[: -len(_END)])
        except Malformed as malformed:
            raise HandshakeFailed(malformed.cause) from None

    def cipher(self) -> NoiseConnection:
        """What encrypts the records that follow, each direction with its own key."""
        return self._noise
