"""Registration keys, and where terminals' datagrams come from."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from broker.tables.nat_bindings import NatBinding, NatBindingTable
from broker.tables.udp_keys import KEYS_AN_IDENTIFIER, KeyRefused, UdpKey, UdpKeyTable


def key(name: str, whose: str = "Ia", until: float = inf, expires: int = 60) -> UdpKey:
    """A key; its secret follows from its name."""
    return UdpKey(name, whose, name.encode().ljust(32), 1203, expires, until)


def test_shows_no_secret() -> None:
    """A key does not show its secret, wherever it is printed (I18)."""
    made = UdpKey("K1", "Ia", b"\xabsecret" * 5, 1203, 60)
    assert repr(made) == f"{made}" == "<Key K1>"


def test_expires() -> None:
    """It is valid until its time has come, and not at that moment (I10)."""
    table = UdpKeyTable()
    kept = table.add(key("K1", until=10))
    assert (table.get("K1", 9.9), table.of("Ia", 9.9), table.prune(9.9)) == (kept, (kept,), 0)
    assert (table.get("K1", 10), table.of("Ia", 10), table.prune(10)) == (None, (), 1)


class KeyMachine(RuleBasedStateMachine):
    """Whatever is done in whatever order, the table holds what a plain list of keys does.

    :ivar kept: the keys, oldest first, and until when each is valid
    :ivar gone: those that were dropped
    """

    def __init__(self) -> None:
        super().__init__()
        self.table = UdpKeyTable(8)
        self.kept: dict[str, tuple[UdpKey, float]] = {}
        self.gone: list[UdpKey] = []
        self.now = 0.0

    @initialize(many=st.sampled_from([0, 4, 8]))
    def fill(self, many: int) -> None:
        """There are some already; to a full table two more are given."""
        for n in range(many):
            self.add(n, "Ia" if n < KEYS_AN_IDENTIFIER else "Ib", 0)
        if many == 8:
            self.add(8, "Ic", 0)
            self.add(9, "Ia", 60)

    @rule(
        n=st.integers(0, 11),
        whose=st.sampled_from(["Ia", "Ib", "Ic"]),
        lasts=st.sampled_from([0, 0, 1, 60]),
        port=st.sampled_from([0, 4]),
    )
    def add(self, n: int, whose: str, lasts: int, port: int = 0) -> None:
        """A sixth drops the oldest; else a full table takes no new one (I15).

        One that is told again has come as far as it had: nothing may be replayed. Only when it
        expires, and where its terminal takes calls, are taken over (I10). A name means one key: no
        other replaces it, nor is another's taken for one's own (I4).
        """
        until = self.now + lasts if lasts else inf
        made = key(f"K{n}", whose, until, 30 + lasts)
        made.port = port
        kept, _ = self.kept.get(made.name, (made, 0))
        theirs = [one for one, _ in self.kept.values() if one.identifier == whose]
        if kept is not made and kept.identifier != whose:
            refusal = "another key of this name"
        elif kept is made and len(theirs) < KEYS_AN_IDENTIFIER and len(self.kept) == 8:
            refusal = "full"
        else:
            refusal = ""
        if refusal:
            with pytest.raises(KeyRefused, match=refusal):
                self.table.add(made)
            return
        if kept is made and len(theirs) == KEYS_AN_IDENTIFIER:
            self.lose(theirs[0])
        received = kept.last_received = kept.last_received + 1
        assert self.table.add(made) is kept
        assert (kept.port, kept.expires) == (port, 30 + lasts)
        assert kept.last_received == received
        self.kept[made.name] = kept, until

    @rule(n=st.integers(0, 11))
    def take_for_ones_own(self, n: int) -> None:
        """A key of a name that is taken, with another secret, is refused (I4)."""
        if f"K{n}" in self.kept:
            whose = self.kept[f"K{n}"][0].identifier
            with pytest.raises(KeyRefused, match="another key of this name"):
                self.table.add(UdpKey(f"K{n}", whose, bytes(32), 1, 1))

    @rule(n=st.integers(0, 11))
    def release(self, n: int) -> None:
        """From when its connection is gone it is valid for its expiry; again changes nothing."""
        self.table.release(f"K{n}", self.now)
        kept, until = self.kept.get(f"K{n}", (None, 0))
        if kept is not None and until == inf:
            self.kept[kept.name] = kept, self.now + kept.expires

    @rule(n=st.integers(0, 11))
    def drop(self, n: int) -> None:
        """It is gone at once; a second time does nothing, not even to a new one of its name."""
        if f"K{n}" in self.kept:
            kept, _ = self.kept[f"K{n}"]
            self.table.drop(kept)
            self.lose(kept)
        for gone in self.gone:
            self.table.drop(gone)

    @rule(seconds=st.integers(0, 60), prune=st.booleans())
    def passes(self, seconds: int, prune: bool) -> None:
        """Time passes, or until the next expires; what has expired goes, and nothing else."""
        ends = [until for _, until in self.kept.values() if self.now < until < inf]
        self.now = self.now + seconds if seconds or not ends else min(ends)
        if prune:
            expired = [kept for kept, until in self.kept.values() if until <= self.now]
            assert self.table.prune(self.now) == len(expired)
            for kept in expired:
                self.lose(kept)

    def lose(self, kept: UdpKey) -> None:
        """It should be gone."""
        del self.kept[kept.name]
        self.gone.append(kept)

    @invariant()
    def agree(self) -> None:
        """Each key is found by its name and at its terminal, as long as it is valid.

        One whose connection is open is as long as that is. What is gone is so for whoever still
        holds it (I2).
        """
        assert [*self.table] == [kept for kept, _ in self.kept.values()]
        assert len(self.table) == len(self.kept)
        valid = {name: kept for name, (kept, until) in self.kept.items() if until > self.now}
        for n in range(12):
            assert self.table.get(f"K{n}", self.now) is valid.get(f"K{n}")
        for whose in ("Ia", "Ib", "Ic"):
            theirs = tuple(kept for kept in valid.values() if kept.identifier == whose)
            assert self.table.of(whose, self.now) == theirs
        assert len(self.table._of) == len({kept.identifier for kept, _ in self.kept.values()})
        assert {gone.until for gone in self.gone} <= {-inf}


KeyMachineTests = KeyMachine.TestCase
KeyMachineTests.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def binding(
    of: UdpKey, source: tuple[str, int] = ("192.0.2.1", 4000), until: float = 100
) -> NatBinding:
    """Where a key's datagrams come from."""
    return NatBinding(of, source, 0, until, b"", 100, lambda data: data)


def test_binding_expires() -> None:
    """It is not told when it has expired (I10), nor when its key has (I2)."""
    table, own = NatBindingTable(), key("K1")
    table.put(binding(own, until=100))
    assert table.of(own, 99.9) is not None
    assert table.of(own, 100) is None
    own.until = 50
    assert table.of(own, 49.9) is not None
    assert table.of(own, 50) is None


def test_prune() -> None:
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
def test_both_ways_agree(puts: list[tuple[int, int]]) -> None:
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
