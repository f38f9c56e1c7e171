"""A terminal's own listener, kept open to the outside while the terminal runs (D9, A22)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.interfaces import IPortOpener, PortNotOpened
from broker.messages.message import printable
from broker.terminal.registration.client import MediatorClient


class PublishedPort:
    """Has one port opened, and registered where it is reached, over each line anew."""

    log = Logger()

    def __init__(
        self, opener: IPortOpener, register: Callable[[MediatorClient, bool], Awaitable[object]]
    ) -> None:
        """
        :param opener: opens the port
        :param register: registers where the terminal is, as ``place`` says; told whether what has
            been registered over that very line is good no longer
        """
        self._opener = opener
        self._register = register
        self._line: MediatorClient | None = None
        self._port = 0
        self._open = False
        self._place: tuple[str, int] | None = None  # as it is seen by way of that line
        self._looking = False
        self._doing: Deferred[None] | None = None
        self._why = ""  # there was no way in last time

    @property
    def busy(self) -> bool:
        """Whether a way in is being looked for."""
        return self._looking

    def known(self, line: MediatorClient) -> bool:
        """Whether it has been found out, by way of this line, if there is a way in."""
        return line is self._line and not self._looking

    def place(self, line: MediatorClient) -> tuple[str, int] | None:
        """Where the port is reached from outside, once that is known by way of this line."""
        return self._place if line is self._line else None

    def begin(self, line: MediatorClient, port: int) -> None:
        """A line is there: have the port opened, if it is not, and register where it is reached."""
        self._give_up()
        stale = line is self._line and self._place is not None
        self._line, self._port, self._place, self._looking = line, port, None, True
        self._doing = Deferred.fromCoroutine(self._keep(line, port, stale))
        self._doing.addErrback(self._not_kept)

    async def stop(self) -> None:
        """Have it closed."""
        self._line = None
        self._give_up()
        if self._open:
            self._open = False
            await self._opener.close(self._port)

    def _give_up(self) -> None:
        self._looking = False
        if self._doing is not None:
            self._doing.cancel()

    async def _keep(self, line: MediatorClient, port: int, stale: bool) -> None:
        why = ""
        place: tuple[str, int] | None = None
        try:
            place = await self._opener.open(port, line, self._lost)
        except PortNotOpened as error:
            why = str(error)
        before, self._open = self._open, place is not None
        self._place, self._looking = place, False
        if place is not None:
            self.log.info(
                "Reached from outside at {host} port {port}", host=place[0], port=place[1]
            )
        elif why != self._why:
            self.log.warn(
                "Port {port} can't be reached from outside: {why}", port=port, why=printable(why)
            )
        self._why = why
        if before:
            await self._opener.close(port)
        await self._register(line, stale)

    def _not_kept(self, failure: Failure) -> None:
        if failure.check(CancelledError, ConnectionLost) is None:
            self.log.failure("A way in could not be registered", failure)
        elif failure.check(ConnectionLost):
            self._looking = False  # the next line begins anew

    def _lost(self, why: str) -> None:
        line = self._line
        if line is None:
            return
        self.log.info(
            "Port {port} is not open to the outside any more: {why}", port=self._port, why=why
        )
        if line.stream.connected:
            self.begin(line, self._port)
