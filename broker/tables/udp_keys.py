"""UDP registration keys: terminals sign datagrams with them; each has its own sequence numbers.

A key belongs to a connection. It is valid while that is open, and for its lifetime after that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Final

#: Keys that one identifier may have; a new one replaces the oldest.
KEYS_AN_IDENTIFIER: Final = 5
#: How many keys one table may have (I15).
KEYS_MOST: Final = 1_000_000


@dataclass(slots=True, eq=False)
class UdpKey:
    """A registration key.

    :ivar name: its Key ID
    :ivar identifier: the terminal that it belongs to
    :ivar secret: the key itself, 32 bytes; only ever in memory (I20)
    :ivar port: the port at which its terminal takes calls
    :ivar expires: its lifetime after its connection has closed, in seconds
    :ivar until: when it expires, in seconds of the table's clock: infinity while its connection is
        open, minus infinity once it is dropped
    :ivar last_received: the highest sequence number accepted under it; never decreases (I10)
    :ivar last_sent: the sequence number of the last notice signed with it; never decreases (E3)
    :ivar sent_at: when that notice was sent
    """

    name: str
    identifier: str
    secret: bytes
    port: int
    expires: int
    until: float = inf
    last_received: int = -1
    last_sent: int = 0
    sent_at: float = -inf

    def __repr__(self) -> str:
        return f"<Key {self.name}>"  # Never the secret (I18).


class KeyRefused(Exception):
    """A key is not taken; the text says why."""


class UdpKeyTable:
    """The keys of all terminals."""

    __slots__ = ("_keys", "_most", "_of")

    def __init__(self, most: int = KEYS_MOST) -> None:
        self._keys: dict[str, UdpKey] = {}
        self._of: dict[str, tuple[UdpKey, ...]] = {}
        self._most = most

    def add(self, key: UdpKey) -> UdpKey:
        """Add a key. If it is there already, only its port and expiry are updated.

        So its sequence numbers are not reset, and no datagram can be replayed.

        :return: the key in the table
        :raises KeyRefused: the table is full, or has another key of this name
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

    def get(self, name: str, now: float) -> UdpKey | None:
        """Return the key of a name, if it is valid now."""
        key = self._keys.get(name)
        return None if key is None or key.until <= now else key

    def of(self, identifier: str, now: float) -> tuple[UdpKey, ...]:
        """Return the valid keys of a terminal, oldest first."""
        return tuple(key for key in self._of.get(identifier, ()) if key.until > now)

    def release(self, name: str, now: float) -> None:
        """Let a key's lifetime begin: its connection has closed."""
        key = self._keys.get(name)
        if key is not None and key.until == inf:
            key.until = now + key.expires

    def drop(self, key: UdpKey) -> None:
        """Remove a key. Code that still refers to it finds that it has expired (I2)."""
        key.until = -inf
        if self._keys.get(key.name) is not key:
            return
        del self._keys[key.name]
        rest = tuple(each for each in self._of[key.identifier] if each is not key)
        if rest:
            self._of[key.identifier] = rest
        else:
            del self._of[key.identifier]

    def prune(self, now: float) -> int:
        """Remove what has expired; return how many were removed."""
        expired = [key for key in self._keys.values() if key.until <= now]
        for key in expired:
            self.drop(key)
        return len(expired)

    def __iter__(self) -> Iterator[UdpKey]:
        return iter(self._keys.values())

    def __len__(self) -> int:
        return len(self._keys)
