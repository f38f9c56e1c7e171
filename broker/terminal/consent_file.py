"""A terminal's own consent lists, in a file that its user edits (C4, C5).

A line is ``+ Ia`` (accept) or ``- Ix`` (reject): a sign, a blank, and an identifier, a name, or a
group with its ``@``. Empty lines and lines that begin with ``#`` are ignored. Reject wins over
accept. One bad line makes the whole file bad: then every caller is refused (I3).
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from twisted.logger import Logger
from zope.interface import implementer

from broker.files import InvalidFile, open_regular, write_file
from broker.interfaces import IConsent
from broker.messages.grammar import BLANKS, entry
from broker.messages.message import printable
from broker.tables.consent_lists import NONE_ACCEPTED, ConsentLists, NoConsent, check_lists

ACCEPT: Final = "+"
REJECT: Final = "-"
#: The largest file in bytes, comments included.
FILE_BYTES: Final = 256 * 1024
#: How often a file is read that changes during the reading.
_ATTEMPTS: Final = 3
ALL_REFUSED: Final = "Every caller is refused: {why}"
READABLE_AGAIN: Final = "{path} can be read again"
_OTHERS_MAY_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


@implementer(IConsent)
class ConsentFile:
    """Reads the file for each call, so that an edit has effect at once."""

    log = Logger()

    def __init__(self, path: str) -> None:
        self._path = path
        self._complaint = ""

    async def lists(self) -> ConsentLists:
        """The lists in the file now; none accepted where it cannot be read, which is logged."""
        try:
            lists = read_lists(self._path)
        except NoConsent as error:
            self._complain(str(error))
            return NONE_ACCEPTED
        if self._complaint:
            self.log.info(READABLE_AGAIN, path=printable(self._path))
        self._complaint = ""
        return lists

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:  # callers must not be able to fill the log
            self.log.error(ALL_REFUSED, why=printable(complaint))
        self._complaint = complaint


def read_lists(path: str) -> ConsentLists:
    """Read the lists in a file.

    :raises NoConsent: it cannot be read, other users may write it, or a line is bad; the text says
        which
    """
    try:
        return parse_lists(_read(path, {0, os.geteuid()}))
    except OSError as error:
        raise NoConsent(f"{path}: {error.strerror}") from None
    except InvalidFile as error:
        raise NoConsent(str(error)) from None
    except NoConsent as error:
        raise NoConsent(f"{path}: {error}") from None


def _read(path: str, owners: Collection[int]) -> bytes:
    """Read a file that belongs to one of these users; never parts of two versions of it."""
    for _ in range(_ATTEMPTS):
        with open_regular(path) as (file, before):
            _check_ours(before, owners)
            data = file.read(FILE_BYTES + 1)
            after = os.fstat(file.fileno())
        if len(data) > FILE_BYTES:
            raise NoConsent(f"is longer than {FILE_BYTES} bytes")
        if (before.st_mtime_ns, len(data)) == (after.st_mtime_ns, after.st_size):
            return data
    raise NoConsent("keeps changing while it is read")


def _check_ours(found: os.stat_result, owners: Collection[int]) -> None:
    if found.st_uid not in owners:
        raise NoConsent("belongs to another user")
    if found.st_mode & _OTHERS_MAY_WRITE:
        raise NoConsent("others may write it: run chmod go-w on it")


def parse_lists(data: bytes) -> ConsentLists:
    """The lists in a file's bytes.

    :raises NoConsent: a line is bad; the text names it
    """
    lists: dict[str, list[str]] = {ACCEPT: [], REJECT: []}
    for number, line in enumerate(_text(data).split("\n"), 1):
        parsed = _parse_line(line, number)
        if parsed is not None:
            sign, name = parsed
            lists[sign].append(name)
    return check_lists(ConsentLists(lists[ACCEPT], lists[REJECT]))


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise NoConsent("is not UTF-8") from None


def _parse_line(line: str, number: int) -> tuple[str, str] | None:
    """The sign and the entry of a line; ``None`` for an empty one or a comment."""
    text = line.strip(BLANKS)
    if not text or text.startswith("#"):
        return None
    sign, name = text[0], text[1:]
    if sign not in (ACCEPT, REJECT) or name[:1] not in tuple(BLANKS):  # +81-6 is an identifier
        raise NoConsent(f"line {number}: begins with neither '+ ' nor '- '")
    try:
        return sign, entry(name.strip(BLANKS))
    except ValueError as error:
        raise NoConsent(f"line {number}: {error}") from None


# Editing.


def edit_file(path: str, names: Sequence[str], sign: str, *, listed: bool) -> ConsentLists:
    """Add names to one of the two lists in a file, or remove them.

    Everything else in the file stays, comments and the other list included. A reader finds the old
    file or the new one; two edits at the same time happen one after the other. The new file is on
    the disk when this returns. A missing file is created, for its user alone, to add names to; to
    remove names, it is an error: the path is probably mistyped.

    :param names: in canonical form
    :param sign: which list: ``ACCEPT`` or ``REJECT``
    :param listed: whether to add the names; else they are removed
    :return: the lists in the new file
    :raises NoConsent: the file is bad, or would be; it is unchanged
    :raises OSError: it cannot be written, or is missing; it is unchanged
    """
    path = os.path.realpath(path)
    with _locked(path, make=listed) as before:
        try:
            text = _text(_read(path, {before.st_uid}))
            edited = edit_text(text, names, sign, listed=listed).encode("utf-8")
            if len(edited) > FILE_BYTES:
                raise NoConsent(f"would be longer than {FILE_BYTES} bytes")
            lists = parse_lists(edited)
        except InvalidFile as error:
            raise NoConsent(str(error)) from None
        except NoConsent as error:
            raise NoConsent(f"{path}: {error}") from None
        write_file(path, edited, replace=True, like=before)
    return lists


def edit_text(text: str, names: Sequence[str], sign: str, *, listed: bool) -> str:
    """The text of a file, with names added to one of its lists, each once, or removed from it.

    :raises NoConsent: a line is bad
    """
    named = {(sign, name): None for name in names}
    lines = enumerate(text.split("\n"), 1)
    kept = [line for number, line in lines if _parse_line(line, number) not in named]
    while kept and not kept[-1].strip(BLANKS):
        kept.pop()
    added = [f"{sign} {name}" for sign, name in named] if listed else []
    return "".join(f"{line}\n" for line in (*kept, *added))


@contextmanager
def _locked(path: str, *, make: bool) -> Iterator[os.stat_result]:
    """Make other edits of a file wait; give its state before this one.

    :param make: create the file if it is missing
    """
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_CREAT if make else 0)
    while True:
        descriptor = os.open(path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            before = os.fstat(descriptor)
            if os.path.samestat(before, os.stat(path)):  # not replaced while we waited
                yield before
                return
        finally:
            os.close(descriptor)
