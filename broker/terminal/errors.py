"""How a call can fail once the mediator has granted it."""

from __future__ import annotations

from twisted.internet.error import ConnectionAborted, ConnectionLost


class CallFailed(Exception):
    """The callee could not be reached directly, or did not take the call; the text says which."""


class Truncated(ConnectionLost):
    """The connection ended before the other side said that its data had ended."""

    def __str__(self) -> str:
        return ", ".join(map(str, self.args)) or "the connection ended before the data did"


class Aborted(ConnectionAborted):
    """One side broke the call off.

    :ivar cause: why, in the words of whoever did; empty where none were given
    """

    def __init__(self, cause: str = "") -> None:
        super().__init__(cause)
        self.cause = cause

    def __str__(self) -> str:
        return f"the call was broken off: {self.cause}" if self.cause else "the call was broken off"
