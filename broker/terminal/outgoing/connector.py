"""Connects a call by whichever of its candidates connects first ("Happy Eyeballs", RFC 8305).

The attempts are started one after the other, ``CONNECTION_ATTEMPT_DELAY`` apart: the likeliest
candidate has a little time for itself, and one that hangs costs that time alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IProtocol, IReactorTime
from twisted.python.failure import Failure

from broker.terminal.candidates import Candidate, FailedCandidate
from broker.terminal.errors import CallDenied, CallFailed, NotMet

#: Seconds after which the next attempt is started while one has neither connected nor failed.
CONNECTION_ATTEMPT_DELAY: Final = 0.25

#: Why a candidate is given up once another has connected.
SLOWER: Final = "another candidate connected first"


class ConnectAttempt(Protocol):
    """One candidate, and what connects by it.

    :ivar candidate: which
    :ivar waits: it only waits, and sends nothing: the next attempt starts together with it
    """

    @property
    def candidate(self) -> Candidate: ...

    @property
    def waits(self) -> bool: ...

    def start(self, connector: Connector) -> Deferred[IProtocol]:
        """Connect. Just before its channel opens it must call the connector's ``claim``.

        :return: fires with the application's protocol; fails with ``CallFailed``; cancelled if
            another candidate connects first
        """
        ...


class Connector:
    """Connects one call.

    :ivar done: fires with the application's protocol. It fails with the ``CallFailed`` of the only
        candidate, with one that names all of them, or with ``CallDenied``: where the callee itself
        refuses, no other candidate can do better. Cancel to give up
    :ivar won: the candidate that has connected
    """

    def __init__(
        self,
        clock: IReactorTime,
        callee: str,
        attempts: Sequence[ConnectAttempt],
        failed_candidates: Sequence[FailedCandidate] = (),
    ) -> None:
        """
        :param attempts: in the order in which they are started
        :param failed_candidates: what has failed already
        """
        self.done: Deferred[IProtocol] = Deferred(lambda _: self._end())
        self.won: Candidate | None = None
        self._clock = clock
        self._callee = callee
        self._left = list(attempts)
        self._under_way: dict[Candidate, Deferred[IProtocol]] = {}
        self._failed_candidates = list(failed_candidates)
        self._timer: IDelayedCall | None = None
        self._starting = False  # within the loop that starts attempts
        self._answered = False  # the last candidate that failed had connected, to something
        self._start_next()

    def claim(self, candidate: Candidate) -> Sequence[FailedCandidate]:
        """A candidate has connected: the other attempts end before its channel opens.

        A session has one channel, so two must never open.

        :return: the other candidates, and why each failed or was given up
        """
        self.won = candidate
        self._end()
        return self._failed_candidates

    def give_up(self, why: str) -> None:
        """Stop: the session has ended."""
        if not self.done.called:
            self._end(why)
            self.done.errback(CallFailed(why, self._failed_candidates))

    # Starting.

    def _start_next(self) -> None:
        """Start the next attempt, and set the timer for the one after it."""
        self._stop_timer()
        self._starting = True
        while self._left:  # emptied by ``claim``, where an attempt connects at once
            attempt = self._left.pop(0)
            self._start(attempt)
            if not attempt.waits and attempt.candidate in self._under_way:
                if self._left:
                    self._timer = self._clock.callLater(CONNECTION_ATTEMPT_DELAY, self._start_next)
                break
        self._starting = False
        self._check_all_failed()

    def _start(self, attempt: ConnectAttempt) -> None:
        candidate = attempt.candidate
        connecting = attempt.start(self)
        self._under_way[candidate] = connecting
        connecting.addCallbacks(
            self._connected,
            self._failed,
            callbackArgs=(candidate,),
            errbackArgs=(candidate, attempt.waits),
        )

    # What becomes of the attempts.

    def _connected(self, protocol: IProtocol, candidate: Candidate) -> None:
        self._under_way.pop(candidate, None)
        if not self.done.called:
            self.done.callback(protocol)

    def _failed(self, failure: Failure, candidate: Candidate, waits: bool) -> None:
        if self._under_way.pop(candidate, None) is None:  # given up by us
            failure.trap(CallFailed, CancelledError)
            return
        if self.done.called:
            return
        if not failure.check(CallFailed) or failure.check(CallDenied) or self.won is not None:
            self._end()
            self.done.errback(failure)
            return
        self._failed_candidates.append(FailedCandidate(candidate, failure.getErrorMessage()))
        self._answered = not failure.check(NotMet)
        if self._starting:
            return  # the loop there goes on with the next one
        if self._left and not waits:
            self._start_next()
        else:
            self._check_all_failed()

    def _end(self, why: str = SLOWER) -> None:
        """Give up every candidate that has not won."""
        self._stop_timer()
        self._failed_candidates += [FailedCandidate(it.candidate, why) for it in self._left]
        self._left.clear()
        for candidate, connecting in list(self._under_way.items()):
            if candidate != self.won:
                del self._under_way[candidate]
                self._failed_candidates.append(FailedCandidate(candidate, why))
                connecting.cancel()

    def _check_all_failed(self) -> None:
        if not (self._under_way or self._left or self.done.called):
            self.done.errback(self._all_failed())

    def _all_failed(self) -> CallFailed:
        failed = self._failed_candidates
        if len(failed) == 1 and self._answered:
            return CallFailed(failed[0].reason, failed)  # a full sentence of the handshake's
        if len(failed) == 1:
            why = f"{failed[0].candidate}: {failed[0].reason}"
            return CallFailed(f"{self._callee} could not be reached {why}", failed)
        each = "; ".join(f"{it.candidate}: {it.reason}" for it in failed)
        return CallFailed(f"{self._callee} could not be reached: {each}", failed)

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None
