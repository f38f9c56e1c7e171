"""Refusals as exceptions: each carries the statement that the peer is told.

The code that decides raises one; the one place that answers requests turns it into a message
(``net/request_task.py``). A client gets the same exception back from an answer (``refusal_in``).
"""

from __future__ import annotations

from typing import ClassVar

from broker.messages import statements
from broker.messages.message import Message


class Refused(Exception):
    """A request is refused.

    :cvar statement: what the peer is told
    :ivar cause: why, in words for the peer; empty where that is a secret
    :ivar code: the code, where the statement's own says too little; else 0
    """

    statement: ClassVar[str] = statements.SERVICE_UNAVAILABLE

    def __init__(self, cause: str = "", code: int = 0) -> None:
        super().__init__(cause or self.statement)
        self.cause = cause
        self.code = code


class PermissionDenied(Refused):
    """Fig. 5c (S1203): the caller is not among those that the callee accepts."""

    statement = statements.PERMISSION_DENIED


class CalleeNotFound(Refused):
    """Fig. 5g (S807, S1205): the resolver has no address for the callee."""

    statement = statements.CALLEE_NOT_FOUND


class CalleeBusy(Refused):
    """Fig. 17d (S1608): the callee can take no call now."""

    statement = statements.CALLEE_BUSY


class CalleeNotConnected(Refused):
    """Fig. 5h (S1902): the callee can't be reached, or did not answer in time."""

    statement = statements.CALLEE_NOT_CONNECTED


class NotReached(Refused):
    """A terminal asked the mediator to try an address, and no connection arrives there."""

    statement = statements.NOT_REACHED


class RegistrationFailed(Refused):
    """¶32: the registration changed nothing; with its cause."""

    statement = statements.REGISTRATION_FAILED


class LoginFailed(RegistrationFailed):
    """The peer has not proven its identifier; its connection stays without one."""

    def __init__(self, cause: str, code: int = 401) -> None:
        super().__init__(cause, code)


class LoginRequired(Refused):
    """The connection is not logged in."""

    statement = statements.LOGIN_REQUIRED


class TooManyRequests(Refused):
    """A rate limit is used up: come back later."""

    statement = statements.TOO_MANY_REQUESTS


class ServiceUnavailable(Refused):
    """A part of the server is not available now."""

    statement = statements.SERVICE_UNAVAILABLE


class TooLarge(Refused):
    """A body or a message is larger than the limit."""

    statement = statements.TOO_LARGE


class BadRequest(Refused):
    """The message is well formed, but does not belong here."""

    statement = statements.BAD_MESSAGE


_BY_STATEMENT = {
    refusal.statement: refusal
    for refusal in (
        PermissionDenied,
        CalleeNotFound,
        CalleeBusy,
        CalleeNotConnected,
        NotReached,
        RegistrationFailed,
        LoginRequired,
        TooManyRequests,
        ServiceUnavailable,
        TooLarge,
        BadRequest,
    )
}


def refusal_in(message: Message) -> Refused | None:
    """The refusal in an answer, or ``None`` where it is no refusal."""
    refusal = _BY_STATEMENT.get(message.statement)
    return None if refusal is None else refusal(message.get("Cause") or "")
