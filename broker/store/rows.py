"""Changes as rows of the database, and rows as what tables are filled with."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import isfinite
from operator import attrgetter
from typing import Any, Final

from broker.interfaces import Change, StoreFailed
from broker.store.connection import Connection, value_of
from broker.tables.accounts import AccountChange
from broker.tables.disclosures import Disclosure
from broker.tables.groups import GroupChange
from broker.tables.permits import LIST, Limit, PermitChange

# All lists of a transaction go in as one JSON object: one step of SQLite, and so one wait for the
# interpreter's lock, which the reactor holds meanwhile. A step a list cost a registration 7 % more.
_SET_PERMITS: Final = """\
INSERT INTO permits (owner, accepted) SELECT key, value FROM json_each(?) WHERE true
ON CONFLICT (owner) DO UPDATE SET accepted = excluded.accepted"""
_DROP_PERMITS: Final = "DELETE FROM permits WHERE owner IN (SELECT value FROM json_each(?))"
_PERMITS: Final = "SELECT owner, accepted FROM permits"
_SET_POLICY: Final = """\
INSERT INTO policies (owner, policy, rejected) VALUES (?, ?, ?)
ON CONFLICT (owner) DO UPDATE SET policy = excluded.policy, rejected = excluded.rejected"""
_DROP_POLICY: Final = "DELETE FROM policies WHERE owner IN (SELECT value FROM json_each(?))"
_POLICIES: Final = "SELECT owner, policy, rejected FROM policies"

_SET_ACCOUNT: Final = """\
INSERT INTO accounts (identifier, verifier, generation, names) VALUES (?, ?, ?, ?)
ON CONFLICT (identifier) DO UPDATE SET
    verifier = excluded.verifier, generation = excluded.generation, names = excluded.names"""
_DROP_ACCOUNT: Final = "DELETE FROM accounts WHERE identifier = ?"
_ACCOUNTS: Final = "SELECT identifier, verifier, generation, names FROM accounts"

_SET_GROUP: Final = """\
INSERT INTO groups (name, members) VALUES (?, ?)
ON CONFLICT (name) DO UPDATE SET members = excluded.members"""
_DROP_GROUP: Final = "DELETE FROM groups WHERE name = ?"
_GROUPS: Final = "SELECT name, members FROM groups"

_DISCLOSE: Final = """\
INSERT INTO disclosures (whose, told, host, port, session, basis, at, expires)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""
DISCLOSURES: Final = """\
SELECT whose, told, host, port, session, basis, at, expires FROM disclosures
WHERE whose = ? AND at < ? ORDER BY at DESC, id DESC LIMIT ?"""
PRUNE: Final = """\
DELETE FROM disclosures WHERE id IN
(SELECT id FROM disclosures WHERE at < ? ORDER BY at LIMIT ?)"""

#: How many disclosures are told of at once, whatever is asked for (I15).
DISCLOSURES_MOST: Final = 10_000

_to_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_columns: Final = attrgetter("whose", "told", "host", "port", "session", "basis", "at", "expires")


def write(connection: Connection, changes: Sequence[Change]) -> None:
    """Write changes within a transaction.

    Of several for one list, account or group the last is written; each disclosure is.

    :raises KeyError: it is no change that a store knows
    """
    kinds: defaultdict[type[Change], list[Any]] = defaultdict(list)
    for change in changes:
        kinds[type(change)].append(change)
    for kind, found in kinds.items():
        _WRITE[kind](connection, found)


def _write_permits(connection: Connection, changes: Iterable[PermitChange]) -> None:
    latest = {change.owner: change for change in changes}
    lists = {owner: _entries(change) for owner, change in latest.items() if change.accepted}
    if lists:
        text = _to_json(lists)
        if "\\u0000" in text:  # SQLite would take it for the end of a text
            raise ValueError("a list holds a NUL")
        connection.execute(_SET_PERMITS, (text,))
    if len(lists) < len(latest):
        connection.execute(_DROP_PERMITS, (_to_json([*latest.keys() - lists.keys()]),))
    said = {owner for owner, one in latest.items() if one.rejected or one.policy != LIST}
    if said:
        policies = [
            (owner, latest[owner].policy, _to_json(latest[owner].rejected)) for owner in said
        ]
        connection.executemany(_SET_POLICY, policies)
    if len(said) < len(latest):
        connection.execute(_DROP_POLICY, (_to_json([*latest.keys() - said]),))


def _write_accounts(connection: Connection, changes: Iterable[AccountChange]) -> None:
    latest = {change.identifier: change for change in changes}
    rows = [
        (change.identifier, change.verifier, change.generation, _to_json(change.names))
        for change in latest.values()
        if change.verifier is not None
    ]
    dropped = [(change.identifier,) for change in latest.values() if change.verifier is None]
    _put(connection, _SET_ACCOUNT, rows, _DROP_ACCOUNT, dropped)


def _write_groups(connection: Connection, changes: Iterable[GroupChange]) -> None:
    latest = {change.name: change.members for change in changes}
    rows = [(name, _to_json(members)) for name, members in latest.items() if members is not None]
    dropped = [(name,) for name, members in latest.items() if members is None]
    _put(connection, _SET_GROUP, rows, _DROP_GROUP, dropped)


def _write_disclosures(connection: Connection, changes: Iterable[Disclosure]) -> None:
    connection.executemany(_DISCLOSE, map(_columns, changes))


_WRITE: Final[Mapping[type[Change], Callable[[Connection, list[Any]], None]]] = {
    PermitChange: _write_permits,
    AccountChange: _write_accounts,
    GroupChange: _write_groups,
    Disclosure: _write_disclosures,
}


def _put(
    connection: Connection,
    put: str,
    rows: Sequence[tuple[str, ...]],
    drop: str,
    dropped: Sequence[tuple[str]],
) -> None:
    if rows:
        connection.executemany(put, rows)
    if dropped:
        connection.executemany(drop, dropped)


def _entries(change: PermitChange) -> tuple[object, ...]:
    """A list as it is kept: its entries, each with its limits if it has any.

    :raises ValueError: a limit is none
    """
    if not change.limits:
        return change.accepted
    entries: dict[str, object] = {name: name for name in change.accepted}
    for name, limit in change.limits:
        entries[name] = kept = (name, limit.until, limit.uses)
        _entry([*kept])  # what could not be read again would keep the server from starting
    return tuple(entries.values())


def read_permits(connection: Connection) -> Iterator[PermitChange]:
    """Every list, with whom its owner refuses and how its consent is had.

    :raises StoreFailed: one is none: whom it permits can't be told (I3)
    """
    policies = {
        owner: (policy, _texts(rejected, "list"))
        for owner, policy, rejected in connection.execute(_POLICIES)
    }
    for owner, accepted in connection.execute(_PERMITS):
        entries = _array(accepted, "list")
        limits: tuple[tuple[str, Limit], ...] = ()
        if not _are_texts(entries):
            try:
                read = [_entry(entry) for entry in entries]
            except (ValueError, OverflowError):
                raise _unreadable("list") from None
            entries = [name for name, _ in read]
            limits = tuple((name, limit) for name, limit in read if limit is not None)
        policy, rejected = policies.pop(owner, (LIST, ()))
        yield PermitChange(owner, tuple(entries), limits, rejected, policy)
    for owner, (policy, rejected) in policies.items():
        yield PermitChange(owner, (), (), rejected, policy)


def read_accounts(connection: Connection) -> Iterator[AccountChange]:
    """Every account.

    :raises StoreFailed: one is none
    """
    for identifier, verifier, generation, names in connection.execute(_ACCOUNTS):
        yield AccountChange(identifier, verifier, generation, _texts(names, "account"))


def read_groups(connection: Connection) -> Iterator[GroupChange]:
    """Every group.

    :raises StoreFailed: one is none: whom it holds can't be told (I3)
    """
    for name, members in connection.execute(_GROUPS):
        yield GroupChange(name, _texts(members, "group"))


def read_disclosures(
    connection: Connection, whose: str, before: int, most: int
) -> tuple[Disclosure, ...]:
    """What was told of one terminal before some time, the newest first; at most so many."""
    found = connection.execute(DISCLOSURES, (whose, _time(before), most))
    return tuple(Disclosure(*row) for row in found)


def prune(connection: Connection, before: int, most: int) -> int:
    """Drop, within a transaction, the oldest of those disclosures that are older than this.

    :param most: so many at the most
    :return: how many went
    """
    connection.execute(PRUNE, (_time(before), most))
    gone: int = value_of(connection, "SELECT changes()")
    return gone


def _time(asked: int) -> int:
    """A time as SQLite takes it, whose integers have 64 bits."""
    return max(-(2**63), min(asked, 2**63 - 1))


def _array(text: str, what: str) -> list[Any]:
    """An array that is kept as JSON."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise _unreadable(what)
    return found


def _texts(text: str, what: str) -> tuple[str, ...]:
    """An array of texts that is kept as JSON."""
    found = _array(text, what)
    if not _are_texts(found):
        raise _unreadable(what)
    return tuple(found)


def _are_texts(found: list[Any]) -> bool:
    return all(isinstance(one, str) for one in found)


def _entry(kept: Any) -> tuple[str, Limit | None]:
    """An entry of a list.

    :raises ValueError: it is none
    :raises OverflowError: it is none
    """
    match kept:
        case str():
            return kept, None
        # Not infinity, as which 1e999 is read: what was to end never would.
        case [str(name), None | int() | float() as until, None | int() as uses] if (
            bool not in {type(until), type(uses)}
            and (until is None or isfinite(until))
            and (uses is None or uses > 0)
        ):
            return name, Limit(until, uses)
    raise ValueError("no entry of a list")


def _unreadable(what: str) -> StoreFailed:
    return StoreFailed(f"{'an' if what == 'account' else 'a'} {what} in it can't be read")
