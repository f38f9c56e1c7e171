"""Where terminals' datagrams come from (broker.tables.nat_bindings)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.tables.nat_bindings import NatBinding, NatBindingTable
from broker.tables.udp_keys import UdpKey

HERE, THERE = ("192.0.2.1", 4000), ("192.0.2.2", 5000)


def a_key(name: str = "K1") -> UdpKey:
    """A key."""
    return UdpKey(name, "Ia", bytes(32), 1203, 60)


def binding(key: UdpKey, source: tuple[str, int] = HERE, until: float = 100) -> NatBinding:
    """Where a key's datagrams come from."""
    return NatBinding(key, source, 0, until, b"", 100, lambda data: data)


class MappingTableTests:
    """One a key, and one a source."""

    def test_found(self) -> None:
        """By the source, and by the key."""
        table, key = NatBindingTable(), a_key()
        one = binding(key)
        table.put(one)
        assert table.at(HERE) is one
        assert table.of(key, 0) is one
        assert table.at(THERE) is None
        assert table.of(a_key("K2"), 0) is None

    def test_moves(self) -> None:
        """The new one stands in the place of the old; nothing is left at the old source (D1)."""
        table, key = NatBindingTable(), a_key()
        table.put(binding(key))
        moved = binding(key, THERE)
        table.put(moved)
        assert table.of(key, 0) is moved
        assert table.at(HERE) is None
        assert len(table) == 1

    def test_another_key_from_the_same_source(self) -> None:
        """A source has one mapping: the newest."""
        table, old, new = NatBindingTable(), a_key(), a_key("K2")
        table.put(binding(old))
        table.put(binding(new))
        assert table.of(old, 0) is None
        assert table.of(new, 0) is table.at(HERE)
        assert len(table) == 1

    def test_expires(self) -> None:
        """It is not told when it has expired (I10), nor when its key has (I2)."""
        table, key = NatBindingTable(), a_key()
        table.put(binding(key, until=100))
        assert table.of(key, 99.9) is not None
        assert table.of(key, 100) is None
        key.until = 50
        assert table.of(key, 49.9) is not None
        assert table.of(key, 50) is None

    def test_prune(self) -> None:
        """What is no longer believed in goes, for either reason, and nothing else."""
        table, keys = NatBindingTable(), [a_key(f"K{n}") for n in range(3)]
        for n, until in enumerate((10, 100, 100)):
            table.put(binding(keys[n], ("192.0.2.1", n), until))
        keys[1].until = 10
        assert table.prune(10) == 2
        assert table.prune(10) == 0
        assert table.at(("192.0.2.1", 2)) is not None
        assert len(table) == 1

    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3))))
    def test_both_ways_agree(self, puts: list[tuple[int, int]]) -> None:
        """Whatever moves where, each source leads to the mapping of the key that is seen there."""
        table, keys = NatBindingTable(), [a_key(f"K{n}") for n in range(4)]
        for which, port in puts:
            table.put(binding(keys[which], ("192.0.2.1", port)))
            assert table.of(keys[which], 0) is table.at(("192.0.2.1", port))
        assert len(table._by_key) == len(table._by_source)
        for one in table._by_key.values():
            assert table.at(one.source) is one
