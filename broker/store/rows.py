"""Changes as rows of the database, and rows as what tables are filled with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Final

from broker.interfaces import Change, StoreFailed
from broker.store.connection import Connection
from broker.tables.permits import PermitChange

_SET: Final = """\
INSERT INTO permits (owner, accepted) VALUES (?, ?)
ON CONFLICT (owner) DO UPDATE SET accepted = excluded.accepted"""
_DROP: Final = "DELETE FROM permits WHERE owner = ?"
_ALL: Final = "SELECT owner, accepted FROM permits"

_to_json: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def write(connection: Connection, changes: Sequence[Change]) -> None:
    """Write changes within a transaction; of two for one owner, the later one."""
    latest = {
        change.owner: change.accepted for change in changes if isinstance(change, PermitChange)
    }
    kept = [(owner, _to_json(accepted)) for owner, accepted in latest.items() if accepted]
    dropped = [(owner,) for owner, accepted in latest.items() if not accepted]
    if kept:
        connection.executemany(_SET, kept)
    if dropped:
        connection.executemany(_DROP, dropped)


def read_permits(connection: Connection) -> Iterator[PermitChange]:
    """Every list.

    :raises StoreFailed: one is none: whom it permits can't be told (I3)
    """
    for owner, accepted in connection.execute(_ALL):
        try:
            names = json.loads(accepted)
        except ValueError:
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise StoreFailed("a list in it can't be read")
        yield PermitChange(owner, tuple(names))
