"""Terminals that hold no connection: keys for UDP, and how they are woken (mediator.wakeup)."""

from __future__ import annotations

import random
from operator import methodcaller
from typing import Any, Final, cast

import pytest
from twisted.internet.defer import Deferred

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
    DONE,
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
from tests.mediator.steps import Step, connect, leaves, passes, play, reads, says
from tests.support.clock import advance, result_of
from tests.support.reactor import FakeDatagramPort, FakeReactor

#: Where Ib's datagrams come from.
SEEN: Final = ("127.0.0.9", 4000)
ADDRESS: Final = Contact("192.0.2.1", 1203, 0, 60, dialable=True)
#: The first question of a connection on which a transaction was used.
ASKED: Final = "QUERY\nSTATUS\nTransaction:1\n\n"


class Notices:
    """A resolver that only counts the notices it was to send.

    :ivar at: when each was asked for
    :ivar ways: whether there is a way, or what is raised instead; the last goes on for ever
    """

    def __init__(self, clock: FakeReactor, *ways: bool | Exception) -> None:
        self.at: list[float] = []
        self.ways = list(ways)
        self._clock = clock

    async def trigger(self, identifier: str) -> bool:
        """A notice is asked for."""
        assert identifier == "Ib"
        self.at.append(self._clock.seconds())
        way = self.ways.pop(0) if len(self.ways) > 1 else self.ways[0]
        if isinstance(way, Exception):
            raise way
        return way


class Dials:
    """A trigger that dials, and does as the test says.

    :ivar at: when each dial was asked for
    """

    def __init__(self, clock: FakeReactor, fails: Exception | None = None) -> None:
        self.at: list[float] = []
        self.fails = fails
        self._clock = clock

    async def wake(self, identifier: str, address: Contact) -> None:
        """A dial is asked for."""
        assert (identifier, address) == ("Ib", ADDRESS)
        self.at.append(self._clock.seconds())
        if self.fails is not None:
            raise self.fails


class Waking:
    """A terminal being woken.

    :ivar outcome: ``None`` where that ended by itself, the error where it failed; empty before
    """

    def __init__(self, *ways: bool | Exception, fails: Exception | None = None) -> None:
        self.clock = FakeReactor()
        self.notices = Notices(self.clock, *ways)
        self.dials = Dials(self.clock, fails)
        resolver: Any = self.notices
        dialer: ITrigger = self.dials  # type: ignore[assignment]
        self.outcome: list[Any] = []
        steps = WakeUp(self.clock, resolver, dialer).wake("Ib", ADDRESS)
        self.doing = Deferred.fromCoroutine(steps)
        self.doing.addCallbacks(self.outcome.append, lambda why: self.outcome.append(why.value))


class WakeUpTests:
    """By which way a terminal is woken, and when."""

    def test_along_the_mapping(self) -> None:
        """Notices at ever longer pauses, for as long as a caller waits (E1)."""
        waking = Waking(True)
        advance(waking.clock, 8.0)
        assert waking.notices.at == [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0]
        assert waking.outcome == []

    def test_cancelled(self) -> None:
        """It ends when no caller waits: no notice more, no timer."""
        waking = Waking(True)
        advance(waking.clock, 0.3)
        waking.doing.cancel()
        assert len(waking.outcome) == 1
        assert waking.clock.getDelayedCalls() == []

    @pytest.mark.parametrize("fails", [None, CalleeNotConnected()])
    def test_dials_as_well(self, fails: Exception | None) -> None:
        """After a second it is dialled once; the notices go on, whether or not that succeeds."""
        waking = Waking(True, fails=fails)
        advance(waking.clock, 7.0)
        assert waking.dials.at == [DIAL_AFTER]
        assert len(waking.notices.at) == 7
        assert waking.outcome == []

    @pytest.mark.parametrize("way", [False, ServiceUnavailable()])
    def test_no_mapping(self, way: bool | Exception) -> None:
        """Without one, or with a resolver that is away, it is dialled at once, and that is all."""
        waking = Waking(way)
        assert waking.dials.at == [0.0]
        assert waking.outcome == [None]
        assert waking.clock.getDelayedCalls() == []

    def test_neither(self) -> None:
        """5h at once where there is neither (S1902)."""
        waking = Waking(False, fails=CalleeNotConnected())
        assert [type(one) for one in waking.outcome] == [CalleeNotConnected]

    @pytest.mark.parametrize("gone", [False, ServiceUnavailable()])
    def test_mapping_gone_meanwhile(self, gone: bool | Exception) -> None:
        """A terminal that was sent a notice may be about to connect: no caller is refused yet."""
        waking = Waking(True, gone, fails=CalleeNotConnected())
        advance(waking.clock, 4.0)
        assert waking.outcome == []
        assert len(waking.notices.at) == 6


class Behind(Scene):
    """A scene with terminals that register by UDP, and the network that their datagrams take."""

    def __init__(self, **options: Any) -> None:
        clock = FakeReactor()
        self.registrar = UdpRegistrar(clock, random.Random(1).randbytes)
        self.port = FakeDatagramPort(self.registrar, 1200, "")
        self.registrar.transport = self.port  # type: ignore[assignment]
        self.resolver = SlowResolver(clock, self.registrar)
        dialer = Dials(clock, CalleeNotConnected())
        dialer.wake = self._cannot_be_dialled  # type: ignore[method-assign]
        trigger = WakeUp(clock, self.resolver, dialer)  # type: ignore[arg-type]
        super().__init__(clock=clock, resolver=self.resolver, trigger=trigger, **options)
        self.keys: dict[str, tuple[str, bytes]] = {}
        self.sequence = 0

    async def _cannot_be_dialled(self, identifier: str, address: Contact) -> None:
        raise CalleeNotConnected

    def gets_a_key(self, who: str, *lines: str, before: str = "") -> dict[str, str]:
        """A terminal registers with ``UDP:Yes``; the fields of its answer."""
        self.clients[who].type(register(f"I{who[0]}", "UDP:Yes", "Transaction:k", *lines))
        text = self.heard(who)
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
    stage.says("a", register("Ia"), a=DONE)
    stage.says("c", register("Ic"), c=DONE)
    stage.says("b", register("Ib", "Accept:Create Ia,Ic"), b=DONE)
    stage.gets_a_key("b", "Port:5000")
    assert stage.datagram("b") is not None
    stage.leaves("b")
    stage.port.sent.clear()
    return stage


def registered() -> Behind:
    """Ib accepts Ia and holds a connection; Ia is there. Nothing is registered by UDP yet."""
    stage = Behind()
    stage.connect("a", "b", "b2")
    stage.says("b", register("Ib", "Accept:Create Ia"), b=DONE)
    return stage


def grant(stage: Scene, host: str) -> None:
    """Ib answers its first question, and the call is granted: Ib is at this address."""
    can = CAN.replace("\n\n", "\nTransaction:1\n\n")
    stage.says("b", can, b=to_callee("Ia"), a=ACCEPTED + to_caller("Ib", host=host, port=5000))


def notices(count: int) -> Step:
    """Ib was sent that many notices since this was last looked at."""

    def step(stage: Scene) -> None:
        assert cast(Behind, stage).notices() == count

    return step


def key(who: str, *lines: str, before: str = "") -> Step:
    """Ib registers by UDP over this connection, and first reads something."""
    return methodcaller("gets_a_key", who, "Port:5000", *lines, before=before)


class KeyTests:
    """``UDP:Yes``: a key is given out (D1)."""

    @pytest.mark.parametrize("interval", [25, 7])
    def test_given(self, interval: int) -> None:
        """With its name and the operator's interval, in the answer; it is valid by then."""
        stage = Behind(udp_interval=interval)
        stage.connect("b")
        fields = stage.gets_a_key("b")
        assert len(fields["Key ID"]) == 23
        assert fields["Key ID"][0] == "K"
        assert len(fields["Registration Key"]) == 64
        assert fields["Interval"] == str(interval)
        answer = stage.datagram("b")
        assert answer is not None
        assert answer.statement == "Registration Completed."

    def test_resolver_first(self) -> None:
        """It is told only once the resolver has it; where it hasn't, nothing is told."""
        stage = Behind()
        stage.resolver.hold.add("add_key")
        stage.connect("b")
        stage.says("b", register("Ib", "UDP:Yes", "Transaction:1"))
        assert len(stage.registrar.keys) == 1
        answer = "NOTIFY\nService Unavailable.\nTransaction:1\nCode:503\n\n"
        stage.fires(stage.resolver.held.pop(), ServiceUnavailable(), b=answer)
        assert stage.context.connections.active("Ib") is None

    def test_refused_with_the_rest(self) -> None:
        """Where the rest of the message is refused no key is told, nor anything reached (A5)."""
        stage = Behind()
        stage.resolver.errors["register"] = ServiceUnavailable()
        stage.connect("b")
        stage.clients["b"].type(register("Ib", "UDP:Yes", "Address:127.0.0.1", "Transaction:1"))
        assert "Key" not in stage.heard("b")
        assert stage.context.connections.active("Ib") is None
        (key,) = stage.registrar.keys
        assert key.until == stage.clock.seconds() + 3600

    @pytest.mark.parametrize(
        ("lines", "cause"),
        [
            (["Expires:0"], "UDP does not go with Expires:0"),
            (["Port:1201"], "the address is the server's own"),
        ],
    )
    def test_refused(self, lines: list[str], cause: str) -> None:
        """What can't be is refused, and no key is drawn."""
        stage = Behind(own_ports=[1201])
        answer = f"NOTIFY\nRegistration Failed.\nCause:{cause}\nTransaction:1\nCode:400\n\n"
        stage.new_says("b", register("Ib", "UDP:Yes", "Transaction:1", *lines), answer)
        assert len(stage.registrar.keys) == 0

    def test_in_clear_text(self) -> None:
        """No key goes to another machine in clear text, unless the operator says so (I25)."""
        for allowed in (False, True):
            stage = Behind(clear_text=allowed)
            stage.connect("b", host="192.0.2.1")
            stage.clients["b"].type(register("Ib", "UDP:Yes", "Transaction:1"))
            text = stage.heard("b")
            assert ("Registration Key:" in text) == allowed
            assert ("no key is sent in clear text" in text) != allowed

    def test_outlives_its_connection(self) -> None:
        """By what the registration said; and expires then, however many keepalives came."""
        stage = Behind()
        stage.connect("b")
        stage.gets_a_key("b", "Expires:100")
        stage.passes(500)
        assert stage.datagram("b") is not None
        stage.leaves("b")
        stage.passes(99)
        assert stage.datagram("b") is not None
        stage.passes(1)
        assert stage.datagram("b") is None

    def test_another_over_the_same_connection(self) -> None:
        """The one before is released, and expires in its time."""
        stage = Behind()
        stage.connect("b")
        first = stage.gets_a_key("b", "Expires:100")
        second = stage.gets_a_key("b", "Expires:100")
        assert first["Key ID"] != second["Key ID"]
        stage.passes(100)
        now = stage.clock.seconds()
        assert [key.name for key in stage.registrar.keys.of("Ib", now)] == [second["Key ID"]]

    def test_connection_gone_meanwhile(self) -> None:
        """A key that no terminal was told expires, too."""
        stage = Behind()
        stage.resolver.hold.add("add_key")
        stage.connect("b")
        stage.says("b", register("Ib", "UDP:Yes", "Expires:100", "Transaction:1"))
        stage.leaves("b")
        stage.fires(stage.resolver.held.pop())
        stage.passes(100)
        assert stage.registrar.keys.of("Ib", stage.clock.seconds()) == ()

    def test_withdrawn(self) -> None:
        """With the address goes every key, those of other connections too (I2)."""
        stage = Behind()
        stage.connect("b", "b2")
        stage.gets_a_key("b")
        assert stage.datagram("b") is not None
        stage.says("b2", register("Ib", "Expires:0"), b2=DONE)
        assert stage.datagram("b") is None
        assert stage.context.connections.active("Ib") is None
        assert len(stage.registrar.keys) == 0

    @pytest.mark.parametrize("act", ["reset", "remove"])
    def test_account_changed(self, act: str) -> None:
        """An account's keys are void at once when it is removed, or has a new password (I2)."""
        stage = Behind(accounts={"Ib": "right"})
        stage.connect("b")
        stage.gets_a_key("b", "Password:right")
        assert stage.datagram("b") is not None
        accounts = stage.mediator.accounts
        result_of(accounts.reset("Ib", "new") if act == "reset" else accounts.remove("Ib"))
        assert stage.datagram("b") is None
        assert stage.registrar.seen("Ib") is None


class ReachedTests:
    """A terminal that has registered by UDP alone is reached over its connection (C1)."""

    def test_reached(self) -> None:
        """A call gets through, and the address told is the one seen, with the port named."""
        stage = registered()
        stage.gets_a_key("b", "Port:5000")
        assert stage.datagram("b") is not None
        stage.says("a", query("Ia", "Ib"), b=ASKED)
        grant(stage, SEEN[0])

    def test_no_datagram(self) -> None:
        """Where none arrives, it is where its connection comes from, which it has proven to be
        its own (I12); without a connection, its address is not known.
        """
        stage = registered()
        stage.says("a", query("Ia", "Ib"), a=NOT_FOUND)
        stage.gets_a_key("b", "Port:5000")
        stage.says("a", query("Ia", "Ib"), b=ASKED)
        grant(stage, "127.0.0.1")
        stage.leaves("b")
        stage.says("a", query("Ia", "Ib"), a=NOT_FOUND)

    def test_withdrawn(self) -> None:
        """What has withdrawn its address is not found by its connection either."""
        stage = registered()
        stage.gets_a_key("b", "Port:5000")
        stage.says("b", register("Ib", "Expires:0"), b=DONE)
        stage.says("a", query("Ia", "Ib"), a=NOT_FOUND)

    def test_superseded(self) -> None:
        """The connection that registers so takes over from the one before."""
        stage = Behind()
        stage.connect("b", "b2")
        stage.gets_a_key("b")
        stage.gets_a_key("b2")
        stage.reads(b=SUPERSEDED)

    def test_returns(self) -> None:
        """When it closes, reach returns to one that registered by UDP, too."""
        stage = registered()
        stage.gets_a_key("b")
        assert stage.datagram("b") is not None
        stage.gets_a_key("b2")
        stage.reads(b=SUPERSEDED)
        stage.leaves("b2")
        stage.says("a", query("Ia", "Ib"), b=ASKED)


CALL: Final = says("a", query("Ia", "Ib"))
CALL_TOO: Final = says("c", query("Ic", "Ib"))
#: A terminal that holds no connection, and is called (fig. 8a, 19, E1).
# fmt: off
WOKEN: Final[dict[str, list[Step]]] = {
    # It comes, registers, is asked for its status; the call goes on, and there is no notice more.
    "comes": [
        CALL, notices(1), connect("b"), key("b", before=ASKED), passes(SILENCE - 0.001),
        notices(0), lambda stage: grant(stage, SEEN[0]),
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
        CALL, connect("b"), says("b", register("Ib", "Accept:Delete Ia"), b=DONE), key("b"),
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
