"""A terminal in your own program: Ib answers Ia's calls, and sends back what Ia says.

Start a mediator (``twistd -n broker``) that knows Ib and Ia, and store their passwords
(``broker login --as Ib``, ``broker login --as Ia``); or one that checks no password
(``twistd -n broker --auth none``). Then start this, then ``say.py``::

    python examples/echo.py
"""

from __future__ import annotations

import os
import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import react
from zope.interface import implementer

from broker.interfaces import ICallHandler
from broker.service.settings.credentials import Keyring, PasswordSource
from broker.terminal.settings import TerminalSettings
from broker.terminal.terminal import Terminal


class Echo(Protocol):
    """An ordinary Twisted protocol: nothing in it knows that it speaks over a call."""

    def dataReceived(self, data: bytes) -> None:
        """Send back what came."""
        if self.transport is not None:
            self.transport.write(data)


@implementer(ICallHandler)
class Answering:
    """Takes the calls of every caller that the terminal accepts."""

    def call(self, caller: str, session: str) -> IProtocol | None:
        """Give each call a protocol of its own."""
        print(f"{caller} calls", flush=True)
        return Echo()


def make_terminal(reactor: Any, mediator_port: int = 1201, port: int = 1203) -> Terminal:
    """Ib: reached on this machine, and by Ia alone."""
    return Terminal(
        reactor,
        "Ib",
        TCP4ClientEndpoint(reactor, "127.0.0.1", mediator_port),
        TerminalSettings(
            listen=TCP4ServerEndpoint(reactor, port, interface="127.0.0.1"),
            accept=["Ia"],
            password=PasswordSource(
                "Ib", f"tcp:127.0.0.1:{mediator_port}", None, Keyring.of(os.environ)
            ),
            handler=Answering(),
        ),
    )


async def main(reactor: Any, *ports: str) -> None:
    """Answer calls until interrupted."""
    terminal = make_terminal(reactor, *map(int, ports))
    terminal.startService()
    reactor.addSystemEventTrigger("before", "shutdown", terminal.stopService)
    await terminal.listening
    await terminal.ready()
    print("Ib is registered", flush=True)
    await Deferred()


if __name__ == "__main__":
    react(lambda reactor, *ports: Deferred.fromCoroutine(main(reactor, *ports)), sys.argv[1:])
