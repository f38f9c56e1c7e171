"""A small server over real sockets, to be run as a process: ``python -m tests.net.server``.

It listens on a free port of 127.0.0.1, over TLS if it is given the files of a certificate and its
key, says which on standard output, and ends with its standard input, or by itself after a minute.
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Protocol
from twisted.internet.stdio import StandardIO
from twisted.python.failure import Failure

from broker.messages.message import Message
from broker.net.connection import ConnectionFactory, PeerConnection
from broker.net.hub import ConnectionHub
from broker.net.tls.contexts import ServerTls
from broker.net.tls.transport import TlsFactory
from tests.net.recorder import Talk

#: What ``QUERY`` / ``LOOKUP`` is answered with: more than a connection's buffers take.
MUCH = 12 * 1024 * 1024


class Server(Talk):
    """Answers each request at once: with its callee's name, or with much."""

    def __init__(self, stream: PeerConnection) -> None:
        super().__init__(stream)
        stream.authenticated()

    def message_received(self, message: Message) -> None:
        """A message came."""
        if message.statement == "LOOKUP":
            self.stream.write(b"x" * MUCH)
        else:
            callee = message.get("Callee") or ""
            self.open_request(message).reply("Request Accepted.", {"Cause": callee})


class Until(Protocol):
    """Stops a reactor when its input ends."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def connectionLost(self, reason: Failure | None = None) -> None:
        """The parent has gone, or wants this to end."""
        if self._reactor.running:
            self._reactor.stop()


def main() -> None:
    """Serve."""
    from twisted.internet import reactor as imported

    reactor: Any = imported
    hub = ConnectionHub(reactor)
    endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
    factory: Any = ConnectionFactory(hub, Server)
    if len(sys.argv) > 1:
        certificate, key = sys.argv[1:]
        factory = TlsFactory(ServerTls(certificate, key), factory, reactor)
    listening = endpoint.listen(factory)
    listening.addCallback(lambda port: print(port.getHost().port, flush=True))
    listening.addErrback(lambda failure: failure.printTraceback())
    StandardIO(Until(reactor))
    reactor.callLater(60, reactor.stop)
    reactor.run()


if __name__ == "__main__":
    main()
