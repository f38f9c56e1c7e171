"""The ledger of disclosures: every address that is told leaves through here.

*First*, a record is committed before its address leaves. *Behind* it, records are committed
together: a call then waits for no disk. What is lost at worst where the process is killed, or the
machine fails, is what was told in the last ``DELAY`` seconds and in the commit under way. While
the store takes nothing, records wait, so many at the most; then no address leaves any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.interfaces import IStore, StoreFailed
from broker.mediator.connection import TerminalConnection
from broker.messages.errors import ServiceUnavailable, TooManyRequests
from broker.messages.statements import NOTHING_DISCLOSED
from broker.net.dialogue import Request
from broker.tables.disclosures import Disclosure, format_line, parse_time
from broker.tables.locations import Contact

#: Seconds for which a record waits for others to be committed with it.
DELAY: Final = 0.25
#: So many are committed without waiting for more.
AT_ONCE: Final = 1_000
#: How many records may wait to be written, those of the commit under way included.
WAITING_MOST: Final = 10_000
#: Seconds between one try and the next while the store fails: the first, and the longest.
AGAIN: Final = 1.0
AGAIN_MOST: Final = 30.0

#: What one answer tells at the most: lines, and the bytes of them.
PAGE_LINES: Final = 200
PAGE_BYTES: Final = 60_000
#: A line's field name, colon and end.
_LINE_BYTES: Final = len("Disclosed:\r\n")
#: Later than any time that can be told.
_EVER: Final = 2**62

#: Days for which a record is kept, where nothing else is said.
DAYS: Final = 90.0
#: Seconds until what is too old is dropped for the first time, and from one time to the next.
FIRST_PRUNING: Final = 60.0
PRUNING: Final = 86_400.0

_SECOND: Final = 1_000_000  # in microseconds


class Ledger:
    """Keeps a record of each address told.

    :ivar first: a record is committed before its address leaves; else it is written behind it
    """

    log = Logger()

    def __init__(
        self,
        store: IStore,
        clock: IReactorTime,
        wall: Callable[[], float],
        *,
        first: bool = False,
        days: float = DAYS,
        waiting_most: int = WAITING_MOST,
    ) -> None:
        """
        :param wall: the time in seconds since 1970
        :param days: for so long records are kept
        :param waiting_most: so many may wait to be written
        """
        self.first = first
        self._store = store
        self._clock = clock
        self._wall = wall
        self._ahead = wall() - clock.seconds()
        self._days = days
        self._waiting_most = waiting_most
        self._last = 0  # the time of the record made last
        self._waiting: list[Disclosure] = []
        self._writing: list[Disclosure] = []  # the commit under way
        self._again = False  # commit what waits as soon as the one under way is done
        self._kept = 0  # so many of those noted have been kept
        self._backoff = 0.0  # seconds until the next try, while the store fails
        self._timer: IDelayedCall | None = None
        self._settling: list[tuple[int, Deferred[None]]] = []
        self._asking: set[str] = set()
        self._pruning: IDelayedCall | None = None
        self._stopped: Deferred[None] | None = None

    # When an address is told.

    def record(
        self, whose: str, told: str, address: Contact, session: str, basis: str, expires: int
    ) -> Disclosure:
        """The record of an address that is about to be told; each has a time of its own."""
        at = int(self._wall() * _SECOND)
        if 0 <= self._last - at < _SECOND:  # one moment: not a clock that was put back
            at = self._last + 1
        self._last = at
        return Disclosure(whose, told, address.host, address.port, session, basis, at, expires)

    async def commit(self, *disclosures: Disclosure) -> None:
        """Keep records, all or none; only then may their addresses leave.

        :raises ServiceUnavailable: they can't be kept
        """
        try:
            await self._store.commit(disclosures)
        except StoreFailed:
            raise ServiceUnavailable from None

    def check_room(self, records: int = 1) -> None:
        """See that so many more records can be written behind their addresses.

        :raises ServiceUnavailable: too many wait to be written already
        """
        if len(self._waiting) + len(self._writing) + records > self._waiting_most:
            raise ServiceUnavailable
        if self._stopped is not None:
            raise ServiceUnavailable

    def note(self, *disclosures: Disclosure) -> None:
        """Have records written behind their addresses, which leave in this turn."""
        waiting = self._waiting
        waiting += disclosures
        if self._timer is None:
            self._wait(DELAY)
        elif len(waiting) >= AT_ONCE and not self._backoff:
            self._write()

    async def settled(self) -> None:
        """Wait until what has been noted so far is kept.

        :raises ServiceUnavailable: it can't be, or not now
        """
        unwritten = len(self._writing) + len(self._waiting)
        if not unwritten:
            return
        if self._backoff:
            raise ServiceUnavailable
        settling: Deferred[None] = Deferred()
        self._settling.append((self._kept + unwritten, settling))
        if self._waiting:
            self._write()
        await settling

    def stop(self) -> Deferred[None]:
        """Hand over what waits to be written, and leave no timer behind.

        :return: fires when it is durable, or lost because the store fails, and is then logged;
            before that the store must not be stopped
        """
        if self._stopped is None:
            self._stopped = Deferred()
            if self._pruning is not None:
                self._pruning.cancel()
                self._pruning = None
            if self._waiting or self._writing:
                self._write()  # where one is under way: one more try if it fails
            self._end()
        return self._stopped

    # Writing.

    def _wait(self, seconds: float) -> None:
        """Write after so many seconds, and not before."""
        self._rest()
        self._timer = self._clock.callLater(seconds, self._write)

    def _rest(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _write(self) -> None:
        """Commit what waits, or do so once the commit under way is done."""
        self._rest()
        if self._writing:
            self._again = True
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
        if self._backoff:
            self._backoff = 0.0
            self.log.warn(
                "The ledger of disclosures is written again: {count} were waiting", count=count
            )
        again, self._again = self._again, False
        if again:
            self._write()
        settled = [one for kept, one in self._settling if kept <= self._kept]
        self._settling = [one for one in self._settling if one[0] > self._kept]
        for one in settled:
            one.callback(None)
        self._end()

    def _not_written(self, failure: Failure) -> None:
        """Nothing of it is kept: it waits on, before what has come since."""
        self._waiting = self._writing + self._waiting
        self._writing = []
        if not self._backoff:
            self._tell("The ledger of disclosures can't be written, and is tried again", failure)
        self._backoff = min(max(AGAIN, 2 * self._backoff), AGAIN_MOST)
        again, self._again = self._again, False
        if self._stopped is None:
            self._wait(self._backoff)
        elif again:
            self._write()
        else:
            self.log.error(
                "{count} disclosures are lost: the store did not take them",
                count=len(self._waiting),
            )
            self._waiting = []
        settling, self._settling = self._settling, []
        for _, one in settling:
            one.errback(ServiceUnavailable())
        self._end()

    def _end(self) -> None:
        """Say that all is handed over, once it is to be and is."""
        stopped = self._stopped
        if stopped is not None and not (stopped.called or self._writing or self._waiting):
            self._rest()
            stopped.callback(None)

    def _tell(self, what: str, failure: Failure) -> None:
        """Log a failure of the store; what was not foreseen, whole."""
        if failure.check(StoreFailed):
            self.log.error("{what}: {why}", what=what, why=failure.getErrorMessage())
        else:
            self.log.failure("{what}", failure, what=what)

    # Telling.

    async def answer(self, peer: TerminalConnection, request: Request) -> None:
        """``QUERY`` / ``DISCLOSURES``: who was told where the asker is, the newest first.

        :raises TooManyRequests: its question before this one has not been answered
        :raises ServiceUnavailable: not all of it can be told now
        """
        identifier = peer.identifier
        if identifier in self._asking:
            raise TooManyRequests
        self._asking.add(identifier)
        try:
            if request.held is not None:  # so that no page waits behind another reply
                await request.turn()
            lines = await self._page(identifier, request.message.fields.get("Before"))
        except CancelledError:
            raise ServiceUnavailable from None
        finally:
            self._asking.discard(identifier)
        if lines:
            request.reply("", {"Disclosed": "\n".join(lines)}, code=200)
        else:
            request.reply(NOTHING_DISCLOSED)

    async def _page(self, identifier: str, before: str | None) -> list[str]:
        """As many lines as one answer tells; the next page begins before the last one's time."""
        earlier = _EVER if before is None else parse_time(before)
        await self.settled()
        try:
            found = await self._store.disclosures(identifier, earlier, PAGE_LINES + 1)
        except StoreFailed:
            raise ServiceUnavailable from None
        return [line for _, line in _fitting(found)]

    # Forgetting.

    def start(self) -> None:
        """Drop what is too old, in a minute and each day."""
        self._pruning = self._clock.callLater(FIRST_PRUNING, self._prune)

    def _prune(self) -> None:
        self._pruning = self._clock.callLater(PRUNING, self._prune)
        # The earlier of two clocks: one that is put forward takes nothing away.
        now = min(self._wall(), self._clock.seconds() + self._ahead)
        pruning = Deferred.fromCoroutine(self._drop(int((now - self._days * 86_400) * _SECOND)))
        pruning.addErrback(self._not_pruned)

    async def _drop(self, before: int) -> None:
        gone = await self._store.prune(before)
        self.log.info(
            "{count} disclosures older than {days:g} days are dropped", count=gone, days=self._days
        )

    def _not_pruned(self, failure: Failure) -> None:
        self._tell("Old disclosures can't be dropped, which is tried again in a day", failure)


def _fitting(found: Iterable[Disclosure]) -> list[tuple[int, str]]:
    """The lines of a page, each with its time.

    It never ends amid several of one time, which a clock that was put back may have made: the next
    page, which begins before the last one's time, would lose the rest.
    """
    lines: list[tuple[int, str]] = []
    size = 0
    for one in found:
        line = format_line(one)
        size += len(line.encode()) + _LINE_BYTES
        if len(lines) == PAGE_LINES or size > PAGE_BYTES:
            whole = [told for told in lines if told[0] != one.at]
            return whole or lines
        lines.append((one.at, line))
    return lines
