"""Addresses that are registered by name: remembered, judged each time, in order (A16, A17)."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import CancelledError
from twisted.logger import capturedLogs

from broker.interfaces import SourceFailed
from broker.messages.errors import CalleeNotFound, RegistrationFailed, ServiceUnavailable
from broker.resolver.dns import label
from broker.resolver.locations import LocalResolver
from broker.resolver.lookup_cache import (
    HOSTS_MAX,
    PATIENCE,
    QUESTION_SECONDS,
    TTL_SECONDS,
    WAITING_MAX,
    LookupCache,
)
from broker.resolver.name_lookup import read_own_addresses
from broker.tables.address_policy import PROVIDER, parse_ip
from broker.tables.locations import Contact, Origin
from tests.resolver.apart import Apart, FakeResolver, Outcome
from tests.resolver.sources import FakeNames, FakeSource
from tests.support.clock import advance, result_of
from tests.support.reactor import FakeReactor
from tests.support.server import a_mediator

NAME = "host.example.jp"
PUBLIC = "202.224.186.82"
OTHER = "202.224.186.83"


def at(clock: FakeReactor, host: str = NAME, source: str = "202.224.186.90") -> Contact:
    """An address registered by name from there, now."""
    return Contact(host, 1203, clock.seconds(), 60, origin=Origin(source))


class RememberedTests:
    """One question for all, and none while its answer holds."""

    def test_holds(self) -> None:
        """An answer holds for its seconds, no less than 5 and no more than an hour."""
        for seconds, holds in ((0.0, 5.0), (60.0, 60.0), (10.0**9, 3600.0)):
            clock, source = FakeReactor(), FakeSource(**{NAME: [PUBLIC]})
            source.seconds = seconds
            known = LookupCache(source, clock)
            assert result_of(known.hosts(NAME)) == (PUBLIC,)
            source.records[NAME] = [OTHER]
            advance(clock, holds - 0.01)
            assert result_of(known.hosts(NAME)) == (PUBLIC,)
            advance(clock, 0.01)
            assert result_of(known.hosts(NAME)) == (OTHER,)
            assert source.asked == [NAME, NAME]

    def test_nothing_and_no_answer(self) -> None:
        """That there is none, and that nobody answers, is remembered for the least."""
        clock, source = FakeReactor(), FakeSource()
        source.seconds = 600.0
        source.errors["b.jp"] = SourceFailed()
        known = LookupCache(source, clock)
        for _ in range(3):
            assert result_of(known.hosts(NAME)) == ()
            with pytest.raises(SourceFailed):
                result_of(known.hosts("b.jp"))
        assert source.asked == [NAME, "b.jp"]
        advance(clock, TTL_SECONDS[0])
        source.errors.clear()
        source.records["b.jp"] = [PUBLIC]
        assert result_of(known.hosts("b.jp")) == (PUBLIC,)

    def test_one_question_for_all(self) -> None:
        """Who asks meanwhile waits for the same answer; who gives up takes nobody along."""
        clock, source = FakeReactor(), FakeSource(**{NAME: [PUBLIC]})
        source.hold = True
        known = LookupCache(source, clock)
        first, second, third = (Outcome(known.hosts(NAME)) for _ in range(3))
        first.doing.cancel()
        assert first.error is CancelledError
        assert not second.over
        source.answer()
        assert second.value == third.value == (PUBLIC,)
        assert source.asked == [NAME]
        assert not [call for call in clock.getDelayedCalls() if call.getTime() < PATIENCE - 1]

    def test_patience(self) -> None:
        """Who waits is told in two seconds that there is no answer; one that comes is kept."""
        clock, source = FakeReactor(), FakeSource(**{NAME: [PUBLIC]})
        source.hold = True
        known = LookupCache(source, clock)
        waiting = Outcome(known.hosts(NAME))
        advance(clock, PATIENCE - 0.01)
        assert not waiting.over
        advance(clock, 0.01)
        assert waiting.error is SourceFailed
        source.answer()
        assert result_of(known.hosts(NAME)) == (PUBLIC,)

    def test_never(self) -> None:
        """A question that is never answered is over in ten seconds, and is asked anew then."""
        clock, source = FakeReactor(), FakeSource(**{NAME: [PUBLIC]})
        source.hold = True
        known = LookupCache(source, clock, questions_max=1)
        waiting = Outcome(known.hosts(NAME))
        advance(clock, QUESTION_SECONDS - 0.01)
        assert waiting.error is SourceFailed
        with pytest.raises(SourceFailed):
            result_of(known.hosts("b.jp"))
        advance(clock, 0.01)
        source.hold = False
        assert result_of(known.hosts("b.jp")) == ()

    def test_bounds(self) -> None:
        """Answers, their length, questions, and who waits, all have a limit (I15)."""
        clock, source = FakeReactor(), FakeSource(**{NAME: [f"10.0.0.{n}" for n in range(99)]})
        known = LookupCache(source, clock, answers_max=3, questions_max=2)
        assert len(result_of(known.hosts(NAME))) == HOSTS_MAX
        for n in range(10):
            result_of(known.hosts(f"a{n}.jp"))
        assert len(known) == 3
        source.hold = True
        every = [Outcome(known.hosts("x.jp")) for _ in range(WAITING_MAX + 1)]
        assert [one.over for one in every] == [False] * WAITING_MAX + [True]
        assert not Outcome(known.hosts("y.jp")).over
        assert Outcome(known.hosts("z.jp")).error is SourceFailed
        assert source.asked[-2:] == ["x.jp", "y.jp"]

    def test_a_broken_source(self) -> None:
        """What nobody foresaw is logged, and is no answer (I24)."""
        clock, source = FakeReactor(), FakeSource()
        source.errors[NAME] = ZeroDivisionError()
        with capturedLogs() as logged, pytest.raises(SourceFailed):
            result_of(LookupCache(source, clock).hosts(NAME))
        assert len([event for event in logged if "log_failure" in event]) == 1

    def test_stopped(self) -> None:
        """A stop tells those who wait, and leaves no timer behind."""
        clock, source = FakeReactor(), FakeSource()
        source.hold = True
        known = LookupCache(source, clock)
        waiting = Outcome(known.hosts(NAME))
        known.stop()
        assert waiting.error is SourceFailed
        assert source.stopped
        assert not clock.getDelayedCalls()


class InsideTests:
    """A resolver inside."""

    def resolver(self, **options: Any) -> tuple[FakeReactor, FakeNames, LocalResolver]:
        """One, its clock, and what it asks."""
        clock = FakeReactor()
        where = FakeNames(clock, **options)
        return clock, where, LocalResolver(clock, naming=where.naming)

    def test_followed(self) -> None:
        """A dynamic name is told as it is now, and judged each time: no rebinding (A17, I12)."""
        clock, where, resolver = self.resolver()
        where.dns.records[NAME] = [PUBLIC]
        address = at(clock)
        result_of(resolver.register("Ib", address))
        told = result_of(resolver.lookup("Ib"))
        assert told.contact == Contact(PUBLIC, 1203, 0, 60)
        assert resolver.table.lookup("Ib", 0).contact is address  # type: ignore[union-attr]
        for hosts, host in (
            ([OTHER], OTHER),
            (["127.0.0.1"], None),
            (["10.0.0.1", "169.254.169.254"], None),
            (["::1", "::ffff:127.0.0.1", PUBLIC], PUBLIC),
            ([], None),
        ):
            where.dns.records[NAME] = hosts
            advance(clock, 60)
            if host is None:
                with pytest.raises(CalleeNotFound):
                    result_of(resolver.lookup("Ib"))
            else:
                assert result_of(resolver.lookup("Ib")).contact.host == host

    @pytest.mark.parametrize("hosts", [[], ["127.0.0.1"], ["10.0.0.1"], ["::ffff:10.0.0.1"]])
    @pytest.mark.parametrize("host", [NAME, PROVIDER])
    def test_refused_at_once(self, host: str, hosts: list[str]) -> None:
        """What leads nowhere that may be told is not registered, whatever the reason (I12, I5)."""
        clock, where, resolver = self.resolver()
        where.dns.records[NAME] = where.provider.records["Ib"] = hosts
        with pytest.raises(RegistrationFailed, match="no address that may be registered"):
            result_of(resolver.register("Ib", at(clock, host)))
        assert len(resolver.table) == 0

    def test_nobody_answers(self) -> None:
        """Neither a registration nor a call goes on; both are told that it is the server's part."""
        clock, where, resolver = self.resolver()
        where.dns.records[NAME] = [PUBLIC]
        result_of(resolver.register("Ib", at(clock)))
        where.dns.errors[NAME] = SourceFailed()
        advance(clock, 60)
        with pytest.raises(ServiceUnavailable):
            result_of(resolver.lookup("Ib"))
        with pytest.raises(ServiceUnavailable, match="DNS does not answer"):
            result_of(resolver.register("Ic", at(clock)))

    def test_not_offered(self) -> None:
        """Without sources nothing but IP addresses is taken, and the cause says so."""
        clock = FakeReactor()
        for host, cause in ((NAME, "a domain name is"), (PROVIDER, "Provider is")):
            with pytest.raises(RegistrationFailed, match=f"{cause} not offered by this server"):
                result_of(LocalResolver(clock).register("Ib", at(clock, host)))

    def test_provider(self) -> None:
        """The provider is asked by identifier, and again when its word has run out (A16)."""
        clock, where, resolver = self.resolver()
        where.provider.records["Ib"] = [PUBLIC]
        result_of(resolver.register("Ib", at(clock, PROVIDER, "10.0.0.9")))
        where.provider.records["Ib"] = [OTHER]
        assert result_of(resolver.lookup("Ib")).contact.host == PUBLIC
        advance(clock, 60)
        assert result_of(resolver.lookup("Ib")).contact.host == OTHER
        assert where.provider.asked == ["Ib", "Ib"]
        assert where.dns.asked == []

    def test_own_ports(self) -> None:
        """A name never leads to the server's own port at any of its addresses (I12)."""
        clock, where, resolver = self.resolver(own_ports=[1203])
        where.own = [PUBLIC]
        where.dns.records[NAME] = [PUBLIC]
        with pytest.raises(RegistrationFailed):
            result_of(resolver.register("Ib", at(clock)))
        where.dns.records["b.jp"] = [OTHER]
        result_of(resolver.register("Ib", at(clock, "b.jp")))

    @pytest.mark.parametrize("later", ["address", "name", "withdrawal"])
    def test_overtaken(self, later: str) -> None:
        """What comes while a name is looked up wins, though it is done first (A7, I10)."""
        clock, where, resolver = self.resolver()
        where.dns.records = {NAME: [PUBLIC], "b.jp": [OTHER]}
        where.dns.hold = True
        slow = Outcome(resolver.register("Ib", at(clock)))
        if later == "address":
            result_of(resolver.register("Ib", Contact(OTHER, 1203, 0, 60)))
        elif later == "name":
            fast = Outcome(resolver.register("Ib", at(clock, "b.jp")))
            where.dns.held.pop(1).callback(None)
            assert fast.errors == []
        else:
            result_of(resolver.withdraw("Ib"))
        where.dns.answer()
        assert slow.error is RegistrationFailed
        if later == "withdrawal":
            assert len(resolver.table) == 0
        else:
            assert result_of(resolver.lookup("Ib")).contact.host == OTHER
        assert where.naming._checking == {}

    def test_moved_meanwhile(self) -> None:
        """What is told is in force when it is told, however long the look-up took (I10)."""
        clock, where, resolver = self.resolver()
        where.dns.records[NAME] = [PUBLIC]
        address = at(clock)
        result_of(resolver.register("Ib", address))
        resolver.release("Ib", address)
        advance(clock, 59)
        where.dns.hold = True
        where.naming._names._answers.clear()  # type: ignore[union-attr]
        moved = Outcome(resolver.lookup("Ib"))
        result_of(resolver.register("Ib", Contact(OTHER, 1203, 59, 60)))
        where.dns.answer()
        assert moved.value.contact.host == OTHER

    def test_expired_meanwhile(self) -> None:
        """An address that expires while its name is looked up is not told (I10)."""
        clock, where, resolver = self.resolver()
        where.dns.records[NAME] = [PUBLIC]
        address = at(clock)
        result_of(resolver.register("Ib", address))
        resolver.release("Ib", address)
        advance(clock, 59)
        where.dns.hold = True
        where.naming._names._answers.clear()  # type: ignore[union-attr]
        waiting = Outcome(resolver.lookup("Ib"))
        advance(clock, 1)
        where.dns.answer()
        assert waiting.error is CalleeNotFound

    def test_checked_once(self) -> None:
        """An address that comes back, as a connection's does, is not refused for DNS's sake."""
        clock, where, resolver = self.resolver()
        where.dns.records[NAME] = [PUBLIC]
        address = at(clock)
        result_of(resolver.register("Ib", address))
        where.dns.errors[NAME] = SourceFailed()
        advance(clock, 60)
        result_of(resolver.register("Ib", Contact(NAME, 1203, 60, 60, origin=address.origin)))

    def test_own_addresses(self) -> None:
        """This machine's own are found, loopback at least."""
        assert parse_ip("127.0.0.1") in read_own_addresses()

    def test_whole_call(self) -> None:
        """Ib registers a name, Ia is told the address, and the table keeps the name (A17)."""
        clock = FakeReactor()
        where = FakeNames(clock)
        fake = a_mediator(
            clock, resolver=LocalResolver(clock, naming=where.naming), ask_status=False
        )
        where.dns.records[NAME] = ["2600::1", PUBLIC]
        callee, caller = fake.connect("202.224.186.90"), fake.connect("202.224.186.91")
        callee.type(f"REGISTER\nIdentifier:Ib\nAddress:{NAME.upper()}\nAccept:Add Ia\n\n")
        assert callee.text() == "NOTIFY\nRegistration Completed.\n\n"
        caller.type("QUERY\nIdentifier:Ia\nCallee:Ib\n\n")
        _, told = caller.received()
        assert told.fields["Callee Address"] == PUBLIC
        where.dns.hold = True
        advance(clock, 60)
        caller.type("QUERY\nIdentifier:Ia\nCallee:Ib\n\n")
        assert caller.text() == ""
        advance(clock, PATIENCE)
        assert caller.text() == "NOTIFY\nService Unavailable.\n\n"
        callee.type("REGISTER\nAddress:10.example.local\n\n")
        assert "Cause:others cannot resolve a name under local\n" in callee.text()


class ApartTests:
    """A resolver in a process of its own: names are the mediator's part, the provider its own."""

    def apart(self) -> tuple[Apart, FakeNames, FakeNames]:
        """The two of them, and what each asks: the mediator, the resolver."""
        clock = FakeReactor()
        ours, theirs = FakeNames(clock, provider=False), FakeNames(clock)
        apart = Apart(clock, naming=ours.naming, theirs=theirs.naming).start()
        return apart, ours, theirs

    def test_name(self) -> None:
        """The name and its source go over the link; the mediator finds it out (A15, A17)."""
        apart, ours, theirs = self.apart()
        ours.dns.records[NAME] = [PUBLIC]
        apart.heard()
        apart.done(apart.remote.register("Ib", at(apart.clock)))
        assert apart.heard() == [
            [
                "REGISTER",
                "Identifier:Ib",
                f"Address:{NAME}",
                "Port:1203",
                "Expires:60",
                "Source:202.224.186.90",
            ]
        ]
        assert apart.ask(apart.remote.lookup("Ib")).value.contact.host == PUBLIC
        assert apart.heard() == []
        ours.dns.records[NAME] = ["10.0.0.1"]
        advance(apart.clock, 60)
        assert apart.ask(apart.remote.lookup("Ib")).error is CalleeNotFound
        assert theirs.dns.asked == []

    def test_name_told_by_the_resolver(self) -> None:
        """A name that another registered is judged by the source that it came from (I12)."""
        apart, ours, _ = self.apart()
        other = apart.resolver.link()
        other.type(
            f"REGISTER\nIdentifier:Ib\nAddress:{NAME}\nSource:202.224.186.90\nTransaction:1\n\n"
        )
        assert "Registration Completed." in other.text()
        ours.dns.records[NAME] = ["10.0.0.1", "202.224.186.90"]
        told = apart.ask(apart.remote.lookup("Ib")).value.contact
        assert (told.host, told.dialable) == ("202.224.186.90", True)
        ours.dns.records[NAME] = ["127.0.0.1"]
        advance(apart.clock, 60)
        other.type(f"REGISTER\nIdentifier:Ib\nAddress:{NAME}\nSource:202.224.186.90\n\n")
        assert apart.ask(apart.remote.lookup("Ib")).error is CalleeNotFound

    def test_not_registered(self) -> None:
        """A name that leads nowhere does not come to the resolver."""
        apart, ours, _ = self.apart()
        apart.heard()
        ours.dns.records[NAME] = ["127.0.0.1"]
        assert apart.ask(apart.remote.register("Ib", at(apart.clock))).error is RegistrationFailed
        assert apart.heard() == []

    def test_provider(self) -> None:
        """The resolver asks the provider, and the mediator the resolver, each time (A15, A16)."""
        apart, ours, theirs = self.apart()
        theirs.provider.records["Ib"] = [PUBLIC]
        apart.done(apart.remote.register("Ib", at(apart.clock, PROVIDER)))
        assert apart.ask(apart.remote.lookup("Ib")).value.contact.host == PUBLIC
        theirs.provider.records["Ib"] = [OTHER]
        apart.pass_by(30, 1)
        assert apart.ask(apart.remote.lookup("Ib")).value.contact.host == PUBLIC
        apart.pass_by(31, 1)
        assert apart.ask(apart.remote.lookup("Ib")).value.contact.host == OTHER
        assert ours.dns.asked == []
        theirs.provider.records["Ib"] = ["10.0.0.1"]
        apart.pass_by(61, 1)
        assert apart.ask(apart.remote.lookup("Ib")).error is CalleeNotFound

    def test_provider_refuses(self) -> None:
        """What the provider doesn't know, or a resolver without one, is a failed registration."""
        apart, _, theirs = self.apart()
        failed = apart.ask(apart.remote.register("Ib", at(apart.clock, PROVIDER)))
        assert str(failed.errors) == str(
            [
                RegistrationFailed(
                    "the provider has no address that may be registered over this connection"
                )
            ]
        )
        theirs.naming._provider = None
        failed = apart.ask(apart.remote.register("Ic", at(apart.clock, PROVIDER)))
        assert "Provider is not offered by this server" in str(failed.errors)
        assert apart.resolver.told("Ib") is None

    def test_withdrawn_while_it_is_asked(self) -> None:
        """A withdrawal that comes while the provider is asked wins (I10)."""
        apart, _, theirs = self.apart()
        theirs.provider.records["Ib"] = [PUBLIC]
        theirs.provider.hold = True
        slow = apart.ask(apart.remote.register("Ib", at(apart.clock, PROVIDER)))
        apart.done(apart.remote.withdraw("Ib"))
        theirs.provider.answer()
        apart.pump()
        assert slow.error is RegistrationFailed
        assert apart.resolver.told("Ib") is None


class DirectTests:
    """A terminal at the resolver itself."""

    def resolver(self) -> tuple[FakeResolver, FakeNames]:
        """One, and what it asks."""
        clock = FakeReactor()
        where = FakeNames(clock)
        return FakeResolver(clock, naming=where.naming), where

    def test_name(self) -> None:
        """A name is checked there too, kept as it is, and told with its source (A17)."""
        resolver, where = self.resolver()
        client = resolver.connect("202.224.186.90")
        client.type(f"REGISTER\nIdentifier:Ib\nAddress:{NAME}\n\n")
        assert "Cause:the domain name has no address that may be registered" in client.text()
        assert resolver.told("Ib") is None
        advance(resolver.clock, 5)
        where.dns.records[NAME] = [PUBLIC]
        client.type(f"REGISTER\nIdentifier:Ib\nAddress:{NAME}\n\n")
        assert client.text() == "NOTIFY\nRegistration Completed.\n\n"
        link = resolver.link()
        link.type("QUERY\nLOOKUP\nCallee:Ib\n\n")
        assert link.text() == (
            f"NOTIFY\nCallee Address:{NAME}\nCallee Port:1203\nExpires:3600\n"
            "Source:202.224.186.90\n\n"
        )

    @pytest.mark.parametrize("meanwhile", ["gone", "another", "a mediator", "address"])
    def test_changed_meanwhile(self, meanwhile: str) -> None:
        """What became of the connection while the name was looked up counts (I4, I5)."""
        resolver, where = self.resolver()
        where.dns.records[NAME] = [PUBLIC]
        where.dns.hold = True
        client = resolver.connect("202.224.186.90")
        client.type(f"REGISTER\nIdentifier:Ib\nAddress:{NAME}\nTransaction:1\n\n")
        expected = None
        if meanwhile == "gone":
            client.vanish()
        elif meanwhile == "another":
            client.type(f"REGISTER\nIdentifier:Ic\nAddress:{OTHER}\nTransaction:2\n\n")
        elif meanwhile == "a mediator":
            resolver.server._secret = b"s"
            client.type("REGISTER\nRole:Mediator\nPassword:s\nTransaction:2\n\n")
        else:
            client.type(f"REGISTER\nIdentifier:Ib\nAddress:{OTHER}\nTransaction:2\n\n")
            expected = (OTHER, 1203)
        where.dns.answer()
        advance(resolver.clock, 0)
        assert resolver.told("Ib") == expected

    def test_stopped(self) -> None:
        """A stop while somebody waits leaves no timer behind."""
        resolver, where = self.resolver()
        where.dns.hold = True
        client = resolver.connect("202.224.186.90")
        client.type(f"REGISTER\nIdentifier:Ib\nAddress:{NAME}\n\n")
        resolver.server.stop()
        resolver.local.stop()
        advance(resolver.clock, 0)
        assert not resolver.clock.getDelayedCalls()


class ZoneTests:
    """A provider's zone."""

    def test_label(self) -> None:
        """Any identifier becomes one label, equal ones the same, and tells nothing itself (A18)."""
        for identifier in ("Ib", "+81 3 1234 5678", "山田太郎 大阪府", "が" * 42):
            assert len(label(identifier)) == 52
            assert label(identifier).isalnum()
            assert label(identifier).islower()
        assert label("が") == label("か\u3099")
        assert label("Ib") != label("ib")
        assert label("Ib") == "aydmb2hxrxsnpj4feks24l33odrr4zu6nyvbnyi4he7eiqygtajq"
