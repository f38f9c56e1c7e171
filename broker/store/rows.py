"""Changes to rows of the database, and rows back to the changes that fill the tables."""

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

# All lists of a transaction go in as one JSON object: one step of SQLite releases the interpreter's
# lock once, and waits for it once. With a step for each list a registration cost 7 % more.
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

#: How many disclosures one query returns, however many are asked for (I15).
DISCLOSURES_MOST: Final = 10_000

_to_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_columns: Final = attrgetter(
    "owner", "recipient", "host", "port", "session", "basis", "at", "expires"
)


def write(connection: Connection, changes: Sequence[Change]) -> None:
    """Write changes within a transaction.

    Of several changes to one list, account or group only the last is written; all disclosures are.

    :raises KeyError: not a kind of change that a store knows
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
        if "\\u0000" in text:  # SQLite would end the text there.
            raise ValueError("a list has a NUL")
        connection.execute(_SET_PERMITS, (text,))
    if len(lists) < len(latest):
        connection.execute(_DROP_PERMITS, (_to_json([*latest.keys() - lists.keys()]),))
    policies = [
        (owner, change.policy, _to_json(change.rejected))
        for owner, change in latest.items()
        if change.rejected or change.policy != LIST
    ]
    if policies:
        connection.executemany(_SET_POLICY, policies)
    if len(policies) < len(latest):
        default = latest.keys() - {owner for owner, _, _ in policies}
        connection.execute(_DROP_POLICY, (_to_json([*default]),))


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
    """Return the entries of a list as they are stored: texts, or arrays where there are limits.

    :raises ValueError: a limit is not valid
    """
    if not change.limits:
        return change.accepted
    entries: dict[str, object] = {name: name for name in change.accepted}
    for name, limit in change.limits:
        entries[name] = stored = (name, limit.until, limit.uses)
        _entry([*stored])  # An entry that cannot be read back would keep the server from starting.
    return tuple(entries.values())


def read_permits(connection: Connection) -> Iterator[PermitChange]:
    """Read every list, with the callers that its owner rejects and the owner's policy.

    :raises StoreFailed: a list is not valid: what it permits is unknown (I3)
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
    """Read every account.

    :raises StoreFailed: an account is not valid
    """
    for identifier, verifier, generation, names in connection.execute(_ACCOUNTS):
        yield AccountChange(identifier, verifier, generation, _texts(names, "account"))


def read_groups(connection: Connection) -> Iterator[GroupChange]:
    """Read every group.

    :raises StoreFailed: a group is not valid: its members are unknown (I3)
    """
    for name, members in connection.execute(_GROUPS):
        yield GroupChange(name, _texts(members, "group"))


def read_disclosures(
    connection: Connection, whose: str, before: int, most: int
) -> tuple[Disclosure, ...]:
    """Read up to ``most`` disclosures of one terminal before a time, the newest first."""
    found = connection.execute(DISCLOSURES, (whose, _time(before), most))
    return tuple(Disclosure(*row) for row in found)


def prune(connection: Connection, before: int, most: int) -> int:
    """Delete, within a transaction, the oldest of the disclosures that are older than this.

    :param most: how many to delete in this transaction
    :return: how many were deleted
    """
    connection.execute(PRUNE, (_time(before), most))
    deleted: int = value_of(connection, "SELECT changes()")
    return deleted


def _time(time: int) -> int:
    """Clamp a time to what SQLite takes, whose integers have 64 bits."""
    return max(-(2**63), min(time, 2**63 - 1))


def _array(text: str, what: str) -> list[Any]:
    """Read an array stored as JSON."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise _unreadable(what)
    return found


def _texts(text: str, what: str) -> tuple[str, ...]:
    """Read an array of texts stored as JSON."""
    found = _array(text, what)
    if not _are_texts(found):
        raise _unreadable(what)
    return tuple(found)


def _are_texts(found: list[Any]) -> bool:
    return all(isinstance(each, str) for each in found)


def _entry(stored: Any) -> tuple[str, Limit | None]:
    """Read an entry of a list.

    :raises ValueError: it is not one
    :raises OverflowError: a number in it is too large
    """
    match stored:
        case str():
            return stored, None
        # Infinity, as which 1e999 is read, is refused: a limit that should end would never end.
        case [str(name), None | int() | float() as until, None | int() as uses] if (
            bool not in {type(until), type(uses)}
            and (until is None or isfinite(until))
            and (uses is None or uses > 0)
        ):
            return name, Limit(until, uses)
    raise ValueError("not an entry of a list")


def _unreadable(what: str) -> StoreFailed:
    return StoreFailed(f"{'an' if what == 'account' else 'a'} {what} in it can't be read")
