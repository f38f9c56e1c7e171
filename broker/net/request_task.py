"""Serving a peer's requests, and what becomes of what goes wrong."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Final, Protocol

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from broker.messages.errors import (
    CalleeBusy,
    CalleeNotConnected,
    CalleeNotFound,
    PermissionDenied,
    Refused,
    ServiceUnavailable,
)
from broker.net.dialogue import Request

#: Refusals that have no cause in the figures: a cause could tell what the refusal hides (I6).
BARE: Final = (PermissionDenied, CalleeNotFound, CalleeBusy, CalleeNotConnected)


class TaskEvents(Protocol):
    """What a server is told of the requests that it serves."""

    def request_failed(self, raised: Exception, request: Request, /) -> None:
        """The steps have raised this: answer the request with it."""

    def request_served(self, task: RequestTask, /) -> None:
        """A request that had to wait is served, or has failed."""


class RequestTask:
    """One request that waits: a coroutine, stepped from one ``await`` to the next.

    It does what ``Deferred.fromCoroutine`` does, without its three objects and a context for each
    request, of which most wait for nothing (together they cost a tenth of a call).
    """

    __slots__ = ("_events", "_request", "_steps", "_waiting")

    def __init__(
        self, steps: Coroutine[Deferred[Any], Any, None], request: Request, events: TaskEvents
    ) -> None:
        self._steps = steps
        self._request = request
        self._events = events
        self._waiting: Deferred[Any] | None = None

    @classmethod
    def start(
        cls, steps: Coroutine[Deferred[Any], Any, None], request: Request, events: TaskEvents
    ) -> RequestTask | None:
        """Take the steps of a request as far as they need not wait.

        Most requests are done then, and need no task.

        :return: the task, where they wait now
        """
        try:
            waiting = steps.send(None)
        except StopIteration:
            return None
        except Exception as raised:
            events.request_failed(raised, request)
            return None
        task = cls(steps, request, events)
        return task if task._wait(waiting) else None

    def cancel(self) -> None:
        """Give up what is waited for: the steps see ``CancelledError``."""
        if self._waiting is not None:
            self._waiting.cancel()

    def _wait(self, waiting: Deferred[Any]) -> bool:
        """Go on once this has fired.

        :return: whether the steps wait now; they do not where it had fired already
        """
        self._waiting = waiting
        waiting.addBoth(self._resume)
        return self._waiting is not None

    def _resume(self, result: object) -> None:
        """What was waited for is there; the coroutine takes a result from the Deferred itself."""
        self._waiting = None
        try:
            error = result.value if isinstance(result, Failure) else None
            waiting = self._steps.send(None) if error is None else self._steps.throw(error)
        except StopIteration:
            pass
        except Exception as raised:
            self._events.request_failed(raised, self._request)
        else:
            self._wait(waiting)
            return
        # Without this a ring of objects is left, and the collector of garbage stops the server.
        self._request.work = None
        self._events.request_served(self)


def to_refusal(raised: Exception, log: Logger) -> Refused:
    """The refusal that an exception becomes.

    Any other exception is logged with its traceback, and the peer sees no detail of it.
    """
    if isinstance(raised, Refused):
        return raised
    log.failure("A request could not be served", Failure(raised))
    return ServiceUnavailable()


def send_refusal(request: Request, error: Refused) -> None:
    """Answer a request with a refusal, and with its cause where that is no secret."""
    cause = {"Cause": error.cause} if error.cause and not isinstance(error, BARE) else None
    request.reply(error.statement, cause, code=error.code)
