"""Ports opened in this host's router, each verified before anybody is told of it (D9, I12).

What a router says is its claim. It counts where the mediator sees the terminal at the very address
that the router claims, and a connection to the port there arrives; else the port is closed again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.internet.defer import Deferred, DeferredLock, succeed
from twisted.logger import Logger
from zope.interface import implementer

from broker.interfaces import IOutsideView, IPortOpener, PortNotOpened
from broker.messages.errors import Refused
from broker.nat.mapper import Changed, Key, Mapped, NotMapped, PortMapper

#: Seconds for which a router is asked at a time: what is left behind by a crash is gone after them.
LEASE: Final = 600


class _Entry:
    """A port that somebody wants open.

    :ivar users: how many do
    :ivar mapped: what the router says of it, while it has it open
    :ivar place: where it is reached, once that is verified
    :ivar lost: whom to tell that it is so no longer
    """

    def __init__(self) -> None:
        self.users = 0
        self.lock = DeferredLock()
        self.mapped: Mapped | None = None
        self.place: tuple[str, int] | None = None
        self.lost: list[Callable[[str], object]] = []


@implementer(IPortOpener)
class VerifiedPortMapper:
    """Has ports opened in the router that this host is behind, where it is behind one."""

    log = Logger()

    def __init__(self, make: Callable[[Changed], PortMapper]) -> None:
        """
        :param make: makes what asks the router, given whom to tell of changes
        """
        self._mapper = make(self._changed)
        self._entries: dict[int, _Entry] = {}
        self._closing: dict[int, Deferred[None]] = {}

    async def open(
        self, port: int, line: IOutsideView, lost: Callable[[str], object] | None = None
    ) -> tuple[str, int]:
        """Open a port; where no router is in between, only see that it can be reached."""
        entry = self._entries.setdefault(port, _Entry())
        entry.users += 1
        try:
            await entry.lock.acquire()
            try:
                place = await self._open(entry, port, line)
            finally:
                entry.lock.release()
        except BaseException:
            self._leave(entry, port)
            raise
        if lost is not None and lost not in entry.lost:
            entry.lost.append(lost)
        return place

    async def close(self, port: int) -> None:
        """Close it, if nobody else wants it."""
        entry = self._entries.get(port)
        if entry is not None:
            self._leave(entry, port)
            await self._closed(port)

    def stop(self) -> Deferred[None]:
        """Close all, whoever wants them; what is being opened fails."""
        self._entries.clear()
        return self._mapper.stop()

    # Opening.

    async def _open(self, entry: _Entry, port: int, line: IOutsideView) -> tuple[str, int]:
        try:
            host, _ = await line.outside()
        except Refused as refusal:
            raise PortNotOpened(f"the mediator does not say where we are: {refusal}") from None
        if entry.place is not None and entry.place[0] == host:
            return entry.place
        entry.place = None  # we are elsewhere by now
        try:
            if host == line.local_host:
                self._unmap(entry, port)
                place = (host, port)
            else:
                place = (host, await self._map(entry, port, host))
            await self._verify(entry, place, line)
        except BaseException:
            self._unmap(entry, port)
            raise
        entry.place = place
        return place

    async def _map(self, entry: _Entry, port: int, host: str) -> int:
        """Have the router open it, if it is the one that others see; give the port there."""
        if ":" in host:
            raise PortNotOpened(f"the mediator sees {host}, and no router is asked by IPv6")
        if entry.mapped is not None and entry.mapped.address != host:
            self._unmap(entry, port)
        if entry.mapped is None:
            await self._closed(port)
            try:
                entry.mapped = await self._mapper.map("TCP", port, LEASE)
            except NotMapped as error:
                raise PortNotOpened(str(error)) from None
        claimed = entry.mapped.address
        if claimed != host:
            raise PortNotOpened(
                f"the router says its outside address is {claimed}, the mediator sees {host}:"
                " another router is in between"
            )
        return entry.mapped.port

    async def _verify(self, entry: _Entry, place: tuple[str, int], line: IOutsideView) -> None:
        """See that a connection arrives there."""
        mapped = entry.mapped
        by = (
            "" if mapped is None else f"the router has opened its port {place[1]} by {mapped.how}; "
        )
        try:
            await line.outside(place[1])
        except Refused as refusal:
            raise PortNotOpened(f"{by}the mediator has tried it: {refusal}") from None
        if entry.mapped is not mapped:
            raise PortNotOpened("the router has closed it again")
        if mapped is not None:
            self.log.info(
                "The router has opened its port {port} by {how}", port=mapped.port, how=mapped.how
            )

    # Closing.

    def _leave(self, entry: _Entry, port: int) -> None:
        entry.users -= 1
        if not entry.users and self._entries.get(port) is entry:
            del self._entries[port]
            self._unmap(entry, port)

    def _unmap(self, entry: _Entry, port: int) -> None:
        """Have the router close it, if it has it open; nobody need wait for that."""
        mapped, entry.mapped = entry.mapped, None
        if mapped is None:
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

        def closed(result: None) -> None:
            if not waiting.called:
                waiting.callback(None)

        closing.addCallback(closed)
        return waiting

    def _changed(self, key: Key, before: Mapped, now: Mapped | None, why: str) -> None:
        """The router has it elsewhere, or not at all: nothing of that is verified."""
        entry = self._entries.get(key[1])
        if entry is None:
            return
        entry.mapped, entry.place = now, None
        told, entry.lost = entry.lost, []
        for lost in told:
            lost(why)
