"""NAT bindings: the address and port that each terminal's datagrams come from (fig. 2, 7)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from broker.tables.udp_keys import UdpKey

#: Lifetime in seconds of a binding whose terminal names no other.
BINDING_SECONDS: Final = 120

Source = tuple[str, int]


@dataclass(slots=True, eq=False)
class NatBinding:
    """Where one terminal's datagrams come from.

    :ivar key: the key that it was registered under
    :ivar source: the address and port
    :ivar since: when the first datagram came from there, in seconds of the table's clock
    :ivar until: when it expires
    :ivar prefix: the bytes of its keepalives before the sequence number, the same in all of them
    :ivar lifetime: seconds until it expires after each keepalive
    :ivar mac: computes the MAC of some bytes under the key
    """

    key: UdpKey
    source: Source
    since: float
    until: float
    prefix: bytes
    lifetime: int
    mac: Callable[[bytes], bytes]

    def is_valid(self, now: float) -> bool:
        """Return whether neither it nor its key has expired."""
        return self.until > now and self.key.until > now


class NatBindingTable:
    """The bindings of all terminals: one for each key, and one for each source."""

    __slots__ = ("_by_key", "_by_source")

    def __init__(self) -> None:
        self._by_key: dict[UdpKey, NatBinding] = {}
        self._by_source: dict[Source, NatBinding] = {}

    def at(self, source: Source) -> NatBinding | None:
        """Return the binding of a source, valid or not."""
        return self._by_source.get(source)

    def of(self, key: UdpKey, now: float) -> NatBinding | None:
        """Return the binding of a key, if it is valid."""
        binding = self._by_key.get(key)
        return None if binding is None or not binding.is_valid(now) else binding

    def put(self, binding: NatBinding) -> None:
        """Record where a key's datagrams come from; it replaces the bindings of key and source."""
        self.drop(binding.key)
        other = self._by_source.get(binding.source)
        if other is not None:
            self.drop(other.key)
        self._by_key[binding.key] = binding
        self._by_source[binding.source] = binding

    def drop(self, key: UdpKey) -> None:
        """Remove the binding of a key."""
        binding = self._by_key.pop(key, None)
        if binding is not None:
            del self._by_source[binding.source]

    def prune(self, now: float) -> int:
        """Remove what has expired; return how many were removed."""
        expired = [binding.key for binding in self._by_key.values() if not binding.is_valid(now)]
        for key in expired:
            self.drop(key)
        return len(expired)

    def __len__(self) -> int:
        return len(self._by_key)
