"""Retention: records of the ledger that are older than ``--ledger-days`` are dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.interfaces import IStore
from broker.mediator.ledger import log_store_failure
from broker.net.timers import Timer

#: Days for which records are kept, unless the operator sets another number.
DAYS: Final = 90.0
#: Seconds until old records are dropped for the first time, and from one time to the next.
FIRST_PRUNING: Final = 60.0
PRUNING: Final = 86_400.0

_DAY: Final = 86_400
_SECOND: Final = 1_000_000  # in microseconds


class LedgerPruner:
    """Drops old records each day."""

    log = Logger()

    def __init__(
        self, store: IStore, clock: IReactorTime, wall: Callable[[], float], days: float = DAYS
    ) -> None:
        """
        :param wall: the time in seconds since 1970
        :param days: for which records are kept
        """
        self._store = store
        self._clock = clock
        self._wall = wall
        self._ahead = wall() - clock.seconds()
        self._days = days
        self._timer = Timer(clock, self._prune)

    def start(self) -> None:
        """Begin: in a minute, when the server is up and calls are served."""
        self._timer.start(FIRST_PRUNING)

    def stop(self) -> None:
        """Leave no timer behind."""
        self._timer.stop()

    def _prune(self) -> None:
        self._timer.start(PRUNING)
        # By the earlier of two clocks: a wall clock that is put forward drops no young record.
        now = min(self._wall(), self._clock.seconds() + self._ahead)
        pruning = Deferred.fromCoroutine(self._drop(int((now - self._days * _DAY) * _SECOND)))
        pruning.addErrback(self._not_pruned)

    async def _drop(self, before: int) -> None:
        count = await self._store.prune(before)
        self.log.info(
            "{count} disclosures older than {days:g} days are dropped", count=count, days=self._days
        )

    def _not_pruned(self, failure: Failure) -> None:
        what = "Old disclosures can't be dropped, which is tried again in a day"
        log_store_failure(self.log, what, failure)
