"""The UDP port that datagrams arrive at."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any, Final

from twisted.internet.protocol import DatagramProtocol
from twisted.internet.udp import Port
from twisted.logger import Logger

from broker.messages.datagram import DATAGRAM_BYTES

#: Datagrams that are read in one turn of the reactor; then others have theirs (I24).
DATAGRAMS_A_TURN: Final = 100
#: Bytes of the kernel's buffer, so that a burst is not lost: as many as it will give.
RECEIVE_BYTES: Final = 8 * 2**20
_FORCE: Final = 33  # SO_RCVBUFFORCE of Linux, which the standard library doesn't name


class DatagramPort(Port):
    """A UDP port that a flood can't keep the reactor at, and that costs little.

    Twisted's own reads on for as long as it has had few bytes, and so for ever where datagrams
    are empty; and looks at each address it sends to, though it came from the socket itself.
    """

    log = Logger()

    def createInternetSocket(self) -> Any:
        """A socket with a large buffer."""
        made = super().createInternetSocket()
        try:
            made.setsockopt(socket.SOL_SOCKET, _FORCE, RECEIVE_BYTES)
        except OSError:  # that is the administrator's right; as much as is allowed, then
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
            except OSError:  # there is none, or an earlier one of ours was refused
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
            raise ValueError("a datagram is sent to somebody")
        self.socket.sendto(datagram, addr)


def open_port(reactor: Any, protocol: DatagramProtocol, port: int, interface: str) -> DatagramPort:
    """Open a UDP port.

    :raises CannotListenError: it is in use, or not ours to open
    """
    making: Any = DatagramPort  # which Twisted gives no types
    opened: DatagramPort = making(port, protocol, interface, DATAGRAM_BYTES + 1, reactor)
    listening: Any = opened
    listening.startListening()
    return opened
