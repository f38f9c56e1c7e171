"""A connection to SQLite, as much of it as the store uses."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol
from urllib.parse import quote

#: ``PRAGMA application_id`` of a database in use, and of a backup that has not been used yet.
IN_USE: Final = int.from_bytes(b"brkr", "big")
BACKUP: Final = int.from_bytes(b"brkb", "big")
#: Seconds to wait for another program that is writing.
PATIENCE: Final = 5.0


class Connection(Protocol):
    """What a factory gives; ``sqlite3.Connection`` in autocommit mode is one.

    Every failure is a ``sqlite3.Error``, with the code of SQLite in ``sqlite_errorcode``. It may be
    used in any thread, in one at a time.
    """

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""

    def execute(self, sql: str, parameters: Any = ..., /) -> Iterable[Any]:
        """Execute one statement; give its rows."""

    def executemany(self, sql: str, parameters: Any, /) -> object:
        """Execute one statement for each of many rows."""

    def close(self) -> None:
        """Close."""


#: Opens the database at a path, which exists, for reading and writing.
Connect = Callable[[str], Connection]


def connect(path: str) -> sqlite3.Connection:
    """The standard library's."""
    return sqlite3.connect(
        f"file:{quote(path)}?mode=rw",
        uri=True,
        timeout=PATIENCE,
        isolation_level=None,
        check_same_thread=False,
    )


def code_of(error: BaseException) -> int:
    """The primary result code of SQLite that an error is about, 0 if it is about none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def value_of(connection: Connection, sql: str) -> Any:
    """The one value that a statement gives."""
    ((value,),) = connection.execute(sql)
    return value


def check(connection: Connection) -> str:
    """What is wrong with a database, in a line; empty if nothing is."""
    found = " ".join(str(value_of(connection, "PRAGMA quick_check(1)")).split())
    return "" if found == "ok" else found
