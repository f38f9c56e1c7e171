"""How a login can fail before anything is sent, and a call once the mediator has granted it."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.internet.error import ConnectionAborted, ConnectionLost

from broker.messages.errors import Refused
from broker.messages.statements import LOGIN_REQUIRED
from broker.terminal.candidates import FailedCandidate


class CannotLogIn(Refused):
    """The terminal itself refused to log in, or could not; the cause says why. Nothing was sent."""

    statement = LOGIN_REQUIRED


class CallFailed(Exception):
    """The callee could not be reached directly, or did not take the call; the text says which.

    :ivar failed_candidates: what was tried, and why each failed, where it was more than one
    """

    def __init__(self, why: str, failed_candidates: Sequence[FailedCandidate] = ()) -> None:
        super().__init__(why)
        self.failed_candidates = tuple(failed_candidates)


class NotMet(CallFailed):
    """A candidate did not connect; the text says why."""


class CallDenied(CallFailed):
    """The callee itself refused the call: no other candidate can do better."""


class Truncated(ConnectionLost):
    """The connection ended before the other side said that its data had ended."""

    def __str__(self) -> str:
        return ", ".join(map(str, self.args)) or "the connection ended before the data did"


class Aborted(ConnectionAborted):
    """One side aborted the call.

    :ivar cause: the reason that side gave, or empty
    """

    def __init__(self, cause: str = "") -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        return f"the call was broken off: {self.cause}" if self.cause else "the call was broken off"
