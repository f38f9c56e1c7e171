"""A line that looks alive and is dead: its terminal is asked for another, and asked there."""

from __future__ import annotations

from typing import Any, Final

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
    query,
    register,
    terminate,
    to_callee,
    to_caller,
)
from tests.mediator.test_connectback import YES, asked, granted, wish
from tests.mediator.test_triggers import SEEN, Behind
from tests.support.clock import advance

#: Time enough for the first notice, and too little for the second.
JUST_AFTER: Final = SILENCE + 0.1


def said(text: str, n: int = 1) -> str:
    """A text with the transaction of the n-th question of a connection."""
    return text.replace("\n\n", f"\nTransaction:{n}\n\n")


ASKED: Final = said(STATUS)


def held(*lines: str, key: tuple[str, ...] = ("Port:5000",), **options: Any) -> Behind:
    """Ib accepts Ia and Ic, registers by UDP, and holds a line; Ia and Ic are there."""
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
    """Ib registers over another line, and is asked there."""
    stage.connect("b2")
    stage.gets_a_key("b2", "Port:5000", *lines, before=asks)
    stage.reads(b=SUPERSEDED, **reads)


def told(n: str = "") -> str:
    """What a caller is told who has been granted its call."""
    return ACCEPTED + to_caller("Ib", host=SEEN[0], port=5000, n=n)


class StatusTests:
    """A call, whose callee is asked for its status (fig. 16)."""

    def test_answers(self) -> None:
        """Who answers gets no notice, then or later."""
        stage = held()
        stage.says("a", query("Ia", "Ib"), b=ASKED)
        stage.passes(SILENCE - 0.001)
        stage.says("b", said(CAN), b=to_callee("Ia"), a=told())
        assert "TerminalReach._unanswered" not in stage.kept()
        stage.passes(5)
        assert stage.notices() == 0

    def test_silent(self) -> None:
        """Who says nothing for a second is sent notices; over the line that it then makes it is
        asked anew, and the call goes on there (D1, E1). Over the old line nothing more is said.
        """
        stage = held()
        stage.says("a", query("Ia", "Ib"), b=ASKED)
        stage.passes(0.999)
        assert stage.notices() == 0
        stage.passes(0.001)
        assert stage.notices() == 1
        stage.passes(0.25)
        assert stage.notices() == 1
        comes(stage)
        stage.says("b2", said(CAN), b2=to_callee("Ia"), a=told())
        stage.says("b", said(CAN))
        stage.passes(10)
        assert stage.notices() == 0

    def test_old_answer(self) -> None:
        """Once it is asked anew the old line's answer counts for nothing."""
        stage = held()
        stage.says("a", query("Ia", "Ib"), b=ASKED)
        stage.passes(JUST_AFTER)
        comes(stage)
        stage.says("b", said(CAN))
        stage.says("b2", said(CANT), a=BUSY)

    def test_only_slow(self) -> None:
        """A line that answers after all is good, and the notices end."""
        stage = held()
        stage.says("a", query("Ia", "Ib"), b=ASKED)
        stage.passes(JUST_AFTER)
        assert stage.notices() == 1
        stage.says("b", said(CAN), b=to_callee("Ia"), a=told())
        stage.passes(5)
        assert stage.notices() == 0

    def test_another_key(self) -> None:
        """A line over which it registers again is not dead: it is asked nothing twice there."""
        stage = held()
        stage.says("a", query("Ia", "Ib"), b=ASKED)
        stage.passes(JUST_AFTER)
        stage.notices()
        stage.gets_a_key("b", "Port:5000")
        stage.passes(2)
        assert stage.notices() == 0
        stage.says("b", said(CAN), b=to_callee("Ia"), a=told())

    def test_never(self) -> None:
        """Who doesn't come is 5h when the time of the call is over, as ever."""
        stage = held()
        stage.says("a", query("Ia", "Ib"), b=ASKED)
        stage.passes(4.9)
        assert stage.notices() == 5
        stage.passes(0.1, a=NOT_CONNECTED)
        stage.passes(20)
        assert stage.notices() == 0

    def test_the_new_one_is_silent_too(self) -> None:
        """So it is with each line that it makes, within the time of the call."""
        stage = held()
        stage.says("a", query("Ia", "Ib"), b=ASKED)
        stage.passes(JUST_AFTER)
        comes(stage)
        stage.port.sent.clear()
        stage.passes(JUST_AFTER)
        assert stage.port.sent != []
        stage.connect("b3")
        stage.gets_a_key("b3", "Port:5000", before=ASKED)
        stage.reads(b2=SUPERSEDED)
        stage.says("b3", said(CAN), b3=to_callee("Ia"), a=told())

    def test_breaks(self) -> None:
        """A line that breaks when something is asked there, as where the router says that it has
        no such connection: it is woken at once.
        """
        stage = held()
        stage.says("a", query("Ia", "Ib"), b=ASKED)
        stage.leaves("b")
        assert stage.notices() == 1
        stage.connect("b2")
        stage.gets_a_key("b2", "Port:5000", before=ASKED)
        stage.says("b2", said(CAN), b2=to_callee("Ia"), a=told())

    def test_breaks_while_it_is_woken(self) -> None:
        """The terminal gives the old line up before it makes another."""
        stage = held()
        stage.says("a", query("Ia", "Ib"), b=ASKED)
        stage.passes(JUST_AFTER)
        stage.leaves("b")
        assert stage.notices() == 1
        stage.passes(0.25)
        assert stage.notices() == 1
        stage.connect("b2")
        stage.gets_a_key("b2", "Port:5000", before=ASKED)
        stage.says("b2", said(CAN), b2=to_callee("Ia"), a=told())

    def test_came_by_itself(self) -> None:
        """Who has made another line by itself is asked there, and gets no notice."""
        stage = held()
        stage.says("a", query("Ia", "Ib"), b=ASKED)
        stage.passes(0.5)
        comes(stage, asks="")
        stage.passes(SILENCE - 0.5, b2=ASKED)
        assert stage.notices() == 0
        stage.says("b2", said(CAN), b2=to_callee("Ia"), a=told())

    def test_came_by_hand(self) -> None:
        """It may come without UDP, and without transactions: it is asked as it can answer."""
        stage = held()
        stage.says("a", query("Ia", "Ib"), b=ASKED)
        stage.passes(JUST_AFTER)
        stage.connect("b2")
        here = register("Ib", "Address:127.0.0.1", "Port:9")
        stage.says("b2", here, b2=STATUS + DONE, b=SUPERSEDED)
        stage.says("b2", CAN, b2=to_callee("Ia"), a=ACCEPTED + to_caller("Ib", port=9))

    def test_withdrawn(self) -> None:
        """Who withdraws the permit as it comes is asked nothing, and the caller is told 5c (I2)."""
        stage = held()
        stage.says("a", query("Ia", "Ib"), b=ASKED)
        stage.passes(JUST_AFTER)
        comes(stage, "Accept:Delete Ia", asks="", a=DENIED)
        stage.says("b2", said(CAN))

    def test_told_once(self) -> None:
        """A permit for one call is used up by it once, and one is disclosed (I1, I7)."""
        stage = held("Accept:Create Ia;uses=1")
        stage.says("a", query("Ia", "Ib"), b=ASKED)
        stage.passes(JUST_AFTER)
        comes(stage)
        stage.says("b2", said(CAN), b2=to_callee("Ia"), a=told())
        stage.says("a", query("Ia", "Ib"), a=DENIED)

    def test_two_callers(self) -> None:
        """Both are served over the line that comes, and share the notices (I17)."""
        stage = held()
        stage.says("a", query("Ia", "Ib"), b=ASKED)
        stage.says("c", query("Ic", "Ib"), b=said(STATUS, 2))
        stage.passes(JUST_AFTER)
        assert stage.notices() == 1
        comes(stage, asks=ASKED + said(STATUS, 2))
        stage.says("b2", said(CAN), b2=to_callee("Ia", "1"), a=told("1"))
        stage.says("b2", said(CAN, 2), b2=to_callee("Ic", "2"), c=told("2"))

    def test_the_caller_goes(self) -> None:
        """Nobody is woken any more for a caller who has gone."""
        stage = held()
        stage.says("a", query("Ia", "Ib"), b=ASKED)
        stage.passes(JUST_AFTER)
        assert stage.notices() == 1
        stage.leaves("a")
        stage.passes(5)
        assert stage.notices() == 0

    def test_we_are_late(self) -> None:
        """An answer that waits to be read when the second is over is an answer."""
        stage = held()
        stage.says("a", query("Ia", "Ib"), b=ASKED)
        stage.clock.callLater(SILENCE, stage.clients["b"].feed, said(CAN).encode())
        stage.passes(SILENCE, b=to_callee("Ia"), a=told())
        assert stage.notices() == 0

    def test_no_way(self) -> None:
        """Where no datagram reaches it, and it can't be dialled, it may answer all the same."""
        stage = held(key=("Address:127.0.0.1", "Port:5000"))
        stage.passes(500)
        stage.says("a", query("Ia", "Ib"), b=ASKED)
        stage.passes(2)
        assert stage.notices() == 0
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
        """Whoever has registered an address alone gets neither notice nor dial over this."""
        stage = Behind()
        stage.on_line("b", "Accept:Create Ia")
        stage.connect("a")
        stage.says("a", query("Ia", "Ib"), b=STATUS)
        stage.passes(5, a=NOT_CONNECTED)
        assert ("trigger", "Ib") not in stage.resolver.asked

    def test_not_asked(self) -> None:
        """Without the status nothing is asked, and so nothing is missed."""
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
        """A mediator that stops just then wakes nobody, and no timer is left."""
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
    """A callee that is asked whom it accepts (C3)."""

    QUESTION: Final = "QUERY\nACCEPT\nTransaction:1\n\n"

    def silent(self) -> Behind:
        """Ib has said nothing when asked whom it accepts."""
        stage = held("Policy:Ask")
        stage.says("a", query("Ia", "Ib"), b=self.QUESTION)
        stage.passes(JUST_AFTER)
        assert stage.notices() == 1
        return stage

    def test_asked_anew(self) -> None:
        """It is asked over its new line, and what it says there decides (S2002)."""
        stage = self.silent()
        comes(stage, asks=self.QUESTION)
        stage.says("b2", said("NOTIFY\nAccept:Create Ia\n\n"), b2=said(STATUS, 2))
        stage.says("b2", said(CAN, 2), b2=to_callee("Ia"), a=told())

    def test_refused_meanwhile(self) -> None:
        """Whom it refuses as it comes it is not asked about; refused when all are (I5, I6)."""
        stage = self.silent()
        comes(stage, "Reject:Create Ia", asks="")
        stage.passes(5 - JUST_AFTER, a=DENIED)


class ConnectBackTests:
    """A callee that is asked to connect back (D3)."""

    def silent(self) -> Behind:
        """Ib has said nothing when asked to come."""
        stage = held("Policy:Password")
        stage.says("a", wish(), b=asked(transaction="1"))
        stage.passes(JUST_AFTER)
        assert stage.notices() == 1
        return stage

    def comes(self, stage: Behind, *lines: str) -> str:
        """Ib registers over another line; what it is asked there."""
        stage.connect("b2")
        stage.clients["b2"].type(register("Ib", "UDP:Yes", "Transaction:k", "Port:5000", *lines))
        asks, found, _ = stage.heard("b2").partition("NOTIFY\nRegistration Completed.\n")
        assert found
        return asks

    def test_asked_anew(self) -> None:
        """It is asked over its new line, for the same session. Over the old one it is told that
        this is void: it is to come once (D6).
        """
        stage = self.silent()
        session = terminate().format(session=stage.drawn["session"])
        assert self.comes(stage) == asked(transaction="1").format(**stage.drawn)
        stage.reads(b=SUPERSEDED + session)
        stage.says("b2", said(YES), a=granted())

    def test_denied_anew(self) -> None:
        """A no over the new line is one."""
        stage = self.silent()
        self.comes(stage)
        stage.reads(b=SUPERSEDED + terminate())
        stage.says("b2", said(DENIED))
        stage.passes(5 - JUST_AFTER, a=DENIED)

    def test_refused_meanwhile(self) -> None:
        """Whom it refuses as it comes it hears nothing of (C5); and it is not to come (I2)."""
        stage = self.silent()
        assert self.comes(stage, "Reject:Create Ia") == ""
        stage.reads(b=SUPERSEDED + terminate())
        stage.passes(5 - JUST_AFTER, a=DENIED)
