"""Registration keys, and where terminals' datagrams come from."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from broker.tables.nat_bindings import NatBinding, NatBindingTable
from broker.tables.udp_keys import KEYS_AN_IDENTIFIER, KeyRefused, UdpKey, UdpKeyTable


def key(name: str, whose: str = "Ia", until: float = inf, **more: int) -> UdpKey:
    """A key; its secret follows from its name."""
    return UdpKey(name, whose, name.encode().ljust(32), 1203, more.get("expires", 60), until)


def names(keys: tuple[UdpKey, ...]) -> list[str]:
    """What keys are called."""
    return [one.name for one in keys]


@pytest.fixture
def table() -> UdpKeyTable:
    """An empty table."""
    return UdpKeyTable()


def test_shows_no_secret() -> None:
    """A key does not show its secret, wherever it is printed (I18)."""
    made = UdpKey("K1", "Ia", b"\xabsecret" * 5, 1203, 60)
    assert repr(made) == f"{made}" == "<Key K1>"


class KeyTableTests:
    """The keys of all terminals."""

    def test_held(self, table: UdpKeyTable) -> None:
        """One whose connection is open is good for as long as that is."""
        kept = table.add(key("K1"))
        assert table.get("K1", 1e9) is kept
        assert table.of("Ia", 1e9) == (kept,)
        assert table.get("K2", 0) is None
        assert table.of("Ib", 0) == ()

    def test_released(self, table: UdpKeyTable) -> None:
        """From when its connection is gone it is good for its expiry, and no longer (I10)."""
        table.add(key("K1", expires=60))
        table.release("K1", 100)
        assert table.get("K1", 159.9) is not None
        table.release("K1", 150)  # does not prolong it,
        table.release("K9", 150)  # nor is it an error without a key
        assert table.get("K1", 160) is None
        assert table.of("Ia", 160) == ()

    def test_told_again(self, table: UdpKeyTable) -> None:
        """One that is told again has come as far as it had: nothing may be replayed (I10).

        Only when it expires, and where its terminal takes calls, are taken over.
        """
        kept = table.add(key("K1", until=50))
        kept.last_received, kept.last_sent = 7, 9
        again = UdpKey("K1", "Ia", kept.secret, 4, 90, 100)
        assert table.add(again) is kept
        assert (kept.last_received, kept.last_sent) == (7, 9)
        assert (kept.port, kept.expires, kept.until) == (4, 90, 100)
        assert len(table) == 1

    @pytest.mark.parametrize(
        "other", [UdpKey("K1", "Ib", b"K1".ljust(32), 1, 1), UdpKey("K1", "Ia", bytes(32), 1, 1)]
    )
    def test_name_taken(self, table: UdpKeyTable, other: UdpKey) -> None:
        """A name means one key: no other replaces it, nor is another's taken for one's own (I4)."""
        kept = table.add(key("K1"))
        with pytest.raises(KeyRefused, match="another key of this name"):
            table.add(other)
        assert table.get("K1", 0) is kept
        assert table.of("Ib", 0) == ()

    def test_five(self, table: UdpKeyTable) -> None:
        """A sixth drops the oldest, which is good no more for whoever still holds it (I15)."""
        kept = [table.add(key(f"K{n}")) for n in range(KEYS_AN_IDENTIFIER + 1)]
        assert names(table.of("Ia", 0)) == [f"K{n}" for n in range(1, 6)]
        assert kept[0].until == -inf
        assert table.get("K0", 0) is None
        table.add(key("K9", "Ib"))
        assert len(table) == KEYS_AN_IDENTIFIER + 1

    def test_full(self) -> None:
        """A full table takes no key of anybody new; one told again, or a sixth, it does (I15)."""
        table = UdpKeyTable(6)
        for n in range(5):
            table.add(key(f"K{n}"))
        table.add(key("K5", "Ib"))
        with pytest.raises(KeyRefused, match="full"):
            table.add(key("K6", "Ic"))
        table.add(key("K5", "Ib"))
        table.add(key("K7", "Ia"))
        assert len(table) == 6

    def test_dropped(self, table: UdpKeyTable) -> None:
        """It is gone at once, also for whoever holds it; a second time does nothing (I2).

        Nor does that take away a new one of its name.
        """
        old, other = table.add(key("K1")), table.add(key("K2"))
        table.drop(old)
        table.drop(old)
        assert old.until == -inf
        assert table.of("Ia", 0) == (other,)
        new = table.add(key("K1"))
        table.drop(old)
        assert table.get("K1", 0) is new
        for each in (new, other):
            table.drop(each)
        assert (len(table), list(table), table._of) == (0, [], {})

    def test_prune(self, table: UdpKeyTable) -> None:
        """What has expired goes, and nothing else."""
        for name, until in (("K1", 10.0), ("K2", 20.0), ("K3", inf)):
            table.add(key(name, until=until))
        assert table.prune(10) == 1
        assert [one.name for one in table] == ["K2", "K3"]
        assert table.prune(10) == 0


class KeyMachine(RuleBasedStateMachine):
    """Whatever is done in whatever order, both views of the table agree."""

    def __init__(self) -> None:
        super().__init__()
        self.table = UdpKeyTable(8)
        self.now = 0.0

    @rule(n=st.integers(0, 9), whose=st.sampled_from(["Ia", "Ib"]), lasts=st.integers(0, 3))
    def add(self, n: int, whose: str, lasts: int) -> None:
        """Add one, which may be refused."""
        until = self.now + lasts if lasts else inf
        try:
            self.table.add(key(f"K{n}", whose, until))
        except KeyRefused:
            assert len(self.table) == 8 or self.table._keys[f"K{n}"].identifier != whose

    @rule(n=st.integers(0, 9))
    def release(self, n: int) -> None:
        """Release one."""
        self.table.release(f"K{n}", self.now)

    @rule(n=st.integers(0, 9))
    def drop(self, n: int) -> None:
        """Drop one."""
        found = self.table.get(f"K{n}", self.now)
        if found is not None:
            self.table.drop(found)

    @rule(seconds=st.integers(1, 90), prune=st.booleans())
    def passes(self, seconds: int, prune: bool) -> None:
        """Time passes."""
        self.now += seconds
        if prune:
            self.table.prune(self.now)

    @invariant()
    def agree(self) -> None:
        """Each key is found by its name and at its terminal, five there at the most."""
        assert len(self.table) <= 8
        listed = [one for keys in self.table._of.values() for one in keys]
        assert {one.name: one for one in listed} == self.table._keys
        for whose, keys in self.table._of.items():
            assert 1 <= len(keys) <= KEYS_AN_IDENTIFIER
            assert {one.identifier for one in keys} == {whose}
            assert self.table.of(whose, self.now) == tuple(
                one for one in keys if self.table.get(one.name, self.now) is one
            )


KeyMachineTests = KeyMachine.TestCase
KeyMachineTests.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def binding(
    of: UdpKey, source: tuple[str, int] = ("192.0.2.1", 4000), until: float = 100
) -> NatBinding:
    """Where a key's datagrams come from."""
    return NatBinding(of, source, 0, until, b"", 100, lambda data: data)


class NatBindingTests:
    """Where terminals' datagrams come from: one binding a key, and one a source."""

    def test_expires(self) -> None:
        """It is not told when it has expired (I10), nor when its key has (I2)."""
        table, own = NatBindingTable(), key("K1")
        table.put(binding(own, until=100))
        assert table.of(own, 99.9) is not None
        assert table.of(own, 100) is None
        own.until = 50
        assert table.of(own, 49.9) is not None
        assert table.of(own, 50) is None

    def test_prune(self) -> None:
        """What is no longer believed in goes, for either reason, and nothing else."""
        table, keys = NatBindingTable(), [key(f"K{n}") for n in range(3)]
        for n, until in enumerate((10, 100, 100)):
            table.put(binding(keys[n], ("192.0.2.1", n), until))
        keys[1].until = 10
        assert table.prune(10) == 2
        assert table.prune(10) == 0
        assert table.at(("192.0.2.1", 2)) is not None
        assert len(table) == 1

    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3))))
    def test_both_ways_agree(self, puts: list[tuple[int, int]]) -> None:
        """Whatever moves where, each source leads to the key that was last seen there, and back.

        A key that is seen elsewhere leaves nothing at its old source (D1); of two keys that were
        seen at one source, the newer has it.
        """
        table, keys = NatBindingTable(), [key(f"K{n}") for n in range(4)]
        model: dict[int, tuple[int, NatBinding]] = {}
        for which, port in puts:
            one = binding(keys[which], ("192.0.2.1", port))
            table.put(one)
            model = {key: kept for key, kept in model.items() if kept[0] != port}
            model[which] = port, one
            assert len(table) == len(model)
            at = dict(model.values())
            for n in range(4):
                assert table.at(("192.0.2.1", n)) is at.get(n)
                assert table.of(keys[n], 0) is (model[n][1] if n in model else None)
