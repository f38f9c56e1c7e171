"""The log of whom lists no longer accept: however often a list changes, it fills no log (I15)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from broker.messages.message import printable
from broker.net.timers import DeadlineQueue
from broker.tables.permits import Limit

#: Seconds in which what falls from one list is told by name once; what falls meanwhile is counted.
TOLD_EVERY: Final = 1.0
#: Entries that one line names at the most.
NAMED_MOST: Final = 10


class RevocationLog:
    """Tells the log which entries are no longer on a list."""

    log = Logger()

    def __init__(self, clock: IReactorTime) -> None:
        self._lately: DeadlineQueue[str] = DeadlineQueue(clock, TOLD_EVERY, self._tell_rest)
        self._untold: dict[str, int] = {}

    def tell(
        self, owner: str, fallen: Mapping[str, Limit | None], now: float, used: str = ""
    ) -> None:
        """Log what has fallen from a list, each cause by itself.

        :param fallen: the entries, with the limits that they had
        :param now: seconds since 1970
        :param used: the one whose last use has been had
        """
        if owner in self._lately:
            self._untold[owner] = self._untold.get(owner, 0) + len(fallen)
            return
        self._lately.add(owner)
        causes: dict[str, list[str]] = {}
        for entry, limit in fallen.items():
            if limit is not None and limit.until is not None and limit.until <= now:
                cause = "expired"
            else:
                cause = "used up" if entry == used else "withdrawn"
            causes.setdefault(cause, []).append(entry)
        for cause, entries in causes.items():
            self.log.info(
                "{owner} no longer accepts {entries}: {cause}",
                owner=printable(owner),
                entries=_named(entries),
                cause=cause,
            )

    def stop(self) -> None:
        """Tell what is counted, and leave no timer behind."""
        for owner in list(self._untold):
            self._tell_rest(owner)
        self._lately.stop()

    def _tell_rest(self, owner: str) -> None:
        count = self._untold.pop(owner, 0)
        if count:
            self.log.info(
                "{owner} no longer accepts {count} more, which fell within a second",
                owner=printable(owner),
                count=count,
            )


def _named(entries: Sequence[str]) -> str:
    named = ", ".join(printable(entry) for entry in entries[:NAMED_MOST])
    more = len(entries) - NAMED_MOST
    return f"{named} and {more} more" if more > 0 else named
