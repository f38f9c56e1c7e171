"""A program for a host: has a port opened, and answers whoever connects to it.

``python -m tests.natlab.opener TCP PORT [without-miniupnpc]``; tells what it comes to as lines of
JSON, and ends, closing the port, when its input does.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.stdio import StandardIO

from broker.nat.context import NatContext, find_miniupnpc
from broker.nat.mapper import PortMapper
from broker.nat.methods import PortMapping

reactor: Any = _reactor


def tell(**what: object) -> None:
    """Write a line."""
    print(json.dumps(what), flush=True)


class Hello(Protocol):
    """Says hello."""

    def connectionMade(self) -> None:
        """Somebody has come through."""
        assert self.transport is not None
        self.transport.write(b"hello from behind\n")
        self.transport.loseConnection()


class Changes:
    """Tells what becomes of the port."""

    def mapping_changed(self, before: PortMapping, now: PortMapping | None, why: str) -> None:
        """It is another, or none."""
        tell(changed=[_claim(before), None if now is None else _claim(now), why])


def _claim(mapping: PortMapping) -> tuple[str, int, int, str]:
    return mapping.address, mapping.external, mapping.lifetime, mapping.method


class Input(Protocol):
    """Ends the program when its input ends."""

    def __init__(self, mapper: PortMapper) -> None:
        self.mapper = mapper

    def connectionLost(self, reason: Any = None) -> None:
        """The input has ended."""

        def stopped(_: object) -> None:
            tell(stopped=True)
            reactor.stop()

        self.mapper.stop().addCallback(stopped)


def main() -> None:
    """Do it."""
    protocol, port = sys.argv[1], int(sys.argv[2])
    with_upnp = "without-miniupnpc" not in sys.argv
    make_igd = find_miniupnpc() if with_upnp else None
    mapper = PortMapper(NatContext(reactor, make_igd=make_igd))

    def mapped(told: PortMapping) -> None:
        tell(
            address=told.address,
            port=told.external,
            lifetime=told.lifetime,
            how=told.method,
            public=told.is_public,
        )

    def not_mapped(failure: Any) -> None:
        tell(failed=failure.getErrorMessage())

    def go() -> None:
        reactor.listenTCP(port, Factory.forProtocol(Hello))
        StandardIO(Input(mapper))
        mapper.map(protocol, port, events=Changes()).addCallbacks(mapped, not_mapped)

    reactor.callWhenRunning(go)
    reactor.run()


if __name__ == "__main__":
    main()
