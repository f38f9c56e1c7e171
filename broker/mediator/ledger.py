"""The ledger: a record of every address that is told to another, an audit of disclosures.

With ``--ledger first`` a record is committed before its address is sent. With ``--ledger behind``
it is written just after: records are committed together, and no call waits for the disk. If the
process is killed, or the machine fails, the records of the last ``DELAY`` seconds and of the commit
in progress are lost at worst. While the store takes nothing records wait, up to ``WAITING_MOST``;
then no address is sent until it takes them again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.interfaces import IStore, StoreFailed
from broker.messages.errors import ServiceUnavailable
from broker.net.timers import Timer
from broker.tables.disclosures import Disclosure
from broker.tables.locations import Contact

#: Seconds for which a record waits for others to be committed with it.
DELAY: Final = 0.25
#: As many records are committed without waiting for more.
AT_ONCE: Final = 1_000
#: Records that may wait to be written, those of the commit in progress included.
WAITING_MOST: Final = 10_000
#: Seconds until the store is tried again while it fails: the first time, and the longest.
RETRY_FIRST: Final = 1.0
RETRY_LONGEST: Final = 30.0

_SECOND: Final = 1_000_000  # in microseconds


class Ledger:
    """Records each address that is told, and writes the records to the store.

    14 attributes: the two lists of records, and what says when the first is written next, change
    together; a part of them alone would be wrong.

    :ivar first: a record is committed before its address is sent; else just after
    """

    log = Logger()

    def __init__(
        self,
        store: IStore,
        clock: IReactorTime,
        wall: Callable[[], float],
        *,
        first: bool = False,
        waiting_most: int = WAITING_MOST,
    ) -> None:
        """
        :param wall: the time in seconds since 1970
        :param waiting_most: records that may wait to be written
        """
        self.first = first
        self._store = store
        self._wall = wall
        self._waiting_most = waiting_most
        self._last_time = 0  # of the record made last
        self._waiting: list[Disclosure] = []
        self._writing: list[Disclosure] = []  # the commit in progress
        self._writes_again = False  # commit what waits as soon as that commit is done
        self._kept = 0  # the number of all records that were written behind
        self._retry_delay = 0.0  # seconds until the next try, while the store fails
        self._timer = Timer(clock, self._write)
        self._settling: list[tuple[int, Deferred[None]]] = []  # each with the number it waits for
        self._stopped: Deferred[None] | None = None

    # When an address is told.

    def record(
        self, owner: str, recipient: str, contact: Contact, session: str, basis: str, expires: int
    ) -> Disclosure:
        """The record of an address that is about to be told. Each has a time of its own.

        :param owner: the terminal whose address it is
        :param recipient: the terminal that it is told to
        :param basis: the permit entry, or what stands in its place (``Disclosure.basis``)
        :param expires: seconds after which the session ends
        """
        at = int(self._wall() * _SECOND)
        # In the same moment; a difference of a second or more is a clock that was put back.
        if 0 <= self._last_time - at < _SECOND:
            at = self._last_time + 1
        self._last_time = at
        return Disclosure(owner, recipient, contact.host, contact.port, session, basis, at, expires)

    async def commit(self, *disclosures: Disclosure) -> None:
        """Keep records, all or none; only then may their addresses be sent.

        :raises ServiceUnavailable: the store does not take them
        """
        try:
            await self._store.commit(disclosures)
        except StoreFailed:
            raise ServiceUnavailable from None

    def check_room(self, records: int = 1) -> None:
        """See that this number of records can be written behind their addresses.

        :raises ServiceUnavailable: too many wait to be written
        """
        if len(self._waiting) + len(self._writing) + records > self._waiting_most:
            raise ServiceUnavailable
        if self._stopped is not None:
            raise ServiceUnavailable

    def note(self, *disclosures: Disclosure) -> None:
        """Write records behind their addresses, which are sent in this turn."""
        waiting = self._waiting
        is_first = not waiting
        waiting += disclosures
        if is_first:  # there is a timer for the others, or they are written after this commit
            self._timer.start(DELAY)
        elif len(waiting) >= AT_ONCE and not self._retry_delay:
            self._write()

    async def settled(self) -> None:
        """Wait until all records made so far are kept.

        :raises ServiceUnavailable: the store does not take them, or not now
        """
        unwritten = len(self._writing) + len(self._waiting)
        if not unwritten:
            return
        if self._retry_delay:
            raise ServiceUnavailable
        settling: Deferred[None] = Deferred()
        self._settling.append((self._kept + unwritten, settling))
        if self._waiting:
            self._write()
        await settling

    def stop(self) -> Deferred[None]:
        """Hand over what waits to be written, and leave no timer behind.

        :return: fires when it is durable, or lost because the store fails, which is logged; the
            store must not be stopped before
        """
        if self._stopped is None:
            self._stopped = Deferred()
            if self._waiting or self._writing:
                self._write()  # if a commit is in progress: once more, should that fail
            self._stop_if_done()
        return self._stopped

    # Writing.

    def _write(self) -> None:
        """Commit what waits, or do so once the commit in progress is done."""
        self._timer.stop()
        if self._writing:
            self._writes_again = True
        elif self._waiting:
            self._writing, self._waiting = self._waiting, []
            writing = Deferred.fromCoroutine(self._commit(self._writing))
            writing.addCallbacks(self._written, self._not_written)

    async def _commit(self, disclosures: list[Disclosure]) -> None:
        await self._store.commit(disclosures)

    def _written(self, _: None) -> None:
        count = len(self._writing)
        self._kept += count
        self._writing = []
        if self._retry_delay:
            self._retry_delay = 0.0
            self.log.warn("The ledger is written again: {count} records were waiting", count=count)
        writes_again, self._writes_again = self._writes_again, False
        if writes_again:
            self._write()
        settled = [waiter for kept, waiter in self._settling if kept <= self._kept]
        self._settling = [pair for pair in self._settling if pair[0] > self._kept]
        for waiter in settled:
            waiter.callback(None)
        self._stop_if_done()

    def _not_written(self, failure: Failure) -> None:
        """The store has kept none of it: it waits again, before what has come since."""
        self._waiting = self._writing + self._waiting
        self._writing = []
        if not self._retry_delay:
            log_store_failure(self.log, "The ledger can't be written, and is tried again", failure)
        self._retry_delay = min(max(RETRY_FIRST, 2 * self._retry_delay), RETRY_LONGEST)
        writes_again, self._writes_again = self._writes_again, False
        if self._stopped is None:
            self._timer.start(self._retry_delay)
        elif writes_again:
            self._write()
        else:
            count = len(self._waiting)
            self.log.error("{count} disclosures are lost: the store did not take them", count=count)
            self._waiting = []
        settling, self._settling = self._settling, []
        for _, waiter in settling:
            waiter.errback(ServiceUnavailable())
        self._stop_if_done()

    def _stop_if_done(self) -> None:
        """Once the ledger is stopped and nothing waits: leave no timer, and say so."""
        stopped = self._stopped
        if stopped is not None and not (stopped.called or self._writing or self._waiting):
            self._timer.stop()
            stopped.callback(None)


def log_store_failure(log: Logger, what: str, failure: Failure) -> None:
    """Log that the store failed; an unexpected error with its traceback."""
    if failure.check(StoreFailed):
        log.error("{what}: {why}", what=what, why=failure.getErrorMessage())
    else:
        log.failure("{what}", failure, what=what)
