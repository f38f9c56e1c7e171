"""Handshakes for the tests: their messages as bytes, and what comes out of them."""

from __future__ import annotations

from typing import Final

from broker.messages.grammar import NOTIFY, REQUEST
from broker.messages.message import Message
from broker.messages.statements import REQUEST_ACCEPTED
from broker.terminal.channel.handshake import Handshake
from broker.terminal.channel.records import Records
from broker.terminal.registration.notices import PendingCall

SESSION: Final = "S0123456789abcdef01234567"
CALLER: Final = "Ia"
CALLEE: Final = "Ib"
KEY: Final = "0f1e2d3c4b5a69788796a5b4c3d2e1f0" * 2
PASSWORD: Final = "aB3!dE6#gH9$jK2%"
REPLY_PASSWORD: Final = "zY8&xW5*vU2+tS9-"
#: What the mediator tells the callee: a call will come (fig. 5e); a session is void.
ANNOUNCEMENT: Final = (
    f"NOTIFY\nCaller ID:Ia\nPassword:{PASSWORD}\nEncrypt Key:{KEY}\nSession:{SESSION}\n"
    f"Expires:3600\nReply Password:{REPLY_PASSWORD}\n\n"
)
TERMINATE: Final = f"NOTIFY\nSession:{SESSION}\nTerminate.\n\n"
_CREDENTIALS: Final = {
    "Password": PASSWORD,
    "Encrypt Key": KEY,
    "Session": SESSION,
    "Expires": "3600",
    "Reply Password": REPLY_PASSWORD,
}
#: What the mediator tells of a call: its caller (fig. 5d), and its callee (fig. 5e).
GRANTED: Final = {
    **_CREDENTIALS,
    "Callee": CALLEE,
    "Callee Address": "192.0.2.7",
    "Callee Port": "1300",
}
ANNOUNCED: Final = {**_CREDENTIALS, "Caller ID": CALLER}


def a_handshake(
    *,
    initiator: bool,
    session: str = SESSION,
    caller: str = CALLER,
    callee: str = CALLEE,
    key: str = KEY,
) -> Handshake:
    """One side of a handshake."""
    return Handshake(session, caller, callee, key, initiator=initiator)


def a_request(identifier: str = CALLER, password: str = PASSWORD) -> Message:
    """Fig. 5f, the inner one."""
    return Message(REQUEST, Identifier=identifier, Password=password)


def an_answer(password: str = REPLY_PASSWORD) -> Message:
    """Fig. 5b with the reply password."""
    return Message(NOTIFY, REQUEST_ACCEPTED, Password=password)


def shaken() -> tuple[Handshake, Handshake]:
    """Both sides of a handshake that is over: the caller's, the callee's."""
    caller = a_handshake(initiator=True)
    callee = a_handshake(initiator=False)
    callee.read(caller.write(a_request()))
    caller.read(callee.write(an_answer()))
    return caller, callee


def joined(rekey: int = 65536) -> tuple[Records, Records]:
    """Both sides' records after a handshake: the caller's, the callee's."""
    caller, callee = shaken()
    return Records(caller.cipher(), rekey=rekey), Records(callee.cipher(), rekey=rekey)


def an_expected_call(
    *,
    session: str = SESSION,
    caller: str = CALLER,
    password: str = PASSWORD,
    key: str = KEY,
    until: float = 30.0,
) -> PendingCall:
    """What the callee is told (fig. 5e)."""
    return PendingCall(session, caller, password, REPLY_PASSWORD, key, until)


def framed(session: str, body: bytes, *, verb: str = REQUEST) -> bytes:
    """A body in the clear message that carries it."""
    return Message(verb, Session=session, Length=len(body)).encode() + body
