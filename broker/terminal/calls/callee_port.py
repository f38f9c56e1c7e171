"""The port at which a callee connects to its caller, open as long as one call needs it."""

from __future__ import annotations

from dataclasses import dataclass

from twisted.internet.defer import maybeDeferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint

from broker.interfaces import IPortOpener, PortNotOpened
from broker.terminal.errors import CallFailed
from broker.terminal.incoming.listener import InboundListener
from broker.terminal.registration.client import MediatorClient


@dataclass(frozen=True, slots=True)
class CalleePort:
    """Where a callee connects to us, and how that is reached from outside.

    :ivar listen: what to listen on, for one call alone: closed with the call
    :ivar port: without it, a port that is listened on already
    :ivar address: the host and port by which it is reached from outside, where they are known; by
        default the port at our own address on the connection to the mediator
    :ivar opener: opens the port to the outside for the call, if there is no ``address``
    """

    listen: IStreamServerEndpoint | None = None
    port: IListeningPort | None = None
    address: tuple[str, int] | None = None
    opener: IPortOpener | None = None


class OpenCalleePort:
    """What was opened for a ``CalleePort``.

    :ivar number: of our own port, once it is listened on
    """

    def __init__(self, wanted: CalleePort) -> None:
        self._wanted = wanted
        self._listening: IListeningPort | None = None  # ours to close
        self._mapped: int | None = None  # the opener has opened this port of ours
        self.number = 0

    async def open(self, listener: InboundListener, client: MediatorClient) -> tuple[str, int]:
        """Open it; give the host and port by which it is reached from outside.

        :raises CallFailed: it can't be opened
        """
        port = self._wanted.port
        if self._wanted.listen is not None:
            try:
                self._listening = port = await self._wanted.listen.listen(listener.factory())
            except CannotListenError as error:
                raise CallFailed(f"there is nowhere to wait for the callee: {error}") from None
        if port is None:
            raise ValueError("a terminal without a listener needs an endpoint to listen on")
        if self._wanted.address is not None:
            return self._wanted.address
        self.number = getattr(port.getHost(), "port", 0)
        if self._wanted.opener is None:
            return client.local_host, self.number
        try:
            address = await self._wanted.opener.open(self.number, client)
        except PortNotOpened as error:
            raise CallFailed(f"no port could be opened for the callee: {error}") from None
        self._mapped = self.number
        return address

    async def close(self) -> None:
        """Close what was opened; once is enough."""
        port, self._listening = self._listening, None
        mapped, self._mapped = self._mapped, None
        if port is not None:
            await maybeDeferred(port.stopListening)
        if mapped is not None and self._wanted.opener is not None:
            await self._wanted.opener.close(mapped)
