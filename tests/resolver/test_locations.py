"""The resolver inside the process that asks it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from zope.interface.verify import verifyObject

from broker.interfaces import Change, IResolver, StoreFailed
from broker.messages.errors import CalleeNotFound, RegistrationFailed
from broker.resolver.locations import PRUNE_INTERVAL, LocalResolver
from broker.tables.locations import LocationTable
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
    """Fig. 7 and 8 without a network."""

    def test_interface(self) -> None:
        """It is an IResolver in name and in deed."""
        assert verifyObject(IResolver, LocalResolver(FakeReactor()))

    def test_registered_and_looked_up(self, clock: FakeReactor, resolver: LocalResolver) -> None:
        """What was registered last is what a look-up gives (A7, A8)."""
        old, new = address(clock), address(clock, "127.0.0.2")
        result_of(resolver.register("Ib", old))
        result_of(resolver.register("Ib", new))
        assert result_of(resolver.lookup("Ib")).contact is new

    def test_not_found(self, clock: FakeReactor, resolver: LocalResolver) -> None:
        """No address, an expired one and a withdrawn one are the same (S807, I10)."""
        gone, withdrawn = address(clock, expires=5), address(clock)
        result_of(resolver.register("Igone", gone))
        resolver.release("Igone", gone)
        result_of(resolver.register("Iwithdrawn", withdrawn))
        result_of(resolver.withdraw("Iwithdrawn"))
        clock.advance(5)
        for identifier in ("Igone", "Iwithdrawn", "Inever"):
            with pytest.raises(CalleeNotFound):
                result_of(resolver.lookup(identifier))

    def test_holds_until_released(self, clock: FakeReactor, resolver: LocalResolver) -> None:
        """An address does not expire before its connection is gone; then it does (A7)."""
        held = address(clock, expires=5)
        result_of(resolver.register("Ib", held))
        clock.advance(1000)
        assert result_of(resolver.lookup("Ib")).contact is held
        resolver.release("Ib", held)
        clock.advance(4.9)
        assert result_of(resolver.lookup("Ib")).contact is held
        clock.advance(0.1)
        with pytest.raises(CalleeNotFound):
            result_of(resolver.lookup("Ib"))

    def test_full(self) -> None:
        """A full table is a registration that failed (A5, I15)."""
        clock = FakeReactor()
        resolver = LocalResolver(clock, LocationTable(most=1))
        result_of(resolver.register("Ia", address(clock)))
        with pytest.raises(RegistrationFailed):
            result_of(resolver.register("Ib", address(clock)))

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

    def test_older(self, clock: FakeReactor, resolver: LocalResolver) -> None:
        """What is older than what is in force is refused, not passed over in silence (I10)."""
        old = address(clock)
        clock.advance(1)
        new = address(clock, "127.0.0.2")
        result_of(resolver.register("Ib", new))
        with pytest.raises(RegistrationFailed, match="a newer address is registered"):
            result_of(resolver.register("Ib", old))
        assert result_of(resolver.lookup("Ib")).contact is new


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
