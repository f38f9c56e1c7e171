"""Sources of addresses that say what a test has them say, when it says so."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.defer import Deferred
from zope.interface import implementer

from broker.interfaces import IAddressSource
from broker.resolver.lookup_cache import LookupCache
from broker.resolver.name_lookup import NameLookup
from broker.tables.address_policy import Ip, Network, parse_ip
from broker.tables.locations import ResolvedHost
from tests.support.reactor import FakeReactor


@implementer(IAddressSource)
class FakeSource:
    """Records by name.

    :ivar records: what each name has
    :ivar errors: what is raised for a name instead
    :ivar asked: each question, oldest first
    :ivar hold: questions wait until ``answer``
    """

    def __init__(self, **records: Sequence[str]) -> None:
        self.records: dict[str, Sequence[str]] = dict(records)
        self.seconds = 60.0
        self.errors: dict[str, Exception] = {}
        self.asked: list[str] = []
        self.hold = False
        self.held: list[Deferred[None]] = []
        self.stopped = False

    async def locate(self, name: str) -> list[ResolvedHost]:
        self.asked.append(name)
        if self.hold:
            waiting: Deferred[None] = Deferred()
            self.held.append(waiting)
            await waiting
        if name in self.errors:
            raise self.errors[name]
        return [ResolvedHost(host, self.seconds) for host in self.records.get(name, ())]

    def answer(self) -> None:
        """Answer the oldest question that waits."""
        self.held.pop(0).callback(None)

    def stop(self) -> None:
        self.stopped = True


class FakeNames:
    """DNS and a provider in memory, and a ``NameLookup`` that asks them."""

    def __init__(
        self,
        clock: FakeReactor,
        *,
        provider: bool = True,
        allowed: Sequence[Network] = (),
        own_ports: Sequence[int] = (),
    ) -> None:
        self.dns = FakeSource()
        self.provider = FakeSource()
        self.own = ["198.51.100.5"]
        self.naming = NameLookup(
            clock,
            LookupCache(self.dns, clock),
            LookupCache(self.provider, clock) if provider else None,
            allowed=allowed,
            own=self,
            own_ports=own_ports,
        )

    def current(self) -> list[Ip]:
        """This machine's addresses, as ``OwnAddresses`` gives them."""
        return [parse_ip(host) for host in self.own]
