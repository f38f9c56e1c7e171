"""The resolver inside the process that asks it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from zope.interface.verify import verifyObject

from broker.interfaces import Change, IResolver, StoreFailed
from broker.messages.errors import CalleeNotFound
from broker.resolver.locations import PRUNE_INTERVAL, LocalResolver
from tests.resolver.apart import address
from tests.resolver.sources import FakeNames
from tests.support.clock import advance, result_of
from tests.support.reactor import FakeReactor
from tests.support.server import a_mediator


@pytest.fixture
def clock() -> FakeReactor:
    """A reactor in memory."""
    return FakeReactor()


@pytest.fixture
def resolver(clock: FakeReactor) -> LocalResolver:
    """A resolver without any contact."""
    return LocalResolver(clock)


class LocalResolverTests:
    """Fig. 7 and 8 without a network; what the table itself promises, its own tests prove."""

    def test_holds_until_released(self, clock: FakeReactor, resolver: LocalResolver) -> None:
        """What was registered last is what a look-up gives (A7, A8). It does not expire before its
        connection is gone; then it does, and is like one that was withdrawn or never registered
        (S807, I10).
        """
        assert verifyObject(IResolver, resolver)
        held = address(clock, "127.0.0.2", expires=5)
        for contact in (address(clock), held):
            result_of(resolver.register("Ib", contact))
        result_of(resolver.register("Iwithdrawn", address(clock)))
        result_of(resolver.withdraw("Iwithdrawn"))
        clock.advance(1000)
        assert result_of(resolver.lookup("Ib")).contact is held
        resolver.release("Ib", held)
        clock.advance(4.9)
        assert result_of(resolver.lookup("Ib")).contact is held
        clock.advance(0.1)
        for identifier in ("Ib", "Iwithdrawn", "Inever"):
            with pytest.raises(CalleeNotFound):
                result_of(resolver.lookup(identifier))

    def test_sweeps(self, clock: FakeReactor, resolver: LocalResolver) -> None:
        """What has expired is dropped by itself; after a stop no timer is left (I15)."""
        resolver.start()
        held = address(clock, expires=1)
        result_of(resolver.register("Ib", held))
        resolver.release("Ib", held)
        advance(clock, PRUNE_INTERVAL)
        assert len(resolver.table) == 0
        resolver.stop()
        resolver.stop()
        assert not clock.getDelayedCalls()


class KeptTests:
    """A registration that fails changes nothing (A5, A17)."""

    def test_put_back(self, clock: FakeReactor, monkeypatch: pytest.MonkeyPatch) -> None:
        """A name in force is in force again, and not the address that it means now."""
        where = FakeNames(clock)
        where.dns.records["a.jp"] = ["202.224.186.82"]
        resolver = LocalResolver(clock, naming=where.naming)
        fake = a_mediator(clock, resolver=resolver, ask_status=False)
        client = fake.connect("202.224.186.90")
        client.type("REGISTER\nIdentifier:Ib\nAddress:a.jp\nAccept:Add Ia\n\n")
        assert "Completed" in client.text()

        async def fails(changes: Sequence[Change]) -> None:
            raise StoreFailed("the server has no space left")

        monkeypatch.setattr(fake.store, "commit", fails)
        client.type("REGISTER\nAddress:202.224.186.83\nAccept:Add If\n\n")
        assert "Registration Failed." in client.text()
        place = resolver.table.lookup("Ib", clock.seconds())
        assert place is not None
        assert place.contact.host == "a.jp"
        client.vanish()
        advance(clock, 3600)
        assert resolver.table.lookup("Ib", clock.seconds()) is None
