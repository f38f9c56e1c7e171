"""Terminals that hold no connection: keys for UDP, and how they are woken (mediator.wakeup)."""

from __future__ import annotations

import random
from operator import methodcaller
from typing import Any, Final, cast

import pytest
from twisted.internet.defer import Deferred
from zope.interface import implementer

from broker.interfaces import ITrigger
from broker.mediator.wakeup import DIAL_AFTER, SILENCE, WakeUp
from broker.messages.datagram import parse_datagram
from broker.messages.errors import CalleeNotConnected, ServiceUnavailable
from broker.messages.message import Message
from broker.messages.signing import sign, verify
from broker.resolver.udp_registrar import UdpRegistrar
from broker.tables.locations import Contact
from tests.mediator.scene import (
    ACCEPTED,
    CAN,
    DENIED,
    NOT_CONNECTED,
    NOT_FOUND,
    SUPERSEDED,
    Scene,
    SlowResolver,
    query,
    register,
    to_callee,
    to_caller,
)
from tests.mediator.steps import (
    Step,
    connect,
    fails,
    hold,
    holds,
    leaves,
    passes,
    play,
    reads,
    registers,
    resolved,
    says,
)
from tests.support.clock import advance, result_of
from tests.support.reactor import FakeDatagramPort, FakeReactor

#: Where Ib's datagrams come from.
SEEN: Final = ("127.0.0.9", 4000)
ADDRESS: Final = Contact("192.0.2.1", 1203, 0, 60, dialable=True)
#: The first question of a connection on which a transaction was used.
ASKED: Final = "QUERY\nSTATUS\nTransaction:1\n\n"


class Waking:
    """A terminal being woken by notices and by a dial, which are only counted.

    :ivar notices: when each notice was asked for
    :ivar dials: when each dial was
    :ivar outcome: ``None`` where that ended by itself, the error where it failed; empty before
    """

    def __init__(self, ways: list[bool | Exception], fails: Exception | None = None) -> None:
        """
        :param ways: whether there is a way, or what is raised instead; the last goes on for ever
        :param fails: what comes of a dial
        """
        self.clock = FakeReactor()
        self.notices: list[float] = []
        self.dials: list[float] = []
        self.ways = ways
        self.fails = fails
        self.outcome: list[Any] = []
        both: Any = self
        self.doing = Deferred.fromCoroutine(WakeUp(self.clock, both, both).wake("Ib", ADDRESS))
        self.doing.addCallbacks(self.outcome.append, lambda why: self.outcome.append(why.type))

    async def trigger(self, identifier: str) -> bool:
        """A notice is asked for."""
        assert identifier == "Ib"
        self.notices.append(self.clock.seconds())
        way = self.ways[min(len(self.notices), len(self.ways)) - 1]
        if isinstance(way, Exception):
            raise way
        return way

    async def wake(self, identifier: str, address: Contact) -> None:
        """A dial is asked for."""
        assert (identifier, address) == ("Ib", ADDRESS)
        self.dials.append(self.clock.seconds())
        if self.fails is not None:
            raise self.fails


AWAY: Final = ServiceUnavailable()
FAILS: Final = CalleeNotConnected()
#: When notices are sent, at ever longer pauses.
PAUSES: Final = [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0]


class WakeUpTests:
    """By which way a terminal is woken, and when."""

    @pytest.mark.parametrize(
        ("ways", "fails", "seconds", "notices", "dials", "outcome"),
        [
            # Notices for as long as a caller waits (E1). After a second it is dialled once; the
            # notices go on, whether or not that succeeds.
            ([True], None, 8.0, PAUSES, [DIAL_AFTER], []),
            ([True], FAILS, 7.0, PAUSES[:-1], [DIAL_AFTER], []),
            # Without a mapping, or with a resolver that is away, it is dialled at once, and that
            # is all.
            ([False], None, 0.0, [0.0], [0.0], [None]),
            ([AWAY], None, 0.0, [0.0], [0.0], [None]),
            # 5h at once where there is neither (S1902).
            ([False], FAILS, 0.0, [0.0], [0.0], [CalleeNotConnected]),
            # A terminal that was sent a notice may be about to connect: no caller is refused yet.
            ([True, False], FAILS, 4.0, PAUSES[:-2], [DIAL_AFTER], []),
            ([True, AWAY], FAILS, 4.0, PAUSES[:-2], [DIAL_AFTER], []),
        ],
    )
    def test_woken(
        self,
        ways: list[bool | Exception],
        fails: Exception | None,
        seconds: float,
        notices: list[float],
        dials: list[float],
        outcome: list[Any],
    ) -> None:
        """When it is over no timer is left."""
        waking = Waking(ways, fails)
        advance(waking.clock, seconds)
        assert (waking.notices, waking.dials, waking.outcome) == (notices, dials, outcome)
        assert bool(waking.clock.getDelayedCalls()) == (not outcome)

    def test_cancelled(self) -> None:
        """It ends when no caller waits: no notice more, no timer."""
        waking = Waking([True])
        advance(waking.clock, 0.3)
        waking.doing.cancel()
        assert (len(waking.outcome), waking.clock.getDelayedCalls()) == (1, [])


@implementer(ITrigger)
class NoDialler:
    """Dials that all fail."""

    async def wake(self, identifier: str, address: Contact) -> None:
        """A dial is asked for."""
        raise CalleeNotConnected


class Behind(Scene):
    """A scene with terminals that register by UDP, and the network that their datagrams take."""

    def __init__(self, **options: Any) -> None:
        clock = FakeReactor()
        self.registrar = UdpRegistrar(clock, random.Random(1).randbytes)
        self.port = FakeDatagramPort(self.registrar, 1200, "")
        self.registrar.transport = self.port  # type: ignore[assignment]
        self.resolver = SlowResolver(clock, self.registrar)
        trigger = WakeUp(clock, self.resolver, NoDialler())
        super().__init__(clock=clock, resolver=self.resolver, trigger=trigger, **options)
        self.keys: dict[str, tuple[str, bytes]] = {}
        self.sequence = 0

    def gets_a_key(self, who: str, *lines: str, before: str = "") -> dict[str, str]:
        """A terminal registers with ``UDP:Yes``; the fields of its answer."""
        self.clients[who].type(register(f"I{who[0]}", "UDP:Yes", "Transaction:k", *lines))
        text = self.heard(who)
        before = before.format(**self.drawn)
        assert text.startswith(before)
        answer = text.removeprefix(before)
        assert answer.startswith("NOTIFY\nRegistration Completed.\n"), answer
        fields = dict(line.split(":", 1) for line in answer.splitlines() if ":" in line)
        self.keys[who[0]] = fields["Key ID"], bytes.fromhex(fields["Registration Key"])
        self.secrets.add(fields["Registration Key"])
        return fields

    def datagram(self, who: str, source: tuple[str, int] = SEEN) -> Message | None:
        """It sends a keepalive; a challenge is answered."""
        answer = self._sends(who, source)
        if answer is not None and "Challenge" in answer.fields:
            answer = self._sends(who, source, Challenge=answer.fields["Challenge"])
        return answer

    def _sends(self, who: str, source: tuple[str, int], **more: str) -> Message | None:
        name, key = self.keys[who[0]]
        self.sequence += 1
        message = Message("REGISTER", Identifier=f"I{who[0]}", **more)
        message.fields["Key ID"] = name
        message.fields["Sequence"] = str(self.sequence)
        self.port.sent.clear()
        self.port.receive(sign(message, key), source)
        return parse_datagram(self.port.sent[0][0]) if self.port.sent else None

    def notices(self, who: str = "b") -> int:
        """How many it was sent since this was last asked; each is signed, and for it (E3)."""
        sent = list(self.port.sent)
        self.port.sent.clear()
        for data, to in sent:
            assert to == SEEN
            assert verify(data, self.keys[who][1])
            notice = parse_datagram(data)
            assert notice.statement == "Connection Requested."
            assert notice.fields["Identifier"] == f"I{who}"
        return len(sent)


def behind(**options: Any) -> Behind:
    """Ib accepts Ia and Ic, registers by UDP, and holds no connection; Ia and Ic are there."""
    stage = Behind(**options)
    stage.connect("a", "b", "c")
    play(stage, registers("a"), registers("c"), registers("b", "Accept:Create Ia,Ic"))
    play(stage, key("b"), SEEN_THERE, leaves("b"))
    stage.port.sent.clear()
    return stage


def granted(host: str) -> Step:
    """Ib answers its first question, and the call is granted: Ib is at this address."""
    told = ACCEPTED + to_caller("Ib", host=host, port=5000)
    return says("b", CAN.replace("\n\n", "\nTransaction:1\n\n"), b=to_callee("Ia"), a=told)


def notices(count: int) -> Step:
    """Ib was sent that many notices since this was last looked at."""

    def step(stage: Scene) -> None:
        assert cast(Behind, stage).notices() == count

    return step


def key(who: str, *lines: str, before: str = "") -> Step:
    """Ib registers by UDP over this connection, and first reads something."""
    return methodcaller("gets_a_key", who, "Port:5000", *lines, before=before)


def seen(alive: bool) -> Step:
    """Ib sends a keepalive, which is answered if its key is in force."""
    return holds(lambda stage: (stage.datagram("b") is not None) == alive)


SEEN_THERE: Final = seen(alive=True)
DEAD: Final = seen(alive=False)
UDP: Final = register("Ib", "UDP:Yes", "Expires:100", "Transaction:1")
NOT_REACHED: Final = holds(lambda stage: stage.context.connections.active("Ib") is None)
CALLED: Final = says("a", query("Ia", "Ib"), b=ASKED)
NOT_THERE: Final = says("a", query("Ia", "Ib"), a=NOT_FOUND)


def keys(count: int) -> Step:
    """The resolver has this number of keys."""
    return holds(lambda stage: len(stage.registrar.keys) == count)


def refused(line: str, cause: str) -> list[Step]:
    """A registration by UDP that can't be is refused, and no key is drawn."""
    answer = f"NOTIFY\nRegistration Failed.\nCause:{cause}\nTransaction:1\nCode:400\n\n"
    return [says("b", register("Ib", "UDP:Yes", "Transaction:1", line), b=answer), keys(0)]


UNAVAILABLE_1: Final = "NOTIFY\nService Unavailable.\nTransaction:1\nCode:503\n\n"
#: ``UDP:Yes`` from Ib, which accepts Ia: a key is given out (D1), and Ib is reached (C1).
# fmt: off
KEYS: Final[dict[str, list[Step]]] = {
    # It is told only once the resolver has it; where it hasn't, nothing is told.
    "resolver first": [
        hold("add_key"), says("b", UDP), keys(1), resolved(AWAY, b=UNAVAILABLE_1), NOT_REACHED,
    ],
    # Where the rest of the message is refused no key is told, nor anything reached (A5).
    "refused with the rest": [
        fails("register", AWAY),
        says("b", register("Ib", "UDP:Yes", "Address:127.0.0.1", "Transaction:1"), b=UNAVAILABLE_1),
        NOT_REACHED,
        holds(lambda stage: [key.until - stage.clock.seconds() for key in stage.registrar.keys]
              == [3600]),
    ],
    "not without an address": refused("Expires:0", "UDP does not go with Expires:0"),
    "not the server's own port": refused("Port:1201", "the address is the server's own"),
    # It lasts by what the registration said, however many keepalives came.
    "outlives its connection": [
        key("b", "Expires:100"), passes(500), SEEN_THERE, leaves("b"), passes(99), SEEN_THERE,
        passes(1), DEAD,
    ],
    # The one before is released, and expires in its time.
    "another over the same connection": [
        key("b", "Expires:100"), key("b", "Expires:100"), keys(2), passes(100),
        holds(lambda stage: [key.name for key in stage.registrar.keys.of("Ib", 100.0)]
              == [stage.keys["b"][0]]),
    ],
    # A key that no terminal was told expires, too.
    "connection gone while it is kept": [
        hold("add_key"), says("b", UDP), leaves("b"), resolved(), passes(100),
        holds(lambda stage: stage.registrar.keys.of("Ib", 100.0) == ()),
    ],
    # With the address goes every key, those of other connections too (I2); what has withdrawn its
    # address is not found by its connection either.
    "withdrawn": [
        key("b"), SEEN_THERE, registers("b2", "Expires:0"), DEAD, NOT_REACHED, keys(0), NOT_THERE,
    ],
    # A call gets through, and the address told is the one seen, with the port named.
    "reached": [key("b"), SEEN_THERE, CALLED, granted(SEEN[0])],
    # Where no datagram arrives, it is where its connection comes from, which it has proven to be
    # its own (I12); without a connection, its address is not known.
    "no datagram": [
        NOT_THERE, key("b"), CALLED, granted("127.0.0.1"), leaves("b"), NOT_THERE,
    ],
    # The connection that registers so takes over; when it closes, reach returns to the one before.
    "superseded": [
        key("b"), SEEN_THERE, key("b2"), reads(b=SUPERSEDED), leaves("b2"), CALLED,
    ],
}
# fmt: on


class KeyTests:
    """``UDP:Yes``: a key is given out (D1)."""

    @pytest.mark.parametrize("case", KEYS)
    def test_keys(self, case: str) -> None:
        """For how long a key is valid, and where its terminal is reached."""
        stage = Behind(own_ports=[1201], hub={"login_timeout": None})
        play(stage, connect("a", "b", "b2"), registers("b", "Accept:Create Ia"), *KEYS[case])

    @pytest.mark.parametrize("interval", [25, 7])
    def test_given(self, interval: int) -> None:
        """With its name and the operator's interval, in the answer; it is valid by then."""
        stage = Behind(udp_interval=interval)
        stage.connect("b")
        fields = stage.gets_a_key("b")
        assert (fields["Key ID"][0], len(fields["Key ID"])) == ("K", 23)
        assert (len(fields["Registration Key"]), fields["Interval"]) == (64, str(interval))
        answer = stage.datagram("b")
        assert answer is not None
        assert answer.statement == "Registration Completed."

    @pytest.mark.parametrize("allowed", [False, True])
    def test_in_clear_text(self, allowed: bool) -> None:
        """No key goes to another machine in clear text, unless the operator says so (I25)."""
        stage = Behind(clear_text=allowed)
        stage.connect("b", host="192.0.2.1")
        stage.clients["b"].type(UDP)
        text = stage.heard("b")
        assert ("Registration Key:" in text) == allowed
        assert ("no key is sent in clear text" in text) != allowed

    @pytest.mark.parametrize("act", ["reset", "remove"])
    def test_account_changed(self, act: str) -> None:
        """An account's keys are void at once when it is removed, or has a new password (I2)."""
        stage = Behind(accounts={"Ib": "right"})
        play(stage, connect("b"), key("b", "Password:right"), SEEN_THERE)
        accounts = stage.mediator.accounts
        result_of(accounts.reset("Ib", "new") if act == "reset" else accounts.remove("Ib"))
        play(stage, DEAD)
        assert stage.registrar.seen("Ib") is None


CALL: Final = says("a", query("Ia", "Ib"))
CALL_TOO: Final = says("c", query("Ic", "Ib"))
#: A terminal that holds no connection, and is called (fig. 8a, 19, E1).
# fmt: off
WOKEN: Final[dict[str, list[Step]]] = {
    # It comes, registers, is asked for its status; the call goes on, and there is no notice more.
    "comes": [
        CALL, notices(1), connect("b"), key("b", before=ASKED), passes(SILENCE - 0.001),
        notices(0), granted(SEEN[0]),
    ],
    # Notices may be lost: they are repeated until the call's time is over; then 5h.
    "never comes": [
        CALL, passes(4.9), notices(6), passes(0.1, a=NOT_CONNECTED), passes(20), notices(0),
    ],
    # Calls that wait at the same time for one terminal share its notices (I17).
    "is called by two": [
        CALL, passes(0.24), CALL_TOO, notices(1), passes(0.01), notices(1),
        connect("b"), key("b", before=ASKED + ASKED.replace("1", "2")),
    ],
    # As long as one waits, notices go on; with the last they end.
    "is left by both": [
        CALL, CALL_TOO, notices(1), leaves("a"), passes(0.25), notices(1),
        leaves("c"), passes(3), notices(0),
    ],
    # It is not woken for a caller that it does not accept (I5, I17).
    "does not accept": [connect("d"), says("d", query("Id", "Ib"), d=DENIED), notices(0)],
    # It is asked nothing (I2).
    "withdraws the permit as it comes": [
        CALL, connect("b"), registers("b", "Accept:Delete Ia"), key("b"),
        reads(a=DENIED),
    ],
    # The address of a terminal that sends nothing for long is not known: 5g (I10).
    "sends nothing": [
        passes(119), CALL, notices(1), passes(5, a=NOT_CONNECTED), methodcaller("notices"),
        says("a", query("Ia", "Ib"), a=NOT_FOUND), notices(0),
    ],
}
# fmt: on


class WokenTests:
    """A terminal that holds no connection is told to make one (fig. 8a, 19, E1)."""

    @pytest.mark.parametrize("callee", WOKEN)
    def test_woken(self, callee: str) -> None:
        """What a woken callee does, which notices it is sent, and what its callers read."""
        play(behind(), *WOKEN[callee])

    def test_many_calls(self) -> None:
        """A terminal gets at most five notices a second, for any number of calls (I17)."""
        stage = behind()
        for _ in range(40):
            play(stage, connect("d"), says("d", query("Ia", "Ib")), leaves("d"), passes(0.05))
        assert stage.notices() <= 11
