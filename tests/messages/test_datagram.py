"""Messages in datagrams: one datagram, one message (broker.messages.datagram)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.messages.datagram import DATAGRAM_BYTES, parse_datagram
from broker.messages.message import Malformed, Message
from tests.messages import strategies

QUERY = b"QUERY\nCallee:Ib"


def of_length(octets: int) -> bytes:
    """A datagram of that length."""
    return b"QUERY\nx:" + b"x" * (octets - 10) + b"\n\n"


class ParseTests:
    """What is one message, and what isn't."""

    @pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\n\r\n", b"\r\n\n"])
    def test_ends(self, end: bytes) -> None:
        """It ends with an empty line, whichever line ends are used."""
        assert parse_datagram(QUERY + end) == Message("QUERY", Callee="Ib")

    @pytest.mark.parametrize(
        "data",
        [b"", b"\n", b"\n\n", b"\r\n\r\n", b"\n\n\n\n", QUERY, QUERY + b"\n", QUERY + b"\r\n",
         QUERY + b"\n\nx", QUERY + b"\n\n\n", QUERY + b"\n\r\n\r\n", b"\n" + QUERY + b"\n\n",
         b"\n\n" + QUERY + b"\n\n", QUERY + b"\n\n" + QUERY + b"\n\n", b"QUERY\n\nCallee:Ib\n\n",
         b"QUERY\r\n\r\nCallee:Ib\r\n\r\n", b"QUERY\nCallee:\xff\n\n", b"QUERY\nCallee:@\n\n",
         b"QUERY\nLength:0\n\n", b"QUERY\nLength:5\n\n12345", b"\x00" * 40],
    )  # fmt: skip
    def test_no_message(self, data: bytes) -> None:
        """Two messages, half of one, or none: malformed."""
        with pytest.raises(Malformed):
            parse_datagram(data)

    def test_limit(self) -> None:
        """A datagram has at most 1,200 bytes (I13)."""
        assert DATAGRAM_BYTES == 1200
        assert parse_datagram(of_length(1200)) == Message("QUERY")
        with pytest.raises(Malformed) as caught:
            parse_datagram(of_length(1201))
        assert caught.value.too_large

    @settings(deadline=None, max_examples=300)
    @given(st.one_of(strategies.nearly, strategies.nearly.map(lambda data: data + b"\n\n")))
    def test_anything(self, data: bytes) -> None:
        """Any bytes are a message that reads back as itself, or malformed: only that (I24)."""
        try:
            message = parse_datagram(data)
        except Malformed:
            return
        assert parse_datagram(message.encode()) == message
