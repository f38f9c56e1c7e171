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

    @pytest.mark.parametrize(
        ("how", "end", "cause"),
        [
            ("ended", "Completed", None),
            ("cut", "Failed", None),
            ("broken off", "Failed", "enough"),
            ("all ended", "Failed", "good night"),
            ("terminated", "Terminated", ENDED_BY_MEDIATOR),  # by the mediator (S5001, I2)
        ],
    )
    def test_end(self, how: str, end: str, cause: str | None) -> None:
        """Both say how it ended, whichever side ends it; a call counts until then (A25)."""
        call = Counted()
        assert [len(calls) for calls in call.calls.values()] == [1, 1]
        if how == "ended":
            for speaker in call.speakers:
                speaker.transport.loseWriteConnection()
        elif how == "cut":
            call.pair.cut()
        elif how == "broken off":
            call.speakers[1].transport.abortConnection(cause)
        elif how == "all ended":
            call.calls["Ib"].end_all(str(cause))
        else:
            call.calls["Ib"].terminate(SESSION)
        call.pump()
        assert call.both == [[(SESSION, end)], [(SESSION, end)]]
        assert [len(calls) for calls in call.calls.values()] == [0, 0]
        why = call.speakers[0].why
        assert cause is None or (isinstance(why, Aborted) and why.cause == cause)

    def test_terminating_another(self) -> None:
        """An order to end a session that isn't here ends nothing."""
        call = Counted()
        call.calls["Ib"].terminate("S-other")
        call.pump()
        assert len(call.calls["Ib"]) == 1

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
