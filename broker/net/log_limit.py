"""A log line that a peer can cause at will, kept to a rate."""

from __future__ import annotations

from math import inf

from twisted.internet.interfaces import IReactorTime


class LogLimit:
    """Lets one line through in each interval, and counts those it holds back (I15)."""

    __slots__ = ("_clock", "_next", "_seconds", "_suppressed")

    def __init__(self, clock: IReactorTime, seconds: float) -> None:
        """
        :param seconds: from one line to the next, at least
        """
        self._clock = clock
        self._seconds = seconds
        self._next = -inf
        self._suppressed = 0

    def admit(self) -> str | None:
        """Ask before a line is logged.

        :return: what to append to the line: how many were held back since the last one, or the
            empty text; ``None`` where this line is held back
        """
        now = self._clock.seconds()
        if now < self._next:
            self._suppressed += 1
            return None
        suppressed, self._suppressed = self._suppressed, 0
        self._next = now + self._seconds
        return f" ({suppressed} more since the last such line)" if suppressed else ""
