"""Where terminals' datagrams come from: the address and port that each is seen with (fig. 2, 7)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from broker.tables.udp_keys import Key

#: Seconds for which a mapping is believed in, where its terminal names no other time.
MAPPING_SECONDS: Final = 120

Source = tuple[str, int]


@dataclass(slots=True, eq=False)
class Mapping:
    """One terminal's way in, as the server sees it.

    :ivar key: the key that it was registered under
    :ivar source: the address and port that its datagrams come from
    :ivar since: when they were first seen to come from there, in seconds of the table's clock
    :ivar until: when it is no longer believed in
    :ivar prefix: how its keepalives begin, up to the sequence: what is the same in all of them
    :ivar lasts: seconds for which each keepalive prolongs it
    :ivar mac: gives the MAC of some bytes under the key
    """

    key: Key
    source: Source
    since: float
    until: float
    prefix: bytes
    lasts: int
    mac: Callable[[bytes], bytes]

    def good(self, now: float) -> bool:
        """Whether it is believed in: neither it nor its key has expired."""
        return self.until > now and self.key.until > now


class MappingTable:
    """The mappings of all terminals: one a key, and one a source."""

    __slots__ = ("_by_key", "_by_source")

    def __init__(self) -> None:
        self._by_key: dict[Key, Mapping] = {}
        self._by_source: dict[Source, Mapping] = {}

    def at(self, source: Source) -> Mapping | None:
        """The mapping that datagrams from this source belong to, be it good or not."""
        return self._by_source.get(source)

    def of(self, key: Key, now: float) -> Mapping | None:
        """The mapping of a key, if it is still believed in."""
        mapping = self._by_key.get(key)
        return None if mapping is None or not mapping.good(now) else mapping

    def put(self, mapping: Mapping) -> None:
        """Record where a key's datagrams come from now, in the place of where they came from."""
        self.drop(mapping.key)
        other = self._by_source.get(mapping.source)
        if other is not None:
            self.drop(other.key)
        self._by_key[mapping.key] = mapping
        self._by_source[mapping.source] = mapping

    def drop(self, key: Key) -> None:
        """Forget the mapping of a key."""
        mapping = self._by_key.pop(key, None)
        if mapping is not None:
            del self._by_source[mapping.source]

    def prune(self, now: float) -> int:
        """Drop what is no longer believed in; return how many went."""
        gone = [mapping.key for mapping in self._by_key.values() if not mapping.good(now)]
        for key in gone:
            self.drop(key)
        return len(gone)

    def __len__(self) -> int:
        return len(self._by_key)
