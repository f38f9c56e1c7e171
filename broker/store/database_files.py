"""The files of a database: what the store does with them itself, not SQLite."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

_MAGIC: Final = b"SQLite format 3\0"
#: Files of SQLite next to a database: its log, that log's index, and a journal.
LOGS: Final = ("-wal", "-shm", "-journal")


def application_of(path: str) -> int | None:
    """Return the application id in a database's header; ``None`` if it is not a database.

    Do not call this while this process has the database open: closing any descriptor of a file
    releases the POSIX locks that SQLite has on it.

    :raises OSError: it cannot be read
    """
    with open(path, "rb") as file:
        header = file.read(100)
    if len(header) < 100 or not header.startswith(_MAGIC):
        return None
    return int.from_bytes(header[68:72], "big")


def exists(path: str) -> bool:
    """Return whether there is a file that is not empty."""
    try:
        return os.stat(path).st_size > 0
    except FileNotFoundError:
        return False


def cut_short(path: str) -> bool:
    """Return whether a database ends within a page, without a log that has the rest.

    SQLite would read zeros there. Do not call this while this process has the database open.

    :raises OSError: it cannot be read
    """
    with open(path, "rb") as file:
        page = int.from_bytes(file.read(18)[16:], "big")
        length = os.fstat(file.fileno()).st_size
    # A page is a power of two of at least 512 bytes; 65,536 is written as 1.
    return bool(length % max(page, 512)) and not any(exists(path + log) for log in LOGS)


def tighten(path: str) -> None:
    """Let only the owner read and write a database and SQLite's files next to it.

    :raises OSError: it belongs to another user
    """
    for suffix in ("", *LOGS):
        with suppress(FileNotFoundError):
            if os.stat(path + suffix).st_mode & 0o077:
                os.chmod(path + suffix, 0o600)


def remove(path: str) -> None:
    """Remove an incomplete database, if there is one."""
    for suffix in ("", *LOGS):
        with suppress(FileNotFoundError):
            os.unlink(path + suffix)
