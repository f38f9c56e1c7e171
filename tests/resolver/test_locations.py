"""The resolver inside the process that asks it."""

from __future__ import annotations

import pytest
from zope.interface.verify import verifyObject

from broker.interfaces import IResolver
from broker.messages.errors import CalleeNotFound, RegistrationFailed
from broker.resolver.locations import PRUNE_INTERVAL, LocalResolver
from broker.tables.locations import LocationTable
from tests.resolver.apart import address
from tests.support.clock import advance, result_of
from tests.support.reactor import FakeReactor


class LocalResolverTests:
    """Fig. 7 and 8 without a network."""

    def test_interface(self) -> None:
        """It is an IResolver in name and in deed."""
        assert verifyObject(IResolver, LocalResolver(FakeReactor()))

    def test_registered_and_looked_up(self) -> None:
        """What was registered last is what a look-up gives (A7, A8)."""
        clock = FakeReactor()
        resolver = LocalResolver(clock)
        old, new = address(clock), address(clock, "127.0.0.2")
        result_of(resolver.register("Ib", old))
        result_of(resolver.register("Ib", new))
        assert result_of(resolver.lookup("Ib")).contact is new

    def test_not_found(self) -> None:
        """No address, an expired one and a withdrawn one are the same (S807, I10)."""
        clock = FakeReactor()
        resolver = LocalResolver(clock)
        gone, withdrawn = address(clock, expires=5), address(clock)
        result_of(resolver.register("Igone", gone))
        resolver.release("Igone", gone)
        result_of(resolver.register("Iwithdrawn", withdrawn))
        result_of(resolver.withdraw("Iwithdrawn"))
        clock.advance(5)
        for identifier in ("Igone", "Iwithdrawn", "Inever"):
            with pytest.raises(CalleeNotFound):
                result_of(resolver.lookup(identifier))

    def test_holds_until_released(self) -> None:
        """An address does not expire before its connection is gone; then it does (A7)."""
        clock = FakeReactor()
        resolver = LocalResolver(clock)
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

    def test_sweeps(self) -> None:
        """What has expired is dropped by itself; after a stop no timer is left (I15)."""
        clock = FakeReactor()
        resolver = LocalResolver(clock)
        resolver.start()
        held = address(clock, expires=1)
        result_of(resolver.register("Ib", held))
        resolver.release("Ib", held)
        advance(clock, PRUNE_INTERVAL)
        assert len(resolver.table) == 0
        resolver.stop()
        resolver.stop()
        assert not clock.getDelayedCalls()

    def test_older(self) -> None:
        """What is older than what is in force is refused, not passed over in silence (I10)."""
        clock = FakeReactor()
        resolver = LocalResolver(clock)
        old = address(clock)
        clock.advance(1)
        new = address(clock, "127.0.0.2")
        result_of(resolver.register("Ib", new))
        with pytest.raises(RegistrationFailed, match="a newer address is registered"):
            result_of(resolver.register("Ib", old))
        assert result_of(resolver.lookup("Ib")).contact is new
