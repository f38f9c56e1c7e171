"""REF: the least that Twisted can do for a request.

A bare ``Protocol`` splits what it receives on the blank line and answers each message of 106 bytes
in three lines with 70 bytes. ``python -m benchmarks.echo PORT`` serves it on the loopback address.
"""

from __future__ import annotations

import sys
from typing import Final

from twisted.internet import epollreactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol

REQUEST: Final = (
    b"QUERY\r\n"
    b"Identifier:terminal-00000000-of-the-benchmark@example.jp\r\n"
    b"Callee:callee-000000-of-the-bare-echo\r\n"
    b"\r\n"
)
REPLY: Final = (
    b"NOTIFY\r\nEcho:this line has as many bytes as the reply needs to be.\r\n\r\n"  # no figure
)
END: Final = b"\r\n\r\n"


class SplitEcho(Protocol):
    """Answers each message."""

    def __init__(self) -> None:
        self._rest = b""

    def connectionMade(self) -> None:
        """The connection stands."""
        if self.transport is not None:
            self.transport.setTcpNoDelay(True)  # type: ignore[attr-defined]

    def dataReceived(self, data: bytes) -> None:
        """Bytes arrived: answer what they complete."""
        messages = (self._rest + data).split(END)
        self._rest = messages.pop()
        if messages and self.transport is not None:
            self.transport.write(REPLY * len(messages))


def main() -> None:
    """Serve until terminated."""
    epollreactor.install()
    from twisted.internet import reactor

    endpoint = TCP4ServerEndpoint(reactor, int(sys.argv[1]), 1024, "127.0.0.1")
    endpoint.listen(Factory.forProtocol(SplitEcho))
    reactor.run()


if __name__ == "__main__":
    main()
