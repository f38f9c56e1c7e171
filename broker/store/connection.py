"""A connection to SQLite: as much of it as the store uses."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol
from urllib.parse import quote

#: ``PRAGMA application_id`` of a database in use, and of a backup that was never opened.
IN_USE: Final = int.from_bytes(b"brkr", "big")
BACKUP: Final = int.from_bytes(b"brkb", "big")
#: Seconds to wait for another program that is writing.
PATIENCE: Final = 5.0


class Connection(Protocol):
    """A database connection in autocommit mode, such as ``sqlite3.Connection``.

    Every failure is a ``sqlite3.Error`` with SQLite's code in ``sqlite_errorcode``. Any thread may
    use it, one at a time.
    """

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""

    def execute(self, sql: str, parameters: Any = ..., /) -> Iterable[Any]:
        """Execute one statement; return its rows."""

    def executemany(self, sql: str, parameters: Any, /) -> object:
        """Execute one statement for each of many rows."""

    def close(self) -> None:
        """Close the connection."""


#: Opens the database at a path, which exists, for reading and writing.
Connect = Callable[[str], Connection]


def connect(path: str) -> sqlite3.Connection:
    """Open a database with the standard library."""
    return sqlite3.connect(
        f"file:{quote(path)}?mode=rw",
        uri=True,
        timeout=PATIENCE,
        isolation_level=None,
        check_same_thread=False,
    )


def code_of(error: BaseException) -> int:
    """Return the primary SQLite result code of an error, 0 if it has none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def value_of(connection: Connection, sql: str) -> Any:
    """Return the single value that a statement gives."""
    ((value,),) = connection.execute(sql)
    return value


def check(connection: Connection) -> str:
    """Return what is wrong with a database, in one line; empty if nothing is."""
    found = " ".join(str(value_of(connection, "PRAGMA quick_check(1)")).split())
    return "" if found == "ok" else found
