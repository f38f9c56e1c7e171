"""Timers: one call at a time, and deadlines by the thousand on one timer.

A timer of the reactor for each call, login or question would cost more than the work it guards.
All deadlines of a kind have the same length, so they fall due in the order in which they were set:
a dict, which keeps its order, and one timer serve them all.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from typing import Generic, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

T = TypeVar("T", bound=Hashable)


class Timer:
    """One call at a time in the future: started, started again, stopped.

    For what lives long: a timer keeps its callback, and so is part of a reference cycle with its
    owner. Where there is one for each message or call, use a ``DeadlineQueue``.
    """

    __slots__ = ("_callback", "_clock", "_pending")

    def __init__(self, clock: IReactorTime, callback: Callable[[], object]) -> None:
        """
        :param callback: called when the time is over; the timer is inactive then, and may be
            started again
        """
        self._clock = clock
        self._callback = callback
        self._pending: IDelayedCall | None = None

    def start(self, seconds: float) -> None:
        """Call after this time; a time that was set before does not count now."""
        self.stop()
        self._pending = self._clock.callLater(seconds, self._callback)

    def stop(self) -> None:
        """Don't call; nothing where the timer is not active."""
        pending, self._pending = self._pending, None
        if pending is not None and pending.active():
            pending.cancel()

    @property
    def active(self) -> bool:
        """Whether a call is still to come."""
        return self._pending is not None and bool(self._pending.active())


async def wait_until(clock: IReactorTime, when: float) -> None:
    """Wait until a time of the clock. Cancelling ends the wait early, and is no error here."""
    left = when - clock.seconds()
    if left > 0:
        timer = clock.callLater(left, lambda: waiting.callback(None))
        waiting: Deferred[None] = Deferred(lambda _: timer.cancel())
        with suppress(CancelledError):
            await waiting


class DeadlineQueue(Generic[T]):
    """Things that fall due a fixed time after they were added.

    :ivar seconds: that time
    """

    __slots__ = ("_clock", "_due", "_expired", "_timer", "seconds")

    def __init__(self, clock: IReactorTime, seconds: float, expired: Callable[[T], object]) -> None:
        """
        :param expired: called with each thing that falls due, after it was removed
        """
        self.seconds = seconds
        self._clock = clock
        self._expired = expired
        self._due: dict[T, float] = {}
        self._timer: IDelayedCall | None = None

    def add(self, thing: T) -> None:
        """Set the deadline of a thing; an earlier one does not count now."""
        self._due.pop(thing, None)
        self._due[thing] = self._clock.seconds() + self.seconds
        if self._timer is None:
            self._timer = self._clock.callLater(self.seconds, self._fall_due)

    def discard(self, thing: T) -> None:
        """Remove the deadline of a thing, if it has one."""
        self._due.pop(thing, None)

    def __contains__(self, thing: T) -> bool:
        return thing in self._due

    def __iter__(self) -> Iterator[T]:
        return iter(self._due)

    def __len__(self) -> int:
        return len(self._due)

    def stop(self) -> None:
        """Forget all of them, and leave no timer behind."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fall_due(self) -> None:
        self._timer = None
        now = self._clock.seconds()
        try:
            while self._due:
                thing, when = next(iter(self._due.items()))
                if when > now:
                    break
                del self._due[thing]
                self._expired(thing)
        finally:
            self._set_timer(now)

    def _set_timer(self, now: float) -> None:
        """Set the timer for the earliest: one added just now, the latest, may have set it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._due:
            earliest = next(iter(self._due.values()))
            self._timer = self._clock.callLater(max(0.0, earliest - now), self._fall_due)
