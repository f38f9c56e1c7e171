"""A line in the log for the operator: how often each outcome has occurred."""

from __future__ import annotations

from collections import Counter
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

#: Seconds between two lines.
INTERVAL: Final = 300.0


class CountLog:
    """Logs counts at intervals if they have changed, and at the end."""

    log = Logger()

    def __init__(self, clock: IReactorTime, counts: Counter[str]) -> None:
        self._counts = counts
        self._logged: dict[str, int] = {}
        self._looping = LoopingCall(self.log_changes)
        self._looping.clock = clock

    def start(self) -> None:
        """Log from now on."""
        self._looping.start(INTERVAL, now=False)

    def stop(self) -> None:
        """Log what has changed since the last line, and stop."""
        if self._looping.running:
            self._looping.stop()
        self.log_changes()

    def log_changes(self) -> None:
        """Log a line, if a count has changed since the last one."""
        counts = dict(self._counts)  # a copy to compare with: the counter itself goes on
        if counts == self._logged:
            return
        self._logged = counts
        line = ", ".join(f"{name} {counts[name]}" for name in sorted(counts))
        self.log.info("Since the start: {line}", line=line)
