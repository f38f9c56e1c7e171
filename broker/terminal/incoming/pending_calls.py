"""The calls that a callee has been told to expect (fig. 5e), until each is begun or void.

Pure data and decisions; time is an argument.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Final

from broker.messages.grammar import parse_place
from broker.messages.message import Message
from broker.tables.sessions import UNSPENT_SECONDS

#: Calls expected at a time; the oldest gives way.
EXPECTED_MOST: Final = 256


@dataclass(eq=False, slots=True, repr=False)
class PendingCall:
    """One session that the mediator has announced and that has not begun.

    :ivar until: when it is void
    :ivar back: the host and port where the caller can be come to, if it waits
    :ivar seen: the host and port from which it dials us, if we are to dial it likewise
    """

    session: str
    caller: str
    password: str
    reply_password: str
    key: str
    until: float
    back: tuple[str, int] | None = None
    seen: tuple[str, int] | None = None

    def admits(self, identifier: str, password: str) -> bool:
        """Whether a REQUEST is this caller's (S1305), found in constant time."""
        right = hmac.compare_digest(identifier.encode("utf-8"), self.caller.encode("utf-8"))
        return hmac.compare_digest(password.encode("utf-8"), self.password.encode("utf-8")) & right


@dataclass(eq=False, slots=True, repr=False)
class ConnectBackRequest:
    """A caller that wants the callee to come to it (fig. 8c).

    :ivar call: the call, whose password is the callee's own, if it is right
    :ivar host: where the caller waits: an IP address, as far as is known
    """

    call: PendingCall
    host: str
    port: int


def wanted_call(message: Message, now: float) -> ConnectBackRequest | None:
    """The call that a mediator's ``REQUEST`` requires_consent for, or ``None`` if it is none."""
    call = expected_call(message, now)
    host, port = message.get("Address"), message.get("Port")
    if call is None or host is None or port is None:
        return None
    return ConnectBackRequest(call, host, int(port))


def expected_call(message: Message, now: float) -> PendingCall | None:
    """The call that a mediator's ``NOTIFY`` (fig. 5e) announces, or ``None`` if it is none."""
    fields = message.fields
    try:
        return PendingCall(
            session=fields["Session"],
            caller=fields["Caller ID"],
            password=fields["Password"],
            reply_password=fields["Reply Password"],
            key=fields["Encrypt Key"],
            until=now + UNSPENT_SECONDS,
            back=_place(fields.get("Caller Back")),
            seen=_place(fields.get("Caller Seen")),
        )
    except KeyError:
        return None


def _place(told: str | None) -> tuple[str, int] | None:
    return None if told is None else parse_place(told)


class PendingCalls:
    """All calls that are expected."""

    def __init__(self) -> None:
        self._calls: dict[str, PendingCall] = {}

    def add(self, call: PendingCall) -> list[str]:
        """Expect a call; it replaces the same caller's that has not begun.

        :return: the sessions that are expected no longer
        """
        now = call.until - UNSPENT_SECONDS
        others = self._calls.values()
        gone = [one.session for one in others if one.caller == call.caller or one.until <= now]
        for session in gone:
            del self._calls[session]
        while len(self._calls) >= EXPECTED_MOST:
            gone.append(next(iter(self._calls)))
            del self._calls[gone[-1]]
        self._calls[call.session] = call
        return gone

    def find(self, session: str, now: float) -> PendingCall | None:
        """The call of a session, unless it is unknown, begun, void or too old."""
        call = self._calls.get(session)
        if call is not None and call.until <= now:
            del self._calls[session]
            return None
        return call

    def spend(self, call: PendingCall, now: float) -> bool:
        """Begin a call: once, and only while it is still expected (I7)."""
        if self.find(call.session, now) is not call:
            return False
        del self._calls[call.session]
        return True

    def void(self, session: str) -> None:
        """Expect a call no longer."""
        self._calls.pop(session, None)

    def void_all(self) -> None:
        """Expect nobody: who can't be told of a withdrawal must not count on a permit."""
        self._calls.clear()

    def any(self, now: float) -> bool:
        """Whether any call is expected still."""
        return any(call.until > now for call in self._calls.values())

    def __len__(self) -> int:
        return len(self._calls)
