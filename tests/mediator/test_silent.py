"""A connection that looks alive and is dead: its terminal is woken, and asked over the next."""

from __future__ import annotations

from typing import Any, Final, cast

import pytest

from broker.mediator.wakeup import SILENCE
from broker.messages.errors import ServiceUnavailable
from tests.mediator.conftest import Logged
from tests.mediator.scene import (
    ACCEPTED,
    BUSY,
    CAN,
    CANT,
    DENIED,
    DONE,
    NOT_CONNECTED,
    STATUS,
    SUPERSEDED,
    Scene,
    query,
    register,
    terminate,
    to_callee,
    to_caller,
)
from tests.mediator.steps import Step, connect, leaves, passes, play, reads, says
from tests.mediator.test_connectback import YES, asked, granted, wish
from tests.mediator.test_wakeup import SEEN, Behind, key, notices
from tests.support.clock import advance

#: Time enough for the first notice, and too little for the second.
JUST_AFTER: Final = SILENCE + 0.1


def said(text: str, n: int = 1) -> str:
    """A text with the transaction of the n-th question of a connection."""
    return text.replace("\n\n", f"\nTransaction:{n}\n\n")


ASKED: Final = said(STATUS)
#: Where Ib registers without UDP.
HERE: Final = ("Address:127.0.0.1", "Port:9")


def held(*lines: str, key: tuple[str, ...] = ("Port:5000",), **options: Any) -> Behind:
    """Ib accepts Ia and Ic, registers by UDP, and holds a connection; Ia and Ic are there."""
    stage = Behind(**options)
    stage.connect("a", "b", "c")
    stage.says("a", register("Ia"), a=DONE)
    stage.says("c", register("Ic"), c=DONE)
    stage.says("b", register("Ib", "Accept:Create Ia,Ic", *lines), b=DONE)
    stage.gets_a_key("b", *key)
    assert stage.datagram("b") is not None
    stage.port.sent.clear()
    return stage


def comes(stage: Behind, *lines: str, asks: str = ASKED, **reads: str) -> None:
    """Ib registers over another connection, and is asked there."""
    stage.connect("b2")
    stage.gets_a_key("b2", "Port:5000", *lines, before=asks)
    stage.reads(b=SUPERSEDED, **reads)


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


CALL: Final = says("a", query("Ia", "Ib"), b=ASKED)
#: A second has passed without an answer.
SILENT: Final[list[Step]] = [CALL, passes(JUST_AFTER), notices(1)]
#: Ib registers over another connection, and is asked there.
COMES: Final[list[Step]] = [connect("b2"), key("b2", before=ASKED)]
NEXT: Final[list[Step]] = [*COMES, reads(b=SUPERSEDED)]
ANSWER: Final = says("b", said(CAN), b=to_callee("Ia"), a=told())
ANSWER_THERE: Final = says("b2", said(CAN), b2=to_callee("Ia"), a=told())

#: A callee that is asked for its status, and does not answer at once (fig. 16, D1, E1).
# fmt: off
SILENCES: Final[dict[str, list[Step]]] = {
    "answers in time": [
        CALL, passes(SILENCE - 0.001), ANSWER, nothing_asked, passes(5), notices(0),
    ],
    # It is asked over the connection that it then makes; nothing is sent over the old one.
    "answers over the next connection": [
        CALL, passes(0.999), notices(0), passes(0.001), notices(1), passes(0.25), notices(1),
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
        CALL, passes(4.9), notices(5), passes(0.1, a=NOT_CONNECTED), passes(20), notices(0),
    ],
    # Each connection that it makes within the time of the call may be silent too.
    "is silent again": [
        *SILENT, *NEXT, passes(JUST_AFTER), some_notices,
        connect("b3"), key("b3", before=ASKED), reads(b2=SUPERSEDED),
        says("b3", said(CAN), b3=to_callee("Ia"), a=told()),
    ],
    # As where a router says that it has no such connection: it is woken at once.
    "breaks as it is asked": [CALL, leaves("b"), notices(1), *COMES, ANSWER_THERE],
    "breaks while it is woken": [
        CALL, passes(JUST_AFTER), leaves("b"), notices(1), passes(0.25), notices(1),
        *COMES, ANSWER_THERE,
    ],
    # It is asked there when the second is over, and gets no notice.
    "comes by itself": [
        CALL, passes(0.5), connect("b2"), key("b2"), reads(b=SUPERSEDED),
        passes(SILENCE - 0.5, b2=ASKED), notices(0), ANSWER_THERE,
    ],
    # Without UDP, and without transactions: it is asked as it can answer.
    "comes by hand": [
        *SILENT, connect("b2"),
        says("b2", register("Ib", *HERE), b2=STATUS + DONE, b=SUPERSEDED),
        says("b2", CAN, b2=to_callee("Ia"), a=ACCEPTED + to_caller("Ib", port=9)),
    ],
    # It is asked nothing, and the caller is told 5c (I2).
    "withdraws the permit as it comes": [
        *SILENT, connect("b2"), key("b2", "Accept:Delete Ia"),
        reads(b=SUPERSEDED, a=DENIED), says("b2", said(CAN)),
    ],
    # The callers share the notices (I17), and both are served over the next connection.
    "is called by two": [
        CALL, says("c", query("Ic", "Ib"), b=said(STATUS, 2)), passes(JUST_AFTER), notices(1),
        connect("b2"), key("b2", before=ASKED + said(STATUS, 2)), reads(b=SUPERSEDED),
        says("b2", said(CAN), b2=to_callee("Ia", "1"), a=told("1")),
        says("b2", said(CAN, 2), b2=to_callee("Ic", "2"), c=told("2")),
    ],
    # Nothing is sent for a caller that has gone.
    "is left by its caller": [*SILENT, leaves("a"), passes(5), notices(0)],
    # An answer that waits to be read when the second is over is an answer.
    "answers while we are late": [
        CALL, late_answer, passes(SILENCE, b=to_callee("Ia"), a=told()), notices(0),
    ],
}
# fmt: on


class StatusTests:
    """A call, whose callee is asked for its status (fig. 16)."""

    @pytest.mark.parametrize("callee", SILENCES)
    def test_silent(self, callee: str) -> None:
        """A callee that does not answer for a second is woken, and asked where it then is."""
        play(held(), *SILENCES[callee])

    def test_told_once(self) -> None:
        """A permit for one call is used up by it once (I1, I7)."""
        stage = held("Accept:Create Ia;uses=1")
        play(stage, *SILENT, *NEXT, ANSWER_THERE, says("a", query("Ia", "Ib"), a=DENIED))

    def test_no_way(self) -> None:
        """Where no datagram reaches it, and it can't be dialled, it may still answer."""
        stage = held(key=("Address:127.0.0.1", "Port:5000"))
        play(stage, passes(500), CALL, passes(2), notices(0))
        stage.says("b", said(CAN), b=to_callee("Ia"), a=ACCEPTED + to_caller("Ib", port=5000))

    @pytest.mark.parametrize("error", [ServiceUnavailable(), RuntimeError("boom")])
    def test_not_woken(self, error: Exception, logged: Logged) -> None:
        """What goes wrong there ends no call; what was not foreseen is in the log."""
        stage = held()
        stage.resolver.errors["trigger"] = error
        stage.says("a", query("Ia", "Ib"), b=ASKED)
        stage.passes(2)
        stage.says("b", said(CAN), b=to_callee("Ia"), a=told())
        foreseen = isinstance(error, ServiceUnavailable)
        found = [text for text in logged.texts() if "could not be woken" in text]
        assert len(found) == (not foreseen)
        assert len(logged.failures()) == (not foreseen)

    def test_not_by_udp(self) -> None:
        """A terminal that registered only an address gets neither notice nor dial."""
        stage = Behind()
        stage.on_line("b", "Accept:Create Ia")
        stage.connect("a")
        stage.says("a", query("Ia", "Ib"), b=STATUS)
        stage.passes(5, a=NOT_CONNECTED)
        assert ("trigger", "Ib") not in stage.resolver.asked

    def test_not_asked(self) -> None:
        """Without a status query nothing is asked, and so nothing is missed."""
        stage = held(ask_status=False)
        stage.says("a", query("Ia", "Ib"), b=to_callee("Ia"), a=told())
        stage.passes(5)
        assert stage.notices() == 0

    def test_stops(self) -> None:
        """When the mediator stops no timer is left."""
        stage = held()
        stage.says("a", query("Ia", "Ib"), b=ASKED)
        stage.mediator.stop()
        for who in ("b", "a", "c"):
            stage.clients.pop(who).vanish()
        assert stage.clock.getDelayedCalls() == []

    def test_stops_as_it_falls_silent(self) -> None:
        """A mediator that stops just then wakes no terminal, and no timer is left."""
        stage = held()
        stage.says("a", query("Ia", "Ib"), b=ASKED)
        stage.clock.callLater(SILENCE, stage.mediator.stop)
        advance(stage.clock, SILENCE)
        assert stage.notices() == 0
        assert ("trigger", "Ib") not in stage.resolver.asked
        for who in ("b", "a", "c"):
            stage.clients.pop(who).vanish()
        assert stage.clock.getDelayedCalls() == []


class ConsentTests:
    """A callee that is asked for its consent (C3)."""

    QUESTION: Final = "QUERY\nACCEPT\nTransaction:1\n\n"

    def silent(self) -> Behind:
        """Ib does not answer when it is asked for its consent."""
        stage = held("Policy:Ask")
        stage.says("a", query("Ia", "Ib"), b=self.QUESTION)
        stage.passes(JUST_AFTER)
        assert stage.notices() == 1
        return stage

    def test_asked_again(self) -> None:
        """It is asked over its new connection, and its answer there decides (S2002)."""
        stage = self.silent()
        comes(stage, asks=self.QUESTION)
        stage.says("b2", said("NOTIFY\nAccept:Create Ia\n\n"), b2=said(STATUS, 2))
        stage.says("b2", said(CAN, 2), b2=to_callee("Ia"), a=told())

    def test_rejected_meanwhile(self) -> None:
        """It is not asked about a caller that it rejects as it comes (I5, I6)."""
        stage = self.silent()
        comes(stage, "Reject:Create Ia", asks="")
        stage.passes(5 - JUST_AFTER, a=DENIED)


class ConnectBackTests:
    """A callee that is asked to connect back (D3)."""

    def silent(self) -> Behind:
        """Ib does not answer when it is asked to connect."""
        stage = held("Policy:Password")
        stage.says("a", wish(), b=asked(transaction="1"))
        stage.passes(JUST_AFTER)
        assert stage.notices() == 1
        return stage

    def comes(self, stage: Behind, *lines: str) -> str:
        """Ib registers over another connection; what it is asked there."""
        stage.connect("b2")
        stage.clients["b2"].type(register("Ib", "UDP:Yes", "Transaction:k", "Port:5000", *lines))
        asks, found, _ = stage.heard("b2").partition("NOTIFY\nRegistration Completed.\n")
        assert found
        return asks

    def test_asked_again(self) -> None:
        """It is asked over its new connection, for the same session. Over the old one this is
        terminated: it must connect only once (D6).
        """
        stage = self.silent()
        session = terminate().format(session=stage.drawn["session"])
        assert self.comes(stage) == asked(transaction="1").format(**stage.drawn)
        stage.reads(b=SUPERSEDED + session)
        stage.says("b2", said(YES), a=granted())

    def test_refused_there(self) -> None:
        """A refusal over the new connection counts."""
        stage = self.silent()
        self.comes(stage)
        stage.reads(b=SUPERSEDED + terminate())
        stage.says("b2", said(DENIED))
        stage.passes(5 - JUST_AFTER, a=DENIED)

    def test_rejected_meanwhile(self) -> None:
        """It hears nothing of a caller that it rejects as it comes, and must not connect (C5)."""
        stage = self.silent()
        assert self.comes(stage, "Reject:Create Ia") == ""
        stage.reads(b=SUPERSEDED + terminate())
        stage.passes(5 - JUST_AFTER, a=DENIED)
