"""Files: written durably, as a whole or not at all, and read only where others cannot change them.

Every function here waits for the disk.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

#: Modes of new files: for the owner alone, and for all to read.
PRIVATE: Final = 0o600
PUBLIC: Final = 0o644

#: Why a file is not private, where its owner can mend that.
_EXPOSED: Final = "others can read or change it"


class InvalidFile(ValueError):
    """A file cannot be used; the text names it, says why, and what to do unless that is plain."""


# Writing.


def write_file(
    path: str | Path,
    data: bytes,
    *,
    mode: int = PUBLIC,
    replace: bool = False,
    like: os.stat_result | None = None,
) -> None:
    """Write a file as a whole or not at all; it is on the disk when this returns.

    :param mode: its mode, from the first moment on
    :param replace: whether it may take the place of another file
    :param like: give it the owner and the mode of another file in place of ``mode``
    :raises InvalidFile: there is a file, and it may not be replaced
    :raises OSError: it cannot be written; an earlier file is as it was
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, PRIVATE if like else mode)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if like is not None:
                if (like.st_uid, like.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(descriptor, like.st_uid, like.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(like.st_mode))
            os.fsync(descriptor)
        if replace:
            temporary.replace(path)
        else:
            try:
                os.link(temporary, path)  # Unlike a rename, a link never replaces a file.
            except FileExistsError:
                raise InvalidFile(f"{path}: already exists") from None
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    sync_folder_of(path)


def move_file(temporary: str | Path, path: str | Path) -> None:
    """Give a complete file its final name, durably; a file of that name is replaced."""
    _sync(temporary, os.O_RDONLY)
    os.replace(temporary, path)
    sync_folder_of(path)


def sync_folder_of(path: str | Path) -> None:
    """Make the name of a file survive a power failure: a name is data of its folder."""
    _sync(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: str | Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Reading.


@contextmanager
def open_regular(path: str, *, follow: bool = True) -> Iterator[tuple[BinaryIO, os.stat_result]]:
    """Open a file, and find out its owner and mode.

    They are those of the open file, so that nobody can put another in its place in between. What
    would block, such as a pipe, is opened without waiting and refused.

    :param follow: whether the path may be a symbolic link
    :raises InvalidFile: it is not a regular file
    :raises OSError: it cannot be opened
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    with open(os.open(path, flags), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise InvalidFile(f"{path}: not a regular file")
        yield file, found


def read_private(path: str, maximum: int, *, follow: bool = True) -> bytes:
    """Read a file that others cannot read: a key, a password, a secret (I18).

    :param maximum: how many bytes to read; what is beyond them is left out
    :param follow: whether the path may be a symbolic link
    :raises InvalidFile: it is not private
    :raises OSError: it cannot be read
    """
    with open_regular(path, follow=follow) as (file, found):
        why = exposure(found.st_mode, found.st_uid, os.geteuid())
        if why is not None:
            advice = f": chmod 600 {path}" if why == _EXPOSED else ""
            raise InvalidFile(f"{path}: {why}{advice}")
        return file.read(maximum)


def exposure(mode: int, owner: int, user: int) -> str | None:
    """Return why a file is not private to a user, or ``None`` if it is.

    The group of a file may read it if root owns the file and the user is another: service
    managers, and groups made for the purpose, hand a key to a server that way.
    """
    if owner not in {0, user}:
        return "belongs to another user, who can read it"
    allowed = 0o640 if owner == 0 and user != 0 else 0o600
    if stat.S_IMODE(mode) & 0o077 & ~allowed:
        return _EXPOSED
    return None


def check_private_folder(folder: Path) -> None:
    """See that no other user can look into a folder.

    :raises InvalidFile: others can
    :raises OSError: there is no such folder
    """
    found = folder.stat()
    if found.st_uid not in {0, os.geteuid()}:
        raise InvalidFile(f"{folder}: belongs to another user")
    if found.st_mode & 0o077:
        raise InvalidFile(f"{folder}: others can look into it: chmod 700 {folder}")
