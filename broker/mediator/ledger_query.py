"""``QUERY`` / ``DISCLOSURES``: a terminal reads the ledger of its own address."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from twisted.internet.defer import CancelledError

from broker.interfaces import StoreFailed
from broker.mediator.connection import TerminalConnection
from broker.mediator.context import MediatorContext
from broker.messages.errors import ServiceUnavailable, TooManyRequests
from broker.messages.statements import NOTHING_DISCLOSED
from broker.net.dialogue import Request
from broker.tables.disclosures import Disclosure, format_line, parse_time

#: What one answer holds at most: lines, and the bytes of them.
PAGE_LINES: Final = 200
PAGE_BYTES: Final = 60_000
#: Bytes of a line's field name, colon and end.
_LINE_BYTES: Final = len("Disclosed:\r\n")
#: Later than any time of a record, in microseconds since 1970.
LATEST: Final = 2**62


class LedgerQuery:
    """Answers who was told a terminal's address, a page at a time."""

    def __init__(self, context: MediatorContext) -> None:
        self._ledger = context.disclosures
        self._store = context.store
        self._in_progress: set[str] = set()  # identifiers

    async def answer(self, peer: TerminalConnection, request: Request) -> None:
        """Send a page, the newest record first.

        :raises TooManyRequests: its question before this one is not answered yet
        :raises ServiceUnavailable: not all records can be read now, and a part would mislead
        """
        identifier = peer.identifier
        if identifier in self._in_progress:
            raise TooManyRequests
        self._in_progress.add(identifier)
        try:
            if request.queued is not None:  # so that no page waits behind another reply
                await request.until_next()
            lines = await self._page(identifier, request.message.fields.get("Before"))
        except CancelledError:
            raise ServiceUnavailable from None
        finally:
            self._in_progress.discard(identifier)
        if lines:
            request.reply("", {"Disclosed": "\n".join(lines)}, code=200)
        else:
            request.reply(NOTHING_DISCLOSED)

    async def _page(self, identifier: str, before: str | None) -> list[str]:
        """The lines of one answer; the next page begins before the time of the last one."""
        earlier = LATEST if before is None else parse_time(before)
        await self._ledger.settled()
        try:
            found = await self._store.disclosures(identifier, earlier, PAGE_LINES + 1)
        except StoreFailed:
            raise ServiceUnavailable from None
        return [line for _, line in _fitting(found)]


def _fitting(found: Iterable[Disclosure]) -> list[tuple[int, str]]:
    """The lines of a page, each with its time.

    A page never ends between records of one time, which a clock that was put back may have made:
    the next page, which begins before that time, would miss the others.
    """
    lines: list[tuple[int, str]] = []
    size = 0
    for disclosure in found:
        line = format_line(disclosure)
        size += len(line.encode()) + _LINE_BYTES
        if len(lines) == PAGE_LINES or size > PAGE_BYTES:
            whole = [pair for pair in lines if pair[0] != disclosure.at]
            return whole or lines
        lines.append((disclosure.at, line))
    return lines
