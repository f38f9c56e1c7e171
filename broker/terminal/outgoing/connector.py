"""The ways along which a call is tried: begun one after the other, and the first that stands wins.

The starts are staggered as those of RFC 8305 are, so that a way that is likely to do has a little
time for itself, and one that hangs costs no more than that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IProtocol, IReactorTime
from twisted.python.failure import Failure

from broker.terminal.candidates import Candidate, FailedCandidate
from broker.terminal.errors import CallDenied, CallFailed, NotMet

#: Seconds after which the next way is begun beside one that neither stands nor has failed.
CONNECTION_ATTEMPT_DELAY: Final = 0.25

#: What a way calls as its channel is about to open; gives the ways that did not lead there.
Claim = Callable[[], Sequence[FailedCandidate]]
#: Why a way is given up once another one stands.
SLOWER: Final = "another candidate connected first"


class ConnectAttempt(NamedTuple):
    """A way, and what takes it.

    :ivar candidate: which
    :ivar take: takes it; fires with the application's protocol, fails with ``CallFailed``
    :ivar waits: nothing is sent for it: the next way begins with it
    """

    candidate: Candidate
    take: Callable[[Claim], Deferred[IProtocol]]
    waits: bool = False


class Connector:
    """Takes the ways of one call.

    :ivar done: fires with the application's protocol; fails with the ``CallFailed`` of the only
        way, one that names all of them, or ``CallDenied``, after which no other way is any better;
        cancel to give up
    :ivar won: the way that stands
    """

    def __init__(
        self,
        clock: IReactorTime,
        callee: str,
        attempts: Sequence[ConnectAttempt],
        failed_candidates: Sequence[FailedCandidate] = (),
    ) -> None:
        """
        :param attempts: in the order in which they are begun
        :param failed_candidates: what has failed already
        """
        self.done: Deferred[IProtocol] = Deferred(lambda _: self._end())
        self._clock = clock
        self._callee = callee
        self._left = list(attempts)
        self._under_way: dict[Candidate, Deferred[IProtocol]] = {}
        self._failed_candidates = list(failed_candidates)
        self.won: Candidate | None = None
        self._timer: IDelayedCall | None = None
        self._beginning = False
        self._met = False  # somebody, by the last way that failed
        self._next()

    def _next(self) -> None:
        """Begin the next way; and if there is one more, that in a while."""
        self._rest()
        self._beginning = True
        while self._left:  # which ends where a way stands at once
            attempt = self._left.pop(0)
            self._begin(attempt)
            if not attempt.waits and attempt.candidate in self._under_way:
                if self._left:
                    self._timer = self._clock.callLater(CONNECTION_ATTEMPT_DELAY, self._next)
                break
        self._beginning = False
        self._settle()

    def _begin(self, attempt: ConnectAttempt) -> None:
        candidate = attempt.candidate
        taking = attempt.take(lambda: self._opening(candidate))
        self._under_way[candidate] = taking
        taking.addCallbacks(
            self._stands,
            self._failed,
            callbackArgs=(candidate,),
            errbackArgs=(candidate, attempt.waits),
        )

    def _opening(self, candidate: Candidate) -> Sequence[FailedCandidate]:
        """A way stands: there is one channel in a session, so the others end before it opens."""
        self.won = candidate
        self._end()
        return self._failed_candidates

    def _end(self, why: str = SLOWER) -> None:
        """Give up whatever has not won."""
        self._rest()
        self._failed_candidates += [
            FailedCandidate(attempt.candidate, why) for attempt in self._left
        ]
        self._left.clear()
        for candidate, taking in list(self._under_way.items()):
            if candidate != self.won:
                del self._under_way[candidate]
                self._failed_candidates.append(FailedCandidate(candidate, why))
                taking.cancel()

    def _rest(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _stands(self, protocol: IProtocol, candidate: Candidate) -> None:
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
        self._met = not failure.check(NotMet)
        if self._beginning:
            return  # what follows is begun there
        if self._left and not waits:
            self._next()
        else:
            self._settle()

    def _settle(self) -> None:
        """See whether all have failed."""
        if not (self._under_way or self._left or self.done.called):
            self.done.errback(self._none())

    def give_up(self, why: str) -> None:
        """No way leads there any more."""
        if not self.done.called:
            self._end(why)
            self.done.errback(CallFailed(why, self._failed_candidates))

    def _none(self) -> CallFailed:
        """No way has led there."""
        if len(self._failed_candidates) == 1 and self._met:
            return CallFailed(self._failed_candidates[0].reason, self._failed_candidates)
        if len(self._failed_candidates) == 1:
            candidate, why = self._failed_candidates[0]
            return CallFailed(
                f"{self._callee} could not be reached {candidate}: {why}", self._failed_candidates
            )
        each = "; ".join(f"{one.candidate}: {one.reason}" for one in self._failed_candidates)
        return CallFailed(f"{self._callee} could not be reached: {each}", self._failed_candidates)
