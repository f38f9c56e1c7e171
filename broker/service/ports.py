"""The listening ports of a role: all of them open, or the role does not start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.messages.message import host_port
from broker.net.tls.contexts import ServerTls
from broker.net.tls.transport import TlsFactory
from broker.net.udp_port import DatagramPort, open_port
from broker.service.errors import CannotStart
from broker.service.settings.values import Interface, Listener


class Listening:
    """The listening ports of a role.

    :ivar ports: the numbers of the open TCP ports
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        listeners: Sequence[Listener],
        tls_listeners: Sequence[Listener] = (),
        tls: ServerTls | None = None,
    ) -> None:
        """
        :param listeners: where to listen without TLS
        :param tls_listeners: where to listen for TLS; used if there is a ``tls``
        """
        self.ports: set[int] = set()
        self._reactor = reactor
        self._listeners = listeners
        self._tls_listeners = tls_listeners
        self._tls = tls
        self._open: list[IListeningPort | DatagramPort] = []

    def open(self, factory: IProtocolFactory) -> None:
        """Open the TCP ports.

        :raises CannotStart: one can't be opened; all are closed again then
        """
        for listener in self._listeners:
            self._open_one(listener, factory, "Listening")
        if self._tls is not None:
            for listener in self._tls_listeners:
                wrapped: Any = TlsFactory(self._tls, factory, self._reactor)
                self._open_one(listener, wrapped, "Listening for TLS")

    def _open_one(self, listener: Listener, factory: IProtocolFactory, what: str) -> None:
        try:
            port = _at_once(serverFromString(self._reactor, listener.text).listen(factory))
        except CannotListenError as error:
            self.close()
            raise CannotStart(f"cannot listen on {listener.text}: {reason(error)}") from None
        self._open.append(port)
        address: Any = port.getHost()
        self.ports.add(address.port)
        self._log(what, port)

    def _log(self, what: str, port: Any) -> None:
        address: Any = port.getHost()
        self.log.info("{what} on {where}", what=what, where=host_port(address.host, address.port))

    def open_udp(self, interface: Interface, protocol: DatagramProtocol) -> None:
        """Open the UDP port.

        :raises CannotStart: it can't be opened; all are closed again then
        """
        try:
            port = open_port(self._reactor, protocol, interface.port, interface.host)
        except CannotListenError as error:
            self.close()
            where = f"{interface.port}:{interface.host}"
            raise CannotStart(f"cannot listen on udp:{where}: {reason(error)}") from None
        self._open.append(port)
        self._log("Listening for datagrams", port)

    def close(self) -> Deferred[Any]:
        """Close all ports; fires when they are."""
        ports, self._open = self._open, []
        self.ports.clear()  # others hold this set: the address checks see the change at once
        closing = [port.stopListening() for port in ports]
        return gatherResults([done for done in closing if done is not None])


def reason(error: CannotListenError) -> str:
    """Why a port can't be opened, as the operating system says it."""
    cause = error.socketError
    return getattr(cause, "strerror", None) or str(cause)


def _at_once(listening: Deferred[IListeningPort]) -> IListeningPort:
    """The port of a TCP endpoint, which binds at once although it gives a Deferred."""
    done: list[IListeningPort | Failure] = []
    listening.addBoth(done.append)
    (result,) = done
    if isinstance(result, Failure):
        result.raiseException()
    return result
