"""The files of a database, apart from what SQLite does with them."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

_MAGIC: Final = b"SQLite format 3\0"
#: What SQLite keeps beside a database: its log, that log's index, and a journal.
LOGS: Final = ("-wal", "-shm", "-journal")


def application_of(path: str) -> int | None:
    """The application id in the header of a database; ``None`` if the file is no database.

    Not to be called while this process has the database open: closing any handle of a file lets
    SQLite's locks on it go.

    :raises OSError: it can't be read
    """
    with open(path, "rb") as file:
        header = file.read(100)
    if len(header) < 100 or not header.startswith(_MAGIC):
        return None
    return int.from_bytes(header[68:72], "big")


def exists(path: str) -> bool:
    """Whether there is a file with anything in it."""
    try:
        return os.stat(path).st_size > 0
    except FileNotFoundError:
        return False


def cut_short(path: str) -> bool:
    """Whether a database ends within a page, and lies there without a log that has the rest.

    SQLite would take what is missing for zeros. Not to be called while this process has it open.

    :raises OSError: it can't be read
    """
    with open(path, "rb") as file:
        page = int.from_bytes(file.read(18)[16:], "big")
        length = os.fstat(file.fileno()).st_size
    # A page is a power of two of at least 512 bytes; 65,536 is written as 1.
    return bool(length % max(page, 512)) and not any(exists(path + log) for log in LOGS)


def tighten(path: str) -> None:
    """Let only the owner read and write a database and what lies beside it.

    :raises OSError: it is another's
    """
    for suffix in ("", *LOGS):
        with suppress(FileNotFoundError):
            if os.stat(path + suffix).st_mode & 0o077:
                os.chmod(path + suffix, 0o600)


def remove(path: str) -> None:
    """Remove a database that was not completed, if there is one."""
    for suffix in ("", *LOGS):
        with suppress(FileNotFoundError):
            os.unlink(path + suffix)
