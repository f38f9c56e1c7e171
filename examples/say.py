"""A caller in your own program: Ia calls Ib, says something, and prints what comes back.

It logs in as ``echo.py`` does::

    python examples/say.py "Is anybody there?"
"""

from __future__ import annotations

import os
import sys
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import react
from twisted.python.failure import Failure

from broker.messages.errors import Refused
from broker.service.settings.credentials import Keyring, PasswordSource
from broker.terminal.errors import CallFailed
from broker.terminal.settings import TerminalSettings
from broker.terminal.terminal import Terminal


class Say(Protocol):
    """Says one thing, and waits for as much to come back.

    :ivar answered: fires with what came back; fails if the call ends before
    """

    def __init__(self, text: bytes) -> None:
        self.answered: Deferred[bytes] = Deferred()
        self._text = text
        self._came = b""

    def connectionMade(self) -> None:
        """The call stands."""
        if self.transport is not None:
            self.transport.write(self._text)

    def dataReceived(self, data: bytes) -> None:
        """A part of the answer came."""
        self._came += data
        if len(self._came) >= len(self._text) and not self.answered.called:
            self.answered.callback(self._came)
            if self.transport is not None:
                self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The call is over."""
        if not self.answered.called:
            self.answered.errback(reason)


class Saying(Factory):
    """Makes the protocol of a call, as for any connection."""

    noisy = False

    def __init__(self, text: bytes) -> None:
        self._text = text

    def buildProtocol(self, addr: object) -> Say:
        return Say(self._text)


async def say(reactor: Any, text: str, mediator_port: int = 1201) -> str:
    """Call Ib and say something; return what it answers.

    :raises Refused: the mediator refused the call
    :raises CallFailed: Ib could not be reached directly, or did not take the call
    """
    mediator = TCP4ClientEndpoint(reactor, "127.0.0.1", mediator_port)
    password = PasswordSource("Ia", f"tcp:127.0.0.1:{mediator_port}", None, Keyring.of(os.environ))
    terminal = Terminal(reactor, "Ia", mediator, TerminalSettings(password=password))
    terminal.startService()
    try:
        call: Any = await terminal.call("Ib", Saying(text.encode("utf-8")))
        answer: bytes = await call.answered
        return answer.decode("utf-8")
    finally:
        await terminal.stopService()


async def main(reactor: Any, text: str = "Is anybody there?", *ports: str) -> None:
    """Print the answer, or why there is none."""
    try:
        print(await say(reactor, text, *map(int, ports)))
    except (Refused, CallFailed) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    react(lambda reactor, *rest: Deferred.fromCoroutine(main(reactor, *rest)), sys.argv[1:])
