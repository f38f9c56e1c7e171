"""Opening a database: making it if it is missing, checking it, upgrading it, finding its epoch.

A database with anything doubtful in it is not opened at all: the error says what to do (I3).
"""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import Final

from broker.files import move_file, sync_folder_of
from broker.interfaces import StoreFailed
from broker.store import versions
from broker.store.backup import back_up
from broker.store.connection import BACKUP, IN_USE, Connect, Connection, check, code_of, value_of
from broker.store.database_files import application_of, cut_short, exists, remove, tighten
from broker.store.mark import Mark
from broker.tables.grants import Randomness

#: Size in bytes to which SQLite truncates its log after a checkpoint.
_LOG_BYTES: Final = 16 * 1024 * 1024
#: SQLite's page cache in KiB. With its default of 2,000 the index of a ledger of a million
#: disclosures is read again and again, and storing one takes twice as long.
_CACHE_KIB: Final = 16 * 1024


@dataclass(slots=True)
class Database:
    """An open database, which this process alone writes.

    :ivar epoch: its epoch
    :ivar sequence: how many transactions there were
    :ivar renewed: why an existing database got a new epoch; empty if it did not
    """

    connection: Connection
    mark: Mark
    epoch: str
    sequence: int
    renewed: str = ""

    def close(self) -> None:
        """Close it, and release its lock."""
        try:
            self.connection.close()
            self.mark.sync()
        finally:
            self.mark.close()


def open_database(
    path: str,
    *,
    connect: Connect,
    randomness: Randomness,
    schema: Traversable = versions.SCHEMA,
) -> Database:
    """Open the database at a path, or make one if there is none.

    :raises StoreFailed: it must not be used; the text says why, and what to do
    """
    path = os.path.realpath(path)
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise StoreFailed(f"{path}: there is no folder {folder}: make it, or name another file")
    try:
        mark = Mark(path)
        try:
            return _open(path, mark, connect, randomness, schema)
        except BaseException:
            mark.close()
            raise
    except OSError as error:
        raise StoreFailed(
            f"{path}: {error.strerror}: it and its folder must belong to the user that runs"
            " the broker"
        ) from None
    except sqlite3.Error as error:
        raise StoreFailed(f"{path}: {_advice(error)}") from None


def _open(
    path: str, mark: Mark, connect: Connect, randomness: Randomness, schema: Traversable
) -> Database:
    if not os.path.lexists(path):
        _make(path, mark, connect, randomness, schema)
    application = application_of(path)
    if application is None or cut_short(path):
        raise StoreFailed(f"{path}: is damaged, or not a database. {_INSTEAD}")
    if application not in {IN_USE, BACKUP}:
        raise StoreFailed(f"{path}: is not a database of this program: name another file")
    if application == BACKUP and exists(f"{path}-wal"):
        raise StoreFailed(
            f"{path}: is a backup, but {path}-wal belongs to the database that was here before:"
            " move that away too"
        )
    tighten(path)
    os.close(
        os.open(path, os.O_RDWR | os.O_CLOEXEC)
    )  # Else SQLite would silently open it read-only.
    connection = connect(path)
    try:
        return _prepare(path, mark, connection, randomness, schema)
    except BaseException:
        connection.close()
        raise


def _prepare(
    path: str, mark: Mark, connection: Connection, randomness: Randomness, schema: Traversable
) -> Database:
    connection.execute("PRAGMA cell_size_check = ON")
    found = check(connection)
    if found:
        raise StoreFailed(f"{path}: is damaged ({found}). {_INSTEAD}")
    newest = versions.newest(schema)
    version = value_of(connection, "PRAGMA user_version")
    if version > newest:
        raise StoreFailed(
            f"{path}: was made by a newer broker (its schema is version {version}, this one knows"
            f" {newest}): run that one, or put a backup from before in its place"
        )
    database = _check_epoch(mark, connection, randomness)
    if version < newest:
        _upgrade(path, connection, schema, version)
    mode = value_of(connection, "PRAGMA journal_mode = WAL")
    if mode != "wal":
        raise StoreFailed(f"{path}: SQLite cannot keep a log next to it: put it on a local disk")
    connection.execute("PRAGMA synchronous = FULL")  # Every commit is synced (I8),
    connection.execute("PRAGMA fullfsync = ON")  # on macOS past the disk's own cache.
    list(connection.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}"))
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    connection.execute("BEGIN IMMEDIATE")  # This fails while another program writes.
    connection.execute("ROLLBACK")
    mark.write(database.epoch, database.sequence)
    mark.sync()
    sync_folder_of(path)
    return database


def _make(
    path: str, mark: Mark, connect: Connect, randomness: Randomness, schema: Traversable
) -> None:
    if exists(f"{path}-wal"):
        raise StoreFailed(
            f"{path}: is missing, but {path}-wal is there and belongs to it: put it back; to start"
            " empty, move that away too"
        )
    new = f"{path}-new"
    remove(new)
    os.close(os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        connection = connect(new)
        try:
            connection.execute("BEGIN IMMEDIATE")
            versions.make(connection, schema)
            connection.execute(f"PRAGMA application_id = {IN_USE}")
            epoch = randomness(8).hex()
            connection.execute("INSERT INTO store VALUES (1, ?, 0)", (epoch,))
            connection.execute("COMMIT")
        finally:
            connection.close()
        mark.write(epoch, 0)
        move_file(new, path)
    except BaseException:
        remove(new)
        raise


def _upgrade(path: str, connection: Connection, schema: Traversable, version: int) -> None:
    back_up(path, f"{path}-v{version}")
    connection.execute("PRAGMA synchronous = EXTRA")
    connection.execute("BEGIN IMMEDIATE")
    versions.upgrade(connection, schema, version)
    connection.execute("COMMIT")


def _check_epoch(mark: Mark, connection: Connection, randomness: Randomness) -> Database:
    """Find out whether changes may be lost; if so, draw a new epoch.

    The table ``store`` is the same in every version of the schema.
    """
    ((epoch, sequence),) = connection.execute("SELECT epoch, sequence FROM store")
    marked = mark.read()
    renewed = ""
    if value_of(connection, "PRAGMA application_id") == BACKUP:
        renewed = "it is a backup"
    elif marked is None or marked[0] != epoch:
        renewed = "the mark beside it is missing, void or another's"
    elif marked[1] > sequence:
        renewed = f"it is an older copy, or has lost changes: {sequence} of {marked[1]} are in it"
    if renewed:
        epoch = randomness(8).hex()
        sequence += 1
        # A backup has no log yet. It must not get one before the file itself is marked as in use,
        # else that log could be taken for another database's.
        connection.execute("PRAGMA synchronous = EXTRA")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA application_id = {IN_USE}")
        connection.execute("UPDATE store SET epoch = ?, sequence = ?", (epoch, sequence))
        connection.execute("COMMIT")
    return Database(connection, mark, epoch, sequence, renewed)


_INSTEAD: Final = (
    "Keep it for inspection, and put a backup in its place; without one, move it and the files next"
    " to it away to start empty"
)
_ADVICE: Final = {
    sqlite3.SQLITE_CORRUPT: f"is damaged. {_INSTEAD}",
    sqlite3.SQLITE_CONSTRAINT: f"is damaged: it has rows that no broker stored. {_INSTEAD}",
    sqlite3.SQLITE_NOTADB: f"is damaged, or not a database. {_INSTEAD}",
    sqlite3.SQLITE_BUSY: "another program is using it: end that first",
    sqlite3.SQLITE_READONLY: (
        "can't be written: it and its folder must belong to the user that runs the broker"
    ),
    sqlite3.SQLITE_CANTOPEN: (
        "can't be opened: it and its folder must belong to the user that runs the broker"
    ),
    sqlite3.SQLITE_FULL: "no space is left on its disk",
}


def _advice(error: sqlite3.Error) -> str:
    return _ADVICE.get(code_of(error), str(error))
