"""Failed logins: who must wait, for how long, and who must not."""

from __future__ import annotations

from broker.tables.login_throttle import AttemptTable


def fail(table: AttemptTable, times: int, now: float, who: str = "Ia", where: str = "s") -> None:
    """Guess so often at one moment, whether or not it is allowed."""
    for _ in range(times):
        table.begin(where, who, now)


class AttemptsTests:
    """The limit on failures (I23)."""

    def test_ten_a_minute(self) -> None:
        """Ten may fail within a minute; the next must wait."""
        table = AttemptTable()
        for second in range(10):
            assert table.wait("s", "Ia", second) == 0
            assert table.begin("s", "Ia", second) == (second == 9)
        assert table.wait("s", "Ia", 9) == 1
        assert table.wait("s", "Ia", 9.75) == 0.25
        assert table.wait("s", "Ia", 10) == 0

    def test_twice_as_long(self) -> None:
        """Each further failure doubles the wait, up to five minutes."""
        table = AttemptTable()
        fail(table, 9, 0)
        now, waits = 0.0, []
        for _ in range(12):
            assert not table.wait("s", "Ia", now)
            table.begin("s", "Ia", now)
            waits.append(table.wait("s", "Ia", now))
            now += waits[-1]
        assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]

    def test_forgotten(self) -> None:
        """A few failures are forgotten after a minute, many after ten."""
        table = AttemptTable()
        fail(table, 9, 0)
        fail(table, 9, 60.5)
        assert not table.wait("s", "Ia", 60.5)
        fail(table, 1, 61)
        assert table.wait("s", "Ia", 61) == 1
        fail(table, 1, 600)
        assert table.wait("s", "Ia", 600) == 2
        fail(table, 9, 1200.5)
        assert not table.wait("s", "Ia", 1200.5)

    def test_each_pair_by_itself(self) -> None:
        """Neither another source nor another identifier has to wait."""
        table = AttemptTable()
        fail(table, 30, 0)
        assert table.wait("s", "Ia", 0) == 300
        assert not table.wait("s", "Ib", 0)
        assert not table.wait("t", "Ia", 0)

    def test_right(self) -> None:
        """A right one forgets what went before."""
        table = AttemptTable()
        fail(table, 30, 0)
        table.right("s", "Ia")
        assert not table.wait("s", "Ia", 0)
        assert len(table) == 0

    def test_spared(self) -> None:
        """What was not checked after all doesn't count."""
        table = AttemptTable()
        fail(table, 10, 0)
        table.spare("s", "Ia")
        assert not table.wait("s", "Ia", 0)
        fail(table, 1, 0)
        assert table.wait("s", "Ia", 0) == 1
        table.spare("s", "nobody")

    def test_bounded(self) -> None:
        """It remembers so many pairs, and gives up the oldest (I15)."""
        table = AttemptTable(most=3)
        for who in "abcd":
            fail(table, 10, 0, who)
        assert len(table) == 3
        assert not table.wait("s", "a", 0)
        fail(table, 1, 1, "b")
        fail(table, 1, 1, "e")
        assert [bool(table.wait("s", who, 1)) for who in "bcd"] == [True, False, False]
        assert len(table) == 3
