"""The calls that a terminal is in: counted, reported, ended."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from broker.terminal.channel.active_calls import ENDED_BY_MEDIATOR, ActiveCalls
from broker.terminal.errors import Aborted
from tests.terminal.keys import SESSION
from tests.terminal.network import Outcome
from tests.terminal.speakers import Call, HalfCloseable, Reports


class Counted(Call):
    """A call in memory, of which each side is counted.

    :ivar calls: the caller's and the callee's
    """

    def __init__(self) -> None:
        self._reports = {"Ia": Reports(), "Ib": Reports()}
        self.calls = {name: ActiveCalls(reports) for name, reports in self._reports.items()}
        self.speakers = (HalfCloseable(), HalfCloseable())
        super().__init__(lambda: self.speakers[0], lambda: self.speakers[1])
        for channel in (self.a, self.b):
            calls = self.calls[channel.identifier]
            calls.opened(channel)
            hidden: Any = channel
            hidden._events = SimpleNamespace(
                channel_opened=hidden._events.channel_opened, channel_closed=calls.closed
            )
        self.pump()

    @property
    def both(self) -> list[list[tuple[str, str]]]:
        """What was reported: by the caller, by the callee."""
        return [self._reports["Ia"].ends, self._reports["Ib"].ends]


class CallsTests:
    """How a call ended is told to the mediator, by each side for itself (S5007)."""

    def test_counted_while_open(self) -> None:
        """A call counts from its beginning to its end (A25)."""
        call = Counted()
        assert [len(calls) for calls in call.calls.values()] == [1, 1]
        call.pair.cut()
        assert [len(calls) for calls in call.calls.values()] == [0, 0]

    def test_completed(self) -> None:
        """Both sides ended their data: Completed, from both."""
        call = Counted()
        for speaker in call.speakers:
            speaker.transport.loseWriteConnection()
        call.pump()
        assert call.both == [[(SESSION, "Completed")], [(SESSION, "Completed")]]

    def test_failed(self) -> None:
        """The connection broke: Failed, from both."""
        call = Counted()
        call.pair.cut()
        assert call.both == [[(SESSION, "Failed")], [(SESSION, "Failed")]]

    def test_broken_off(self) -> None:
        """One side broke it off by itself: Failed."""
        call = Counted()
        call.speakers[0].transport.abortConnection("enough")
        call.pump()
        assert call.both == [[(SESSION, "Failed")], [(SESSION, "Failed")]]

    def test_terminated(self) -> None:
        """The mediator ended it: whoever is told stops at once, and both say so (S5001, I2)."""
        call = Counted()
        call.calls["Ib"].terminate(SESSION)
        call.pump()
        assert call.both == [[(SESSION, "Terminated")], [(SESSION, "Terminated")]]
        why = call.speakers[0].why
        assert isinstance(why, Aborted)
        assert why.cause == ENDED_BY_MEDIATOR

    def test_terminating_another(self) -> None:
        """An order to end a session that isn't here ends nothing."""
        call = Counted()
        call.calls["Ib"].terminate("S-other")
        call.pump()
        assert len(call.calls["Ib"]) == 1

    def test_end_all(self) -> None:
        """All calls are broken off at once, with a cause."""
        call = Counted()
        call.calls["Ia"].end_all("good night")
        call.pump()
        assert call.both == [[(SESSION, "Failed")], [(SESSION, "Failed")]]
        assert str(call.speakers[1].why) == "the call was broken off: good night"

    def test_reported_once(self) -> None:
        """A call that was never counted, or was reported already, is not reported."""
        call = Counted()
        call.pair.cut()
        call.calls["Ia"].closed(call.a, call.speakers[0].lost[0])
        assert call.both == [[(SESSION, "Failed")], [(SESSION, "Failed")]]

    def test_another_channel_of_the_session(self) -> None:
        """Where another channel of the same session ends, as it may in a call to oneself, ours
        goes on.
        """
        call = Counted()
        call.calls["Ia"].closed(call.b, Failure(ConnectionDone()))
        assert len(call.calls["Ia"]) == 1
        assert call.both == [[], []]

    @pytest.mark.parametrize("open_calls", [0, 1])
    def test_none_left(self, open_calls: int) -> None:
        """One can wait until no call is left; where there is none, that is now."""
        call = Counted()
        if not open_calls:
            call.pair.cut()
        over = Outcome(call.calls["Ia"].none())
        assert over.done is not bool(open_calls)
        call.pair.cut()
        assert over.done
