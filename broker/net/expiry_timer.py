"""One timer for any number of times at which something expires, one time for each key."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf
from typing import Final, Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

#: Keys that come due in one turn of the reactor at most (I24).
AT_ONCE: Final = 64
#: Longest wait of the timer in seconds: ``epoll`` takes no wait of a month.
LONGEST: Final = 3600.0


class ExpiryEvents(Protocol):
    """What an ``ExpiryTimer`` tells its owner."""

    def came_due(self, key: str, /) -> None:
        """The time of a key has come; it has none now."""


class ExpiryTimer:
    """Keeps one time for each key, and tells when it has come."""

    def __init__(
        self, clock: IReactorTime, wall: Callable[[], float], events: ExpiryEvents
    ) -> None:
        """
        :param wall: the time in seconds since 1970, which goes on as the clock does
        """
        self._clock = clock
        self._wall = wall
        self._events = events
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []  # a pair that is not in _due too is out of date
        self._timer: IDelayedCall | None = None

    def set(self, key: str, when: float) -> None:
        """Set the time of a key, in place of the one it had; infinity sets none."""
        if when == inf:
            if self._due.pop(key, None) is not None and not self._due:
                self.stop()
            return
        if self._due.get(key) == when:
            return
        self._due[key] = when
        heappush(self._heap, (when, key))
        if len(self._heap) > 2 * len(self._due) + AT_ONCE:
            # Too much of it is out of date.
            self._heap = [(at, name) for name, at in self._due.items()]
            heapify(self._heap)
        if self._heap[0] == (when, key):
            self._arm()

    def stop(self) -> None:
        """Forget all times, and leave no timer behind."""
        self._due.clear()
        self._heap.clear()
        self._disarm()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        self._disarm()
        if self._heap:
            wait = min(max(0.0, self._heap[0][0] - self._wall()), LONGEST)
            self._timer = self._clock.callLater(wait, self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = self._wall()
        try:
            for _ in range(AT_ONCE):
                if not self._heap or self._heap[0][0] > now:
                    break
                when, key = heappop(self._heap)
                if self._due.get(key) == when:
                    del self._due[key]
                    self._events.came_due(key)
        finally:
            self._arm()
