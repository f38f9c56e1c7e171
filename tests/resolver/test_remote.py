"""The resolver apart, as the mediator holds it: over one link that comes and goes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import inf
from typing import Any

import pytest
from twisted.logger import LogLevel, capturedLogs
from zope.interface.verify import verifyObject

from broker.interfaces import IResolver
from broker.messages.errors import CalleeNotFound, RegistrationFailed, ServiceUnavailable
from broker.messages.message import Message
from broker.resolver import remote as remote_module
from broker.resolver.link import REFUSED, SILENT_SECONDS
from broker.resolver.replication import BATCH
from broker.tables.locations import Binding
from tests.resolver.apart import Apart, Outcome, address
from tests.support.reactor import FakeReactor

ROLE = ["REGISTER", "Role:Mediator"]


def logged_texts(events: Iterable[dict[str, object]], level: str) -> list[str]:
    """What was logged at a level, as its format says it."""
    return [
        str(event["log_format"])
        for event in events
        if event["log_level"] is LogLevel.lookupByName(level)
    ]


@pytest.fixture
def world() -> Apart:
    """A mediator and its resolver apart, with the link up."""
    return Apart().start()


class RemoteTests:
    """Asking over the link."""

    def test_interface(self) -> None:
        """It is an IResolver in name and in deed."""
        assert verifyObject(IResolver, Apart().remote)

    def test_registered_and_looked_up(self, world: Apart) -> None:
        """What one mediator registers, another is told, with what is left of its time (A8, A16)."""
        where = address(world.clock, "202.224.186.82", port=1205, expires=60, dialable=True)
        world.done(world.remote.register("Ib", where))
        other = world.resolver.link()
        other.type("REGISTER\nIdentifier:Ic\nAddress:202.224.186.83\nExpires:60\nDial:Yes\n\n")
        world.clock.advance(10)
        place = world.ask(world.remote.lookup("Ic")).value
        assert (place.contact.host, place.contact.port) == ("202.224.186.83", 1203)
        assert place.contact.dialable
        assert place.until == world.clock.seconds() + 50
        other.text()
        other.type("QUERY\nLOOKUP\nCallee:Ib\n\n")
        assert other.text() == (
            "NOTIFY\nCallee Address:202.224.186.82\nCallee Port:1205\nExpires:50\nDial:Yes\n\n"
        )

    def test_ones_own(self, world: Apart) -> None:
        """What is held here is told back as held: the mediator knows its connection best."""
        where = address(world.clock)
        world.done(world.remote.register("Ib", where))
        place = world.ask(world.remote.lookup("Ib")).value
        assert place.contact is where
        assert place.until == inf

    def test_ones_own_displaced(self, world: Apart) -> None:
        """Where a newer address was registered elsewhere, that is the one told (A7)."""
        world.done(world.remote.register("Ib", address(world.clock)))
        other = world.resolver.link()
        for newer in ("127.0.0.2", 1203), ("127.0.0.1", 1204):
            other.type("REGISTER\nIdentifier:Ib\nAddress:{}\nPort:{}\n\n".format(*newer))
            world.pump()
            place = world.ask(world.remote.lookup("Ib")).value
            assert (place.contact.host, place.contact.port) == newer
            assert place.until < inf

    def test_ones_own_needs_no_question(self, world: Apart) -> None:
        """What the resolver has taken from here holds until it says otherwise, unasked (A8)."""
        where = address(world.clock)
        world.done(world.remote.register("Ib", where))
        world.heard()
        assert world.ask_only(world.remote.lookup("Ib")).value == Binding(where, inf)
        assert world.heard() == []
        world.resolver.link().type("REGISTER\nIdentifier:Ib\nExpires:0\n\n")
        world.pump()
        world.heard()
        assert world.ask(world.remote.lookup("Ib")).error is CalleeNotFound
        assert world.heard() == [["QUERY", "LOOKUP", "Callee:Ib"]]

    def test_ones_own_while_the_link_is_away(self, world: Apart) -> None:
        """A lost link could not say otherwise: what it would say is not known (I10)."""
        world.done(world.remote.register("Ib", address(world.clock)))
        world.away = True
        world.cut()
        outcome = world.ask(world.remote.lookup("Ib"))
        world.advance(1)
        assert outcome.error is ServiceUnavailable

    def test_ones_own_after_a_restart(self, world: Apart) -> None:
        """It holds again once the new resolver has taken it; not where that has a newer one."""
        world.done(world.remote.register("Ib", address(world.clock)))
        world.done(world.remote.register("Ic", address(world.clock)))
        world.clock.advance(1)
        world.restart()
        world.resolver.link().type("REGISTER\nIdentifier:Ic\nAddress:127.0.0.9\n\n")
        world.advance(1)
        world.heard()
        assert world.ask(world.remote.lookup("Ib")).value.until == inf
        assert world.heard() == []
        assert world.ask(world.remote.lookup("Ic")).value.contact.host == "127.0.0.9"
        assert world.heard() == [["QUERY", "LOOKUP", "Callee:Ic"]]

    def test_not_found(self, world: Apart) -> None:
        """*Callee not Found.* is what it is in the mediator too (S807)."""
        assert world.ask(world.remote.lookup("Ib")).error is CalleeNotFound

    def test_withdrawn(self, world: Apart) -> None:
        """A withdrawn address is told no more, here and at the resolver, nor registered again."""
        world.done(world.remote.register("Ib", address(world.clock)))
        world.done(world.remote.withdraw("Ib"))
        assert world.ask(world.remote.lookup("Ib")).error is CalleeNotFound
        world.restart()
        world.advance(1)
        assert world.resolver.told("Ib") is None
        assert world.remote.replication.contacts == 0

    def test_registration_refused(self) -> None:
        """The resolver's refusal is a registration that failed, with its cause (A5)."""
        world = Apart(most=1).start()
        world.done(world.remote.register("Ia", address(world.clock)))
        refused = world.ask(world.remote.register("Ib", address(world.clock)))
        assert refused.error is RegistrationFailed
        assert str(refused.errors[0]) == "the table of addresses is full"
        assert world.remote.replication.contacts == 1

    def test_many_at_once(self, world: Apart) -> None:
        """Of many look-ups under way each has its own answer, in whatever order they come (I11)."""
        link = world.resolver.link()
        many = 300
        for n in range(many):
            link.feed(f"REGISTER\nIdentifier:I{n}\nAddress:127.0.0.1\nPort:{n + 1}\n\n".encode())
        world.pump()
        asked = [world.remote.lookup(f"I{n}") for n in range(many)]
        world.deaf = True
        outcomes = [world.ask(step) for step in asked]
        assert not any(outcome.over for outcome in outcomes), "all are under way together"
        world.deaf = False
        world.pump()
        assert [one.value.contact.port for one in outcomes] == list(range(1, many + 1))
        assert len(world.pairs) == 1

    def test_answers_out_of_order(self) -> None:
        """An answer goes to the question whose transaction it carries, late ones nowhere (I11)."""
        world = Apart()
        world.remote.start()
        (dial,) = world.clock.dials
        server = dial.accept()
        (role,) = server.received()
        server.type(f"NOTIFY\nRegistration Completed.\nTransaction:{role.transaction}\n\n")
        one, other = (world.ask_only(world.remote.lookup(name)) for name in ("Ia", "Ib"))
        first, second = server.received()
        told = "NOTIFY\nCallee Address:127.0.0.1\nCallee Port:{}\nExpires:9\nTransaction:{}\n\n"
        server.type(told.format(7, "never-asked"))
        server.type(told.format(2, second.transaction))
        server.type(told.format(3, second.transaction))
        assert not one.over
        server.type(told.format(1, first.transaction))
        assert (one.value.contact.port, other.value.contact.port) == (1, 2)

    @pytest.mark.parametrize(
        "lines",
        [
            "Callee Address:0.0.0.0\nCallee Port:1203\nExpires:9\n",
            "Callee Address:::ffff:224.0.0.1\nCallee Port:1203\nExpires:9\n",
            "Callee Address:host.example.jp\nCallee Port:1203\nExpires:9\n",
            "Callee Address:127.0.0.1\nExpires:9\n",
            "Callee Address:127.0.0.1\nCallee Port:1203\n",
            "Permission Denied.\n",
            "Service Unavailable.\n",
            "\n",
        ],
    )
    def test_no_blind_trust(self, lines: str) -> None:
        """An answer that can't be is none: the mediator judges the resolver's word too (I12)."""
        world = Apart()
        world.remote.start()
        server = world.clock.dials[0].accept()
        (role,) = server.received()
        server.type(f"NOTIFY\nRegistration Completed.\nTransaction:{role.transaction}\n\n")
        looked_up = world.ask_only(world.remote.lookup("Ib"))
        (question,) = server.received()
        server.type(f"NOTIFY\nTransaction:{question.transaction}\n{lines}\n")
        assert looked_up.error is ServiceUnavailable

    def test_expired_at_once(self, world: Apart) -> None:
        """An address with no whole second left is not in force when it arrives (I10)."""
        world.resolver.link().type("REGISTER\nIdentifier:Ib\nAddress:127.0.0.1\nExpires:1\n\n")
        world.clock.advance(0.5)
        place = world.ask(world.remote.lookup("Ib")).value
        assert place.until <= world.clock.seconds()

    def test_the_resolvers_questions(self) -> None:
        """What a resolver asks is refused, and the link goes on."""
        world = Apart()
        world.remote.start()
        server = world.clock.dials[0].accept()
        server.received()
        server.type("QUERY\nSTATUS\nTransaction:x\n\n")
        (answer,) = server.received()
        assert (answer.statement, answer.transaction) == ("Bad Message.", "x")


class AwayTests:
    """While the resolver is away: an answer within a second, not a hang."""

    def test_within_a_second(self) -> None:
        """Look-up, registration and withdrawal wait a second for the link, then fail whole."""
        world = Apart()
        world.away = True
        world.start()
        steps: list[Outcome[Any]] = [
            world.ask(world.remote.lookup("Ib")),
            world.ask(world.remote.register("Ia", address(world.clock))),
            world.ask(world.remote.withdraw("Ia")),
        ]
        world.advance(0.95)
        assert not any(step.over for step in steps)
        world.advance(0.05)
        assert [step.error for step in steps] == [ServiceUnavailable] * 3
        assert world.remote.replication.contacts == 0
        world.away = False
        world.advance(4)
        assert world.resolver.told("Ia") is None

    def test_back_in_time(self) -> None:
        """What waited for the link is asked as soon as it is up."""
        world = Apart()
        world.away = True
        world.start()
        registered = world.ask(world.remote.register("Ib", address(world.clock)))
        world.away = False
        world.advance(0.5)
        assert registered.value is None
        assert world.resolver.told("Ib") == ("127.0.0.1", 1203)

    def test_no_answer(self, world: Apart) -> None:
        """A question that was asked has its answer within a second, or none."""
        world.deaf = True
        asked = world.ask(world.remote.lookup("Ib"))
        world.advance(0.95)
        assert not asked.over
        world.advance(0.05)
        assert asked.error is ServiceUnavailable

    def test_one_second_in_all(self) -> None:
        """The wait for the link and the wait for the answer are one second together."""
        world = Apart()
        world.remote.start()
        asked = world.ask_only(world.remote.lookup("Ib"))
        server = world.clock.dials[0].accept()
        world.clock.advance(0.7)
        (role,) = server.received()
        server.type(f"NOTIFY\nRegistration Completed.\nTransaction:{role.transaction}\n\n")
        assert [question.statement for question in server.received()] == ["LOOKUP"]
        world.clock.advance(0.25)
        assert not asked.over
        world.clock.advance(0.05)
        assert asked.error is ServiceUnavailable

    def test_lost_meanwhile(self, world: Apart) -> None:
        """When the link breaks, what was asked over it fails at once."""
        world.deaf = True
        asked = world.ask(world.remote.lookup("Ib"))
        world.cut()
        assert asked.error is ServiceUnavailable

    def test_silent(self, world: Apart) -> None:
        """A link over which questions get nothing for some seconds is made anew."""
        world.deaf = True
        began = world.clock.seconds()
        while not world.pairs[0].a.disconnected:
            assert world.clock.seconds() - began < SILENT_SECONDS + 1.5, "it is never given up"
            world.ask(world.remote.lookup("Ib"))
            world.advance(0.25)
        assert world.clock.seconds() - began >= SILENT_SECONDS
        world.deaf = False
        world.advance(1)
        assert len(world.pairs) == 2
        assert world.ask(world.remote.lookup("Ib")).error is CalleeNotFound

    def test_idle_is_not_silent(self, world: Apart) -> None:
        """A link over which nothing is asked stays, and one that answers stays (I24)."""
        world.pass_by(1000, 10)
        for _ in range(8):
            assert world.ask(world.remote.lookup("Ib")).error is CalleeNotFound
            world.advance(1)
        assert len(world.pairs) == 1

    def test_one_question_lost(self, world: Apart) -> None:
        """A question without an answer, long after the first of all, is no silence yet."""
        assert world.ask(world.remote.lookup("Ib")).error is CalleeNotFound
        world.pass_by(100, 1)
        world.deaf = True
        asked = world.ask(world.remote.lookup("Ib"))
        world.advance(1.1)
        assert asked.error is ServiceUnavailable
        world.deaf = False
        assert world.ask(world.remote.lookup("Ib")).error is CalleeNotFound
        assert len(world.pairs) == 1

    def test_cap(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """So many questions wait and no more; the next is refused at once (I15)."""
        monkeypatch.setattr(remote_module, "QUESTIONS_MOST", 3)
        world = Apart().start()
        world.deaf = True
        waiting = [world.ask(world.remote.lookup("Ib")) for _ in range(3)]
        assert world.ask(world.remote.lookup("Ib")).error is ServiceUnavailable
        assert not any(one.over for one in waiting)
        world.advance(1)
        again = world.ask(world.remote.lookup("Ib"))
        assert not again.over, "there is room again"

    def test_stopped(self, world: Apart) -> None:
        """Stopping closes the link, answers who waits, and leaves no timer behind."""
        world.done(world.remote.register("Ib", address(world.clock)))
        world.deaf = True
        waiting = world.ask(world.remote.lookup("Ib"))
        stopping = world.ask(world.remote.stop())
        world.deaf = False
        world.pump()
        assert stopping.over
        assert waiting.over
        world.resolver.server.stop()
        world.remote.link.client._hub.stop()
        assert not world.clock.getDelayedCalls()


class RefusedTests:
    """A link that the resolver does not take."""

    def test_wrong_secret(self) -> None:
        """Said once in plain words, with no secret in them; all who ask get an answer (I18)."""
        world = Apart(secret="ours-is-this", wants="theirs-is-that")
        with capturedLogs() as logged:
            world.start()
            asked = world.ask(world.remote.lookup("Ib"))
            world.advance(10)
        assert asked.error is ServiceUnavailable
        assert len(world.pairs) > 3, "it goes on trying"
        errors = logged_texts(logged, "error")
        assert errors == [REFUSED]
        assert not any("ours-is-this" in str(event) for event in logged)

    def test_put_right(self) -> None:
        """Once the resolver takes it, it serves; a later refusal is said again."""
        world = Apart(secret="ours", wants="theirs").start()
        world.options["secret"] = "ours"
        world.restart()
        world.advance(4)
        assert world.ask(world.remote.lookup("Ib")).error is CalleeNotFound
        world.options["secret"] = "theirs"
        with capturedLogs() as logged:
            world.restart()
            world.advance(4)
        assert len(logged_texts(logged, "error")) == 1

    def test_secret(self) -> None:
        """The right secret opens the link."""
        world = Apart(secret="ours").start()
        assert world.ask(world.remote.lookup("Ib")).error is CalleeNotFound


class HoldingTests:
    """An address holds at the resolver while the terminal's connection is open."""

    def test_refreshed(self, world: Apart) -> None:
        """It is told again by half its expiry, with its age, for as long as it is held (A7)."""
        world.done(world.remote.register("Ib", address(world.clock, expires=60)))
        assert world.heard() == [
            ROLE,
            ["REGISTER", "Identifier:Ib", "Address:127.0.0.1", "Port:1203", "Expires:60"],
        ]
        for _ in range(30):
            world.pass_by(10, 1)
            place = world.resolver.local.table.lookup("Ib", world.clock.seconds())
            assert place is not None
            assert place.until - world.clock.seconds() >= 30
        told = world.heard()
        assert 10 <= len(told) <= 20, "by half its expiry, and not much more often"
        assert told[0] == [
            *("REGISTER", "Identifier:Ib", "Address:127.0.0.1", "Port:1203", "Expires:60"),
            "Age:16",
        ]

    def test_shortest(self, world: Apart) -> None:
        """An address that would hold a second only is held too."""
        world.done(world.remote.register("Ib", address(world.clock, expires=1)))
        for _ in range(20):
            world.advance(0.25)
            assert world.resolver.told("Ib") is not None
            assert world.ask(world.remote.lookup("Ib")).value.until == inf

    def test_released(self, world: Apart) -> None:
        """When the connection closes it is told once more, and expires that long after."""
        where = address(world.clock, expires=60)
        world.done(world.remote.register("Ib", where))
        world.pass_by(10, 1)
        world.heard()
        world.remote.release("Ib", where)
        world.pump()
        assert world.heard() == [
            [
                *("REGISTER", "Identifier:Ib", "Address:127.0.0.1", "Port:1203", "Expires:60"),
                "Age:10",
            ]
        ]
        world.pass_by(59, 1)
        assert world.resolver.told("Ib") is not None
        world.pass_by(1, 1)
        assert world.resolver.told("Ib") is None
        assert world.heard() == []

    def test_release_of_a_replaced_address(self, world: Apart) -> None:
        """The end of an older connection releases nothing of the newer one's."""
        old = address(world.clock)
        world.done(world.remote.register("Ib", old))
        new = replace(old)
        world.done(world.remote.register("Ib", new))
        world.heard()
        world.remote.release("Ib", old)
        world.pump()
        assert world.heard() == []
        assert world.remote.replication.contacts == 1

    def test_moved_to_another_expiry(self, world: Apart) -> None:
        """Registered anew with another expiry, it is told again by that one alone."""
        world.done(world.remote.register("Ib", address(world.clock, expires=10)))
        world.done(world.remote.register("Ib", address(world.clock, expires=3600)))
        world.heard()
        world.pass_by(1000, 10)
        assert world.heard() == []
        world.pass_by(800, 10)
        assert len(world.heard()) == 1


class ReconnectTests:
    """After the link was away the resolver is told everything again."""

    def test_registered_again_with_age(self, world: Apart) -> None:
        """A resolver that knows nothing is told what is held, and how old it is (A7, I10)."""
        world.done(world.remote.register("Ib", address(world.clock, "127.0.0.2", dialable=True)))
        world.pass_by(100, 5)
        world.restart()
        world.advance(0.5)
        assert world.heard() == [
            ROLE,
            [
                *("REGISTER", "Identifier:Ib", "Address:127.0.0.2", "Port:1203", "Expires:3600"),
                *("Age:101", "Dial:Yes"),
            ],
        ]
        assert world.resolver.told("Ib") == ("127.0.0.2", 1203)

    def test_older_never_replaces_newer(self) -> None:
        """What was registered elsewhere meanwhile stays, whoever comes back first (I10)."""
        clock = FakeReactor()
        world = Apart(clock).start()
        world.done(world.remote.register("Ib", address(clock, "127.0.0.2")))
        world.pass_by(10, 1)
        world.away = True
        world.restart()
        world.resolver.link().type("REGISTER\nIdentifier:Ib\nAddress:127.0.0.3\nAge:5\n\n")
        world.away = False
        world.advance(4)
        assert world.resolver.told("Ib") == ("127.0.0.3", 1203)
        world.pass_by(3000, 20)
        assert world.resolver.told("Ib") == ("127.0.0.3", 1203), "nor by any refresh"
        world.restart()
        world.advance(4)
        world.resolver.link().type("REGISTER\nIdentifier:Ib\nAddress:127.0.0.3\nAge:3010\n\n")
        assert world.resolver.told("Ib") == ("127.0.0.3", 1203)

    def test_back_when_the_newer_is_gone(self, world: Apart) -> None:
        """The older address, still held, is in force again once the newer has expired."""
        world.done(world.remote.register("Ib", address(world.clock, "127.0.0.2", expires=60)))
        world.advance(1)
        world.resolver.link().type("REGISTER\nIdentifier:Ib\nAddress:127.0.0.3\nExpires:60\n\n")
        assert world.resolver.told("Ib") == ("127.0.0.3", 1203)
        world.pass_by(90, 1)
        assert world.resolver.told("Ib") == ("127.0.0.2", 1203)

    def test_a_look_up_waits_behind_no_crowd(self, world: Apart) -> None:
        """Registering again goes in batches; whom a look-up asks for is registered first."""
        many = 10 * BATCH
        for n in range(many):
            world.done(world.remote.register(f"I{n}", address(world.clock, port=n + 1)))
        world.restart()
        world.clock.advance(0.2)
        while world.remote.link.dialogue is None:
            world.pump(rounds=1)
        asked = world.remote.lookup(f"I{many - 1}")
        outcome = Outcome(asked)
        world.pump(rounds=4)
        assert len(world.resolver.local.table) < many / 2
        assert outcome.value.until == inf
        world.advance(1)
        assert world.resolver.told(f"I{many // 2}") == ("127.0.0.1", many // 2 + 1)

    def test_in_batches(self, world: Apart) -> None:
        """No more than a batch is under way at a time (I15)."""
        for n in range(3 * BATCH):
            world.done(world.remote.register(f"I{n}", address(world.clock, port=n + 1)))
        world.restart()
        most = 0
        for _ in range(100):
            world.clock.advance(0.05)
            world.pump(rounds=1)
            most = max(most, len(world.remote.link.questions))
        assert 1 <= most <= BATCH
        assert len(world.resolver.local.table) == 3 * BATCH

    def test_released_while_away(self, world: Apart) -> None:
        """What was released while the link was away is told too, for what is left of its time."""
        where = address(world.clock, expires=60)
        world.done(world.remote.register("Ib", where))
        world.away = True
        world.restart()
        world.remote.release("Ib", where)
        world.pass_by(20, 1)
        world.away = False
        world.pass_by(5, 1)
        place = world.resolver.local.table.lookup("Ib", world.clock.seconds())
        assert place is not None
        assert place.until <= 60
        world.pass_by(36, 1)
        assert world.resolver.told("Ib") is None

    def test_released_without_an_answer(self, world: Apart) -> None:
        """What was released as the link broke is told again when it is back."""
        where = address(world.clock, expires=60)
        world.done(world.remote.register("Ib", where))
        world.deaf = True
        world.remote.release("Ib", where)
        world.restart()
        world.deaf = False
        world.advance(2)
        assert world.resolver.told("Ib") == ("127.0.0.1", 1203)
        world.pass_by(59, 1)
        assert world.resolver.told("Ib") is None

    def test_expired_while_away(self, world: Apart) -> None:
        """What has expired meanwhile is told no more (I10)."""
        where = address(world.clock, expires=10)
        world.done(world.remote.register("Ib", where))
        world.away = True
        world.restart()
        world.remote.release("Ib", where)
        world.pass_by(10, 1)
        world.away = False
        world.clock.advance(0.2)
        world.remote.link.client.retry_now()
        world.pump()
        assert world.heard() == [ROLE]
        assert world.remote.replication.terminals == {}


class DoubtTests:
    """A change whose answer never came: it was refused, and must not stand (A5, I5)."""

    def test_registration_without_an_answer(self, world: Apart) -> None:
        """It is taken back once the resolver answers again."""
        world.deaf = True
        refused = world.ask(world.remote.register("Ib", address(world.clock)))
        world.advance(1)
        assert refused.error is ServiceUnavailable
        world.deaf = False
        world.advance(1)
        assert ["REGISTER", "Identifier:Ib", "Expires:0"] in world.heard()
        assert world.resolver.told("Ib") is None

    def test_what_held_before_holds_again(self, world: Apart) -> None:
        """In place of the address that was refused stands the one that held before."""
        world.done(world.remote.register("Ib", address(world.clock, "127.0.0.2")))
        world.deaf = True
        refused = world.ask(world.remote.register("Ib", address(world.clock, "127.0.0.3")))
        world.advance(1)
        assert refused.error is ServiceUnavailable
        world.deaf = False
        world.advance(1)
        assert world.resolver.told("Ib") == ("127.0.0.2", 1203)

    def test_lost_before_the_answer(self, world: Apart) -> None:
        """So too where the link broke after the resolver had recorded it."""
        world.pairs[0].tamper = lambda which, data: b"" if which else data
        refused = world.ask(world.remote.register("Ib", address(world.clock)))
        assert world.resolver.told("Ib") is not None
        world.cut()
        assert refused.error is ServiceUnavailable
        world.advance(1)
        assert world.resolver.told("Ib") is None

    def test_lost_again_before_it_was_undone(self, world: Apart) -> None:
        """And so too where the link breaks once more before it is taken back."""
        world.pairs[0].tamper = lambda which, data: b"" if which else data
        world.ask(world.remote.register("Ib", address(world.clock)))
        world.tamper = lambda which, data: b"" if b"Expires:0" in data else data
        world.cut()
        world.advance(0.5)
        assert len(world.pairs) == 2
        assert world.resolver.told("Ib") is not None
        world.tamper = None
        world.cut()
        world.advance(0.5)
        assert world.resolver.told("Ib") is None

    def test_tried_again_at_once(self, world: Apart) -> None:
        """A registration that is tried again and taken stands, whatever came before it."""
        world.deaf = True
        world.ask(world.remote.register("Ib", address(world.clock, "127.0.0.2")))
        world.advance(1)
        again = world.ask(world.remote.register("Ib", address(world.clock, "127.0.0.3")))
        world.deaf = False
        world.advance(3)
        assert again.value is None
        assert world.resolver.told("Ib") == ("127.0.0.3", 1203)

    def test_taken_while_it_is_being_undone(self, world: Apart) -> None:
        """A registration that was taken stands, though the one before it is undone behind it."""
        world.deaf = True
        world.ask(world.remote.register("Ib", address(world.clock, "127.0.0.2")))
        world.advance(1.2)
        again = world.ask(world.remote.register("Ib", address(world.clock, "127.0.0.3")))
        world.advance(0.9)
        assert not again.over
        world.deaf = False
        world.pump()
        assert again.value is None
        assert world.resolver.told("Ib") == ("127.0.0.3", 1203)

    def test_withdrawal_without_an_answer(self, world: Apart) -> None:
        """A withdrawal that was refused has the address told again."""
        world.done(world.remote.register("Ib", address(world.clock)))
        world.pairs[0].tamper = lambda which, data: b"" if which else data
        refused = world.ask(world.remote.withdraw("Ib"))
        assert world.resolver.told("Ib") is None
        world.cut()
        assert refused.error is ServiceUnavailable
        world.advance(1)
        assert world.resolver.told("Ib") == ("127.0.0.1", 1203)


def test_masked() -> None:
    """The secret that opens the link is shown in no trace (I18)."""
    assert "Password:…" in Message("REGISTER", Role="Mediator", Password="hidden").masked()
