"""Addresses that are registered by name: remembered, judged each time, in order (A16, A17)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from twisted.internet.defer import CancelledError
from twisted.logger import capturedLogs

from broker.interfaces import SourceFailed
from broker.messages.errors import CalleeNotFound, RegistrationFailed, ServiceUnavailable
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
from tests.support.transport import Client

NAME = "host.example.jp"
PUBLIC = "202.224.186.82"
OTHER = "202.224.186.83"


def at(clock: FakeReactor, host: str = NAME, source: str = "202.224.186.90") -> Contact:
    """An address registered by name from there, now."""
    return Contact(host, 1203, clock.seconds(), 60, origin=Origin(source))


class Asking:
    """A cache, and the source that it asks, which knows a name."""

    def __init__(self, hosts: Sequence[str] = (PUBLIC,), **limits: int) -> None:
        self.clock = FakeReactor()
        self.source = FakeSource(**{NAME: hosts})
        self.known = LookupCache(self.source, self.clock, **limits)

    def hosts(self, name: str = NAME) -> tuple[str, ...]:
        """What a name has."""
        return result_of(self.known.hosts(name))

    def waiting(self, name: str = NAME) -> Outcome[tuple[str, ...]]:
        """Ask, and wait for the answer if need be."""
        return Outcome(self.known.hosts(name))


class RememberedTests:
    """One question for all, and none while its answer holds."""

    @pytest.mark.parametrize(("seconds", "holds"), [(0.0, 5.0), (60.0, 60.0), (10.0**9, 3600.0)])
    def test_holds(self, seconds: float, holds: float) -> None:
        """An answer holds for its seconds, not less than 5 and not more than an hour."""
        it = Asking()
        it.source.seconds = seconds
        assert it.hosts() == (PUBLIC,)
        it.source.records[NAME] = [OTHER]
        advance(it.clock, holds - 0.01)
        assert it.hosts() == (PUBLIC,)
        advance(it.clock, 0.01)
        assert it.hosts() == (OTHER,)
        assert it.source.asked == [NAME, NAME]

    def test_nothing_and_no_answer(self) -> None:
        """That there is none, and that there is no answer, is remembered for the shortest time; an
        unforeseen error is logged, and is no answer (I24).
        """
        it = Asking([])
        it.source.errors["c.jp"] = ZeroDivisionError()
        with capturedLogs() as logged:
            assert it.waiting("c.jp").error is SourceFailed
        assert len([event for event in logged if "log_failure" in event]) == 1
        it.source.asked.clear()
        it.source.seconds = 600.0
        it.source.errors["b.jp"] = SourceFailed()
        for _ in range(3):
            assert it.hosts() == ()
            assert it.waiting("b.jp").error is SourceFailed
        assert it.source.asked == [NAME, "b.jp"]
        advance(it.clock, TTL_SECONDS[0])
        it.source.errors.clear()
        it.source.records["b.jp"] = [PUBLIC]
        assert it.hosts("b.jp") == (PUBLIC,)

    def test_one_question_for_all(self) -> None:
        """Who asks in between waits for the same answer; one that gives up cancels no other."""
        it = Asking()
        it.source.hold = True
        first, second, third = (it.waiting() for _ in range(3))
        first.doing.cancel()
        assert first.error is CancelledError
        assert not second.over
        it.source.answer()
        assert second.value == third.value == (PUBLIC,)
        assert it.source.asked == [NAME]
        assert not [call for call in it.clock.getDelayedCalls() if call.getTime() < PATIENCE - 1]

    def test_patience(self) -> None:
        """Who waits is told in two seconds that there is no answer; one that comes is kept."""
        it = Asking()
        it.source.hold = True
        waiting = it.waiting()
        advance(it.clock, PATIENCE - 0.01)
        assert not waiting.over
        advance(it.clock, 0.01)
        assert waiting.error is SourceFailed
        it.source.answer()
        assert it.hosts() == (PUBLIC,)

    def test_never(self) -> None:
        """A question without an answer ends after ten seconds, and is asked again then."""
        it = Asking(questions_max=1)
        it.source.hold = True
        waiting = it.waiting()
        advance(it.clock, QUESTION_SECONDS - 0.01)
        assert waiting.error is it.waiting("b.jp").error is SourceFailed
        advance(it.clock, 0.01)
        it.source.hold = False
        assert it.hosts("b.jp") == ()

    def test_bounds(self) -> None:
        """Answers, their length, questions, and who waits, all have a limit (I15)."""
        it = Asking([f"10.0.0.{n}" for n in range(99)], answers_max=3, questions_max=2)
        assert len(it.hosts()) == HOSTS_MAX
        for n in range(10):
            it.hosts(f"a{n}.jp")
        assert len(it.known) == 3
        it.source.hold = True
        every = [it.waiting("x.jp") for _ in range(WAITING_MAX + 1)]
        assert [one.over for one in every] == [False] * WAITING_MAX + [True]
        assert not it.waiting("y.jp").over
        assert it.waiting("z.jp").error is SourceFailed
        assert it.source.asked[-2:] == ["x.jp", "y.jp"]

    def test_stopped(self) -> None:
        """A stop tells those who wait, and leaves no timer behind."""
        it = Asking()
        it.source.hold = True
        waiting = it.waiting()
        it.known.stop()
        assert waiting.error is SourceFailed
        assert it.source.stopped
        assert not it.clock.getDelayedCalls()


class Inside:
    """A resolver inside, and what it asks; a name has a public address."""

    def __init__(self, **options: Any) -> None:
        self.clock = FakeReactor()
        self.names = FakeNames(self.clock, **options)
        self.resolver = LocalResolver(self.clock, naming=self.names.naming)
        self.dns, self.provider = self.names.dns, self.names.provider
        self.dns.records[NAME] = [PUBLIC]

    def registers(self, host: str = NAME, source: str = "202.224.186.90") -> Contact:
        """Ib registers an address by name."""
        address = at(self.clock, host, source)
        result_of(self.resolver.register("Ib", address))
        return address

    def host(self) -> str:
        """What a look-up of Ib tells."""
        return result_of(self.resolver.lookup("Ib")).contact.host


class InsideTests:
    """A resolver inside."""

    def test_followed(self) -> None:
        """A dynamic name is told by its present address, judged each time: no rebinding (A17,
        I12).
        """
        it = Inside()
        address = it.registers()
        told = result_of(it.resolver.lookup("Ib"))
        assert told.contact == Contact(PUBLIC, 1203, 0, 60)
        assert it.resolver.table.lookup("Ib", 0).contact is address  # type: ignore[union-attr]
        for hosts, host in (
            ([OTHER], OTHER),
            (["127.0.0.1"], None),
            (["10.0.0.1", "169.254.169.254"], None),
            (["::1", "::ffff:127.0.0.1", PUBLIC], PUBLIC),
            ([], None),
        ):
            it.dns.records[NAME] = hosts
            advance(it.clock, 60)
            if host is None:
                with pytest.raises(CalleeNotFound):
                    it.host()
            else:
                assert it.host() == host

    @pytest.mark.parametrize("hosts", [[], ["127.0.0.1"], ["10.0.0.1"], ["::ffff:10.0.0.1"]])
    @pytest.mark.parametrize("host", [NAME, PROVIDER])
    def test_refused_at_once(self, host: str, hosts: list[str]) -> None:
        """What leads nowhere that may be told is not registered, whatever the reason (I12, I5)."""
        it = Inside()
        it.dns.records[NAME] = it.provider.records["Ib"] = hosts
        with pytest.raises(RegistrationFailed, match="no address that may be registered"):
            it.registers(host)
        assert len(it.resolver.table) == 0

    def test_no_answer(self) -> None:
        """Neither a registration nor a call goes on; both are told that it is the server's part.

        An address that comes back, as a connection's does, is not refused because of DNS.
        """
        it = Inside()
        address = it.registers()
        it.dns.errors[NAME] = SourceFailed()
        advance(it.clock, 60)
        with pytest.raises(ServiceUnavailable):
            it.host()
        with pytest.raises(ServiceUnavailable, match="DNS does not answer"):
            result_of(it.resolver.register("Ic", at(it.clock)))
        result_of(it.resolver.register("Ib", Contact(NAME, 1203, 60, 60, origin=address.origin)))

    @pytest.mark.parametrize(("host", "what"), [(NAME, "a domain name"), (PROVIDER, "Provider")])
    def test_not_offered(self, host: str, what: str) -> None:
        """Without sources nothing but IP addresses is taken, and the cause says so."""
        clock = FakeReactor()
        with pytest.raises(RegistrationFailed, match=f"{what} is not offered by this server"):
            result_of(LocalResolver(clock).register("Ib", at(clock, host)))

    def test_own_ports(self) -> None:
        """A name never leads to the server's own port at any of its addresses (I12), loopback or
        another.
        """
        assert parse_ip("127.0.0.1") in read_own_addresses()
        it = Inside(own_ports=[1203])
        it.names.own = [PUBLIC]
        with pytest.raises(RegistrationFailed):
            it.registers()
        it.dns.records["b.jp"] = [OTHER]
        it.registers("b.jp")

    @pytest.mark.parametrize("later", ["address", "name", "withdrawal"])
    def test_overtaken(self, later: str) -> None:
        """What comes while a name is looked up wins, though it is done first (A7, I10)."""
        it = Inside()
        it.dns.records["b.jp"] = [OTHER]
        it.dns.hold = True
        slow = Outcome(it.resolver.register("Ib", at(it.clock)))
        if later == "address":
            result_of(it.resolver.register("Ib", Contact(OTHER, 1203, 0, 60)))
        elif later == "name":
            fast = Outcome(it.resolver.register("Ib", at(it.clock, "b.jp")))
            it.dns.held.pop(1).callback(None)
            assert fast.errors == []
        else:
            result_of(it.resolver.withdraw("Ib"))
        it.dns.answer()
        assert slow.error is RegistrationFailed
        if later == "withdrawal":
            assert len(it.resolver.table) == 0
        else:
            assert it.host() == OTHER
        assert it.names.naming._checking == {}

    @pytest.mark.parametrize("moved", [True, False])
    def test_when_it_changes_during_the_look_up_then_what_is_in_force_is_told(
        self, moved: bool
    ) -> None:
        """What is told is in force when it is told, however long the look-up took: where it moved,
        and nothing where it has expired (I10).
        """
        it = Inside()
        it.dns.seconds = 5
        it.resolver.release("Ib", it.registers())
        advance(it.clock, 59)
        it.dns.hold = True
        waiting = Outcome(it.resolver.lookup("Ib"))
        if moved:
            result_of(it.resolver.register("Ib", Contact(OTHER, 1203, 59, 60)))
        else:
            advance(it.clock, 1)
        it.dns.answer()
        if moved:
            assert waiting.value.contact.host == OTHER
        else:
            assert waiting.error is CalleeNotFound

    def test_whole_call(self) -> None:
        """Ib registers a name, Ia is told the address, and the table keeps the name (A17)."""
        it = Inside()
        fake = a_mediator(it.clock, resolver=it.resolver, ask_status=False)
        it.dns.records[NAME] = ["2600::1", PUBLIC]
        callee, caller = fake.connect("202.224.186.90"), fake.connect("202.224.186.91")
        callee.type(f"REGISTER\nIdentifier:Ib\nAddress:{NAME.upper()}\nAccept:Add Ia\n\n")
        assert callee.text() == "NOTIFY\nRegistration Completed.\n\n"
        caller.type("QUERY\nIdentifier:Ia\nCallee:Ib\n\n")
        _, told = caller.received()
        assert told.fields["Callee Address"] == PUBLIC
        it.dns.hold = True
        advance(it.clock, 60)
        caller.type("QUERY\nIdentifier:Ia\nCallee:Ib\n\n")
        assert caller.text() == ""
        advance(it.clock, PATIENCE)
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
        apart.heard()
        return apart, ours, theirs

    def test_name(self) -> None:
        """The name and its source go over the link; the mediator finds it out (A15, A17). A name
        that leads nowhere does not come to the resolver.
        """
        apart, ours, theirs = self.apart()
        ours.dns.records = {NAME: [PUBLIC], "b.jp": ["127.0.0.1"]}
        nowhere = apart.ask(apart.remote.register("Ic", at(apart.clock, "b.jp")))
        assert nowhere.error is RegistrationFailed
        apart.done(apart.remote.register("Ib", at(apart.clock)))
        told = ["REGISTER", "Identifier:Ib", f"Address:{NAME}", "Port:1203", "Expires:60"]
        assert apart.heard() == [[*told, "Source:202.224.186.90"]]
        assert apart.finds().contact.host == PUBLIC
        assert apart.heard() == []
        ours.dns.records[NAME] = ["10.0.0.1"]
        advance(apart.clock, 60)
        assert apart.misses() is CalleeNotFound
        assert theirs.dns.asked == []

    def test_name_told_by_the_resolver(self) -> None:
        """A name that another registered is judged by the source that it came from (I12)."""
        apart, ours, _ = self.apart()
        apart.elsewhere(NAME, "Source:202.224.186.90\n")
        ours.dns.records[NAME] = ["10.0.0.1", "202.224.186.90"]
        told = apart.finds().contact
        assert (told.host, told.dialable) == ("202.224.186.90", True)
        ours.dns.records[NAME] = ["127.0.0.1"]
        advance(apart.clock, 60)
        apart.elsewhere(NAME, "Source:202.224.186.90\n")
        assert apart.misses() is CalleeNotFound

    def test_provider(self) -> None:
        """The resolver asks the provider, by identifier and again when its word has run out; the
        mediator asks the resolver each time (A15, A16).
        """
        apart, ours, theirs = self.apart()
        theirs.provider.records["Ib"] = [PUBLIC]
        apart.done(apart.remote.register("Ib", at(apart.clock, PROVIDER)))
        assert apart.finds().contact.host == PUBLIC
        theirs.provider.records["Ib"] = [OTHER]
        apart.pass_by(30, 1)
        assert apart.finds().contact.host == PUBLIC
        apart.pass_by(31, 1)
        assert apart.finds().contact.host == OTHER
        assert theirs.provider.asked == ["Ib", "Ib"]
        assert ours.dns.asked == theirs.dns.asked == []
        theirs.provider.records["Ib"] = ["10.0.0.1"]
        apart.pass_by(61, 1)
        assert apart.misses() is CalleeNotFound

    def test_provider_refuses(self) -> None:
        """What the provider doesn't know, or a resolver without one, is a failed registration."""
        apart, _, theirs = self.apart()
        for cause in (
            "the provider has no address that may be registered over this connection",
            "Provider is not offered by this server",
        ):
            failed = apart.ask(apart.remote.register("Ib", at(apart.clock, PROVIDER)))
            assert failed.error is RegistrationFailed
            assert cause in str(failed.errors[0])
            theirs.naming._provider = None
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

    def start(self) -> tuple[FakeResolver, FakeNames, Client]:
        """The resolver, what it asks, and a terminal."""
        clock = FakeReactor()
        where = FakeNames(clock)
        resolver = FakeResolver(clock, naming=where.naming)
        return resolver, where, resolver.connect("202.224.186.90")

    def test_name(self) -> None:
        """A name is checked there too, kept as a name, and told with its source (A17)."""
        resolver, where, client = self.start()
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

    @pytest.mark.parametrize(
        ("then", "expected"),
        [
            pytest.param("", None, id="the connection is gone"),
            pytest.param(
                f"REGISTER\nIdentifier:Ic\nAddress:{OTHER}\n", None, id="another terminal"
            ),
            pytest.param("REGISTER\nRole:Mediator\nPassword:s\n", None, id="a mediator's link"),
            pytest.param(
                f"REGISTER\nIdentifier:Ib\nAddress:{OTHER}\n", (OTHER, 1203), id="an address"
            ),
        ],
    )
    def test_changed_during_the_look_up(self, then: str, expected: tuple[str, int] | None) -> None:
        """What became of the connection while the name was looked up counts (I4, I5)."""
        resolver, where, client = self.start()
        resolver.server._secret = b"s"
        where.dns.records[NAME] = [PUBLIC]
        where.dns.hold = True
        client.type(f"REGISTER\nIdentifier:Ib\nAddress:{NAME}\nTransaction:1\n\n")
        if then:
            client.type(f"{then}Transaction:2\n\n")
        else:
            client.vanish()
        where.dns.answer()
        advance(resolver.clock, 0)
        assert resolver.told("Ib") == expected

    def test_stopped(self) -> None:
        """A stop while a look-up waits leaves no timer behind."""
        resolver, where, client = self.start()
        where.dns.hold = True
        client.type(f"REGISTER\nIdentifier:Ib\nAddress:{NAME}\n\n")
        resolver.server.stop()
        resolver.local.stop()
        advance(resolver.clock, 0)
        assert not resolver.clock.getDelayedCalls()
