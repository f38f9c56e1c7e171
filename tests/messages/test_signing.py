"""Signed datagrams (broker.messages.signing)."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.messages.datagram import parse_datagram
from broker.messages.message import Message
from broker.messages.signing import TAIL, is_signed, mac_of, quick_mac_of, sign, verify
from tests.messages import strategies

KEY = bytes(range(32))
SIGNED = sign(Message("REGISTER", Identifier="Ib", Sequence=7), KEY)

keys = st.binary(min_size=32, max_size=32)


class SignTests:
    """The last line is an HMAC-SHA-256 over every byte before it."""

    def test_form(self) -> None:
        """Its digits are those of HMAC-SHA-256 (RFC 2104), over all that stands before its line."""
        head = b"REGISTER\r\nIdentifier:Ib\r\nSequence:7\r\n"
        digits = hmac.new(KEY, head, hashlib.sha256).hexdigest().encode()
        assert head + b"Signature:" + digits + b"\r\n\r\n" == SIGNED
        assert len(SIGNED) - len(head) == TAIL
        # There is one way to write a signature: in lower case.
        assert not verify(SIGNED[:-68] + SIGNED[-68:].upper(), KEY)

    @given(strategies.messages(), keys)
    def test_round_trip(self, message: Message, key: bytes) -> None:
        """Whatever is signed is found to be, and is the same message with one line more."""
        message.fields.pop("Signature", None)
        message.fields.pop("Length", None)
        signed = sign(message, key)
        assert verify(signed, key)
        if len(signed) <= 1200:
            read = parse_datagram(signed)
            assert list(read.fields)[-1] == "Signature"
            del read.fields["Signature"]
            assert read == message

    @given(st.data(), keys)
    def test_any_byte_changed(self, data: st.DataObject, key: bytes) -> None:
        """With another key, or any byte changed, taken away or put in, it is not signed (I4)."""
        signed = sign(Message("REGISTER", Identifier="Ib", Sequence=7), key)
        assert not verify(signed, bytes(byte ^ 1 for byte in key))
        at = data.draw(st.integers(0, len(signed) - 1))
        other = data.draw(st.integers(0, 255).filter(lambda byte: byte != signed[at]))
        changed = signed[:at] + bytes([other]) + signed[at + 1 :]
        assert not verify(changed, key)
        assert not verify(signed[:at] + bytes([other]) + signed[at:], key)
        assert not verify(signed[:at] + signed[at + 1 :], key)
        assert not verify(signed[:at], key)

    @given(st.binary(max_size=300))
    def test_anything(self, data: bytes) -> None:
        """No bytes are an error."""
        assert not verify(data, KEY)
        is_signed(data)


class FormTests:
    """What has the form of a signed datagram is cheaply seen."""

    @pytest.mark.parametrize(
        ("datagram", "signed"),
        [
            (SIGNED, True),
            (SIGNED[:-2], False),
            (SIGNED.replace(b"\r\n", b"\n"), False),
            (SIGNED + b"\r\n", False),
            (SIGNED.replace(b"Signature", b"signature"), False),
            (SIGNED.replace(b"7\r\nSignature", b"7  Signature"), False),
            (b"", False),
            (SIGNED[-TAIL:], False),
        ],
    )
    def test_form(self, datagram: bytes, signed: bool) -> None:
        """The signature stands in a line of its own, which is the last, written as here."""
        assert is_signed(datagram) is signed
        if not signed:
            assert not verify(datagram, KEY)


class QuickTests:
    """An equal MAC in half the time."""

    @given(st.binary(max_size=64), st.lists(st.binary(max_size=200), max_size=5))
    def test_the_same(self, key: bytes, texts: list[bytes]) -> None:
        """Its part that is prepared is not used up by what is done with it."""
        quick, plain = quick_mac_of(key), mac_of(key)
        for text in texts:
            assert quick(text) == plain(text) == hmac.digest(key, text, "sha256")

    def test_long_key(self) -> None:
        """A key that HMAC would have to shorten is none of ours."""
        with pytest.raises(ValueError, match="at most 64 bytes"):
            quick_mac_of(bytes(65))
