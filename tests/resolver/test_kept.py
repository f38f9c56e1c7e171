"""What was registered by name stays what it was, whatever it means at present."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from broker.interfaces import Change, StoreFailed
from broker.resolver.locations import LocalResolver
from tests.resolver.sources import Whereabouts
from tests.support.clock import advance
from tests.support.reactor import FakeReactor
from tests.support.server import a_mediator


class KeptTests:
    """A registration that fails changes nothing (A5, A17)."""

    def test_put_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A name in force is in force again, and not the address that it means now."""
        clock = FakeReactor()
        where = Whereabouts(clock)
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
