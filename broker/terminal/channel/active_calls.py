"""The calls that a terminal is in: counted for its status, ended when the mediator says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from broker.terminal.channel.channel import Channel
from broker.terminal.errors import Aborted
from broker.terminal.outgoing.connector import Connector

T = TypeVar("T")

COMPLETED: Final = "Completed"
FAILED: Final = "Failed"
TERMINATED: Final = "Terminated"
#: The cause that is told when the mediator has ended a session.
ENDED_BY_MEDIATOR: Final = "the session was terminated"


class ActiveCalls:
    """All channels that are open.

    :param report: tells the mediator that a session is over: (session, how it ended)
    """

    def __init__(self, report: Callable[[str, str], object]) -> None:
        self._report = report
        self._channels: dict[str, Channel] = {}
        self._racing: dict[str, Connector] = {}
        self._until_none: list[Deferred[None]] = []

    def opened(self, channel: Channel) -> None:
        """A call has begun."""
        self._channels[channel.session] = channel

    def closed(self, channel: Channel, reason: Failure) -> None:
        """A call is over: report it (S5007)."""
        if self._channels.get(channel.session) is channel:
            del self._channels[channel.session]
            self._report(channel.session, _end(reason))
        if not self._channels:
            waiting, self._until_none = self._until_none, []
            for one in waiting:
                one.callback(None)

    def racing(self, session: str, race: Connector) -> None:
        """The ways of a call of ours are being tried."""
        self._racing[session] = race

        def over(result: T) -> T:
            if self._racing.get(session) is race:
                del self._racing[session]
            return result

        race.done.addBoth(over)

    def terminate(self, session: str) -> None:
        """The mediator has ended a session: stop at once (S5001)."""
        race = self._racing.get(session)
        if race is not None:
            race.give_up("the mediator has ended the session")
        channel = self._channels.get(session)
        if channel is not None:
            channel.abortConnection(ENDED_BY_MEDIATOR)

    def end_all(self, cause: str) -> None:
        """Break every call off."""
        for channel in list(self._channels.values()):
            channel.abortConnection(cause)

    def none(self) -> Deferred[None]:
        """Fires when no call is left."""
        over: Deferred[None] = Deferred()
        if self._channels:
            self._until_none.append(over)
        else:
            over.callback(None)
        return over

    def __len__(self) -> int:
        return len(self._channels)


def _end(reason: Failure) -> str:
    if reason.check(ConnectionDone):
        return COMPLETED
    if isinstance(reason.value, Aborted) and reason.value.cause == ENDED_BY_MEDIATOR:
        return TERMINATED
    return FAILED
