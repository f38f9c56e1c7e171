"""Transactions on an open database: commits written in groups, and what became of each.

Runs in the writer's thread. Whatever fails here must not end that thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from twisted.internet.defer import Deferred

from broker.interfaces import Change, StoreFailed
from broker.store import rows
from broker.store.connection import Connection, code_of
from broker.store.database import Database

T = TypeVar("T")

#: Faults of the database, not of a change: trying each change by itself does not help.
_DATABASE_FAULTS: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    }
)
#: Faults of this server. A full disk is one, and yet a smaller change may still fit.
_SERVER_FAULTS: Final = _DATABASE_FAULTS | {sqlite3.SQLITE_FULL}


@dataclass(slots=True, eq=False)
class Commit:
    """Changes to write in one transaction.

    :ivar done: fires when they are durable, or fails
    """

    changes: Sequence[Change]
    done: Deferred[None]


#: A commit, and why it failed; ``None`` if it is durable.
Outcome = tuple[Commit, Exception | None]


def write_group(database: Database, group: Sequence[Commit]) -> list[Outcome]:
    """Write a group in one transaction; if that fails, write each commit that can be written."""
    error = _try(database, [change for commit in group for change in commit.changes])
    if error is None or len(group) == 1 or code_of(error) in _DATABASE_FAULTS:
        return [(commit, error) for commit in group]
    outcomes: list[Outcome] = []
    for index, commit in enumerate(group):
        error = _try(database, commit.changes)
        outcomes.append((commit, error))
        if error is not None and code_of(error) in _DATABASE_FAULTS:
            outcomes.extend((later, error) for later in group[index + 1 :])
            break
    return outcomes


def _try(database: Database, changes: Sequence[Change]) -> Exception | None:
    """Write changes; return why that failed, if it did."""
    try:
        transact(database, partial(rows.write, changes=changes))
    except Exception as error:
        return error
    return None


def transact(database: Database, work: Callable[[Connection], T]) -> T:
    """Run one transaction. If it fails, nothing of it is found later, not even after a crash."""
    try:
        return _attempt(database, work)
    except Exception:
        if database.mark.void:
            _overwrite(database)
        raise


def _attempt(database: Database, work: Callable[[Connection], T]) -> T:
    connection = database.connection
    sequence = database.sequence + 1
    committing = False
    try:
        if connection.in_transaction:  # The previous one failed, and so did its rollback.
            connection.execute("ROLLBACK")
        connection.execute("BEGIN IMMEDIATE")
        result = work(connection)
        connection.execute("UPDATE store SET sequence = ?", (sequence,))
        committing = True
        connection.execute("COMMIT")
    except Exception as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        # A commit that could not be synced may be found complete after a crash, although it was
        # refused; one for which there was no space is incomplete.
        if committing and code_of(error) != sqlite3.SQLITE_FULL:
            database.mark.make_void()
        raise
    database.sequence = sequence
    # It is durable now, whether or not the mark is written: a mark that lags behind is still true.
    with suppress(OSError):
        database.mark.write(database.epoch, sequence)
    return result


def _overwrite(database: Database) -> None:
    """Write over what a failed commit may have left in the log."""
    # If that fails too, the mark stays void until a transaction succeeds; a crash before then
    # leads to a new epoch.
    with suppress(sqlite3.Error, OSError):
        _attempt(database, lambda connection: None)


def is_server_fault(error: Exception) -> bool:
    """Return whether the disk or the database is at fault, and not the change."""
    return code_of(error) in _SERVER_FAULTS


def refusal_of(error: Exception) -> StoreFailed:
    """Return what a terminal may learn of an error: nothing about this machine."""
    code = code_of(error)
    if code == sqlite3.SQLITE_FULL:
        text = "the server has no space left"
    elif code == sqlite3.SQLITE_BUSY:
        text = "busy"
    elif code in _DATABASE_FAULTS:
        text = "the server can't keep changes at present"
    else:
        text = "this change can't be kept"
    refusal = StoreFailed(text)
    refusal.__cause__ = error
    return refusal
