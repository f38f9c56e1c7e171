"""The ledger of disclosures: each time that somebody was told where a terminal is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Final

#: The fields of a line, in their order, with those of the record that they tell.
_FIELDS: Final = {
    "at": "at",
    "address": "host",
    "port": "port",
    "session": "session",
    "by": "basis",
    "expires": "expires",
}
#: What a record rests on where no entry of a list permitted it: the callee was asked, and said yes;
CONSENT: Final = "consent"
#: or it tells where a caller is, who has called (C7).
CALLING: Final = "calling"
#: or where a caller waits that asked to be connected back (D6).
CONNECT_BACK: Final = "connect-back"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Disclosure:
    """One address that was told; never changed afterwards.

    :ivar whose: the terminal whose address it is
    :ivar told: who was told it
    :ivar host: the IP address
    :ivar port: the port that goes with it
    :ivar session: the session it was told for
    :ivar basis: what it rested on: the entry of the list that permitted it, such as ``Ia`` or
        ``@family``; ``CONSENT``, ``CALLING`` or ``CONNECT_BACK`` where there was none
    :ivar at: when, in microseconds since 1970 (UTC), by the wall clock
    :ivar expires: seconds after which the session ends
    """

    whose: str
    told: str
    host: str
    port: int
    session: str
    basis: str
    at: int
    expires: int


def format_time(at: int) -> str:
    """A time, given in microseconds since 1970, as it is told: ``2026-11-21T12:00:05.123456Z``.

    :raises OverflowError: it lies beyond the years 1 to 9999
    """
    told = (_EPOCH + at * _MICROSECOND).isoformat(timespec="microseconds")
    return f"{told.removesuffix('+00:00')}Z"


def parse_time(told: str) -> int:
    """The inverse of ``format_time``.

    :raises ValueError: it is no such time
    """
    try:
        at = (datetime.fromisoformat(told) - _EPOCH) // _MICROSECOND
        if format_time(at) == told:
            return at
    except (ValueError, TypeError, OverflowError):
        pass
    raise ValueError("no time such as 2026-11-21T12:00:05.123456Z")


def format_line(disclosure: Disclosure) -> str:
    """A record as it is told to the terminal whose address it was.

    ``Ia;at=…;address=…;port=…;session=…;by=@family;expires=3600``. Neither an identifier nor a
    session holds a semicolon, so it is read by splitting.

    :raises OverflowError: its time can't be told
    """
    said = [
        f"{name}={format_time(disclosure.at) if name == 'at' else getattr(disclosure, field)}"
        for name, field in _FIELDS.items()
    ]
    return ";".join((disclosure.told, *said))


def parse_line(whose: str, line: str) -> Disclosure:
    """The inverse of ``format_line``; what else a line tells is passed over.

    :raises ValueError: it is no such line
    """
    told, *rest = line.split(";")
    said: dict[str, str] = {}
    for part in rest:
        name, equals, value = part.partition("=")
        if not equals or name in said:
            raise ValueError("not each part of it says something, once")
        said[name] = value
    for name in _FIELDS:
        if not said.get(name):
            raise ValueError(f"it does not say {name}")
    if not told:
        raise ValueError("it does not say who was told")
    ip_address(said["address"])
    return Disclosure(
        whose,
        told,
        said["address"],
        _number(said["port"], 65535),
        said["session"],
        said["by"],
        parse_time(said["at"]),
        _number(said["expires"], 10**15),
    )


def _number(text: str, most: int) -> int:
    """A number in ASCII digits: ``int()`` takes far more."""
    if not (len(text) <= 16 and text.isascii() and text.isdecimal()) or int(text) > most:
        raise ValueError("a number of it is none")
    return int(text)
