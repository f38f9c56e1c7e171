"""The UDP port that datagrams arrive at (broker.net.udp_port)."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import capturedLogs

from broker.messages.datagram import parse_datagram
from broker.messages.message import Malformed
from broker.net.udp_port import DATAGRAMS_A_TURN, DatagramPort
from tests.support.reactor import FakeReactor

SOURCE = ("192.0.2.1", 4000)


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
    def reads(sock: Socket) -> list[bytes]:
        """What a port on such a socket receives in one turn."""
        received: list[bytes] = []

        class Receiver(DatagramProtocol):
            def datagramReceived(self, datagram: bytes, addr: tuple[str, int]) -> None:
                received.append(datagram)
                if datagram == b"boom":
                    raise RuntimeError(datagram)

        making: Any = DatagramPort
        port: Any = making(0, Receiver(), "127.0.0.1", 1201, FakeReactor())
        port.socket = sock
        port.doRead()
        return received

    @pytest.mark.parametrize("datagram", [b"", b"x" * 1200])
    def test_a_flood(self, datagram: bytes) -> None:
        """A fixed number is read in one turn, however short they are (I24)."""
        sock = Socket(datagram)
        assert len(self.reads(sock)) == sock.read == DATAGRAMS_A_TURN

    def test_too_long(self) -> None:
        """One that is too long is seen to be, and not taken for what it begins with."""
        with pytest.raises(Malformed, match="at most 1200 bytes"):
            parse_datagram(self.reads(Socket(b"x" * 5000))[0])

    def test_nothing_there(self) -> None:
        """With nothing to read, or an error of an earlier datagram, the turn ends."""
        sock = Socket(b"")
        sock.error = ConnectionRefusedError()
        assert self.reads(sock) == []

    def test_an_error(self) -> None:
        """What can't be served is logged, and the next one is served (I24)."""
        with capturedLogs() as logged:
            assert len(self.reads(Socket(b"boom"))) == DATAGRAMS_A_TURN
        assert len([event for event in logged if "log_failure" in event]) == DATAGRAMS_A_TURN
