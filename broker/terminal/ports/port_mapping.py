"""Ports opened in this host's router, each verified before it is told to anyone (D9, I12).

What a router says is its claim. It counts if the mediator sees the terminal at the very address
that the router claims, and a connection to the port there arrives; else the port is closed again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from twisted.internet.defer import Deferred, DeferredLock, succeed
from twisted.logger import Logger
from zope.interface import implementer

from broker.interfaces import IOutsideView, IPortOpener, PortNotOpened
from broker.messages.errors import Refused
from broker.nat.mapper import MappingEvents, NotMapped
from broker.nat.methods import PortMapping

#: Seconds for which a port is requested at a time: what a crash leaves open is closed after them.
LEASE: Final = 600


class Mapper(Protocol):
    """What asks the router: ``broker.nat.mapper.PortMapper``."""

    def map(
        self, protocol: str, port: int, lifetime: int, events: MappingEvents
    ) -> Deferred[PortMapping]:
        """Have a port opened, and kept open; fails with ``NotMapped``."""
        ...

    def unmap(self, protocol: str, port: int) -> Deferred[None]:
        """Have it closed; never fails."""
        ...

    def stop(self) -> Deferred[None]:
        """Have all closed."""
        ...


class _VerifiedPort:
    """A port that is wanted open.

    :ivar users: how many want it
    :ivar mapping: what the router says of it, while it has it open
    :ivar address: the host and port by which it is reached, once that is verified
    :ivar lost: called with the reason when that has changed
    """

    def __init__(self) -> None:
        self.users = 0
        self.lock = DeferredLock()
        self.mapping: PortMapping | None = None
        self.address: tuple[str, int] | None = None
        self.lost: list[Callable[[str], object]] = []

    def mapping_changed(self, before: PortMapping, now: PortMapping | None, why: str) -> None:
        """The router has it elsewhere, or not at all: nothing of that is verified."""
        self.mapping, self.address = now, None
        users, self.lost = self.lost, []
        for lost in users:
            lost(why)


@implementer(IPortOpener)
class VerifiedPortMapper:
    """Has ports opened in the router that this host is behind, if it is behind one."""

    log = Logger()

    def __init__(self, mapper: Mapper) -> None:
        self._mapper = mapper
        self._ports: dict[int, _VerifiedPort] = {}
        self._closing: dict[int, Deferred[None]] = {}

    async def open(
        self, port: int, line: IOutsideView, lost: Callable[[str], object] | None = None
    ) -> tuple[str, int]:
        """Open a port; if no router is in between, only verify that it can be reached."""
        wanted = self._ports.setdefault(port, _VerifiedPort())
        wanted.users += 1
        try:
            await wanted.lock.acquire()
            try:
                address = await self._open(wanted, port, line)
            finally:
                wanted.lock.release()
        except BaseException:
            self._leave(wanted, port)
            raise
        if lost is not None and lost not in wanted.lost:
            wanted.lost.append(lost)
        return address

    async def close(self, port: int) -> None:
        """Close it, unless another user wants it."""
        wanted = self._ports.get(port)
        if wanted is not None:
            self._leave(wanted, port)
            await self._closed(port)

    def stop(self) -> Deferred[None]:
        """Close all, whatever users they have; what is being opened fails."""
        self._ports.clear()
        return self._mapper.stop()

    # Opening.

    async def _open(self, wanted: _VerifiedPort, port: int, view: IOutsideView) -> tuple[str, int]:
        try:
            host, _ = await view.outside()
        except Refused as refusal:
            raise PortNotOpened(f"the mediator does not say where we are: {refusal}") from None
        if wanted.address is not None and wanted.address[0] == host:
            return wanted.address
        wanted.address = None  # we are elsewhere now
        try:
            if host == view.local_host:
                self._unmap(wanted, port)
                address = (host, port)
            else:
                address = (host, await self._map(wanted, port, host))
            await self._verify(wanted, address, view)
        except BaseException:
            self._unmap(wanted, port)
            raise
        wanted.address = address
        return address

    async def _map(self, wanted: _VerifiedPort, port: int, host: str) -> int:
        """Have the router open it, if its address is the one that others see; give its port."""
        if ":" in host:
            raise PortNotOpened(f"the mediator sees {host}, and no router is asked by IPv6")
        if wanted.mapping is not None and wanted.mapping.address != host:
            self._unmap(wanted, port)
        if wanted.mapping is None:
            await self._closed(port)
            try:
                wanted.mapping = await self._mapper.map("TCP", port, LEASE, wanted)
            except NotMapped as error:
                raise PortNotOpened(str(error)) from None
        claimed = wanted.mapping.address
        if claimed != host:
            raise PortNotOpened(
                f"the router says its outside address is {claimed}, the mediator sees {host}:"
                " another router is in between"
            )
        return wanted.mapping.external

    async def _verify(
        self, wanted: _VerifiedPort, address: tuple[str, int], view: IOutsideView
    ) -> None:
        """Have the mediator connect there."""
        mapping = wanted.mapping
        opened = ""
        if mapping is not None:
            opened = f"the router has opened its port {address[1]} by {mapping.method}; "
        try:
            await view.outside(address[1])
        except Refused as refusal:
            raise PortNotOpened(f"{opened}the mediator has tried it: {refusal}") from None
        if wanted.mapping is not mapping:
            raise PortNotOpened("the router has closed it again")
        if mapping is not None:
            self.log.info(
                "The router has opened its port {port} by {method}",
                port=mapping.external,
                method=mapping.method,
            )

    # Closing.

    def _leave(self, wanted: _VerifiedPort, port: int) -> None:
        """One user has closed it."""
        wanted.users -= 1
        if not wanted.users and self._ports.get(port) is wanted:
            del self._ports[port]
            wanted.lost.clear()
            self._unmap(wanted, port)

    def _unmap(self, wanted: _VerifiedPort, port: int) -> None:
        """Have the router close it, if it has it open; that need not be waited for."""
        mapping, wanted.mapping = wanted.mapping, None
        if mapping is None:
            return

        def closed(_: None) -> None:
            self._closing.pop(port, None)

        closing = self._closing[port] = self._mapper.unmap("TCP", port)
        closing.addCallback(closed)

    def _closed(self, port: int) -> Deferred[None]:
        """Fires once the router has closed what it was asked to close."""
        closing = self._closing.get(port)
        if closing is None:
            return succeed(None)
        waiting: Deferred[None] = Deferred()

        def closed(_: None) -> None:
            if not waiting.called:
                waiting.callback(None)

        closing.addCallback(closed)
        return waiting
