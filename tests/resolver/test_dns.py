"""DNS as a source of addresses: which servers are asked, and which records count (A17)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.names import dns

from broker.interfaces import IAddressSource, SourceFailed
from broker.resolver.dns import Dns, ProviderZone, _located, label
from broker.tables.locations import ResolvedHost
from tests.resolver.apart import Outcome
from tests.resolver.sources import FakeSource
from tests.support.clock import advance, result_of
from tests.support.reactor import FakeReactor


def record(owner: str, payload: Any, ttl: int = 60, cls: int = dns.IN) -> dns.RRHeader:
    """A record of an answer."""
    return dns.RRHeader(owner, payload.TYPE, cls, ttl, payload)


class RecordsTests:
    """Which records are the name's."""

    def test_aliases(self) -> None:
        """Aliases are followed, whatever their case; the shortest life of the way counts."""
        answers = [
            record("A.jp", dns.Record_CNAME("b.jp"), 30),
            record("b.JP", dns.Record_CNAME("c.jp"), 20),
            record("c.jp", dns.Record_A("192.0.2.1"), 40),
            record("c.jp", dns.Record_AAAA("2001:db8::1"), 10),
        ]
        assert _located("a.jp", answers) == [
            ResolvedHost("192.0.2.1", 20),
            ResolvedHost("2001:db8::1", 10),
        ]

    def test_others(self) -> None:
        """Records of other names, classes and types don't count, nor do aliases in a ring (I24)."""
        answers = [
            record("x.jp", dns.Record_A("192.0.2.1")),
            record("a.jp", dns.Record_A("192.0.2.2"), cls=dns.CH),
            record("a.jp", dns.Record_MX(0, "x.jp")),
        ]
        assert _located("a.jp", answers) == []
        ring = [
            record("a.jp", dns.Record_CNAME("b.jp")),
            record("b.jp", dns.Record_CNAME("a.jp")),
        ]
        assert _located("a.jp", ring) == []


class ServersTests:
    """Which servers are asked."""

    def asked(self, source: Dns, reactor: FakeReactor, seconds: float) -> set[tuple[str, int]]:
        """Which servers a look-up has asked, that many seconds later."""
        self.looking = Outcome(source.locate("a.jp"))
        advance(reactor, seconds)
        return {to for port in reactor.datagrams for _, to in port.sent}

    def test_the_systems(self, tmp_path: Path) -> None:
        """Without others the system's are asked, at most three, one after the other."""
        path = tmp_path / "resolv.conf"
        lines = ("# x", "nameserver", "search x.jp", *(f"nameserver 192.0.2.{n}" for n in range(5)))
        path.write_text("\n".join(lines))
        reactor = FakeReactor()
        source = Dns(reactor, resolv_conf=str(path))
        assert not reactor.getDelayedCalls()
        assert self.asked(source, reactor, 0.5) == {("192.0.2.0", 53)}
        assert self.asked(source, reactor, 9) == {(f"192.0.2.{n}", 53) for n in range(3)}
        source.stop()
        assert not reactor.getDelayedCalls()

    def test_the_operators(self) -> None:
        """Those that are named are asked, and no others; sockets and timers don't stay."""
        reactor = FakeReactor()
        named = [("192.0.2.53", 5353), ("2001:db8::53", 53), ("192.0.2.54", 53)]
        source = Dns(reactor, [*named, ("192.0.2.55", 53)], "/nowhere")
        assert self.asked(source, reactor, 9) == set(named)  # at most three
        assert self.looking.error is SourceFailed
        assert not any(port.listening for port in reactor.datagrams)
        assert not reactor.getDelayedCalls()

    def test_provider(self) -> None:
        """The provider's zone is asked for the identifier's label (A16)."""
        names = FakeSource(**{f"{label('Ib')}.sub.jp": ["192.0.2.1"]})
        zone = ProviderZone(names, "sub.jp")
        assert IAddressSource.providedBy(zone)
        assert result_of(zone.locate("Ib")) == [ResolvedHost("192.0.2.1", 60.0)]
        zone.stop()
        assert names.stopped

    def test_label(self) -> None:
        """Any identifier becomes one label, equal ones the same, and tells nothing itself (A18)."""
        labels = [label(name) for name in ("Ib", "+81 3 1234 5678", "山田太郎 大阪府", "が" * 42)]
        assert all(len(one) == 52 and one.isalnum() and one.islower() for one in labels)
        assert label("が") == label("か\u3099")
        assert label("Ib") != label("ib")
        assert label("Ib") == "aydmb2hxrxsnpj4feks24l33odrr4zu6nyvbnyi4he7eiqygtajq"
