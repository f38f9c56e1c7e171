"""The calls that a terminal is in: counted for its status, ended when the mediator says so."""

from __future__ import annotations

from typing import Any, Final, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from broker.terminal.channel.channel import Channel
from broker.terminal.errors import Aborted

T = TypeVar("T")

COMPLETED: Final = "Completed"
FAILED: Final = "Failed"
TERMINATED: Final = "Terminated"
#: The cause of an abort, for the other side, when the mediator has ended the session.
ENDED_BY_MEDIATOR: Final = "the session was terminated"
#: Why no candidate of a call is tried now.
ENDED_BEFORE: Final = "the mediator has ended the session"


class SessionReports(Protocol):
    """Where the end of a session is reported; the mediator's client is one."""

    def ended(self, session: str, how: str) -> None:
        """A session is over (S5007).

        :param how: ``COMPLETED``, ``FAILED`` or ``TERMINATED``
        """


class OutgoingAttempt(Protocol):
    """A call of ours that is not open yet: its candidates are being tried.

    :ivar done: fires or fails when that is over
    """

    @property
    def done(self) -> Deferred[Any]: ...

    def give_up(self, why: str) -> None:
        """Stop trying candidates."""


class ActiveCalls:
    """The open channels, and the calls of ours that are on their way."""

    def __init__(self, reports: SessionReports) -> None:
        self._reports = reports
        self._channels: dict[str, Channel] = {}
        self._connecting: dict[str, OutgoingAttempt] = {}
        self._waiting: list[Deferred[None]] = []  # until no channel is left

    def opened(self, channel: Channel) -> None:
        """A call has begun."""
        self._channels[channel.session] = channel

    def closed(self, channel: Channel, reason: Failure) -> None:
        """A channel is gone: report the end of its session (S5007)."""
        if self._channels.get(channel.session) is channel:
            del self._channels[channel.session]
            self._reports.ended(channel.session, _how_ended(reason))
        if not self._channels:
            waiting, self._waiting = self._waiting, []
            for done in waiting:
                done.callback(None)

    def connecting(self, session: str, attempt: OutgoingAttempt) -> None:
        """The candidates of a call of ours are being tried."""
        self._connecting[session] = attempt

        def finished(result: T) -> T:
            if self._connecting.get(session) is attempt:
                del self._connecting[session]
            return result

        attempt.done.addBoth(finished)

    def terminate(self, session: str) -> None:
        """The mediator has ended a session: stop at once (S5001)."""
        attempt = self._connecting.get(session)
        if attempt is not None:
            attempt.give_up(ENDED_BEFORE)
        channel = self._channels.get(session)
        if channel is not None:
            channel.abortConnection(ENDED_BY_MEDIATOR)

    def end_all(self, cause: str) -> None:
        """Break every call off."""
        for channel in list(self._channels.values()):
            channel.abortConnection(cause)

    def none(self) -> Deferred[None]:
        """Fires when no call is left."""
        done: Deferred[None] = Deferred()
        if self._channels:
            self._waiting.append(done)
        else:
            done.callback(None)
        return done

    def __len__(self) -> int:
        return len(self._channels)


def _how_ended(reason: Failure) -> str:
    if reason.check(ConnectionDone):
        return COMPLETED
    if isinstance(reason.value, Aborted) and reason.value.cause == ENDED_BY_MEDIATOR:
        return TERMINATED
    return FAILED
