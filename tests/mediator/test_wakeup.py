"""Terminals that hold no connection, or a dead one: how they are woken (mediator.wakeup)."""

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
from tests.mediator.conftest import Logged
from tests.mediator.scene import (
    ACCEPTED,
    BUSY,
    CAN,
    CANT,
    DENIED,
    DONE,
    NOT_CONNECTED,
    NOT_FOUND,
    STATUS,
    SUPERSEDED,
    Scene,
    SlowResolver,
    query,
    register,
    terminate,
    to_callee,
    to_caller,
)
from tests.mediator.steps import (
    Step,
    asks,
    connect,
    fails,
    hold,
    holds,
    leaves,
    on_line,
    passes,
    play,
    reads,
    registers,
    resolved,
    says,
)
from tests.mediator.test_connectback import YES, asked, granted, wish
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


def granted_at(host: str) -> Step:
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
    "reached": [key("b"), SEEN_THERE, CALLED, granted_at(SEEN[0])],
    # Where no datagram arrives, it is where its connection comes from, which it has proven to be
    # its own (I12); without a connection, its address is not known.
    "no datagram": [
        NOT_THERE, key("b"), CALLED, granted_at("127.0.0.1"), leaves("b"), NOT_THERE,
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
        notices(0), granted_at(SEEN[0]),
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


#: Time enough for the first notice, and too little for the second.
JUST_AFTER: Final = SILENCE + 0.1


def said(text: str, n: int = 1) -> str:
    """A text with the transaction of the n-th question of a connection."""
    return text.replace("\n\n", f"\nTransaction:{n}\n\n")


#: Where Ib registers without UDP.
HERE: Final = ("Address:127.0.0.1", "Port:9")


def held(**options: Any) -> Behind:
    """Ib accepts Ia and Ic, registers by UDP, and holds a connection; Ia and Ic are there."""
    stage = Behind(**options)
    play(stage, connect("a", "b", "c"), registers("a"), registers("c"))
    play(stage, registers("b", "Accept:Create Ia,Ic"), key("b"), SEEN_THERE)
    stage.port.sent.clear()
    return stage


def told(n: str = "") -> str:
    """What a caller is told who has been granted its call."""
    return ACCEPTED + to_caller("Ib", host=SEEN[0], port=5000, n=n)


def some_notices(stage: Scene) -> None:
    """Ib was sent notices over its next connection's binding."""
    port = cast(Behind, stage).port
    assert port.sent
    port.sent.clear()


def nothing_asked(stage: Scene) -> None:
    """No question is open."""
    assert "TerminalReach._unanswered" not in stage.kept()


def late_answer(stage: Scene) -> None:
    """Ib's answer has arrived by the time that the second is over, and is read just then."""
    stage.clock.callLater(SILENCE, stage.clients["b"].feed, said(CAN).encode())


#: A second has passed without an answer.
SILENT: Final[list[Step]] = [CALLED, passes(JUST_AFTER), notices(1)]
#: Ib registers over another connection, and is asked there.
COMES: Final[list[Step]] = [connect("b2"), key("b2", before=ASKED)]
NEXT: Final[list[Step]] = [*COMES, reads(b=SUPERSEDED)]
ANSWER: Final = says("b", said(CAN), b=to_callee("Ia"), a=told())
ANSWER_THERE: Final = says("b2", said(CAN), b2=to_callee("Ia"), a=told())

CONSENT: Final = said("QUERY\nACCEPT\n\n")
#: Ib does not answer when it is asked for its consent, or to connect back.
SILENT_ON_CONSENT: Final[list[Step]] = [
    registers("b", "Policy:Ask"), says("a", query("Ia", "Ib"), b=CONSENT), passes(JUST_AFTER),
    notices(1),
]  # fmt: skip
SILENT_ON_PASSWORD: Final[list[Step]] = [
    registers("b", "Policy:Password"), says("a", wish(), b=asked(transaction="1")),
    passes(JUST_AFTER), notices(1),
]  # fmt: skip
ASKED_AGAIN: Final[list[Step]] = [
    *SILENT_ON_PASSWORD, connect("b2"), key("b2", before=asked(transaction="1")),
    reads(b=SUPERSEDED + terminate()),
]  # fmt: skip
IN_TIME: Final = passes(5 - JUST_AFTER, a=DENIED)

#: A callee that is asked for its status, and does not answer at once (fig. 16, D1, E1).
# fmt: off
SILENCES: Final[dict[str, list[Step]]] = {
    "answers in time": [
        CALLED, passes(SILENCE - 0.001), ANSWER, nothing_asked, passes(5), notices(0),
    ],
    # It is asked over the connection that it then makes; nothing is sent over the old one.
    "answers over the next connection": [
        CALLED, passes(0.999), notices(0), passes(0.001), notices(1), passes(0.25), notices(1),
        *NEXT, ANSWER_THERE, says("b", said(CAN)), passes(10), notices(0),
    ],
    # Once it is asked again, an answer over the old connection is ignored.
    "answers over the old one": [
        *SILENT, *NEXT, says("b", said(CAN)), says("b2", said(CANT), a=BUSY),
    ],
    # The connection is alive, and the notices end.
    "is only slow": [*SILENT, ANSWER, passes(5), notices(0)],
    # A connection over which it registers again is not dead: it is not asked twice there.
    "gets another key": [*SILENT, key("b"), passes(2), notices(0), ANSWER],
    "never comes": [
        CALLED, passes(4.9), notices(5), passes(0.1, a=NOT_CONNECTED), passes(20), notices(0),
    ],
    # Each connection that it makes within the time of the call may be silent too.
    "is silent again": [
        *SILENT, *NEXT, passes(JUST_AFTER), some_notices,
        connect("b3"), key("b3", before=ASKED), reads(b2=SUPERSEDED),
        says("b3", said(CAN), b3=to_callee("Ia"), a=told()),
    ],
    # As where a router says that it has no such connection: it is woken at once.
    "breaks as it is asked": [CALLED, leaves("b"), notices(1), *COMES, ANSWER_THERE],
    "breaks while it is woken": [
        CALLED, passes(JUST_AFTER), leaves("b"), notices(1), passes(0.25), notices(1),
        *COMES, ANSWER_THERE,
    ],
    # It is asked there when the second is over, and gets no notice.
    "comes by itself": [
        CALLED, passes(0.5), connect("b2"), key("b2"), reads(b=SUPERSEDED),
        passes(SILENCE - 0.5, b2=ASKED), notices(0), ANSWER_THERE,
    ],
    # Without UDP, and without transactions: it is asked as it can answer.
    "comes by hand": [
        *SILENT, connect("b2"),
        registers("b2", *HERE, b2=STATUS + DONE, b=SUPERSEDED),
        says("b2", CAN, b2=to_callee("Ia"), a=ACCEPTED + to_caller("Ib", port=9)),
    ],
    # It is asked nothing, and the caller is told 5c (I2).
    "withdraws the permit as it comes": [
        *SILENT, connect("b2"), key("b2", "Accept:Delete Ia"),
        reads(b=SUPERSEDED, a=DENIED), says("b2", said(CAN)),
    ],
    # The callers share the notices (I17), and both are served over the next connection.
    "is called by two": [
        CALLED, says("c", query("Ic", "Ib"), b=said(STATUS, 2)), passes(JUST_AFTER), notices(1),
        connect("b2"), key("b2", before=ASKED + said(STATUS, 2)), reads(b=SUPERSEDED),
        says("b2", said(CAN), b2=to_callee("Ia", "1"), a=told("1")),
        says("b2", said(CAN, 2), b2=to_callee("Ic", "2"), c=told("2")),
    ],
    # Nothing is sent for a caller that has gone.
    "is left by its caller": [*SILENT, leaves("a"), passes(5), notices(0)],
    # An answer that waits to be read when the second is over is an answer.
    "answers while we are late": [
        CALLED, late_answer, passes(SILENCE, b=to_callee("Ia"), a=told()), notices(0),
    ],
    # A permit for one call is used up by it once (I1, I7).
    "has a permit for one call": [
        registers("b", "Accept:Create Ia;uses=1"), *SILENT, *NEXT, ANSWER_THERE,
        says("a", query("Ia", "Ib"), a=DENIED),
    ],
    # Asked for its consent over its new connection, its answer there decides (C3, S2002).
    "wants to be asked, and comes": [
        *SILENT_ON_CONSENT, connect("b2"), key("b2", before=CONSENT), reads(b=SUPERSEDED),
        says("b2", said("NOTIFY\nAccept:Create Ia\n\n"), b2=said(STATUS, 2)),
        says("b2", said(CAN, 2), b2=to_callee("Ia"), a=told()),
    ],
    # It is not asked about a caller that it rejects as it comes (I5, I6).
    "wants to be asked, and rejects": [
        *SILENT_ON_CONSENT, connect("b2"), key("b2", "Reject:Create Ia"), reads(b=SUPERSEDED),
        IN_TIME,
    ],
    # Asked to connect back, it is asked over its new connection for the same session. Over the old
    # one this is terminated: it must connect only once (D3, D6).
    "is to connect back": [*ASKED_AGAIN, says("b2", said(YES), a=granted())],
    # A refusal over the new connection counts.
    "refuses to connect back": [*ASKED_AGAIN, says("b2", said(DENIED)), IN_TIME],
    # It hears nothing of a caller that it rejects as it comes, and must not connect (C5).
    "rejects whom it was to connect to": [
        *SILENT_ON_PASSWORD, connect("b2"), key("b2", "Reject:Create Ia"),
        reads(b=SUPERSEDED + terminate()), IN_TIME,
    ],
}
# fmt: on


class SilentTests:
    """A connection that looks alive and is dead: its terminal is woken, and asked over the next."""

    @pytest.mark.parametrize("callee", SILENCES)
    def test_silent(self, callee: str) -> None:
        """A callee that does not answer for a second is woken, and asked where it then is."""
        play(held(), *SILENCES[callee])

    def test_no_way(self) -> None:
        """Where no datagram reaches it, and it can't be dialled, it may still answer."""
        stage = held()
        play(stage, key("b", "Address:127.0.0.1"), passes(500), CALLED, passes(2), notices(0))
        stage.says("b", said(CAN), b=to_callee("Ia"), a=ACCEPTED + to_caller("Ib", port=5000))

    @pytest.mark.parametrize("error", [ServiceUnavailable(), RuntimeError("boom")])
    def test_not_woken(self, error: Exception, logged: Logged) -> None:
        """What goes wrong there ends no call; what was not foreseen is in the log."""
        play(held(), fails("trigger", error), CALLED, passes(2), ANSWER)
        foreseen = isinstance(error, ServiceUnavailable)
        found = [text for text in logged.texts() if "could not be woken" in text]
        assert (len(found), len(logged.failures())) == (not foreseen, not foreseen)

    def test_not_by_udp(self) -> None:
        """A terminal that registered only an address gets neither notice nor dial."""
        stage = Behind()
        play(stage, on_line("b", "Accept:Create Ia"), connect("a"), asks())
        stage.passes(5, a=NOT_CONNECTED)
        assert ("trigger", "Ib") not in stage.resolver.asked

    def test_not_asked(self) -> None:
        """Without a status query nothing is asked, and so nothing is missed."""
        stage = held(ask_status=False)
        play(stage, says("a", query("Ia", "Ib"), b=to_callee("Ia"), a=told()), passes(5))
        play(stage, notices(0))

    @pytest.mark.parametrize("seconds", [0, SILENCE])
    def test_stops(self, seconds: float) -> None:
        """When the mediator stops no timer is left; one that stops just as its callee falls silent
        wakes no terminal.
        """
        stage = held()
        play(stage, CALLED)
        stage.clock.callLater(seconds, stage.mediator.stop)
        advance(stage.clock, seconds)
        play(stage, notices(0))
        assert ("trigger", "Ib") not in stage.resolver.asked
        for who in ("b", "a", "c"):
            stage.clients.pop(who).vanish()
        assert stage.clock.getDelayedCalls() == []
