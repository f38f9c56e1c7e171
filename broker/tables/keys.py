"""Registration keys: what terminals sign their datagrams with, and how far each has come.

A key is a connection's: it holds for as long as that is open, and for its expiry after that.
"""

from __future__ import annotations

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
    :ivar until: when it expires, in seconds of the table's clock; never, while it is held
    :ivar heard: the highest sequence that has been accepted under it; only rises (I10)
    :ivar told: the sequence of the last notice that was signed with it
    """

    name: str
    identifier: str
    secret: bytes
    until: float = inf
    heard: int = -1
    told: int = 0

    def __repr__(self) -> str:
        return f"<Key {self.name}>"  # and never the secret (I18)


class TooManyKeys(Exception):
    """The table is full."""


class KeyTable:
    """The keys of all terminals."""

    __slots__ = ("_keys", "_most", "_of")

    def __init__(self, most: int = KEYS_MOST) -> None:
        self._keys: dict[str, Key] = {}
        self._of: dict[str, tuple[Key, ...]] = {}
        self._most = most

    def add(self, name: str, identifier: str, secret: bytes, until: float = inf) -> Key:
        """Keep a key; one of the same name, if it is the same terminal's, is replaced.

        :raises TooManyKeys: the table is full, or the name is another terminal's
        """
        before = self._keys.get(name)
        if before is not None:
            if before.identifier != identifier:
                raise TooManyKeys("a key of this name is another terminal's")
            self.drop(before)
        elif len(self._keys) >= self._most:
            raise TooManyKeys("the table of keys is full")
        key = Key(name, identifier, secret, until)
        if before is not None and before.secret == secret:
            key.heard, key.told = before.heard, before.told  # told again: nothing may be replayed
        keys = self._of.get(identifier, ())
        if len(keys) >= KEYS_AN_IDENTIFIER:
            del self._keys[keys[0].name]
            keys = keys[1:]
        self._keys[name] = key
        self._of[identifier] = (*keys, key)
        return key

    def get(self, name: str, now: float) -> Key | None:
        """The key of that name, if it is good at present."""
        key = self._keys.get(name)
        return None if key is None or key.until <= now else key

    def of(self, identifier: str, now: float) -> tuple[Key, ...]:
        """The good keys of a terminal, oldest first."""
        return tuple(key for key in self._of.get(identifier, ()) if key.until > now)

    def release(self, name: str, until: float) -> None:
        """The connection of a key is gone: it expires."""
        key = self._keys.get(name)
        if key is not None and key.until == inf:
            key.until = until

    def drop(self, key: Key) -> None:
        """Forget a key."""
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

    def __len__(self) -> int:
        return len(self._keys)
