"""Reaching a terminal: over its active connection, else by waking it (fig. 8a, 19, E1).

``TerminalReach`` is what the steps of a call use. ``WakeUp`` is how a terminal is woken: by
datagrams through its NAT, and by a dial. A datagram may be lost, so the notice is repeated until
the terminal has come, or until no caller waits for it. It says nothing but that a connection is
requested; whether it arrived is seen only by the terminal's own connection (I26).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import Final, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from broker.interfaces import IResolver, ITrigger
from broker.mediator.connection import TerminalConnection
from broker.mediator.connections import ConnectionRegistry
from broker.messages.errors import CalleeNotConnected, ServiceUnavailable
from broker.messages.message import Message
from broker.net.timers import DeadlineQueue
from broker.tables.locations import Contact

#: Seconds after which a connection that does not answer a question may be dead though both ends
#: believe in it: a NAT between them may have dropped its binding.
SILENCE: Final = 1.0
#: Seconds from each notice to the next; the last pause is repeated.
PAUSES: Final = (0.25, 0.25, 0.5, 1.0, 2.0)
#: Seconds after which a terminal that was sent notices, and has not come, is dialled as well.
DIAL_AFTER: Final = 1.0


class QuestionEvents(Protocol):
    """What happens to a question on its way."""

    def moved(self, connection: TerminalConnection, /) -> None:
        """The question goes over another connection now; what this raises ends it.

        Called before anything is sent over that: what was checked before may have changed.
        """


class TerminalReach:
    """Wakes a terminal that has no usable connection; asks it over whichever it answers on."""

    log = Logger()

    def __init__(
        self, connections: ConnectionRegistry, wakeup: ITrigger, clock: IReactorTime
    ) -> None:
        self._connections = connections
        self._wakeup = wakeup
        self._clock = clock
        self._in_progress: dict[str, _WakeUpInProgress] = {}
        self._unanswered: DeadlineQueue[_OpenQuestion] = DeadlineQueue(
            clock, SILENCE, self._fell_silent
        )
        self._stopped = False

    async def wake(self, identifier: str, address: Contact) -> TerminalConnection:
        """Wake a terminal that has no usable connection, and wait until it registers (S1901).

        All who wait for it at the same time share one wake-up.

        :param address: where it is woken
        :return: the connection over which it registered
        :raises CalleeNotConnected: it can't be reached (S1902)
        """
        registers = self._connections.next_active(identifier)
        wakeup = self._in_progress.get(identifier)
        if wakeup is None:
            wakeup = self._in_progress[identifier] = _WakeUpInProgress()
            wakeup.waiting.append(registers)
            self._start(wakeup, identifier, address)
        else:
            wakeup.waiting.append(registers)
        try:
            return await registers
        except CancelledError:
            raise CalleeNotConnected from None
        finally:
            self._connections.stop_waiting(identifier, registers)
            wakeup.leave(registers)

    def _start(self, wakeup: _WakeUpInProgress, identifier: str, address: Contact) -> None:
        async def wake() -> None:
            try:
                await self._wakeup.wake(identifier, address)
            finally:
                del self._in_progress[identifier]  # the next caller starts another one

        wakeup.steps = Deferred.fromCoroutine(wake()).addErrback(wakeup.failed)

    async def ask(
        self,
        identifier: str,
        connection: TerminalConnection,
        address: Contact,
        message: Message,
        events: QuestionEvents,
    ) -> Message:
        """Ask a terminal a question, over whichever connection it answers on.

        A terminal that registers by UDP is woken where its connection breaks, or does not answer
        for ``SILENCE``. Once another connection is the active one, it is asked over that, and what
        it answers over the old one is ignored.

        :param connection: its active connection
        :param address: where it is woken
        :param events: called for each other connection
        :return: the answer
        :raises ConnectionLost: the connection broke, and it can't be woken by UDP
        :raises CalleeNotConnected: it broke, and the terminal could not be woken
        """
        while True:
            answer = connection.ask(message)
            if connection.key is None:
                return await answer
            question = _OpenQuestion(identifier, connection, address, answer)
            self._unanswered.add(question)
            try:
                try:
                    return await answer
                except (ConnectionLost, CancelledError) as error:
                    if isinstance(error, CancelledError) and not question.moved:
                        raise
                usable = self._connections.usable(identifier)
                connection = usable or await self.wake(identifier, address)
            finally:
                self._unanswered.discard(question)
                question.close()
            events.moved(connection)
            message.fields.pop("Transaction", None)  # it was the old connection's

    def stop(self) -> None:
        """Leave no timer behind."""
        self._stopped = True
        self._unanswered.stop()

    # A connection that does not answer.

    def _fell_silent(self, question: _OpenQuestion) -> None:
        """There is no answer within ``SILENCE``; or it has arrived and we are late to read it.

        So what has arrived is read first: a wake-up of a terminal that has answered would make us
        even later.
        """
        self._clock.callLater(0, self._wake_silent, question)

    def _wake_silent(self, question: _OpenQuestion) -> None:
        if question.answer.called or self._stopped:
            return
        usable = self._connections.usable(question.identifier)
        if usable is not None and usable is not question.connection:
            question.move(usable)  # the terminal has connected by itself
            return
        waking = Deferred.fromCoroutine(self.wake(question.identifier, question.address))
        question.waking = waking.addCallbacks(question.move, self._not_woken)

    def _not_woken(self, failure: Failure) -> None:
        """It can't be woken. It may still answer over the connection that it has."""
        if failure.check(CalleeNotConnected) is None:
            self.log.failure("A terminal that did not answer could not be woken", failure)


class _WakeUpInProgress:
    """One wake-up of a terminal, for all who wait for its connection.

    :ivar waiting: what each of them waits for: the next registration
    :ivar steps: the wake-up itself; cancelled when the last of them has left
    """

    __slots__ = ("steps", "waiting")

    def __init__(self) -> None:
        self.waiting: list[Deferred[TerminalConnection]] = []
        self.steps: Deferred[None] | None = None

    def failed(self, failure: Failure) -> None:
        """The terminal can't be woken: all who still wait learn why."""
        for waiting in list(self.waiting):
            if not waiting.called:
                waiting.errback(failure)

    def leave(self, waiting: Deferred[TerminalConnection]) -> None:
        """One has its connection, or gives up; the last one ends the wake-up."""
        self.waiting.remove(waiting)
        if not self.waiting and self.steps is not None:
            self.steps.cancel()


class _OpenQuestion:
    """A question over a connection that may be dead.

    :ivar answer: fires with the answer
    :ivar moved: it was cancelled, since another connection is the active one now
    :ivar waking: the wake-up that was started because the terminal does not answer
    """

    __slots__ = ("address", "answer", "connection", "identifier", "moved", "waking")

    def __init__(
        self,
        identifier: str,
        connection: TerminalConnection,
        address: Contact,
        answer: Deferred[Message],
    ) -> None:
        self.identifier = identifier
        self.connection = connection
        self.address = address
        self.answer = answer
        self.moved = False
        self.waking: Deferred[None] | None = None

    def move(self, active: TerminalConnection) -> None:
        """The terminal has registered. A connection over which it did so is not dead."""
        if active is not self.connection and not self.answer.called:
            self.moved = True
            self.answer.cancel()

    def close(self) -> None:
        """The answer is there, or is not waited for: end the wake-up."""
        if self.waking is not None:
            self.waking.cancel()


@implementer(ITrigger)
class WakeUp:
    """Wakes terminals by a datagram through their NAT, and by a dial."""

    log = Logger()

    def __init__(self, clock: IReactorTime, resolver: IResolver, dialer: ITrigger) -> None:
        """
        :param resolver: sends the datagrams
        :param dialer: wakes by a dial
        """
        self._clock = clock
        self._resolver = resolver
        self._dialer = dialer

    async def wake(self, identifier: str, address: Contact) -> None:
        """Send notices where there is a NAT binding for them, and dial after ``DIAL_AFTER``.

        Without a binding, dial at once; only then it ends by itself.
        """
        began = self._clock.seconds()
        notified = dialled = False
        for pause in _pauses():
            notified = await self._notify(identifier) or notified
            if not notified:
                await self._dialer.wake(identifier, address)
                return
            if not dialled and self._clock.seconds() - began >= DIAL_AFTER:
                dialled = True
                self._dial_as_well(identifier, address)
            await deferLater(self._clock, pause)

    async def _notify(self, identifier: str) -> bool:
        try:
            return await self._resolver.trigger(identifier)
        except ServiceUnavailable:
            return False

    def _dial_as_well(self, identifier: str, address: Contact) -> None:
        """Dial, while the notices go on. Its success is seen by the terminal's connection."""

        async def dial() -> None:
            await self._dialer.wake(identifier, address)

        Deferred.fromCoroutine(dial()).addErrback(self._not_dialled)

    def _not_dialled(self, failure: Failure) -> None:
        if failure.check(CalleeNotConnected, CancelledError) is None:
            self.log.failure("A terminal could not be dialled", failure)


def _pauses() -> Iterator[float]:
    yield from PAUSES
    yield from repeat(PAUSES[-1])
