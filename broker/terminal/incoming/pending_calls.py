"""The calls that a callee expects (fig. 5e), until each has begun, expired or been withdrawn.

Pure data and decisions; time is an argument.
"""

from __future__ import annotations

from typing import Final

from broker.tables.sessions import UNSPENT_SECONDS
from broker.terminal.registration.notices import PendingCall

#: Calls expected at a time; one more replaces the oldest.
PENDING_MOST: Final = 256


class PendingCalls:
    """All calls that are expected, by session."""

    def __init__(self) -> None:
        self._calls: dict[str, PendingCall] = {}

    def add(self, call: PendingCall) -> list[str]:
        """Expect a call; it replaces a call of the same caller that has not begun.

        :return: the sessions that are not expected from now on: replaced or expired
        """
        now = call.until - UNSPENT_SECONDS
        others = self._calls.values()
        dropped = [it.session for it in others if it.caller == call.caller or it.until <= now]
        for session in dropped:
            del self._calls[session]
        while len(self._calls) >= PENDING_MOST:
            oldest = next(iter(self._calls))
            del self._calls[oldest]
            dropped.append(oldest)
        self._calls[call.session] = call
        return dropped

    def find(self, session: str, now: float) -> PendingCall | None:
        """The call of a session; ``None`` if it is unknown, begun, withdrawn or expired."""
        call = self._calls.get(session)
        if call is not None and call.until <= now:
            del self._calls[session]
            return None
        return call

    def spend(self, call: PendingCall, now: float) -> bool:
        """Begin a call: true once, and only while it is still expected (I7)."""
        if self.find(call.session, now) is not call:
            return False
        del self._calls[call.session]
        return True

    def discard(self, session: str) -> None:
        """The call was withdrawn."""
        self._calls.pop(session, None)

    def clear(self) -> None:
        """Expect no call.

        A terminal that has lost its mediator would not hear of a withdrawn permit, so it must not
        rely on one (I2).
        """
        self._calls.clear()

    def any(self, now: float) -> bool:
        """Whether any call is still expected."""
        return any(call.until > now for call in self._calls.values())

    def __len__(self) -> int:
        return len(self._calls)
