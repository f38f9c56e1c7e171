"""What can be asked at the operator's socket: one table of requests, and how a line is read.

docs/operations.md describes them. To add one, write a method of ``AdminApi`` and its row here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from broker.mediator.admin import AdminApi, Row, Tell
from broker.messages.grammar import entry, identifier
from broker.messages.message import printable

#: The most names in one line of the log.
NAMED_MOST: Final = 10
#: The latest time for ``since``: the year 9999, in seconds since 1970.
_SECONDS_MOST: Final = 253_402_300_799


class BadAdminRequest(ValueError):
    """A line is not a request; the text says why."""


#: Makes the value of a field, or raises ``TypeError`` or ``ValueError`` with a cause.
_Rule = Callable[[object], Any]


def _text(value: object, rule: Callable[[str], str] = str) -> str:
    if not isinstance(value, str):
        raise TypeError("must be a text")
    return rule(value)


def _group(value: object) -> str:
    name = _text(value, entry)
    if name[0] != "@":
        raise ValueError("a group's name begins with @")
    return name


def _whole(least: int, most: int) -> _Rule:
    def rule(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return value

    return rule


def _members(value: object) -> list[str]:
    if not isinstance(value, list):
        raise TypeError("must be a list")
    return [_text(member, identifier) for member in value]


class Act(NamedTuple):
    """Something that can be asked.

    :ivar method: the method of ``AdminApi`` that does it, and returns the end of the answer
    :ivar needed: the fields that the request must have in addition to ``do``, each with its rule
    :ivar optional: the fields that it may have
    :ivar lists: whether the method also gives rows, and takes ``tell`` for them
    """

    method: str
    needed: Mapping[str, _Rule]
    optional: Mapping[str, _Rule] = {}
    lists: bool = False


_ID: Final[dict[str, _Rule]] = {"identifier": partial(_text, rule=identifier)}
_PASSWORD: Final[dict[str, _Rule]] = {**_ID, "password": _text}
_NAME: Final[dict[str, _Rule]] = {**_ID, "name": partial(_text, rule=identifier)}
_GROUP: Final[dict[str, _Rule]] = {"group": _group}
_MEMBERS: Final[dict[str, _Rule]] = {**_GROUP, "members": _members}
_PAGE: Final[dict[str, _Rule]] = {"since": _whole(0, _SECONDS_MOST), "most": _whole(1, 2**53)}

ACTS: Final[Mapping[str, Act]] = {
    "account add": Act("add_account", _PASSWORD),
    "account reset": Act("reset_account", _PASSWORD),
    "account remove": Act("remove_account", _ID),
    "account list": Act("list_accounts", {}, lists=True),
    "account name add": Act("add_name", _NAME),
    "account name remove": Act("remove_name", _NAME),
    "group create": Act("create_group", _MEMBERS),
    "group add": Act("add_members", _MEMBERS),
    "group remove": Act("remove_members", _MEMBERS),
    "group delete": Act("delete_group", _GROUP),
    "group list": Act("list_groups", {}, lists=True),
    "group members": Act("list_members", _GROUP, lists=True),
    "permit show": Act("show_permits", _ID, lists=True),
    "who knows": Act("who_knows", _ID, _PAGE, lists=True),
}


class AdminRequest(NamedTuple):
    """A valid request.

    :ivar do: a key of ``ACTS``
    :ivar fields: its fields, in canonical form
    """

    do: str
    fields: dict[str, Any]

    async def run(self, api: AdminApi, tell: Tell) -> Row:
        """Do it, and give the end of the answer.

        :param tell: takes the rows before it
        """
        act = ACTS[self.do]
        rows = {"tell": tell} if act.lists else {}
        end: Row = await getattr(api, act.method)(**self.fields, **rows)
        return end

    def described(self) -> str:
        """The request for the log: on one line, and without a password (I18, I19)."""
        words = [self.do]
        for name, value in self.fields.items():
            if name == "password":
                continue
            values = value if isinstance(value, list) else [value]
            words += [printable(str(item)) for item in values[:NAMED_MOST]]
            if len(values) > NAMED_MOST:
                words.append(f"and {len(values) - NAMED_MOST} more")
        return " ".join(words)


def read_request(line: bytes) -> AdminRequest:
    """Read a line.

    :raises BadAdminRequest: it is not a request
    """
    try:
        fields = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        raise BadAdminRequest("the request is no JSON") from None
    if not isinstance(fields, dict):
        raise BadAdminRequest("the request is no object")
    do = fields.pop("do", None)
    act = ACTS.get(do) if isinstance(do, str) else None
    if act is None:
        raise BadAdminRequest(f"{str(do)[:80]!r} is nothing that this broker does")
    rules = {**act.needed, **act.optional}
    unknown = [name for name in fields if name not in rules]
    missing = [name for name in act.needed if name not in fields]
    if unknown:
        raise BadAdminRequest(f"{do}: {unknown[0][:80]!r} has no place there")
    if missing:
        raise BadAdminRequest(f"{do}: {missing[0]!r} is missing")
    checked = {}
    for name, value in fields.items():
        try:
            checked[name] = rules[name](value)
        except (TypeError, ValueError) as error:
            raise BadAdminRequest(f"{name}: {error}") from None
    return AdminRequest(do, checked)
