"""The resolver apart, as the mediator holds it: over one link that comes and goes."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import pytest
from twisted.logger import LogLevel, capturedLogs
from zope.interface.verify import verifyObject

from broker.interfaces import IResolver
from broker.messages.errors import CalleeNotFound, RegistrationFailed, ServiceUnavailable
from broker.resolver import remote as remote_module
from broker.resolver.link import REFUSED, SILENT_SECONDS
from broker.resolver.replication import BATCH
from broker.tables.locations import Binding, Contact
from tests.resolver.apart import Apart, Outcome, address
from tests.support.transport import Client

ROLE = ["REGISTER", "Role:Mediator"]
PLACE = ("127.0.0.1", 1203)


def told(*more: str, host: str = PLACE[0], expires: int = 60) -> list[str]:
    """How the resolver is told an address of Ib."""
    return [
        "REGISTER",
        "Identifier:Ib",
        f"Address:{host}",
        "Port:1203",
        f"Expires:{expires}",
        *more,
    ]


def without_answers(which: int, data: bytes) -> bytes:
    """What the resolver answers does not arrive."""
    return b"" if which else data


def take_link(world: Apart) -> Client:
    """The test itself is the resolver, and takes the link."""
    world.remote.start()
    server = world.clock.dials[0].accept()
    (role,) = server.received()
    server.type(f"NOTIFY\nRegistration Completed.\nTransaction:{role.transaction}\n\n")
    return server


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
        world.registers(host="202.224.186.82", port=1205, expires=60, dialable=True)
        other = world.elsewhere("202.224.186.83", "Expires:60\nDial:Yes\n", identifier="Ic")
        world.clock.advance(10)
        assert world.finds("Ic") == Binding(Contact("202.224.186.83", 1203, 10, 50, True), 60)
        other.type("QUERY\nLOOKUP\nCallee:Ib\n\n")
        assert other.text() == (
            "NOTIFY\nCallee Address:202.224.186.82\nCallee Port:1205\nExpires:50\nDial:Yes\n\n"
        )

    def test_its_own(self, world: Apart) -> None:
        """What the resolver has taken from here holds until it says otherwise, unasked (A8): the
        mediator knows its connection best.
        """
        where = world.registers()
        world.heard()
        assert world.ask_only(world.remote.lookup("Ib")).value == Binding(where, inf)
        assert world.finds().contact is where
        assert world.heard() == []
        world.resolver.link().type("REGISTER\nIdentifier:Ib\nExpires:0\n\n")
        world.pump()
        world.heard()
        assert world.misses() is CalleeNotFound
        assert world.heard() == [["QUERY", "LOOKUP", "Callee:Ib"]]

    def test_its_own_displaced(self, world: Apart) -> None:
        """Where a newer address was registered elsewhere, that is the one told (A7)."""
        world.registers()
        for newer in ("127.0.0.2", 1203), ("127.0.0.1", 1204):
            world.elsewhere(newer[0], f"Port:{newer[1]}\n")
            world.pump()
            place = world.finds()
            assert (place.contact.host, place.contact.port) == newer
            assert place.until < inf

    def test_its_own_after_a_restart(self, world: Apart) -> None:
        """It holds again once the new resolver has taken it; not where that has a newer one."""
        world.registers()
        world.registers("Ic")
        world.clock.advance(1)
        world.restart()
        world.elsewhere("127.0.0.9", identifier="Ic")
        world.advance(1)
        world.heard()
        assert world.finds().until == inf
        assert world.heard() == []
        assert world.finds("Ic").contact.host == "127.0.0.9"
        assert world.heard() == [["QUERY", "LOOKUP", "Callee:Ic"]]

    def test_withdrawn(self, world: Apart) -> None:
        """A withdrawn address is not told, here or at the resolver, nor registered again; *Callee
        not Found.* is what it is in the mediator too (S807).
        """
        world.registers()
        world.done(world.remote.withdraw("Ib"))
        assert world.misses() is CalleeNotFound
        world.restart()
        world.advance(1)
        assert world.resolver.told("Ib") is None
        assert world.remote.replication.contacts == 0

    def test_registration_refused(self) -> None:
        """The resolver's refusal is a registration that failed, with its cause (A5): a full table
        refuses who is new (I15).
        """
        world = Apart(most=1).start()
        world.registers("Ia")
        refused = world.ask(world.remote.register("Ib", address(world.clock)))
        assert refused.error is RegistrationFailed
        assert str(refused.errors[0]) == "the table of addresses is full"
        assert world.remote.replication.contacts == 1
        assert world.misses() is CalleeNotFound

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
        server = take_link(world)
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
        """An answer that can't be is none: the mediator judges the resolver's word too (I12).

        What a resolver asks is refused, and the link goes on.
        """
        world = Apart()
        server = take_link(world)
        server.type("QUERY\nSTATUS\nTransaction:x\n\n")
        (answer,) = server.received()
        assert (answer.statement, answer.transaction) == ("Bad Message.", "x")
        looked_up = world.ask_only(world.remote.lookup("Ib"))
        (question,) = server.received()
        server.type(f"NOTIFY\nTransaction:{question.transaction}\n{lines}\n")
        assert looked_up.error is ServiceUnavailable

    def test_expired_at_once(self, world: Apart) -> None:
        """An address with no whole second left is not in force when it arrives (I10)."""
        world.elsewhere("127.0.0.1", "Expires:1\n")
        world.clock.advance(0.5)
        assert world.finds().until <= world.clock.seconds()


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
        in_time = world.ask(world.remote.register("Ib", address(world.clock)))
        world.away = False
        world.remote.link.client.retry_now()
        world.advance(0.5)
        assert in_time.value is None, "what waited for the link is asked as soon as it is up"
        assert (world.resolver.told("Ia"), world.resolver.told("Ib")) == (None, PLACE)

    def test_no_answer(self, world: Apart) -> None:
        """A question that was asked has its answer within a second, or none; when the link breaks,
        what was asked over it fails at once, and what is held here is not known either: a lost
        link could not say otherwise (I10).
        """
        world.registers("Ic")
        world.deaf = True
        asked = world.ask(world.remote.lookup("Ib"))
        world.advance(0.95)
        assert not asked.over
        world.advance(0.05)
        assert asked.error is ServiceUnavailable
        asked = world.ask(world.remote.lookup("Ib"))
        world.away = True
        world.cut()
        assert asked.error is ServiceUnavailable
        held = world.ask(world.remote.lookup("Ic"))
        world.advance(1)
        assert held.error is ServiceUnavailable

    def test_one_second_in_all(self) -> None:
        """The wait for the link and the wait for the answer are one second together."""
        world = Apart()
        asked = world.ask_only(world.remote.lookup("Ib"))
        world.clock.advance(0.7)
        server = take_link(world)
        assert [question.statement for question in server.received()] == ["LOOKUP"]
        world.clock.advance(0.25)
        assert not asked.over
        world.clock.advance(0.05)
        assert asked.error is ServiceUnavailable

    def test_silent(self, world: Apart) -> None:
        """A link over which questions get nothing for some seconds is made again."""
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
        assert world.misses() is CalleeNotFound

    def test_idle_is_not_silent(self, world: Apart) -> None:
        """A link over which nothing is asked stays, and one that answers stays (I24); a question
        without an answer, long after the first of all, is no silence yet.
        """
        world.pass_by(1000, 10)
        for _ in range(8):
            assert world.misses() is CalleeNotFound
            world.advance(1)
        world.pass_by(100, 1)
        world.deaf = True
        asked = world.ask(world.remote.lookup("Ib"))
        world.advance(1.1)
        assert asked.error is ServiceUnavailable
        world.deaf = False
        assert world.misses() is CalleeNotFound
        assert len(world.pairs) == 1

    def test_cap(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A fixed number of questions waits; the next is refused at once (I15)."""
        monkeypatch.setattr(remote_module, "QUESTIONS_MOST", 3)
        world = Apart().start()
        world.deaf = True
        waiting = [world.ask(world.remote.lookup("Ib")) for _ in range(3)]
        assert world.misses() is ServiceUnavailable
        assert not any(one.over for one in waiting)
        world.advance(1)
        again = world.ask(world.remote.lookup("Ib"))
        assert not again.over, "there is room again"

    def test_stopped(self, world: Apart) -> None:
        """Stopping closes the link, answers who waits, and leaves no timer behind."""
        world.registers()
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
        """Said once in plain words, with no secret in them; all who ask get an answer (I18).
        Once the resolver takes it, it serves; a later refusal is said again.
        """
        world = Apart(secret="ours-is-this", wants="theirs-is-that")

        def errors() -> list[str]:
            return [one["log_format"] for one in logged if one["log_level"] is LogLevel.error]

        with capturedLogs() as logged:
            world.start()
            asked = world.ask(world.remote.lookup("Ib"))
            world.advance(10)
        assert asked.error is ServiceUnavailable
        assert len(world.pairs) > 3, "it goes on trying"
        assert [one["log_format"] for one in logged if one["log_level"] is LogLevel.error] == [
            REFUSED
        ]
        assert not any("ours-is-this" in str(event) for event in logged)
        world.options["secret"] = "ours-is-this"
        world.restart()
        world.advance(4)
        assert world.misses() is CalleeNotFound
        world.options["secret"] = "theirs-is-that"
        with capturedLogs() as logged:
            world.restart()
            world.advance(4)
        assert errors() == [REFUSED]


class HoldingTests:
    """An address holds at the resolver while the terminal's connection is open."""

    def test_refreshed(self, world: Apart) -> None:
        """It is told again by half its expiry, with its age, for as long as it is held (A7)."""
        world.registers(expires=60)
        assert world.heard() == [ROLE, told()]
        for _ in range(30):
            world.pass_by(10, 1)
            place = world.resolver.local.table.lookup("Ib", world.clock.seconds())
            assert place is not None
            assert place.until - world.clock.seconds() >= 30
        heard = world.heard()
        assert 10 <= len(heard) <= 20, "by half its expiry, and not much more often"
        assert heard[0] == told("Age:16")

    def test_shortest(self, world: Apart) -> None:
        """An address that would hold a second only is held too."""
        world.registers(expires=1)
        for _ in range(20):
            world.advance(0.25)
            assert world.resolver.told("Ib") is not None
            assert world.finds().until == inf

    def test_released(self, world: Apart) -> None:
        """When the connection closes it is told once more, and expires that long after."""
        where = world.registers(expires=60)
        world.pass_by(10, 1)
        world.heard()
        world.remote.release("Ib", where)
        world.pump()
        assert world.heard() == [told("Age:10")]
        world.holds_for(60)
        assert world.heard() == []

    def test_release_of_a_replaced_address(self, world: Apart) -> None:
        """The end of an older connection releases nothing of a newer connection."""
        old = world.registers()
        world.done(world.remote.register("Ib", replace(old)))
        world.heard()
        world.remote.release("Ib", old)
        world.pump()
        assert world.heard() == []
        assert world.remote.replication.contacts == 1

    def test_moved_to_another_expiry(self, world: Apart) -> None:
        """Registered again with another expiry, it is told again by that one alone."""
        world.registers(expires=10)
        world.registers(expires=3600)
        world.heard()
        world.pass_by(1000, 10)
        assert world.heard() == []
        world.pass_by(800, 10)
        assert len(world.heard()) == 1


class ReconnectTests:
    """After the link was away the resolver is told everything again."""

    def test_registered_again_with_age(self, world: Apart) -> None:
        """A resolver that knows nothing is told what is held, and how old it is (A7, I10)."""
        world.registers(host="127.0.0.2", dialable=True)
        world.pass_by(100, 5)
        world.restart()
        world.advance(0.5)
        again = told("Age:101", "Dial:Yes", host="127.0.0.2", expires=3600)
        assert world.heard() == [ROLE, again]
        assert world.resolver.told("Ib") == ("127.0.0.2", 1203)

    def test_older_never_replaces_newer(self, world: Apart) -> None:
        """What was registered elsewhere since stays, whichever comes back first (I10)."""
        newer = ("127.0.0.3", 1203)
        world.registers(host="127.0.0.2")
        world.pass_by(10, 1)
        world.away = True
        world.restart()
        world.elsewhere("127.0.0.3", "Age:5\n")
        world.away = False
        world.advance(4)
        assert world.resolver.told("Ib") == newer
        world.pass_by(3000, 20)
        assert world.resolver.told("Ib") == newer, "nor by any refresh"
        world.restart()
        world.advance(4)
        world.elsewhere("127.0.0.3", "Age:3010\n")
        assert world.resolver.told("Ib") == newer

    def test_back_when_the_newer_is_gone(self, world: Apart) -> None:
        """The older address, still held, is in force again once the newer has expired."""
        world.registers(host="127.0.0.2", expires=60)
        world.advance(1)
        world.elsewhere("127.0.0.3", "Expires:60\n")
        assert world.resolver.told("Ib") == ("127.0.0.3", 1203)
        world.pass_by(90, 1)
        assert world.resolver.told("Ib") == ("127.0.0.2", 1203)

    def test_a_look_up_waits_behind_no_crowd(self, world: Apart) -> None:
        """Registering again goes in batches, at most one of which is under way at a time
        (I15); what a look-up asks for is registered first.
        """
        many = 10 * BATCH
        for n in range(many):
            world.registers(f"I{n}", port=n + 1)
        world.restart()
        world.clock.advance(0.2)
        while world.remote.link.dialogue is None:
            world.pump(rounds=1)
        outcome = Outcome(world.remote.lookup(f"I{many - 1}"))
        world.pump(rounds=4)
        assert len(world.resolver.local.table) < many / 2
        assert outcome.value.until == inf
        most = 0
        while len(world.resolver.local.table) < many:
            assert world.clock.seconds() < 2, "they are never all registered"
            most = max(most, len(world.remote.link.questions))
            world.clock.advance(0.01)
            world.pump(rounds=1)
        assert 1 <= most <= BATCH
        assert world.resolver.told(f"I{many // 2}") == ("127.0.0.1", many // 2 + 1)

    def test_released_while_away(self, world: Apart) -> None:
        """What was released while the link was away is told too, for what is left of its time."""
        where = world.registers(expires=60)
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
        where = world.registers(expires=60)
        world.deaf = True
        world.remote.release("Ib", where)
        world.restart()
        world.deaf = False
        world.advance(2)
        assert world.resolver.told("Ib") == PLACE
        world.pass_by(59, 1)
        assert world.resolver.told("Ib") is None

    def test_expired_while_away(self, world: Apart) -> None:
        """What has expired by then is not told (I10)."""
        where = world.registers(expires=10)
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

    @pytest.mark.parametrize("held", [None, "127.0.0.2"])
    def test_registration_without_an_answer(self, world: Apart, held: str | None) -> None:
        """It is taken back once the resolver answers again; in its place stands the address that
        held before, if there was one.
        """
        if held:
            world.registers(host=held)
        world.deaf = True
        refused = world.ask(world.remote.register("Ib", address(world.clock, "127.0.0.3")))
        world.advance(1)
        assert refused.error is ServiceUnavailable
        world.deaf = False
        world.advance(1)
        assert ["REGISTER", "Identifier:Ib", "Expires:0"] in world.heard()
        assert world.resolver.told("Ib") == (held and (held, 1203))

    @pytest.mark.parametrize("cuts", [1, 2])
    def test_lost_before_the_answer(self, world: Apart, cuts: int) -> None:
        """So too where the link broke after the resolver had recorded it, and where it breaks once
        more before that is taken back.
        """
        world.pairs[0].tamper = without_answers
        refused = world.ask(world.remote.register("Ib", address(world.clock)))
        if cuts == 2:
            world.tamper = lambda which, data: b"" if b"Expires:0" in data else data
            world.cut()
            world.advance(0.5)
            assert len(world.pairs) == 2
            world.tamper = None
        assert world.resolver.told("Ib") is not None
        world.cut()
        assert refused.error is ServiceUnavailable
        world.advance(1)
        assert world.resolver.told("Ib") is None

    @pytest.mark.parametrize("since", [1.0, 1.2])
    def test_tried_again(self, world: Apart, since: float) -> None:
        """A registration that is tried again and taken stands, whatever came before it, and though
        that is undone behind it.
        """
        world.deaf = True
        world.ask(world.remote.register("Ib", address(world.clock, "127.0.0.2")))
        world.advance(since)
        again = world.ask(world.remote.register("Ib", address(world.clock, "127.0.0.3")))
        if since == 1.2:
            world.advance(0.9)
        assert not again.over
        world.deaf = False
        world.advance(3)
        assert again.value is None
        assert world.resolver.told("Ib") == ("127.0.0.3", 1203)

    def test_withdrawal_without_an_answer(self, world: Apart) -> None:
        """A withdrawal that was refused has the address told again."""
        world.registers()
        world.pairs[0].tamper = without_answers
        refused = world.ask(world.remote.withdraw("Ib"))
        assert world.resolver.told("Ib") is None
        world.cut()
        assert refused.error is ServiceUnavailable
        world.advance(1)
        assert world.resolver.told("Ib") == PLACE
