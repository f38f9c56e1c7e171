"""Registration keys: what terminals sign their datagrams with, and how far each has come.

A key is a connection's: it holds for as long as that is open, and for its expiry after that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Final

#: Keys that one identifier may have; one more drops the oldest.
KEYS_AN_IDENTIFIER: Final = 5
#: How many keys one table may hold (I15).
KEYS_MOST: Final = 1_000_000


@dataclass(slots=True, eq=False)
class Key:
    """One key.

    :ivar name: its Key ID
    :ivar identifier: whose it is
    :ivar secret: the key itself, 32 bytes; kept in memory alone (I20)
    :ivar port: the port at which its terminal takes calls
    :ivar expires: seconds for which it outlives its connection
    :ivar until: when it expires, in seconds of the table's clock: never, while it is held; long
        ago, once it is dropped
    :ivar heard: the highest sequence that has been accepted under it; only rises (I10)
    :ivar told: the sequence of the last notice that was signed with it; only rises (E3)
    :ivar noticed: when that notice was sent
    """

    name: str
    identifier: str
    secret: bytes
    port: int
    expires: int
    until: float = inf
    heard: int = -1
    told: int = 0
    noticed: float = -inf

    def __repr__(self) -> str:
        return f"<Key {self.name}>"  # and never the secret (I18)


class KeyRefused(Exception):
    """A key can't be kept; the text says why."""


class KeyTable:
    """The keys of all terminals."""

    __slots__ = ("_keys", "_most", "_of")

    def __init__(self, most: int = KEYS_MOST) -> None:
        self._keys: dict[str, Key] = {}
        self._of: dict[str, tuple[Key, ...]] = {}
        self._most = most

    def add(self, key: Key) -> Key:
        """Keep a key. One that is told again stays as it is, but for when it expires, and where.

        So how far it has come isn't forgotten, and nothing may be replayed.

        :return: the one that is kept
        :raises KeyRefused: the table is full, or there is another key of this name
        """
        before = self._keys.get(key.name)
        if before is not None:
            if before.identifier != key.identifier or before.secret != key.secret:
                raise KeyRefused("there is another key of this name")
            before.port, before.expires, before.until = key.port, key.expires, key.until
            return before
        keys = self._of.get(key.identifier, ())
        if len(keys) >= KEYS_AN_IDENTIFIER:
            self.drop(keys[0])
            keys = keys[1:]
        elif len(self._keys) >= self._most:
            raise KeyRefused("the table of keys is full")
        self._keys[key.name] = key
        self._of[key.identifier] = (*keys, key)
        return key

    def get(self, name: str, now: float) -> Key | None:
        """The key of that name, if it is good at present."""
        key = self._keys.get(name)
        return None if key is None or key.until <= now else key

    def of(self, identifier: str, now: float) -> tuple[Key, ...]:
        """The good keys of a terminal, oldest first."""
        return tuple(key for key in self._of.get(identifier, ()) if key.until > now)

    def release(self, name: str, now: float) -> None:
        """The connection of a key is gone: its expiry begins to run."""
        key = self._keys.get(name)
        if key is not None and key.until == inf:
            key.until = now + key.expires

    def drop(self, key: Key) -> None:
        """Forget a key; whoever still holds it sees that it is good no more (I2)."""
        key.until = -inf
        if self._keys.get(key.name) is not key:
            return
        del self._keys[key.name]
        rest = tuple(one for one in self._of[key.identifier] if one is not key)
        if rest:
            self._of[key.identifier] = rest
        else:
            del self._of[key.identifier]

    def prune(self, now: float) -> int:
        """Drop what has expired; return how many went."""
        gone = [key for key in self._keys.values() if key.until <= now]
        for key in gone:
            self.drop(key)
        return len(gone)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys.values())

    def __len__(self) -> int:
        return len(self._keys)
