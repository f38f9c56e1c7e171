"""A terminal's own lists of whom it accepts and refuses, in a file that its user edits (C4, C5).

A line is ``+ Ia`` or ``- Ix``: an identifier, a name, or a group with its ``@``, after a blank.
Empty lines and those that begin with ``#`` say nothing. To be refused wins. What is wrong anywhere
is wrong altogether: then nobody is accepted (I3).
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
#: Bytes that a file may have, comments included.
FILE_BYTES: Final = 256 * 1024
#: How often a file is read again that changes while it is read.
_ATTEMPTS: Final = 3
_OTHERS_MAY_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


@implementer(IConsent)
class ConsentFile:
    """Reads the file each time that it is asked, so that whatever is edited counts at once."""

    log = Logger()

    def __init__(self, path: str) -> None:
        self._path = path
        self._complaint = ""

    async def lists(self) -> ConsentLists:
        """What the file says now; nobody, where it can't be had, which is logged."""
        try:
            lists = read_lists(self._path)
        except NoConsent as error:
            self._complain(str(error))
            return NONE_ACCEPTED
        if self._complaint:
            self.log.info("{path} can be read again", path=printable(self._path))
        self._complaint = ""
        return lists

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:  # whoever asks must not fill the log
            self.log.error("Nobody is accepted: {why}", why=printable(complaint))
        self._complaint = complaint


def read_lists(path: str) -> ConsentLists:
    """What a file says.

    :raises NoConsent: it can't be read, others than its user may write it, or it is bad; the text
        says which
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
    """The bytes of a file that belongs to one of these users, all of one time."""
    for _ in range(_ATTEMPTS):
        with open_regular(path) as (file, before):
            _check_ours(before, owners)
            data = file.read(FILE_BYTES + 1)
            after = os.fstat(file.fileno())
        if len(data) > FILE_BYTES:
            raise NoConsent(f"is longer than {FILE_BYTES} bytes")
        if (before.st_mtime_ns, len(data)) == (after.st_mtime_ns, after.st_size):
            return data
    raise NoConsent("changes again and again while it is read")


def _check_ours(found: os.stat_result, owners: Collection[int]) -> None:
    if found.st_uid not in owners:
        raise NoConsent("belongs to another user")
    if found.st_mode & _OTHERS_MAY_WRITE:
        raise NoConsent("others may write it: chmod go-w is what it needs")


def parse_lists(data: bytes) -> ConsentLists:
    """The lists that a file's bytes say.

    :raises NoConsent: they say none; the text names the line
    """
    lists: dict[str, list[str]] = {ACCEPT: [], REJECT: []}
    for number, line in enumerate(_text(data).split("\n"), 1):
        said = _said(line, number)
        if said is not None:
            sign, name = said
            lists[sign].append(name)
    return check_lists(ConsentLists(lists[ACCEPT], lists[REJECT]))


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise NoConsent("is not UTF-8") from None


def _said(line: str, number: int) -> tuple[str, str] | None:
    """The sign and the entry of a line; ``None`` where it says nothing."""
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
    """Put some on one of the two lists in a file, or take them off it.

    All else in it stays, comments and the other list included. Whoever reads it meanwhile finds
    it as it was, or as it is then; two who edit it do so one after the other. It is on the disk
    when this returns. A file that isn't there is made, for its user alone, where anybody is put on
    it: who takes somebody off has mistaken its name.

    :param names: in canonical form
    :param sign: which list: ``ACCEPT`` or ``REJECT``
    :param listed: whether they are on it then
    :return: what the file says then
    :raises NoConsent: the file is bad, or would be; it is as it was
    :raises OSError: it can't be written, or is not there; it is as it was
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
    """The text of a file with some on one of its lists, each once, or not on it.

    :raises NoConsent: a line of it is bad
    """
    named = {(sign, name): None for name in names}
    kept = [
        line for number, line in enumerate(text.split("\n"), 1) if _said(line, number) not in named
    ]
    while kept and not kept[-1].strip(BLANKS):
        kept.pop()
    added = [f"{sign} {name}" for sign, name in named] if listed else []
    return "".join(f"{line}\n" for line in (*kept, *added))


@contextmanager
def _locked(path: str, *, make: bool) -> Iterator[os.stat_result]:
    """Keep others who edit a file waiting; give what it is before.

    :param make: make it, where it is not there
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
