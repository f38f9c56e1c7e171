"""A copy of a database that is in use, complete and consistent.

The copy is marked as a backup: whoever opens it to use it draws a new epoch, so that terminals
learn that changes may be lost, and a permit withdrawn since is not silently back.
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
from broker.store.files import LOGS, application_of, remove
from broker.store.mark import SUFFIX

#: How many pages are copied before a signal is looked for.
_STRIDE: Final = 1000


def back_up(path: str, target: str) -> None:
    """Copy a database, which may be in use, to a file that is there when it is complete.

    A backup that is there already is replaced; any other file isn't. If it fails, or a signal
    interrupts it, nothing is left of the copy.

    :raises StoreFailed: it can't be done; the text says why
    """
    path, target = os.path.realpath(path), os.path.realpath(target)
    if target in {path + suffix for suffix in ("", SUFFIX, *LOGS)}:
        raise StoreFailed(f"{target}: is a file of the database itself")
    if not os.path.isfile(path):
        raise StoreFailed(f"{path}: there is no such database")
    try:
        if os.path.lexists(target) and application_of(target) != BACKUP:
            raise StoreFailed(f"{target}: is there, and is no backup: name another file")
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
    # Within a transaction all that is copied is of one moment, whatever is written meanwhile.
    source.execute("BEGIN")
    if value_of(source, "PRAGMA application_id") != IN_USE:
        raise StoreFailed(f"{path}: is no database in use: copy the file itself")
    source.backup(copy, pages=_STRIDE, progress=_look_up)
    # In one file from here on, synced as a whole when it is complete.
    mode = value_of(copy, "PRAGMA journal_mode = DELETE")
    if mode != "delete":
        raise StoreFailed(f"{path} could not be copied: the copy keeps a log")
    copy.execute("PRAGMA synchronous = OFF")
    copy.execute(f"PRAGMA application_id = {BACKUP}")
    found = check(copy)
    if found:
        raise StoreFailed(f"{path}: is damaged ({found}); an earlier backup was left as it is")


def _look_up(status: int, remaining: int, total: int) -> None:
    """Python looks for signals whenever it runs a line of its own."""
