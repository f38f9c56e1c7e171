"""What the mediator tells a callee of a call to come: the notices of fig. 5e and fig. 8c, read.

Pure data and decisions; time is an argument.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from broker.messages.grammar import parse_transport_address
from broker.messages.message import Message
from broker.tables.sessions import UNSPENT_SECONDS


@dataclass(eq=False, slots=True, repr=False)
class PendingCall:
    """One session that the mediator has announced and that has not begun.

    :ivar session: its identifier
    :ivar caller: the caller's identifier
    :ivar password: what the caller shows in its REQUEST
    :ivar reply_password: what the callee shows in its answer
    :ivar key: the Encrypt Key, 64 hexadecimal digits
    :ivar until: when it expires, in seconds of the clock
    :ivar back: the host and port at which the caller waits for the callee to connect, if it does
    :ivar seen: the host and port from which the caller tries hole punching, if it does
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
        """Whether a REQUEST is this caller's (S1305), decided in constant time."""
        right = hmac.compare_digest(identifier.encode("utf-8"), self.caller.encode("utf-8"))
        return hmac.compare_digest(password.encode("utf-8"), self.password.encode("utf-8")) & right


@dataclass(eq=False, slots=True, repr=False)
class ConnectBackRequest:
    """A caller that asks the callee to connect to it (fig. 8c).

    :ivar call: the call; its password should be the callee's own call password
    :ivar host: where the caller waits: an IP address, unless the mediator passes on something else
    :ivar port: the port there
    """

    call: PendingCall
    host: str
    port: int


def parse_connect_back_request(message: Message, now: float) -> ConnectBackRequest | None:
    """Read a mediator's ``REQUEST`` to connect back; ``None`` if fields are missing."""
    call = parse_call_notice(message, now)
    host, port = message.get("Address"), message.get("Port")
    if call is None or host is None or port is None:
        return None
    return ConnectBackRequest(call, host, int(port))


def parse_call_notice(message: Message, now: float) -> PendingCall | None:
    """Read a mediator's ``NOTIFY`` of a call (fig. 5e); ``None`` if fields are missing."""
    fields = message.fields
    try:
        return PendingCall(
            session=fields["Session"],
            caller=fields["Caller ID"],
            password=fields["Password"],
            reply_password=fields["Reply Password"],
            key=fields["Encrypt Key"],
            until=now + UNSPENT_SECONDS,
            back=_host_and_port(fields.get("Caller Back")),
            seen=_host_and_port(fields.get("Caller Seen")),
        )
    except KeyError:
        return None


def _host_and_port(text: str | None) -> tuple[str, int] | None:
    return None if text is None else parse_transport_address(text)
