"""A line for the operator: how often each outcome was had."""

from __future__ import annotations

from collections import Counter
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

#: Seconds between two lines.
INTERVAL: Final = 300.0


class CountLog:
    """Logs counts now and then, when they have changed, and at the end."""

    log = Logger()

    def __init__(self, clock: IReactorTime, counts: Counter[str]) -> None:
        self._counts = counts
        self._told: dict[str, int] = {}
        self._looping = LoopingCall(self.tell)
        self._looping.clock = clock

    def start(self) -> None:
        """Begin."""
        self._looping.start(INTERVAL, now=False)

    def stop(self) -> None:
        """Tell what has not been told, and end."""
        if self._looping.running:
            self._looping.stop()
        self.tell()

    def tell(self) -> None:
        """Log a line, if anything has changed since the last."""
        counts = dict(self._counts)
        if counts == self._told:
            return
        self._told = counts
        line = ", ".join(f"{name} {counts[name]}" for name in sorted(counts))
        self.log.info("Since the start: {line}", line=line)
