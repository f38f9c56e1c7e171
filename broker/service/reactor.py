"""Twisted's reactor for Linux, without a logging context of its own around each event.

Twisted has every event handled in a context that says whose it is, for lines of its old kind of
log; nothing here writes such lines. That context costs a tenth of a call.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.main import installReactor
from twisted.logger import Logger


class EpollReactor(EPollReactor):
    """The same, but for that."""

    log = Logger()

    def doPoll(self, timeout: float | None) -> None:
        """Wait for events, and handle them: what fails at one does not keep the others waiting.

        Python itself waits again where a signal has interrupted it.

        :param timeout: seconds to wait at the most; without, until there is one
        """
        handle: Any = self._doReadOrWrite
        selectables: dict[int, Any] = self._selectables
        wait = -1 if timeout is None else timeout
        for descriptor, event in self._poller.poll(wait, len(selectables)):
            selectable = selectables.get(descriptor)
            if selectable is None:
                continue  # closed by what was handled before it
            try:
                handle(selectable, descriptor, event)
            except Exception:
                self.log.failure("What a connection brought could not be handled")

    doIteration = doPoll


def install() -> None:
    """Have this process run it."""
    make: Any = EpollReactor  # carries no annotations
    installReactor(make())
