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
    terminate,
    to_callee,
    to_caller,
)
from tests.mediator.steps import (
    Step,
    asks,
    connect,
    fails,
    leaves,
    on_line,
    passes,
    play,
    reads,
    registers,
    says,
)
from tests.mediator.test_connectback import YES, asked, granted, wish
from tests.mediator.test_wakeup import SEEN, SEEN_THERE, Behind, key, notices
from tests.support.clock import advance

#: Time enough for the first notice, and too little for the second.
JUST_AFTER: Final = SILENCE + 0.1


def said(text: str, n: int = 1) -> str:
    """A text with the transaction of the n-th question of a connection."""
    return text.replace("\n\n", f"\nTransaction:{n}\n\n")


ASKED: Final = said(STATUS)
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


CALL: Final = says("a", query("Ia", "Ib"), b=ASKED)
#: A second has passed without an answer.
SILENT: Final[list[Step]] = [CALL, passes(JUST_AFTER), notices(1)]
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


class StatusTests:
    """A call, whose callee is asked for its status (fig. 16)."""

    @pytest.mark.parametrize("callee", SILENCES)
    def test_silent(self, callee: str) -> None:
        """A callee that does not answer for a second is woken, and asked where it then is."""
        play(held(), *SILENCES[callee])

    def test_no_way(self) -> None:
        """Where no datagram reaches it, and it can't be dialled, it may still answer."""
        stage = held()
        play(stage, key("b", "Address:127.0.0.1"), passes(500), CALL, passes(2), notices(0))
        stage.says("b", said(CAN), b=to_callee("Ia"), a=ACCEPTED + to_caller("Ib", port=5000))

    @pytest.mark.parametrize("error", [ServiceUnavailable(), RuntimeError("boom")])
    def test_not_woken(self, error: Exception, logged: Logged) -> None:
        """What goes wrong there ends no call; what was not foreseen is in the log."""
        play(held(), fails("trigger", error), CALL, passes(2), ANSWER)
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
        play(stage, CALL)
        stage.clock.callLater(seconds, stage.mediator.stop)
        advance(stage.clock, seconds)
        play(stage, notices(0))
        assert ("trigger", "Ib") not in stage.resolver.asked
        for who in ("b", "a", "c"):
            stage.clients.pop(who).vanish()
        assert stage.clock.getDelayedCalls() == []
