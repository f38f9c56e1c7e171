"""When each list next holds something that has expired: any number of times on one timer."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime

#: Lists that are looked at in one turn of the reactor at the most (I24).
AT_ONCE: Final = 64
#: Seconds after which the timer looks again at the latest: ``epoll`` takes no wait of a month.
LONGEST: Final = 3600.0


class ExpiryTimer:
    """One time for each owner of a list at which it is to be looked at."""

    def __init__(
        self, clock: IReactorTime, wall: Callable[[], float], due: Callable[[str], object]
    ) -> None:
        """
        :param wall: the time in seconds since 1970, which goes on as the clock does
        :param due: called with each owner whose time has come, and which then has none
        """
        self._clock = clock
        self._wall = wall
        self._came_due = due
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []  # what is not in _due as well is out of date
        self._timer: IDelayedCall | None = None

    def set(self, owner: str, when: float) -> None:
        """Look at a list at this time, and not when it was to be before; never, for infinity."""
        if when == inf:
            if self._due.pop(owner, None) is not None and not self._due:
                self.stop()
            return
        if self._due.get(owner) == when:
            return
        self._due[owner] = when
        heappush(self._heap, (when, owner))
        if len(self._heap) > 2 * len(self._due) + AT_ONCE:
            self._heap = [(at, name) for name, at in self._due.items()]
            heapify(self._heap)
        if self._heap[0] == (when, owner):
            self._arm()

    def stop(self) -> None:
        """Forget all of them, and leave no timer behind."""
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
            self._timer = self._clock.callLater(wait, self._fall_due)

    def _fall_due(self) -> None:
        self._timer = None
        now = self._wall()
        try:
            for _ in range(AT_ONCE):
                if not self._heap or self._heap[0][0] > now:
                    break
                when, owner = heappop(self._heap)
                if self._due.get(owner) == when:
                    del self._due[owner]
                    self._came_due(owner)
        finally:
            self._arm()
