"""A store by its name."""

from __future__ import annotations

from collections.abc import Callable

from broker.store.memory import MemoryStore
from broker.store.sqlite import SqliteStore
from broker.tables.grants import Randomness


def make_store(
    path: str | None, call_from_thread: Callable[..., object], randomness: Randomness
) -> MemoryStore | SqliteStore:
    """The store that a setting names; nothing is opened before it is loaded.

    :param path: the database's, or ``None`` for a store in memory
    :param call_from_thread: has the reactor call a function: ``reactor.callFromThread``
    """
    if path is None:
        return MemoryStore(randomness)
    return SqliteStore(path, call_from_thread, randomness)
