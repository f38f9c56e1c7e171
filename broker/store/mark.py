"""The mark next to a database: which process has it open, and which transaction was its last.

A database cannot tell by itself that it is an older copy which was put back. So a small file next
to it records the last transaction; a database that is behind its mark has lost changes. The same
file is the lock that keeps a second broker away. It is never replaced, since a lock belongs to the
file and not to its name.
"""

from __future__ import annotations

import fcntl
import os
import re
from typing import Final

from broker.interfaces import StoreFailed

#: Appended to the path of the database.
SUFFIX: Final = "-mark"
#: Epoch and sequence: always of the same length, so that one write in place replaces another.
_FORM: Final = re.compile(rb"([0-9a-f]{16}) ([0-9]{20})\n")
_VOID: Final = b"-" * 37 + b"\n"


class Mark:
    """The mark of one database, locked for as long as it is open.

    :ivar void: it records nothing, so that the next load draws a new epoch
    """

    def __init__(self, database: str) -> None:
        """Open the mark, or make a void one, and lock it.

        :param database: the path of the database
        :raises StoreFailed: another process has it
        :raises OSError: it cannot be opened
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
        """Return epoch and sequence; ``None`` if it is void or damaged."""
        found = _FORM.fullmatch(os.pread(self._file, 64, 0))
        return None if found is None else (found[1].decode(), int(found[2]))

    def write(self, epoch: str, sequence: int) -> None:
        """Record that this transaction is durable.

        The mark is not synced: after a power failure it may have an earlier one, never a later.
        """
        os.pwrite(self._file, b"%s %020d\n" % (epoch.encode(), sequence), 0)
        self.void = False

    def make_void(self) -> None:
        """Make it void: what the database will contain after a crash is not known."""
        self.void = True
        os.pwrite(self._file, _VOID, 0)

    def sync(self) -> None:
        """Make what was written survive a power failure."""
        os.fsync(self._file)

    def close(self) -> None:
        """Release the lock."""
        os.close(self._file)
