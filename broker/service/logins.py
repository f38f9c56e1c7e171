"""What the mediator's service needs for logins: threads for passwords, and the tokens' key."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, Final

from twisted.logger import Logger
from twisted.python.threadpool import ThreadPool

from broker.files import InvalidFile, move_file, read_private
from broker.mediator.auth.passwords import Passwords
from broker.mediator.auth.tokens import KEY_BYTES
from broker.service.process import CannotStart
from broker.tables.grants import Randomness

#: What is added to the path of a database for the file of the key.
KEY: Final = "-key"
_THREADS_MOST: Final = 4
_log = Logger(namespace="broker")


def in_threads(reactor: Any) -> Passwords:
    """Passwords checked in threads: as many as there are processors, save one for the reactor."""
    threads = max(1, min(_THREADS_MOST, len(os.sched_getaffinity(0)) - 1))
    pool = ThreadPool(minthreads=0, maxthreads=threads, name="passwords")
    return Passwords(
        os.urandom, pool=pool, call_from_thread=reactor.callFromThread, threads=threads
    )


def token_key(database: str | None, randomness: Randomness) -> bytes:
    """The key of resume tokens: kept beside the database, and in no backup of it (I20).

    :param database: its path; without one, there is a new key each time
    :raises CannotStart: it can't be read, or others can read it
    """
    if database is None:
        return randomness(KEY_BYTES)
    path = database + KEY
    try:
        key = _read(path)
        return _make(path, randomness) if key is None else key
    except OSError as error:
        raise CannotStart(f"{path}: {error.strerror}") from None


def _read(path: str) -> bytes | None:
    """The key that a file holds; ``None`` if there is no file."""
    try:
        key = read_private(path, KEY_BYTES + 1, follow=False)
    except FileNotFoundError:
        return None
    except InvalidFile as error:
        raise CannotStart(str(error)) from None
    if len(key) != KEY_BYTES:
        raise CannotStart(
            f"{path}: holds no key of {KEY_BYTES} bytes; without the file another is made, and"
            " terminals log in with their passwords once"
        )
    return key


def _make(path: str, randomness: Randomness) -> bytes:
    """A new key, in a file that is there as a whole or not at all."""
    key = randomness(KEY_BYTES)
    temporary = f"{path}.new"
    with suppress(FileNotFoundError):
        os.unlink(temporary)  # of a start that was cut short
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(temporary, flags, 0o600), "wb") as file:
        file.write(key)
    move_file(temporary, path)
    _log.info("A new key for resume tokens is in {path}", path=path)
    return key
