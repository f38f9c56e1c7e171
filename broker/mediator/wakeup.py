"""Waking a terminal along the way that its datagrams take, and by dialling it (fig. 8a, 19, E1).

A datagram may be lost, so the notice is repeated until the terminal has come or nobody waits for it
any more. It says nothing but that a connection is asked for; whether it was heard is seen by the
terminal's connection alone (I26).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from broker.interfaces import IResolver, ITrigger
from broker.messages.errors import CalleeNotConnected, ServiceUnavailable
from broker.tables.locations import Contact

#: Seconds from each notice to the next; the last of them again and again.
PAUSES: Final = (0.25, 0.25, 0.5, 1.0, 2.0)
#: Seconds after which a terminal that was sent notices, and has not come, is dialled as well.
DIAL_AFTER: Final = 1.0


@implementer(ITrigger)
class WakeUp:
    """Wakes terminals by all the ways there are."""

    log = Logger()

    def __init__(self, clock: IReactorTime, resolver: IResolver, dialer: ITrigger) -> None:
        """
        :param resolver: sends the notices
        :param dialer: wakes by a dial
        """
        self._clock = clock
        self._resolver = resolver
        self._dialer = dialer

    async def wake(self, identifier: str, address: Contact) -> None:
        """Send notices where there is a way for them, and dial where there is none, or else late.

        Ends by itself only where there is none.
        """
        began = self._clock.seconds()
        noticed = dialled = False
        for pause in _pauses():
            noticed = await self._notify(identifier) or noticed
            if not noticed:
                await self._dialer.wake(identifier, address)
                return
            if not dialled and self._clock.seconds() - began >= DIAL_AFTER:
                dialled = True
                self._dial_beside(identifier, address)
            await deferLater(self._clock, pause)

    async def _notify(self, identifier: str) -> bool:
        try:
            return await self._resolver.trigger(identifier)
        except ServiceUnavailable:
            return False

    def _dial_beside(self, identifier: str, address: Contact) -> None:
        """Dial, while the notices go on; what becomes of it is seen by the terminal's coming."""

        async def dial() -> None:
            await self._dialer.wake(identifier, address)

        Deferred.fromCoroutine(dial()).addErrback(self._not_dialled)

    def _not_dialled(self, failure: Failure) -> None:
        if failure.check(CalleeNotConnected, CancelledError) is None:
            self.log.failure("A terminal could not be dialled", failure)


def _pauses() -> Iterator[float]:
    yield from PAUSES
    yield from repeat(PAUSES[-1])
