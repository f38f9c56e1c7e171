"""Each refusal is an exception of its own that carries the statement it becomes.

Whoever decides raises one; the one place where requests are answered turns it into a message.
"""

from __future__ import annotations

from typing import ClassVar

from broker.messages import statements
from broker.messages.message import Message


class Refused(Exception):
    """A request is refused.

    :cvar statement: what the peer is told
    :ivar cause: further words for the peer, where the refusal is no secret
    :ivar code: the code, where the statement's own says too little
    """

    statement: ClassVar[str] = statements.SERVICE_UNAVAILABLE

    def __init__(self, cause: str = "", code: int = 0) -> None:
        super().__init__(cause or self.statement)
        self.cause = cause
        self.code = code


class PermissionDenied(Refused):
    """Fig. 5c (S1203): the caller is not among those whom the callee accepts."""

    statement = statements.PERMISSION_DENIED


class CalleeNotFound(Refused):
    """Fig. 5g (S807, S1205): the resolver has no address of the callee."""

    statement = statements.CALLEE_NOT_FOUND


class CalleeBusy(Refused):
    """Fig. 17d (S1608): the callee can take no call now."""

    statement = statements.CALLEE_BUSY


class CalleeNotConnected(Refused):
    """Fig. 5h (S1902): the callee can't be reached, or did not answer in time."""

    statement = statements.CALLEE_NOT_CONNECTED


class NotReached(Refused):
    """A terminal can't be reached where it asked to be tried."""

    statement = statements.NOT_REACHED


class RegistrationFailed(Refused):
    """¶32: a registration that changed nothing, with its cause."""

    statement = statements.REGISTRATION_FAILED


class LoginFailed(RegistrationFailed):
    """Who it says it is has not been proven; its connection is bound to nobody."""

    def __init__(self, cause: str, code: int = 401) -> None:
        super().__init__(cause, code)


class LoginRequired(Refused):
    """The connection has not said who it is."""

    statement = statements.LOGIN_REQUIRED


class TooManyRequests(Refused):
    """A share is used up: come back later."""

    statement = statements.TOO_MANY_REQUESTS


class ServiceUnavailable(Refused):
    """A part of the server is away."""

    statement = statements.SERVICE_UNAVAILABLE


class NotTaken(Refused):
    """A body, or a message, that is larger than is taken."""

    statement = statements.TOO_LARGE


class BadRequest(Refused):
    """A message that is well formed, but not one that belongs here."""

    statement = statements.BAD_MESSAGE


_KINDS = {
    kind.statement: kind
    for kind in (
        PermissionDenied,
        CalleeNotFound,
        CalleeBusy,
        CalleeNotConnected,
        NotReached,
        RegistrationFailed,
        LoginRequired,
        TooManyRequests,
        ServiceUnavailable,
        NotTaken,
        BadRequest,
    )
}


def refusal_in(message: Message) -> Refused | None:
    """The refusal that an answer tells, or ``None`` where it tells none."""
    kind = _KINDS.get(message.statement)
    return None if kind is None else kind(message.get("Cause") or "")
