"""The log of entries that lists lose; a list that changes often does not fill it (I15)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from broker.messages.message import printable
from broker.net.timers import DeadlineQueue
from broker.tables.permits import Limit

#: Seconds in which the entries that one list loses are logged by name once; more are counted.
LOG_INTERVAL: Final = 1.0
#: Entries that one line names at most.
NAMED_MOST: Final = 10


class RevocationLog:
    """Logs which callers a terminal has ceased to accept."""

    log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._recent: DeadlineQueue[str] = DeadlineQueue(clock, LOG_INTERVAL, self._log_rest)
        self._counted: dict[str, int] = {}  # by owner: entries lost and not logged yet

    def removed(
        self, owner: str, removed: Mapping[str, Limit | None], now: float, used: str = ""
    ) -> None:
        """Log which entries a list has lost, a line for each cause.

        :param removed: the entries, with the limits that they had
        :param now: seconds since 1970
        :param used: the entry whose last use is spent
        """
        if owner in self._recent:
            self._counted[owner] = self._counted.get(owner, 0) + len(removed)
            return
        self._recent.add(owner)
        causes: dict[str, list[str]] = {}
        for entry, limit in removed.items():
            if limit is not None and limit.until is not None and limit.until <= now:
                cause = "expired"
            else:
                cause = "used up" if entry == used else "withdrawn"
            causes.setdefault(cause, []).append(entry)
        for cause, entries in causes.items():
            self.log.info(
                "{owner} has ceased to accept {entries}: {cause}",
                owner=printable(owner),
                entries=_named(entries),
                cause=cause,
            )

    def stop(self) -> None:
        """Log what is counted, and leave no timer behind."""
        for owner in list(self._counted):
            self._log_rest(owner)
        self._recent.stop()

    def _log_rest(self, owner: str) -> None:
        count = self._counted.pop(owner, 0)
        if count:
            self.log.info(
                "{owner} has ceased to accept {count} more within a second",
                owner=printable(owner),
                count=count,
            )


def _named(entries: Sequence[str]) -> str:
    named = ", ".join(printable(entry) for entry in entries[:NAMED_MOST])
    more = len(entries) - NAMED_MOST
    return f"{named} and {more} more" if more > 0 else named
