"""Timers, many deadlines on one timer, limited log lines (broker.net.timers, log_limit)."""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from broker.net.log_limit import LogLimit
from broker.net.timers import DeadlineQueue, Timer


class DeadlinesTests:
    """Things fall due a fixed time after they were added, and only then."""

    def setup_method(self) -> None:
        """Deadlines of 10 seconds, and a list of what fell due when."""
        self.clock = Clock()
        self.due: list[tuple[str, float]] = []
        self.deadlines: DeadlineQueue[str] = DeadlineQueue(self.clock, 10, self.expire)

    def expire(self, thing: str) -> None:
        """Something fell due; it is not held then."""
        assert thing not in self.deadlines
        self.due.append((thing, self.clock.seconds()))

    def pass_time(self, seconds: int) -> None:
        """Let time pass, a second at a time."""
        for _ in range(seconds):
            self.clock.advance(1)

    def test_fall_due(self) -> None:
        """Each at its time, in the order in which they were added, none earlier."""
        self.deadlines.add("a")
        self.pass_time(3)
        self.deadlines.add("b")
        self.deadlines.add("c")
        self.pass_time(6)
        assert self.due == []
        self.pass_time(20)
        assert self.due == [("a", 10), ("b", 13), ("c", 13)]
        assert len(self.deadlines) == 0

    def test_late_clock(self) -> None:
        """A clock that jumps over several deadlines makes all of them fall due; what is discarded
        never does, and what was never added may be discarded.
        """
        for thing in "abcd":
            self.deadlines.add(thing)
            self.clock.advance(1)
        for thing in "bx":
            self.deadlines.discard(thing)
        assert [thing in self.deadlines for thing in "ab"] == [True, False]
        self.clock.advance(100)
        assert [thing for thing, _ in self.due] == ["a", "c", "d"]

    def test_add_again(self) -> None:
        """Adding a thing again sets its deadline from then, behind the others."""
        self.deadlines.add("a")
        self.pass_time(5)
        self.deadlines.add("b")
        self.deadlines.add("a")
        assert len(self.deadlines) == 2
        self.pass_time(30)
        assert self.due == [("b", 15), ("a", 15)]

    def test_one_timer(self) -> None:
        """A thousand deadlines cost one timer of the reactor, and none when all are over."""
        for number in range(1000):
            self.deadlines.add(str(number))
            self.clock.advance(0.001)
            assert len(self.clock.getDelayedCalls()) == 1
        self.pass_time(30)
        assert len(self.due) == 1000
        assert self.clock.getDelayedCalls() == []

    def test_stop(self) -> None:
        """Stopped, nothing falls due and no timer is left; it may be used again."""
        self.deadlines.add("a")
        self.deadlines.stop()
        assert self.clock.getDelayedCalls() == []
        self.deadlines.stop()
        self.pass_time(30)
        assert self.due == []
        self.deadlines.add("b")
        self.pass_time(30)
        assert self.due == [("b", 40)]

    def test_changed_as_they_fall_due(self) -> None:
        """What falls due may discard, add and stop."""
        seen: list[str] = []

        def expire(thing: str) -> None:
            seen.append(thing)
            if thing == "a":
                deadlines.discard("b")
                deadlines.add("d")
            if thing == "d":
                deadlines.stop()

        deadlines: DeadlineQueue[str] = DeadlineQueue(self.clock, 10, expire)
        for thing in "abc":
            deadlines.add(thing)
        self.pass_time(19)
        assert seen == ["a", "c"]
        deadlines.add("e")
        self.pass_time(1)
        assert seen == ["a", "c", "d"]
        assert self.clock.getDelayedCalls() == []

    def test_when_one_is_added_as_another_falls_due_then_those_between_are_not_late(self) -> None:
        """The timer is set for the earliest, also where the latest was added just now."""
        clock = Clock()
        fell: list[tuple[str, float]] = []

        def expired(thing: str) -> None:
            fell.append((thing, clock.seconds()))
            if thing == "first":
                queue.add("last")

        queue = DeadlineQueue(clock, 10.0, expired)
        queue.add("first")
        clock.advance(5)
        queue.add("second")
        clock.pump([5, 5, 5])
        assert fell == [("first", 10.0), ("second", 15.0), ("last", 20.0)]

    def test_failure(self) -> None:
        """Where one of them fails the others still fall due (I24)."""
        seen: list[str] = []

        def expire(thing: str) -> None:
            seen.append(thing)
            if thing == "a":
                raise LookupError(thing)

        deadlines: DeadlineQueue[str] = DeadlineQueue(self.clock, 10, expire)
        deadlines.add("a")
        deadlines.add("b")
        with pytest.raises(LookupError):
            self.clock.advance(10)
        self.clock.advance(0)
        assert seen == ["a", "b"]


class TimerTests:
    """One call at a time."""

    def setup_method(self) -> None:
        """A timer, and when it called."""
        self.clock = Clock()
        self.calls: list[float] = []
        self.timer = Timer(self.clock, lambda: self.calls.append(self.clock.seconds()))

    def test_when_the_time_has_passed_then_it_calls_once(self) -> None:
        """Started again, the earlier time does not count; stopped, it does not call."""
        self.timer.stop()
        self.timer.start(2)
        self.clock.advance(1)
        self.timer.start(2)
        assert self.timer.active
        self.clock.advance(1.5)
        assert self.calls == []
        self.clock.advance(0.5)
        assert self.calls == [3]
        assert self.clock.getDelayedCalls() == []
        self.timer.start(2)
        self.timer.stop()
        self.timer.stop()
        assert self.clock.getDelayedCalls() == []

    def test_when_it_calls_then_it_may_be_started_again(self) -> None:
        """It is not active while it calls."""

        def again() -> None:
            self.calls.append(1.0)
            timer.start(1)

        timer = Timer(self.clock, again)
        timer.start(1)
        for _ in range(3):
            self.clock.advance(1)
        assert len(self.calls) == 3
        assert timer.active


class LogLimitTests:
    """A line that a peer can cause at will."""

    def test_when_lines_come_too_fast_then_they_are_counted(self) -> None:
        """When lines come too fast, they are counted."""
        clock = Clock()
        limit = LogLimit(clock, 5)
        assert [limit.admit() for _ in range(3)] == ["", None, None]
        clock.advance(5)
        assert [limit.admit() for _ in range(2)] == [" (2 more since the last such line)", None]
        clock.advance(6)
        clock.advance(6)
        assert limit.admit() == " (1 more since the last such line)"
        clock.advance(6)
        assert limit.admit() == ""
