"""Both sides dial each other, from ports that their routers have opened already (RFC 9293, 3.5).

A router lets in what comes from where something was sent to. Each side's connection to the
mediator has opened a port in its router; dialled from the same port here, the other side is sent
to from the same port there, as far as the router keeps to one: then what it sends comes in.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any, Final

from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectError, TimeoutError, getConnectError
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
    IWriteDescriptor,
)
from twisted.python.failure import Failure
from zope.interface import implementer

#: Seconds from an attempt that was refused to the next: the other side may not have begun.
AGAIN: Final = 0.25


@implementer(IStreamClientEndpoint)
class SimultaneousEndpoint:
    """Connects from a port that another connection of ours has already, and shares."""

    def __init__(
        self, reactor: Any, local: tuple[str, int], remote: tuple[str, int], timeout: float
    ) -> None:
        """
        :param reactor: an ``IReactorFDSet``, ``IReactorSocket`` and ``IReactorTime``
        :param local: our address and that port
        :param remote: the IP address and port to connect to
        :param timeout: seconds in which it must stand, whatever is refused meanwhile
        """
        self._reactor = reactor
        self._local = local
        self._remote = remote
        self._timeout = timeout

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect; fails with a ``ConnectError``."""
        opening = _Opening(self._reactor, self._local, self._remote, protocolFactory)
        if not opening.begin():
            return fail(ConnectError(errno.EADDRINUSE, "the port of the line can't be shared"))
        return opening.done.addTimeout(self._timeout, self._reactor, lambda *_: _late())


def _late() -> Failure:
    return Failure(TimeoutError())


@implementer(IWriteDescriptor)
class _Opening:
    """Attempts of one connection, until one stands.

    :ivar done: fires with the protocol
    """

    def __init__(
        self,
        reactor: Any,
        local: tuple[str, int],
        remote: tuple[str, int],
        factory: IProtocolFactory,
    ) -> None:
        self.done: Deferred[IProtocol] = Deferred(lambda _: self._stop())
        self._reactor = reactor
        self._local = local
        self._remote = remote
        self._factory = factory
        self._family = socket.AF_INET6 if ":" in local[0] else socket.AF_INET
        self._socket: socket.socket | None = None
        self._again: IDelayedCall | None = None

    def begin(self) -> bool:
        """Make an attempt; give whether there can be any."""
        self._again = None
        try:
            opened = socket.socket(self._family, socket.SOCK_STREAM)
        except OSError:  # there is none left
            return False
        opened.setblocking(False)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind(self._local)
            error = opened.connect_ex(self._remote)
        except OSError:
            opened.close()
            return False
        self._socket = opened
        if error == errno.EINPROGRESS:
            self._reactor.addWriter(self)
        else:
            self._came_to(error)
        return True

    # For the reactor.

    def fileno(self) -> int:
        """The descriptor that is watched."""
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        """What it is, in the log."""
        return "simultaneous open"

    def doWrite(self) -> None:
        """It stands, or has failed."""
        self._reactor.removeWriter(self)
        self._came_to(self._error())

    def connectionLost(self, reason: Failure) -> None:
        """It has failed, or the reactor stops: it is watched no more."""
        self._came_to(self._error() or errno.ECONNABORTED)

    # Within.

    def _error(self) -> int:
        if self._socket is None:
            return 0
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def _came_to(self, error: int) -> None:
        opened, self._socket = self._socket, None
        if opened is None:
            return
        try:
            if error:
                self._refused(error)
            else:
                self._stands(opened)
        finally:
            opened.close()

    def _refused(self, error: int) -> None:
        """Nobody was there, or not yet."""
        if error in (errno.EACCES, errno.EPERM):
            self.done.errback(Failure(getConnectError((error, os.strerror(error)))))
        else:
            self._again = self._reactor.callLater(AGAIN, self._try_again)

    def _try_again(self) -> None:
        if not self.begin():
            self._again = self._reactor.callLater(AGAIN, self._try_again)

    def _stands(self, opened: socket.socket) -> None:
        caught = _Caught(self._factory)
        self._reactor.adoptStreamConnection(opened.fileno(), self._family, caught)
        if caught.protocol is None:
            self.done.errback(Failure(ConnectError(errno.ECANCELED, "it is not wanted any more")))
        else:
            self.done.callback(caught.protocol)

    def _stop(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        opened, self._socket = self._socket, None
        if opened is not None:
            self._reactor.removeWriter(self)
            opened.close()


@implementer(IProtocolFactory)
class _Caught:
    """Makes the protocol of the one connection, and keeps it."""

    def __init__(self, factory: IProtocolFactory) -> None:
        self.protocol: IProtocol | None = None
        self._factory = factory

    def buildProtocol(self, addr: IAddress) -> IProtocol | None:
        self.protocol = self._factory.buildProtocol(addr)
        return self.protocol

    def doStart(self) -> None:
        self._factory.doStart()

    def doStop(self) -> None:
        self._factory.doStop()
