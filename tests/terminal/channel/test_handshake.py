"""The handshake: against a published vector, and peers that lack the key or bend a byte."""

from __future__ import annotations

import itertools
import warnings
from typing import Final

import pytest
from noise.connection import Keypair, NoiseConnection

from broker.terminal.channel.handshake import BODY_BYTES, PROTOCOL, HandshakeFailed
from broker.terminal.channel.records import BadRecord, Records, RecordType
from tests.terminal.keys import (
    KEY,
    PASSWORD,
    REPLY_PASSWORD,
    a_handshake,
    a_request,
    an_answer,
    shaken,
)

# The vector of Noise_NNpsk0_25519_ChaChaPoly_SHA256 in the cacophony collection, as kept in
# tests/vectors/cacophony.txt of github.com/mcginty/snow.
PROLOGUE: Final = bytes.fromhex("4a6f686e2047616c74")
PSK: Final = bytes.fromhex("54686973206973206d7920417573747269616e20706572737065637469766521")
INITIATOR_KEY: Final = "893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a"
RESPONDER_KEY: Final = "bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b"
#: The hash of the handshake as the collection gives it for this pattern: after the first message.
HASH: Final = bytes.fromhex("054a32eaeedc4061a64cec028e34e5775d4de033e32525a5dfbd719056bae0b6")
#: Payload and ciphertext, the initiator's and the responder's in turn.
MESSAGES: Final = (
    (
        "4c756477696720766f6e204d69736573",
        "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944"
        "79b962b8aff8485742ac32f905ba45369e2465fb59e138a93d67a0d1266b6a54",
    ),
    (
        "4d757272617920526f746862617264",
        "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843"
        "d6062704d5a9c422a8e834423f8c1feada7e8d0d910a1a2cd030fb584221e3",
    ),
    ("462e20412e20486179656b", "e632c3763d7669067383433197a3baddf146e9e70ad4b4e9e59e0f"),
    ("4361726c204d656e676572", "64c6bee32ea91c8474bb4c21d7a700109ad45af77b29764ba5eb1e"),
    (
        "4a65616e2d426170746973746520536179",
        "e2fa0bed0603b62d3ccac2ecabbf3fe33f3e86514909b323361626266cb2471cc8",
    ),
    (
        "457567656e2042f6686d20766f6e2042617765726b",
        "0c01dc9cec1fe4ddd692e8dd32188aa351088dc91183639a53b57aa4692b5ebdef8b8ca111",
    ),
)


def side(ephemeral: str, *, initiator: bool) -> NoiseConnection:
    """One side of the vector: with a key pair that is not drawn, but given."""
    noise = NoiseConnection.from_name(PROTOCOL)
    noise.set_psks(PSK)
    noise.set_prologue(PROLOGUE)
    if initiator:
        noise.set_as_initiator()
    else:
        noise.set_as_responder()
    noise.set_keypair_from_private_bytes(Keypair.EPHEMERAL, bytes.fromhex(ephemeral))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a key pair is given is only for tests
        noise.start_handshake()
    return noise


class VectorTests:
    """What we build on does what the Noise specification says."""

    def test_published_vector(self) -> None:
        """Handshake messages, first hash and transport messages are the vector's (A12)."""
        sides = (side(INITIATOR_KEY, initiator=True), side(RESPONDER_KEY, initiator=False))
        for index, (payload, ciphertext) in enumerate(MESSAGES):
            writer, reader = sides[index % 2], sides[1 - index % 2]
            plain, sealed = bytes.fromhex(payload), bytes.fromhex(ciphertext)
            if index < 2:
                assert bytes(writer.write_message(plain)) == sealed
                assert bytes(reader.read_message(sealed)) == plain
            else:
                assert writer.encrypt(plain) == sealed
                assert reader.decrypt(sealed) == plain
            if index == 0:
                states = [one.noise_protocol.symmetric_state for one in sides]
                assert [state.get_handshake_hash() for state in states] == [HASH, HASH]

    def test_a_record_of_ours_is_a_transport_message(self) -> None:
        """A record is two bytes of length and the Noise message of its type and data (wire.md)."""
        caller, callee = shaken()
        record = Records(caller.cipher()).seal(RecordType.DATA, b"hello")
        assert int.from_bytes(record[:2], "big") == len(record) - 2
        assert callee.cipher().decrypt(record[2:]) == b"\x00hello"


class HandshakeTests:
    """REQUEST and answer, between two who hold the key and others."""

    def test_both_messages_arrive(self) -> None:
        """Each side reads the other's message, and neither stands in clear (A12)."""
        caller, callee = a_handshake(initiator=True), a_handshake(initiator=False)
        body = caller.write(a_request())
        assert callee.read(body) == a_request()
        answer = callee.write(an_answer())
        assert caller.read(answer) == an_answer()
        # Nothing of under eight bytes: the bodies are random, and may hold any two by chance.
        for clear in (b"Identifier", b"Password", PASSWORD.encode()):
            assert clear not in body
        for clear in (b"Accepted", b"Password", REPLY_PASSWORD.encode()):
            assert clear not in answer

    def test_longest_request_fits(self) -> None:
        """The longest identifier and a mediator's password fit the body that is taken."""
        body = a_handshake(initiator=True).write(a_request("i" * 128, "p" * 512))
        assert len(body) <= BODY_BYTES

    def test_names_of_any_language(self) -> None:
        """The prologue takes identifiers as people remember them (A18)."""
        names = {"caller": "山田太郎 大阪府門真市大字門真1006", "callee": "+81-6-6908-1121"}
        caller = a_handshake(initiator=True, **names)
        body = caller.write(a_request(names["caller"]))
        assert a_handshake(initiator=False, **names).read(body) == a_request(names["caller"])

    @pytest.mark.parametrize(
        "other",
        [
            {"key": KEY[:-1] + "1"},
            {"session": "S0123456789abcdef01234568"},
            {"caller": "Ic"},
            {"callee": "Id"},
            # The parts run together are the same: only where one ends and the next begins differs.
            {"caller": "I", "callee": "aIb"},
        ],
    )
    def test_other_key_or_prologue(self, other: dict[str, str]) -> None:
        """A REQUEST for another session, caller, callee or key can't be read (I7, A12), and who
        holds another can't answer in the callee's stead (A23).
        """
        caller = a_handshake(initiator=True)
        body = caller.write(a_request())
        with pytest.raises(HandshakeFailed):
            a_handshake(initiator=False, **other).read(body)
        impostor = a_handshake(initiator=False, **other)
        impostor.read(a_handshake(initiator=True, **other).write(a_request()))
        with pytest.raises(HandshakeFailed):
            caller.read(impostor.write(an_answer()))

    def test_every_byte_of_a_request_counts(self) -> None:
        """A REQUEST with any one byte changed, missing or added is refused (I21)."""
        body = a_handshake(initiator=True).write(a_request())
        bent = [body + b"\x00"]
        for position, byte in enumerate(body):
            bent.append(body[:position])
            bent.append(body[:position] + bytes((byte ^ 1,)) + body[position + 1 :])
        for wrong in bent:
            with pytest.raises(HandshakeFailed):
                a_handshake(initiator=False).read(wrong)

    def test_every_byte_of_an_answer_counts(self) -> None:
        """An answer with any one byte changed is refused (I21)."""
        for position in itertools.count():
            caller, callee = a_handshake(initiator=True), a_handshake(initiator=False)
            callee.read(caller.write(a_request()))
            bent = bytearray(callee.write(an_answer()))
            if position == len(bent):
                break
            bent[position] ^= 0x80
            with pytest.raises(HandshakeFailed):
                caller.read(bytes(bent))

    def test_a_point_of_low_order(self) -> None:
        """A public key that would make the shared secret known is refused (I22)."""
        caller = a_handshake(initiator=True)
        caller.write(a_request())
        with pytest.raises(HandshakeFailed):
            caller.read(bytes(32) + bytes(64))

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"REQUEST\r\nIdentifier:Ia\r\n",
            b"REQUEST\r\nIdentifier:Ia1234",
            b"REQUEST\r\nIdentifier:Ia\r\nIdentifier:Ia\r\n\r\n",
            b"HELLO\r\n\r\n",
            b"REQUEST\r\n\xff\r\n\r\n",
            b"REQUEST\r\nIdentifier:Ia\r\n\r\nNOTIFY\r\n\r\n",
        ],
    )
    def test_no_message_inside(self, content: bytes) -> None:
        """What decrypts but is not one whole message is refused (I3, I24)."""
        caller = a_handshake(initiator=True)
        body = bytes(caller.cipher().write_message(content))
        with pytest.raises(HandshakeFailed):
            a_handshake(initiator=False).read(body)

    def test_errors_tell_nothing_secret(self) -> None:
        """The refusal's text holds neither key nor content (I18)."""
        body = a_handshake(initiator=True).write(a_request())
        with pytest.raises(HandshakeFailed) as raised:
            a_handshake(initiator=False, key="00" * 32).read(body)
        assert str(raised.value) == "it is not encrypted with this session's key"

    def test_figures(self) -> None:
        """Inside stand fig. 5f and 5b to the letter, the reply password after 5b (A12, A23)."""
        assert a_request().encode().startswith(b"REQUEST\r\nIdentifier:Ia\r\nPassword:")
        assert an_answer().encode().startswith(b"NOTIFY\r\nRequest Accepted.\r\nPassword:")


class ForwardSecrecyTests:
    """Who kept a call's bytes, and learns its Encrypt Key later, reads nothing of it (I22)."""

    def test_replayed(self) -> None:
        """With the key a REQUEST can be read, but neither the answer nor a record: they need what
        only the two drew.
        """
        caller, callee = a_handshake(initiator=True), a_handshake(initiator=False)
        request = caller.write(a_request())
        callee.read(request)
        answer = callee.write(an_answer())
        caller.read(answer)
        record = Records(caller.cipher()).seal(RecordType.DATA, b"past")
        responder, initiator = a_handshake(initiator=False), a_handshake(initiator=True)
        assert responder.read(request) == a_request()
        responder.write(an_answer())
        opened = Records(responder.cipher())
        opened.feed(record)
        with pytest.raises(BadRecord):
            next(iter(opened))
        initiator.write(a_request())
        with pytest.raises(HandshakeFailed):
            initiator.read(answer)
        true = Records(callee.cipher())
        true.feed(record)
        assert list(true) == [(RecordType.DATA, b"past")]

    def test_each_handshake_is_fresh(self) -> None:
        """The same REQUEST twice under one key is never the same bytes (I7, I21)."""
        first = a_handshake(initiator=True).write(a_request())
        assert first != a_handshake(initiator=True).write(a_request())
