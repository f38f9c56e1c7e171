"""The mark beside a database: who has it open, and how far it is known to have come.

A database can't tell by itself that it is an older copy of itself which somebody has put back. So
a small file beside it says which transaction was the last; a database that is behind its mark has
lost changes. The same file is the lock that keeps a second broker away. It must stay where it is,
and is never replaced, since a lock belongs to the file and not to its name.
"""

from __future__ import annotations

import fcntl
import os
import re
from typing import Final

from broker.interfaces import StoreFailed

#: What a mark's name has after the database's.
SUFFIX: Final = "-mark"
#: Epoch and sequence: always of the same length, so that one write in place replaces another.
_FORM: Final = re.compile(rb"([0-9a-f]{16}) ([0-9]{20})\n")
_VOID: Final = b"-" * 37 + b"\n"


class Mark:
    """The mark of one database, locked for as long as it is open.

    :ivar void: it says nothing, so that the next load draws a new epoch
    """

    def __init__(self, database: str) -> None:
        """Open the mark, or make one that says nothing, and lock it.

        :param database: the path of the database
        :raises StoreFailed: another process has it
        :raises OSError: it can't be opened
        """
        path = database + SUFFIX
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchmod(self._file, 0o600)
        except BlockingIOError:
            os.close(self._file)
            raise StoreFailed(
                f"{database}: another broker has it open: end that one first, or give this one a"
                " database of its own"
            ) from None
        except BaseException:
            os.close(self._file)
            raise
        self.void = self.read() is None

    def read(self) -> tuple[str, int] | None:
        """The epoch and the sequence that it says; ``None`` if it says nothing that makes sense."""
        found = _FORM.fullmatch(os.pread(self._file, 64, 0))
        return None if found is None else (found[1].decode(), int(found[2]))

    def write(self, epoch: str, sequence: int) -> None:
        """Say that this transaction is durable.

        It isn't synced, so that a power failure may leave an earlier one there; never a later one.
        """
        os.pwrite(self._file, b"%s %020d\n" % (epoch.encode(), sequence), 0)
        self.void = False

    def make_void(self) -> None:
        """Say nothing: what the database will hold after a crash is not known."""
        self.void = True
        os.pwrite(self._file, _VOID, 0)

    def sync(self) -> None:
        """Have what was written survive a power failure too."""
        os.fsync(self._file)

    def close(self) -> None:
        """Let the lock go."""
        os.close(self._file)
