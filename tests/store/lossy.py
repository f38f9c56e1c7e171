"""A disk that loses at a power failure what was not synced, as a file system of SQLite's (apsw).

What was written since a file's last sync survives or not, each sector of 512 bytes by itself.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any, Final

import apsw

from broker.store.mark import SUFFIX

SECTOR: Final = 512
_names = iter(range(1_000_000))


class Content:
    """One file: what is on the disk for certain, and what has been written since."""

    def __init__(self, durable: bytes) -> None:
        self.durable = durable
        self.written: list[tuple[int, bytes | None]] = []  # None: cut off there

    def sync(self) -> None:
        """All that was written is on the disk."""
        self.durable = self.after(lambda: True)
        self.written.clear()

    def after(self, survives: Callable[[], bool]) -> bytes:
        """What is on the disk when, of what was not synced, this survives."""
        content = bytearray(self.durable)
        for offset, data in self.written:
            if data is None:
                if survives():
                    del content[offset:]
                continue
            for start in range(0, len(data), SECTOR):
                if survives():
                    place, sector = offset + start, data[start : start + SECTOR]
                    content.extend(bytes(max(0, place - len(content))))
                    content[place : place + len(sector)] = sector
        return bytes(content)


class Disk(apsw.VFS):
    """The disk of one database.

    :ivar operations: how many writes, truncations and syncs there have been
    :ivar before: asked before each, with its kind and the file; may raise an error of apsw's
    """

    def __init__(self) -> None:
        self.name = f"lossy-{next(_names)}"
        self.operations = 0
        self.before: Callable[[str, str], object] = lambda kind, path: None
        self.contents: dict[str, Content] = {}
        super().__init__(self.name, "unix")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> File:
        return File(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        self.contents.pop(filename, None)
        super().xDelete(filename, syncdir)

    def operate(self, kind: str, path: str) -> Content:
        """Something is about to be done to a file."""
        self.before(kind, path)
        self.operations += 1
        return self.contents[path]

    def fail_power(self, folder: Path, survives: Callable[[], bool]) -> None:
        """Put what a power failure at this moment would leave into another folder.

        The mark is left as it is: it may lag behind, and never runs ahead.
        """
        for path, content in self.contents.items():
            name = os.path.basename(path)
            if not name.endswith("-shm"):
                (folder / name).write_bytes(content.after(survives))
            mark = Path(path + SUFFIX)
            if mark.exists():
                (folder / mark.name).write_bytes(mark.read_bytes())


class File(apsw.VFSFile):
    """A file of such a disk."""

    def __init__(self, disk: Disk, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        filename = name.filename() if isinstance(name, apsw.URIFilename) else name
        assert filename is not None
        self._disk = disk
        self._path: str = filename
        there = Path(filename)
        disk.contents[filename] = Content(there.read_bytes() if there.exists() else b"")
        super().__init__("unix", filename, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        content = self._disk.operate("write", self._path)
        super().xWrite(data, offset)
        content.written.append((offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:
        content = self._disk.operate("truncate", self._path)
        super().xTruncate(newsize)
        content.written.append((newsize, None))

    def xSync(self, flags: int) -> None:
        content = self._disk.operate("sync", self._path)
        super().xSync(flags)
        content.sync()


class Apsw:
    """A connection of apsw's with the manners of the standard library's."""

    def __init__(self, path: str, disk: Disk, instead: dict[str, str]) -> None:
        """
        :param instead: statements to execute in the place of others
        """
        self._instead = instead
        self._real = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE, vfs=disk.name)

    @property
    def in_transaction(self) -> bool:
        return self._real.in_transaction

    def execute(self, sql: str, parameters: Any = (), /) -> Iterable[Any]:
        return self._do(self._real.execute, self._instead.get(sql, sql), parameters)

    def executemany(self, sql: str, parameters: Any, /) -> object:
        return self._do(self._real.executemany, sql, parameters)

    def close(self) -> None:
        self._do(self._real.close)

    def _do(self, method: Callable[..., Any], *args: Any) -> list[Any]:
        try:
            return list(method(*args) or ())
        except apsw.Error as error:
            made = sqlite3.OperationalError(str(error))
            made.sqlite_errorcode = getattr(error, "result", sqlite3.SQLITE_ERROR)
            raise made from error


def survivors(randomness: Random) -> Callable[[], bool]:
    """What survives a power failure: nothing that was not synced, or part of it."""
    chance = randomness.choice((0.0, 0.5, 0.9))
    return lambda: randomness.random() < chance
