"""Serving a peer's requests: where it comes from, and what becomes of what goes wrong."""

from __future__ import annotations

from typing import Final

from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.wire.conversation import Request
from broker.wire.refusals import (
    CalleeBusy,
    CalleeNotConnected,
    CalleeNotFound,
    PermissionDenied,
    Refused,
    ServiceUnavailable,
)
from broker.wire.stream import Stream

#: What the figures refuse without a word more: a cause could tell what the refusal hides (I6).
BARE: Final = (PermissionDenied, CalleeNotFound, CalleeBusy, CalleeNotConnected)


def declared(failure: Failure, log: Logger) -> Refused:
    """The refusal that a failure is told as.

    What was not foreseen goes to the log whole, and to the peer without detail.
    """
    if isinstance(failure.value, Refused):
        return failure.value
    log.failure("A request could not be served", failure)
    return ServiceUnavailable()


def refuse(request: Request, error: Refused) -> None:
    """Answer a request with a refusal, and with its cause where that is no secret."""
    told = {"Cause": error.cause} if error.cause and not isinstance(error, BARE) else None
    request.reply(error.statement, told, code=error.code)


def came_from(stream: Stream) -> str:
    """The address that a connection comes from; loopback where it has none (a local socket)."""
    transport = stream.transport
    host = getattr(transport.getPeer(), "host", None) if transport is not None else None
    return str(host).partition("%")[0] if host else "127.0.0.1"


def arrived_at(stream: Stream) -> str:
    """Our own address on a connection; the empty text where it has none."""
    transport = stream.transport
    host = getattr(transport.getHost(), "host", None) if transport is not None else None
    return str(host).partition("%")[0] if host else ""
