"""The records of the ledger: each time that a terminal's address was told to another."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Final

#: The fields of a line, in their order, with the attributes of the record that they hold.
_FIELDS: Final = {
    "at": "at",
    "address": "host",
    "port": "port",
    "session": "session",
    "by": "basis",
    "expires": "expires",
}
# The basis of a record where no entry of a list permitted it:
#: the callee was asked for its consent, and gave it;
CONSENT: Final = "consent"
#: a caller's address, told to the callee that it calls (C7);
CALLING: Final = "calling"
#: where a caller waits that asked to be connected back (D6).
CONNECT_BACK: Final = "connect-back"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Disclosure:
    """One address that was told; it never changes afterwards.

    :ivar owner: the terminal whose address it is
    :ivar recipient: the terminal that was told
    :ivar host: the IP address
    :ivar port: its port
    :ivar session: the session for which it was told
    :ivar basis: why: the entry of the list that permitted it, such as ``Ia`` or ``@family``; or
        ``CONSENT``, ``CALLING`` or ``CONNECT_BACK``
    :ivar at: when, in microseconds since 1970 (UTC), by the wall clock
    :ivar expires: seconds after which the session ends
    """

    owner: str
    recipient: str
    host: str
    port: int
    session: str
    basis: str
    at: int
    expires: int


def format_time(at: int) -> str:
    """A time, in microseconds since 1970, as ``2026-11-21T12:00:05.123456Z``.

    :raises OverflowError: it is not in the years 1 to 9999
    """
    text = (_EPOCH + at * _MICROSECOND).isoformat(timespec="microseconds")
    return f"{text.removesuffix('+00:00')}Z"


def parse_time(text: str) -> int:
    """The inverse of ``format_time``.

    :raises ValueError: it is not such a time
    """
    try:
        at = (datetime.fromisoformat(text) - _EPOCH) // _MICROSECOND
        if format_time(at) == text:  # fromisoformat takes many other forms
            return at
    except (ValueError, TypeError, OverflowError):
        pass
    raise ValueError("not a time such as 2026-11-21T12:00:05.123456Z")


def format_line(disclosure: Disclosure) -> str:
    """The text of a record, for the terminal whose address it was.

    ``Ia;at=…;address=…;port=…;session=…;by=@family;expires=3600``: who was told, and then the
    fields. Neither an identifier nor a session holds a semicolon, so it is read by splitting.

    :raises OverflowError: its time has no text
    """
    fields = [
        f"{name}={format_time(disclosure.at) if name == 'at' else getattr(disclosure, attribute)}"
        for name, attribute in _FIELDS.items()
    ]
    return ";".join((disclosure.recipient, *fields))


def parse_line(owner: str, line: str) -> Disclosure:
    """The inverse of ``format_line``; fields that this version does not know are ignored.

    :raises ValueError: it is not such a line
    """
    recipient, *parts = line.split(";")
    fields: dict[str, str] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals or name in fields:
            raise ValueError("a part without a value, or a field twice")
        fields[name] = value
    for name in _FIELDS:
        if not fields.get(name):
            raise ValueError(f"without the field {name}")
    if not recipient:
        raise ValueError("without the terminal that was told")
    ip_address(fields["address"])
    return Disclosure(
        owner,
        recipient,
        fields["address"],
        _number(fields["port"], 65535),
        fields["session"],
        fields["by"],
        parse_time(fields["at"]),
        _number(fields["expires"], 10**15),
    )


def _number(text: str, most: int) -> int:
    """A number in ASCII digits; ``int()`` takes far more: signs, underscores, other digits."""
    if not (len(text) <= 16 and text.isascii() and text.isdecimal()) or int(text) > most:
        raise ValueError("not a number, or too large")
    return int(text)
