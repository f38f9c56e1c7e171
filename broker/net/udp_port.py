"""The UDP port that datagrams arrive at."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any, Final

from twisted.internet.protocol import DatagramProtocol
from twisted.internet.udp import Port
from twisted.logger import Logger

from broker.messages.datagram import DATAGRAM_BYTES

#: Datagrams that are read in one turn of the reactor, before others have theirs (I24).
DATAGRAMS_A_TURN: Final = 100
#: The size of the kernel's buffer that is asked for, in bytes, so that no burst is lost.
RECEIVE_BYTES: Final = 8 * 2**20
_FORCE: Final = 33  # SO_RCVBUFFORCE of Linux, which the standard library doesn't name


class DatagramPort(Port):
    """A UDP port that a flood can't keep the reactor busy with, and that costs little.

    Twisted's own port goes on reading until it has a number of bytes: for ever, where datagrams
    are empty. It also checks each address that it sends to, which here came from the socket.
    """

    log = Logger()

    def createInternetSocket(self) -> Any:
        """A socket with a large buffer."""
        made = super().createInternetSocket()
        try:
            made.setsockopt(socket.SOL_SOCKET, _FORCE, RECEIVE_BYTES)
        except OSError:  # only root may exceed the limit: take as much as it allows
            with suppress(OSError):
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        return made

    def doRead(self) -> None:
        """Datagrams have arrived."""
        receive = self.socket.recvfrom
        received = self.protocol.datagramReceived
        scoped = self.addressFamily == socket.AF_INET6
        for _ in range(DATAGRAMS_A_TURN):
            try:
                datagram, source = receive(DATAGRAM_BYTES + 1)
            except OSError:  # none is left, or ICMP says that an earlier one of ours was refused
                return
            try:
                received(datagram, source[:2] if scoped else source)
            except Exception:
                self.log.failure("A datagram could not be served")

    def write(self, datagram: bytes, addr: tuple[str, int] | None = None) -> None:
        """Send a datagram.

        :raises OSError: it can't be sent
        """
        if addr is None:
            raise ValueError("a datagram needs an address to go to")
        self.socket.sendto(datagram, addr)


def open_port(reactor: Any, protocol: DatagramProtocol, port: int, interface: str) -> DatagramPort:
    """Open a UDP port.

    :raises CannotListenError: it is in use, or we may not open it
    """
    making: Any = DatagramPort  # which Twisted gives no types
    opened: DatagramPort = making(port, protocol, interface, DATAGRAM_BYTES + 1, reactor)
    listening: Any = opened
    listening.startListening()
    return opened
