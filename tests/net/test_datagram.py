"""Messages over UDP: one datagram, one message (broker.net.udp_port)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.protocol import DatagramProtocol

from broker.messages.datagram import DATAGRAM_BYTES, parse_datagram
from broker.messages.message import Malformed, Message
from broker.net.udp_port import DATAGRAMS_A_TURN, DatagramPort
from tests.net import strategies
from tests.net.figures import FIGURES, on_the_wire
from tests.support.reactor import FakeReactor

SOURCE = ("192.0.2.1", 4000)
QUERY = b"QUERY\nCallee:Ib"


def of_length(octets: int) -> bytes:
    """A datagram of so many bytes."""
    return b"QUERY\nx:" + b"x" * (octets - 10) + b"\n\n"


class ParseTests:
    """What is one message, and what isn't."""

    @pytest.mark.parametrize("figure", FIGURES)
    def test_figures(self, figure: str) -> None:
        """Each message of the figures is one, typed or sent."""
        data = on_the_wire(FIGURES[figure])
        assert parse_datagram(data).encode() == data
        assert parse_datagram(FIGURES[figure].encode()).encode() == data

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
        """A datagram has 1,200 bytes at the most (I13)."""
        assert DATAGRAM_BYTES == 1200
        assert parse_datagram(of_length(1200)) == Message("QUERY")
        with pytest.raises(Malformed) as caught:
            parse_datagram(of_length(1201))
        assert caught.value.too_large

    @settings(deadline=None, max_examples=300)
    @given(st.one_of(strategies.nearly, strategies.nearly.map(lambda data: data + b"\n\n")))
    def test_anything(self, data: bytes) -> None:
        """Any bytes are a message that reads back as itself, or malformed, no more (I24)."""
        try:
            message = parse_datagram(data)
        except Malformed:
            return
        assert parse_datagram(message.encode()) == message


class Socket:
    """A socket from which datagrams come without end."""

    def __init__(self, datagram: bytes) -> None:
        self.datagram = datagram
        self.read = 0
        self.error: OSError | None = None

    def recvfrom(self, most: int) -> tuple[bytes, tuple[str, int]]:
        """One more, cut off where it is longer."""
        if self.error is not None:
            raise self.error
        self.read += 1
        return self.datagram[:most], SOURCE


class PortTests:
    """The port that datagrams come through."""

    @staticmethod
    def port(received: list[bytes], sock: Socket) -> DatagramPort:
        """A port that was opened on such a socket."""

        class Receiver(DatagramProtocol):
            def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
                received.append(datagram)
                if datagram == b"boom":
                    raise RuntimeError(datagram)

        making: Any = DatagramPort
        port: Any = making(0, Receiver(), "127.0.0.1", 1201, FakeReactor())
        port.socket = sock
        opened: DatagramPort = port
        return opened

    @pytest.mark.parametrize("datagram", [b"", b"x" * 1200])
    def test_a_flood(self, datagram: bytes) -> None:
        """So many are read in one turn and no more, however short they are (I24)."""
        sock, received = Socket(datagram), list[bytes]()
        self.port(received, sock).doRead()
        assert sock.read == len(received) == DATAGRAMS_A_TURN

    def test_too_long(self) -> None:
        """One that is too long is seen to be, and not taken for what it begins with."""
        received: list[bytes] = []
        self.port(received, Socket(b"x" * 5000)).doRead()
        with pytest.raises(Malformed, match="at most 1200 bytes"):
            parse_datagram(received[0])

    def test_nothing_there(self) -> None:
        """With nothing to read, or an error of an earlier datagram, the turn is over."""
        sock, received = Socket(b""), list[bytes]()
        sock.error = ConnectionRefusedError()
        self.port(received, sock).doRead()
        assert received == []

    def test_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What can't be served is logged, and the next one is (I24)."""
        logged: list[str] = []

        class Log:
            def failure(self, text: str) -> None:
                logged.append(text)

        monkeypatch.setattr(DatagramPort, "log", Log())
        sock, received = Socket(b"boom"), list[bytes]()
        self.port(received, sock).doRead()
        assert len(received) == len(logged) == DATAGRAMS_A_TURN
