"""The grammar, written once: verbs, field names, and what each field may contain.

Parsing and building of messages both use the tables here, so that nothing is sent that would be
refused on arrival. A *rule* takes the text of a value and returns its canonical form, or raises
``ValueError`` with a cause in words for the peer.

To add a field: one row in ``FIELDS`` with its rule, for example ``"Interval": number(1, 86400)``.
If it is a list edited line by line, its name goes into ``LISTS`` too; if it may occur several
times, into ``REPEATED``; if it must not appear in a log, into ``SECRETS``. Parsing, encoding and
masking follow from these. To add a verb: a constant and its place in ``VERBS``. Statements are in
``statements.py``. What a request does is a row in the dispatch table of its server.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from ipaddress import ip_address
from typing import Final

Rule = Callable[[str], str]

REGISTER: Final = "REGISTER"
QUERY: Final = "QUERY"
NOTIFY: Final = "NOTIFY"
REQUEST: Final = "REQUEST"
VERBS: Final = (REGISTER, QUERY, NOTIFY, REQUEST)

#: The key of a message's statement among its fields: the line that has no colon.
STATEMENT: Final = ""

BLANKS: Final = " \t"
DEFAULT_PORT: Final = 1203
#: Seconds for which an address holds after its connection is gone, by default.
DEFAULT_EXPIRES: Final = 3600

IDENTIFIER_BYTES: Final = 128
TOKEN_CHARACTERS: Final = frozenset(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"
)
DIGITS: Final = frozenset("0123456789")
HEXADECIMAL: Final = frozenset("0123456789abcdefABCDEF")
#: Unicode categories of invisible characters: an identifier must not contain them.
_UNPRINTABLE: Final = frozenset(("Cc", "Cf", "Cs", "Cn", "Zl", "Zp"))

CREATE: Final = "Create"
ADD: Final = "Add"
DELETE: Final = "Delete"
EDITS: Final = (CREATE, ADD, DELETE)


def fold(text: str) -> str:
    """Fold the case of ASCII letters alone: ``'ſ'.upper()`` is ``S``, and must not match it."""
    return text.translate(_FOLD)


_FOLD: Final = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


@lru_cache(maxsize=4096)
def identifier(value: str) -> str:
    """An identifier in its canonical form (NFC), to be compared by equality."""
    return _named(value, group=False)


@lru_cache(maxsize=4096)
def entry(value: str) -> str:
    """An identifier or, with a leading ``@``, the name of a group: an entry of a list."""
    return _named(value, group=True)


def _named(value: str, *, group: bool) -> str:
    octets = len(value)
    if not value.isascii():
        value = unicodedata.normalize("NFC", value)
        octets = len(value.encode("utf-8", "surrogatepass"))
    if not value:
        raise ValueError("an identifier is empty")
    if octets > IDENTIFIER_BYTES:
        raise ValueError(f"an identifier is longer than {IDENTIFIER_BYTES} bytes")
    if value[0] in BLANKS or value[-1] in BLANKS:
        raise ValueError("an identifier begins or ends with a blank")
    if "," in value or ";" in value:
        raise ValueError("an identifier holds a comma or a semicolon")
    if value[0] == "@" and not (group and len(value) > 1):
        raise ValueError("an identifier begins with @")
    if not value.isprintable():  # U+3000 isn't, to Python, but it can be seen
        for character in value:
            if unicodedata.category(character) in _UNPRINTABLE:
                raise ValueError("an identifier holds a character that cannot be seen")
    return value


def token(value: str) -> str:
    """1 to 64 of ``A-Za-z0-9._-``: a transaction or a session."""
    if 1 <= len(value) <= 64:
        if value.isascii() and value.isalnum():  # quick, for most
            return value
        if TOKEN_CHARACTERS.issuperset(value):
            return value
    raise ValueError("must be 1 to 64 of A-Z a-z 0-9 . _ -")


def number(least: int, most: int) -> Rule:
    """A rule for a decimal number: ASCII digits alone, because ``int()`` accepts much more."""

    def rule(value: str) -> str:
        if not (1 <= len(value) <= 15 and value.isascii() and value.isdecimal()):
            raise ValueError("must be a number")
        if not least <= int(value) <= most:
            raise ValueError(f"must be from {least} to {most}")
        return value.lstrip("0") or "0"

    return rule


def transport_address(value: str) -> str:
    """A transport address: an IP address, a blank, and a port: ``192.168.2.2 1203``."""
    host, blank, port = value.rpartition(" ")
    host = host.rstrip(BLANKS)
    if not blank or not _HOST.issuperset(host) or not _is_ip(host):
        raise ValueError("must be an IP address, a blank and a port")
    return f"{host} {_PORT(port)}"


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def parse_transport_address(value: str) -> tuple[str, int]:
    """The host and port of a value that ``transport_address`` returned."""
    host, _, port = value.rpartition(" ")
    return host, int(port)


def hexadecimal(octets: int) -> Rule:
    """A rule for a number of bytes in hexadecimal; spaces inside are accepted and dropped."""

    def rule(value: str) -> str:
        value = value.replace(" ", "").lower()
        if len(value) != 2 * octets or not HEXADECIMAL.issuperset(value):
            raise ValueError(f"must be {2 * octets} hexadecimal digits")
        return value

    return rule


_PORT: Final = number(1, 65535)
#: The characters of an IP address.
_HOST: Final = HEXADECIMAL | frozenset(".:")


def visible(most: int) -> Rule:
    """A rule for a line of ordinary text, up to a number of characters."""

    def rule(value: str) -> str:
        if not 1 <= len(value) <= most:
            raise ValueError(f"must have 1 to {most} characters")
        return value

    return rule


def moment(value: str) -> str:
    """A time in UTC, to the microsecond: ``2026-11-21T12:00:05.123456Z``; digits may be missing."""
    found = _MOMENT.fullmatch(value)
    if found is not None:
        day, time, fraction = found.groups(default="")
        with suppress(ValueError):  # the 30th of February
            second = datetime.fromisoformat(f"{day}T{time}")
            return f"{second.isoformat()}.{fraction:0<6}Z"
    raise ValueError("must be a time such as 2026-11-21T12:00:05.123456Z")


_MOMENT: Final = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:\d\d)(?:\.(\d{1,6}))?[Zz]", re.ASCII)


def one_of(*words: str) -> Rule:
    """A rule for one of a few words; ASCII case does not count, the result is spelled as here."""
    known = {fold(word): word for word in words}

    def rule(value: str) -> str:
        try:
            return known[fold(value)]
        except KeyError:
            raise ValueError("must be " + " or ".join(words)) from None

    return rule


def limited(value: str) -> str:
    """An entry of a list with its limits, if it has any: ``Ic;expires=3600;uses=1``."""
    if ";" not in value:
        return entry(value)
    name, *limits = value.split(";")
    found: dict[str, str] = {}
    for limit in limits:
        key, equals, number_of = limit.partition("=")
        key = fold(key.strip(BLANKS))
        rule = LIMITS.get(key)
        if rule is None or not equals:
            raise ValueError("a limit of an entry is expires=SECONDS or uses=NUMBER")
        if key in found:
            raise ValueError(f"the limit {key} stands twice")
        try:
            found[key] = rule(number_of.strip(BLANKS))
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
    parts = [f"{key}={found[key]}" for key in LIMITS if key in found]
    return ";".join([entry(name.rstrip(BLANKS)), *parts])


def edit(value: str) -> str:
    """One edit of a list, ``Create Ib,If``: the rule of the lists' lines (fig. 3)."""
    word, _, rest = value.partition(" ")
    known = _EDIT.get(word) or _EDIT.get(fold(word))
    if known is None:
        raise ValueError("must begin with Create, Add or Delete")
    rule = limited if known != DELETE else entry
    names = [rule(name.strip(BLANKS)) for name in rest.split(",")] if rest.strip(BLANKS) else []
    if not names and known != CREATE:
        raise ValueError(f"{known} names nobody")
    return f"{known} {','.join(names)}" if names else known


_EDIT: Final = {word: word for word in EDITS} | {fold(word): word for word in EDITS}

SECONDS_MOST: Final = 10 * 365 * 86400

#: The largest number of calls that an entry may be limited to.
USES_MOST: Final = 1_000_000
#: The limits that an entry may have, in the order in which they are written.
LIMITS: Final[dict[str, Rule]] = {
    "expires": number(1, SECONDS_MOST),
    "uses": number(1, USES_MOST),
}

#: Fields that hold a list, edited line by line (fig. 3d).
LISTS: Final = frozenset(("Accept", "Reject", "Control"))
#: Fields that may occur several times, each a line of its own; here LF separates their values.
REPEATED: Final = frozenset(("Disclosed",))

#: Every known field, with its rule.
FIELDS: Final[dict[str, Rule]] = {
    "Identifier": identifier,
    "Callee": identifier,
    "Caller ID": identifier,
    "Accept": edit,
    "Reject": edit,
    "Control": edit,
    "Policy": one_of("List", "Ask", "Password"),
    "Name": identifier,
    "UDP": one_of("Yes"),
    "Public Key": visible(256),
    "Password": visible(512),
    "Token": visible(512),
    "Reply Password": visible(512),
    "Encrypt Key": hexadecimal(32),
    "Address": visible(253),
    "Source": visible(45),
    "Port": _PORT,
    "Callee Address": visible(253),
    "Callee Port": _PORT,
    "Caller Address": visible(253),
    "Caller Port": _PORT,
    "Local": transport_address,
    "Seen": one_of("Yes"),
    "Back": _PORT,
    "Callee Local": transport_address,
    "Callee Seen": transport_address,
    "Caller Back": transport_address,
    "Caller Seen": transport_address,
    "Expires": number(0, SECONDS_MOST),
    "Age": number(0, SECONDS_MOST),
    "Volume": number(0, 10**15 - 1),
    "Length": number(0, 10**15 - 1),
    "Session": token,
    "Transaction": token,
    "Epoch": token,
    "Code": number(100, 699),
    "Cause": visible(512),
    "Role": one_of("Mediator"),
    "Dial": one_of("Yes"),
    "Key ID": token,
    "Registration Key": hexadecimal(32),
    "Interval": number(1, 86400),
    "Sequence": number(0, 10**15 - 1),
    "Challenge": token,
    "Signature": hexadecimal(32),
    "Padding": visible(1000),
    "End": one_of("Completed", "Expired", "Terminated", "Failed"),
    "Disclosed": visible(1000),
    "Before": moment,
    "Received": number(0, 10**15 - 1),
    "Digest": hexadecimal(32),
}

#: Every spelling accepted of a name: ASCII case does not count.
FIELD_NAMES: Final = {name: name for name in FIELDS} | {fold(name): name for name in FIELDS}
VERB_NAMES: Final = {verb: verb for verb in VERBS} | {fold(verb): verb for verb in VERBS}

#: Fields whose value is never shown in a log or a trace (I18).
SECRETS: Final = frozenset(
    ("Password", "Reply Password", "Encrypt Key", "Token", "Registration Key")
)
