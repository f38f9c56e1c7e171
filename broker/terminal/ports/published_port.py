"""A terminal's own listener, kept open to the outside while the terminal runs (D9, A22)."""

from __future__ import annotations

from typing import Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.interfaces import IPortOpener, PortNotOpened
from broker.messages.message import printable
from broker.terminal.registration.client import MediatorClient


class PublishedPortEvents(Protocol):
    """The registration of the terminal whose port it is."""

    async def register_published(self, client: MediatorClient, stale: bool) -> object:
        """Register where the terminal is, as ``PublishedPort.address`` says.

        :param stale: what was registered over this very connection is not valid now
        """


class PublishedPort:
    """Has one port opened, and registered, over each connection to the mediator."""

    log = Logger()

    def __init__(self, opener: IPortOpener, events: PublishedPortEvents) -> None:
        """
        :param opener: opens the port
        """
        self._opener = opener
        self._events = events
        self._client: MediatorClient | None = None
        self._port = 0
        self._open = False
        self._address: tuple[str, int] | None = None  # as that client's mediator sees it
        self._opening: Deferred[None] | None = None
        self._busy = False
        self._last_failure = ""  # logged once

    @property
    def busy(self) -> bool:
        """Whether the port is being opened."""
        return self._busy

    def known(self, client: MediatorClient) -> bool:
        """Whether it is decided, over this connection, if the port can be reached."""
        return client is self._client and not self._busy

    def address(self, client: MediatorClient) -> tuple[str, int] | None:
        """The host and port by which it is reached, once that is known over this connection."""
        return self._address if client is self._client else None

    def begin(self, client: MediatorClient, port: int) -> None:
        """There is a connection: have the port opened, if it is not, and registered."""
        self._give_up()
        stale = client is self._client and self._address is not None
        self._client, self._port, self._address, self._busy = client, port, None, True
        self._opening = Deferred.fromCoroutine(self._publish(client, port, stale))
        self._opening.addErrback(self._not_published)

    async def stop(self) -> None:
        """Have it closed."""
        self._client = None
        self._give_up()
        if self._open:
            self._open = False
            await self._opener.close(self._port)

    def _give_up(self) -> None:
        self._busy = False
        if self._opening is not None:
            self._opening.cancel()

    async def _publish(self, client: MediatorClient, port: int, stale: bool) -> None:
        failure = ""
        address: tuple[str, int] | None = None
        try:
            address = await self._opener.open(port, client, self._lost)
        except PortNotOpened as error:
            failure = str(error)
        was_open, self._open = self._open, address is not None
        self._address, self._busy = address, False
        if address is not None:
            self.log.info(
                "Reached from outside at {host} port {port}", host=address[0], port=address[1]
            )
        elif failure != self._last_failure:
            self.log.warn(
                "Port {port} can't be reached from outside: {why}",
                port=port,
                why=printable(failure),
            )
        self._last_failure = failure
        if was_open:  # the opener counts its users: this closes the older use
            await self._opener.close(port)
        await self._events.register_published(client, stale)

    def _not_published(self, failure: Failure) -> None:
        if failure.check(ConnectionLost):
            self._busy = False  # the next connection begins again
        elif failure.check(CancelledError) is None:
            self.log.failure("A port that is open to the outside could not be registered", failure)

    def _lost(self, why: str) -> None:
        """The port is not open to the outside now."""
        client = self._client
        if client is None:
            return
        self.log.info(
            "Port {port} is no longer open to the outside: {why}", port=self._port, why=why
        )
        if client.stream.connected:
            self.begin(client, self._port)
