"""An application with a terminal in it: echoes what it is told, and asks whom its input names.

``application.py IDENTIFIER MEDIATOR PERMITTED [open]``. Each line of its input names a callee; what
became of the call is a line of JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.stdio import StandardIO
from twisted.internet.task import react
from twisted.protocols.basic import LineReceiver
from twisted.protocols.wire import Echo
from twisted.python.failure import Failure
from zope.interface import implementer

from broker.interfaces import ICallHandler
from broker.messages.errors import Refused
from broker.service.terminal import make_opener
from broker.terminal.errors import CallFailed
from broker.terminal.settings import TerminalSettings
from broker.terminal.terminal import Terminal

QUESTION = b"Is anybody there? " * 1000


@implementer(ICallHandler)
class Echoes:
    """Takes each call."""

    def call(self, caller: str, session: str) -> Echo:
        """Echo it."""
        return Echo()


class Question(Protocol):
    """Asks, and hears the same."""

    transport: Any

    def __init__(self) -> None:
        self.heard = b""
        self.over: Deferred[bytes] = Deferred()

    def connectionMade(self) -> None:
        """Ask."""
        self.transport.write(QUESTION)

    def dataReceived(self, data: bytes) -> None:
        """A part of the answer."""
        self.heard += data
        if len(self.heard) >= len(QUESTION):
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """That was all."""
        self.over.callback(self.heard)


class Asking(LineReceiver):
    """Calls whom each line names."""

    delimiter = b"\n"

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self.ended: Deferred[None] = Deferred()

    def lineReceived(self, line: bytes) -> None:
        """Call somebody."""
        Deferred.fromCoroutine(self._ask(line.decode())).addErrback(self.ended.errback)

    async def _ask(self, callee: str) -> None:
        try:
            call: Any = await self._terminal.call(callee, Factory.forProtocol(Question))
        except (CallFailed, Refused) as error:
            say(
                callee=callee,
                why=str(error),
                tried=tried_in(getattr(error, "failed_candidates", ())),
            )
            return
        channel = call.transport
        candidate, tried = channel.candidate, tried_in(channel.failed_candidates)
        right = await call.over == QUESTION
        method, host, port = candidate
        say(callee=callee, right=right, way=method, host=host, port=port, tried=tried)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """No more is to be asked."""
        self.ended.callback(None)


def tried_in(tried: Any) -> dict[str, str]:
    """Why each candidate failed, by its method."""
    return {candidate.method: reason for candidate, reason in tried}


def say(**what: object) -> None:
    """Write a line."""
    print(json.dumps(what), flush=True)


async def main(reactor: Any, identifier: str, mediator: str, permitted: str, *more: str) -> None:
    """Run until the input ends."""
    opener = make_opener(reactor) if "open" in more else None
    terminal = Terminal(
        reactor,
        identifier,
        TCP4ClientEndpoint(reactor, mediator, 1201),
        TerminalSettings(
            listen=TCP4ServerEndpoint(reactor, 1203),
            accept=[permitted],
            allow_clear_text=True,
            udp=(None, 1200),
            handler=Echoes(),
            opener=opener,
        ),
    )
    terminal.startService()
    await terminal.ready()
    say(ready=identifier)
    asking = Asking(terminal)
    StandardIO(asking)
    try:
        await asking.ended
    finally:
        await terminal.stopService()
        if opener is not None:
            await opener.stop()


if __name__ == "__main__":
    react(main, sys.argv[1:])
