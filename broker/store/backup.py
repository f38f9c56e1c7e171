"""A complete and consistent copy of a database that is in use.

The copy is marked as a backup. Opening it draws a new epoch, so that terminals learn that changes
may be lost: a permit withdrawn since the backup must not return silently.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing
from typing import Final

from broker.files import move_file
from broker.interfaces import StoreFailed
from broker.store.connection import BACKUP, IN_USE, check, connect, value_of
from broker.store.database_files import LOGS, application_of, remove
from broker.store.mark import SUFFIX

#: How many pages are copied between two checks for a signal.
_STRIDE: Final = 1000


def back_up(path: str, target: str) -> None:
    """Copy a database, which may be in use, to a file that appears once it is complete.

    An earlier backup of that name is replaced, any other file is not. If it fails, or a signal
    interrupts it, no part of the copy remains.

    :raises StoreFailed: it cannot be done; the text says why
    """
    path, target = os.path.realpath(path), os.path.realpath(target)
    if target in {path + suffix for suffix in ("", SUFFIX, *LOGS)}:
        raise StoreFailed(f"{target}: is a file of the database itself")
    if not os.path.isfile(path):
        raise StoreFailed(f"{path}: there is no such database")
    try:
        if os.path.lexists(target) and application_of(target) != BACKUP:
            raise StoreFailed(f"{target}: exists, and is not a backup: name another file")
        handle, temporary = tempfile.mkstemp(
            prefix=os.path.basename(target) + "-", dir=os.path.dirname(target)
        )
    except OSError as error:
        raise StoreFailed(f"{target}: {error.strerror}") from None
    os.close(handle)
    try:
        with closing(connect(path)) as source, closing(connect(temporary)) as copy:
            _copy(source, copy, path)
        move_file(temporary, target)
    except sqlite3.Error as error:
        raise StoreFailed(f"{path} could not be copied to {target}: {error}") from None
    except OSError as error:
        raise StoreFailed(f"{target}: {error.strerror}") from None
    finally:
        remove(temporary)


def _copy(source: sqlite3.Connection, copy: sqlite3.Connection, path: str) -> None:
    # In a transaction, so that the copy is of one moment, whatever is written during it.
    source.execute("BEGIN")
    if value_of(source, "PRAGMA application_id") != IN_USE:
        raise StoreFailed(f"{path}: is not a database in use: copy the file itself")
    source.backup(copy, pages=_STRIDE, progress=_look_up)
    # Without a log: one file, synced as a whole when it is complete.
    mode = value_of(copy, "PRAGMA journal_mode = DELETE")
    if mode != "delete":
        raise StoreFailed(f"{path} could not be copied: the copy keeps a log")
    copy.execute("PRAGMA synchronous = OFF")
    copy.execute(f"PRAGMA application_id = {BACKUP}")
    found = check(copy)
    if found:
        raise StoreFailed(f"{path}: is damaged ({found}); an earlier backup was left as it is")


def _look_up(status: int, remaining: int, total: int) -> None:
    """Does nothing: Python handles signals whenever it runs a line of its own."""
